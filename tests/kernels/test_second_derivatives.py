"""Derivatives of gradients: gradient penalties, R1 and meta-learning differentiate what the backward ops return."""

import random

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from polychrome.kernels import dynamic_conv2d, library, spatial_attention, use_backend
from polychrome.kernels.dynamic_conv import api
from tests.grids import grid, usual
from tests.kernels.conv_cases import ARGUMENTS, CASES, WIDE_CASES, wide_arguments
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.op_calls import differentiable, function_arguments, op_arguments, public
from tests.kernels.oracle import TOLERANCES, as_leaf, outputs, randn, rms_ratio

FUNCTIONS = {function.__name__: function for function in public() if function.__name__ in differentiable()}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
both = pytest.mark.parametrize("function", ARGUMENTS, ids=lambda function: function.__name__)


@pytest.fixture
def mixed_inside(monkeypatch):
    """Have `dynamic_conv2d` call its op, which mixes, also where it would mix outside on this CPU."""
    monkeypatch.setattr(api, "keeps_the_mix", lambda *_: False)


def floats(arguments) -> list[Tensor]:
    return [each for each in arguments if isinstance(each, Tensor) and each.is_floating_point()]


def penalised(function, arguments, used=None, wanted=None, rounded=None, **options) -> list[Tensor | None]:
    """Return the derivatives of a sum of the gradients' products with given numbers, which dtype `rounded` has.

    The gradients of arguments `used` (places among the float ones) enter the sum; the result is the derivative for the
    upstream gradient and for the arguments `wanted`.
    """
    rounded = rounded or arguments[0].dtype
    leaves = [as_leaf(argument) for argument in arguments]
    own = floats(leaves)
    used = range(len(own)) if used is None else used
    wanted = range(len(own)) if wanted is None else wanted
    y = function(*leaves, **options)
    grad = randn(*y.shape, seed=7, dtype=rounded).to(y).requires_grad_()
    first = torch.autograd.grad(y, [own[place] for place in used], grad, create_graph=True)
    total = sum((each * randn(*each.shape, seed=11, dtype=rounded).to(each)).sum() for each in first)
    return list(torch.autograd.grad(total, [grad, *(own[place] for place in wanted)], allow_unused=True))


def exactly(function, arguments, **options) -> list[Tensor | None]:
    """Return `penalised` of the definition in float64, with the numbers that the arguments' dtype has."""
    doubles = [each.double() if isinstance(each, Tensor) and each.is_floating_point() else each for each in arguments]
    return penalised(function.reference, doubles, rounded=arguments[0].dtype, **options)


def assert_near(got, exact, tolerance: float) -> None:
    for place, (one, other) in enumerate(zip(got, exact, strict=True)):
        zero = other is None or not other.any()
        assert zero or rms_ratio(one, other) <= tolerance, f"derivative {place}: {rms_ratio(one, other)}"
        assert not zero or one is None or not one.any()


@grid(function=list(FUNCTIONS.values()), called=["function", "op"])
def test_gradgradcheck(function, called, mixed_inside):
    arguments, options = function_arguments(function.__name__, torch.float64)
    if called == "op":
        arguments, options = op_arguments(function.__name__, torch.float64), {}
        op = getattr(torch.ops.polychrome, function.__name__)
        function = lambda *given: outputs(op(*given))[0]  # noqa: E731
    leaves = [as_leaf(argument) for argument in arguments]
    assert torch.autograd.gradgradcheck(lambda *given: function(*given, **options), leaves, fast_mode=True)


@pytest.mark.parametrize("case", ["uneven_pairs", "same_even_dilated", "groups", "depthwise", "one_pixel_out"])
@both
def test_gradgradcheck_of_every_geometry(function, case, mixed_inside):
    arguments, options = ARGUMENTS[function](case, torch.float64)
    leaves = [argument.double().requires_grad_() for argument in arguments]
    assert torch.autograd.gradgradcheck(lambda *given: function(*given, **options), leaves, fast_mode=True)


@every_function
def test_third_derivatives(function, mixed_inside):
    arguments, options = function_arguments(function.__name__, torch.float64)
    leaves = [as_leaf(argument) for argument in arguments]

    def gradient(*given):
        y = function(*given, **options)
        return torch.autograd.grad(y.square().sum(), floats(given), create_graph=True)

    assert torch.autograd.gradgradcheck(gradient, leaves, fast_mode=True)


@grid(function=list(FUNCTIONS.values()), dtype=list(TOLERANCES))
def test_every_dtype_is_as_near_as_the_definition(function, dtype, mixed_inside):
    arguments, options = function_arguments(function.__name__, dtype)
    exact = exactly(function, arguments, **options)
    got, definition = (penalised(f, arguments, **options) for f in (function, function.reference))
    for one, other, truth in zip(got, definition, exact, strict=True):
        assert (one is None) == (other is None) == (truth is None)
        if one is not None:
            assert one.dtype == other.dtype
            assert rms_ratio(one, truth) <= max(2 * rms_ratio(other, truth), 1e-6)


@pytest.mark.parametrize("seed", range(24))
@every_function
def test_any_gradients_may_be_used_for_any_others(function, seed, mixed_inside):
    """A penalty on one gradient alone, arguments that are constants: None or zero where nothing depends."""
    arguments, options = function_arguments(function.__name__, torch.float64)
    rng, places = random.Random(seed), range(len(floats(arguments)))
    used, wanted = (rng.sample(places, rng.randint(1, len(places))) for _ in range(2))
    got = penalised(function, arguments, used, wanted, **options)
    exact = penalised(function.reference, arguments, used, wanted, **options)
    assert_near(got, exact, 1e-12)


@needs_interpreter
@grid(
    strength=1,
    case=usual(CASES, "uneven_pairs", "same_even_dilated", "groups", "one_by_one", "one_channel"),
    function=list(ARGUMENTS),
)
def test_kernels_are_exact_to_float32(function, case):
    arguments, options = ARGUMENTS[function](case)
    with use_backend("triton"):
        assert_near(penalised(function, arguments, **options), exactly(function, arguments, **options), 1e-5)


@needs_interpreter
@pytest.mark.parametrize("case", usual(WIDE_CASES, "strided_dilated", "few_pixels"))
def test_matrix_kernels_are_exact_to_float32(case):
    arguments, options = wide_arguments(case)
    with use_backend("triton"):
        got = penalised(dynamic_conv2d, arguments, **options)
    assert_near(got, exactly(dynamic_conv2d, arguments, **options), 1e-5)


@needs_interpreter
@grid(strength=1, function=list(FUNCTIONS.values()), layout=[torch.contiguous_format, torch.channels_last])
def test_kernels_of_every_op_in_every_layout(function, layout):
    arguments, options = function_arguments(function.__name__, torch.float32, layout)
    exact = exactly(function, arguments, **options)
    with use_backend("triton"):
        for _ in range(3):  # the third call of a key runs the program that the second has written
            assert_near(penalised(function, arguments, **options), exact, 1e-5)


@every_function
def test_autocast_changes_no_derivative_of_float32_gradients(function, mixed_inside):
    """Backward and its derivative are computed as forward was, wherever they are called."""
    arguments, options = function_arguments(function.__name__, torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        plain = penalised(function, arguments, **options)

    def forward(*leaves, **options):
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            return function(*leaves, **options)

    with torch.autocast("cpu", torch.bfloat16):
        cast = penalised(forward, arguments, **options)
    for one, other in zip(plain, cast, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@both
def test_an_empty_batch_has_zero_derivatives(function):
    (x, *rest), options = ARGUMENTS[function]("padded", torch.float64)
    shared = (True, False, True) if function is dynamic_conv2d else (False, False)
    rest = [each.double() if keep else each[:0].double() for each, keep in zip(rest, shared, strict=True)]
    _, *derivatives = penalised(function, [x[:0], *rest], **options)
    for derivative, argument in zip(derivatives, [x[:0], *rest], strict=True):
        assert derivative is None or (derivative.shape == argument.shape and not derivative.any())


@grid(strength=1, function=list(FUNCTIONS.values()), layout=[torch.contiguous_format, torch.channels_last])
def test_opcheck_of_backward(function, layout):
    name = f"{function.__name__}_backward"
    arguments = [as_leaf(each) for each in op_arguments(name, torch.float32, layout)]
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if function is spatial_attention:
        checks.remove("test_aot_dispatch_dynamic")  # torch's own F.conv2d has no second derivative at symbolic sizes
    torch.library.opcheck(getattr(torch.ops.polychrome, name).default, tuple(arguments), test_utils=checks)


@every_function
def test_a_gradient_that_nobody_asked_for_is_not_made(function, mixed_inside, monkeypatch):
    """`torch.autograd.grad(y, x)` of a penalty, a deblurring or an attack leaves the weights' gradients out."""
    name, seen = f"{function.__name__}_backward", []
    body = library._bodies[name]
    monkeypatch.setitem(library._bodies, name, lambda *given: seen.append(given[-2]) or body(*given))
    arguments, options = function_arguments(function.__name__, torch.float64)
    leaves = [as_leaf(argument) for argument in arguments]
    own = floats(leaves)
    y = function(*leaves, **options)
    every = torch.autograd.grad(y.square().sum(), own, retain_graph=True)
    (y.detach() * function(*leaves, **options)).sum().mul(2).backward()
    for place, (leaf, one) in enumerate(zip(own, every, strict=True)):
        assert torch.equal(leaf.grad, one)
        seen.clear()
        inner = leaf.clone()  # no leaf of autograd: the engine is asked in another way
        for asked_for, changed in ((leaf, leaves), (inner, [inner if each is leaf else each for each in leaves])):
            (alone,) = torch.autograd.grad(function(*changed, **options).square().sum(), asked_for)
            assert torch.equal(alone, one)
        for needed in seen:
            assert not isinstance(needed, list) or needed == [other == place for other in range(len(needed))]
    assert len(seen) == 2


WAYS = {
    "backward": lambda call, own: call(*own).backward(),
    "some inputs of backward": lambda call, own: [
        torch.autograd.backward(call(*own), inputs=[leaf], retain_graph=True) for leaf in own
    ],
    "checkpoint": lambda call, own: checkpoint(call, *own, use_reentrant=False).backward(),
    "reentrant checkpoint": lambda call, own: checkpoint(call, *own, use_reentrant=True).backward(),
    "hooks on what is no leaf": lambda call, own: _with_hooks(call, own),
    "a gradient used by two": lambda call, own: (0.5 * (call(*own) + call(*(2 * each / 2 for each in own)))).backward(),
}


def _with_hooks(call, own) -> None:
    inner = [leaf.clone() for leaf in own]
    for leaf, each in zip(own, inner, strict=True):
        each.register_hook(lambda grad, leaf=leaf: setattr(leaf, "grad", grad))
    torch.autograd.grad(call(*inner), own)


@grid(function=list(FUNCTIONS.values()), way=list(WAYS))
def test_a_gradient_arrives_in_every_way_of_asking(function, way, mixed_inside):
    arguments, options = function_arguments(function.__name__, torch.float64)

    def gradients(function, way):
        leaves = [as_leaf(argument) for argument in arguments]
        own = floats(leaves)

        def call(*given):
            remaining = iter(given)
            whole = [next(remaining) if each in places else leaves[each] for each in range(len(leaves))]
            return function(*whole, **options).square().sum()

        places = [place for place, each in enumerate(leaves) if any(each is one for one in own)]
        WAYS[way](call, own)
        return [leaf.grad for leaf in own]

    for one, other in zip(gradients(function, way), gradients(function.reference, "backward"), strict=True):
        torch.testing.assert_close(one, other)
