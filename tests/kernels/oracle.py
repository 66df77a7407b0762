"""Comparisons that every op's tests share. The oracle is `<function>.reference` in float64."""

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

# dtype -> (forward, gradients): the largest RMS error relative to the exact result's RMS.
TOLERANCES = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (5e-3, 1e-2), torch.float16: (1e-3, 2e-3)}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return reproducible normal numbers."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def rms_ratio(got: Tensor, exact: Tensor) -> float:
    """Return the RMS of the error over the RMS of the exact values."""
    return ((got.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-30)).item()


def as_leaf(argument, frozen: bool = False):
    """Return a float tensor as a leaf that wants a gradient, strides kept; anything else as it is."""
    if not (isinstance(argument, Tensor) and argument.is_floating_point()):
        return argument
    return argument.detach().clone(memory_format=torch.preserve_format).requires_grad_(not frozen)


def outcome(function, arguments, grad=None, frozen=(), **options) -> list[Tensor | None]:
    """Return the output, then the gradient of each float argument (None where frozen) for upstream gradient `grad`."""
    leaves = [as_leaf(argument, index in frozen) for index, argument in enumerate(arguments)]
    y = function(*leaves, **options)
    y.backward((randn(*y.shape, seed=7, dtype=y.dtype) if grad is None else grad).to(y))
    return [y.detach(), *(leaf.grad for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point())]


def exact_outcome(function, arguments, grad=None, frozen=(), **options) -> list[Tensor | None]:
    """Return `outcome` of the definition in float64, on the very numbers of `arguments`."""
    doubles = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
    if grad is None:
        # the upstream gradient has to hold the rounded numbers the low-precision run gets
        with torch.no_grad():
            y = function.reference(*doubles, **options)
        grad = randn(*y.shape, seed=7, dtype=arguments[0].dtype).double()
    return outcome(function.reference, doubles, grad, frozen, **options)


def outputs(result) -> list[Tensor]:
    """Return what an op returned as a list."""
    return [result] if isinstance(result, Tensor) else list(result)


def assert_its_own(found: list[Tensor], given: list[Tensor]) -> None:
    """Assert that no tensor found is a view, holds more than its own numbers, or shares them with another."""
    others = [tensor.untyped_storage().data_ptr() for tensor in given if tensor.numel()]
    for tensor in found:
        assert not tensor._is_view()
        assert tensor._base is None
        if tensor.numel():
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            assert tensor.untyped_storage().data_ptr() not in others
            others.append(tensor.untyped_storage().data_ptr())


def assert_near_exact(function, arguments, grad=None, frozen=(), **options) -> None:
    """Assert that output and gradients have the right shapes and are within the tolerance of x's dtype."""
    forward, backward = TOLERANCES[arguments[0].dtype]
    got = outcome(function, arguments, grad, frozen, **options)
    exact = exact_outcome(function, arguments, grad, frozen, **options)
    assert len(got) == len(exact)
    assert got[0].dtype == arguments[0].dtype
    for index, (one, other) in enumerate(zip(got, exact, strict=True)):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.shape == other.shape
            assert rms_ratio(one, other) <= (backward if index else forward), f"output {index}"


def assert_one_compilation(function, arguments_for, dynamic, sizes=(2, 3, 5, 8, 13)) -> None:
    """Assert that one fullgraph compilation serves all sizes, forward and backward, with eager's numbers.

    `arguments_for(size)` makes the arguments; `dynamic[i]` names the dynamic dimension of argument i, if any.
    """
    torch._dynamo.reset()
    counters.clear()
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for size in sizes:
        arguments = [as_leaf(argument) for argument in arguments_for(size)]
        for argument, dim in zip(arguments, dynamic, strict=True):
            if dim is not None:
                torch._dynamo.mark_dynamic(argument, dim)
        y = compiled(*arguments)
        grad = randn(*y.shape, seed=3, dtype=y.dtype)
        y.backward(grad)
        expected = outcome(function, arguments_for(size), grad)
        got = [y.detach(), *(a.grad for a in arguments if isinstance(a, Tensor) and a.is_floating_point())]
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other)
    assert backend.frame_count == 1
    assert counters["aot_autograd"]["total"] == 1
