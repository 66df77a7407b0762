"""Random calls of every public function give what its definition does in float64: any geometry, layout and dtype."""

import random

import pytest
import torch
from torch import Tensor

from polychrome.kernels import use_backend
from tests.grids import grid
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.layouts import backwards, channels_last, elsewhere, with_gaps
from tests.kernels.op_calls import public
from tests.kernels.oracle import TOLERANCES, randn

FUNCTIONS = {function.__name__: function for function in public() if function.__name__ != "augment"}
DTYPES = {"auto": [*TOLERANCES], "triton": [torch.float32, torch.float16]}  # the interpreter's bfloat16 is wrong
SLACK = 4  # the tolerances are those of sums of many numbers, whose errors cancel


def convolution(rng: random.Random, name: str) -> tuple[list, dict]:
    """Return arguments of a convolution that has an output, and its options."""
    dims, transposed, dynamic = int(name[-2]), "transpose" in name, name.startswith("dynamic")
    batch, experts, groups = rng.choice([1, 2, 3, 5]), rng.choice([1, 2, 4, 9]), rng.choice([1, 1, 2, 3])
    inputs, outputs = rng.choice([1, 3, 8, 17]), rng.choice([1, 2, 5, 16])
    if rng.random() < 0.2:
        groups, inputs, outputs = rng.choice([8, 20]), 1, rng.choice([1, 2])  # depthwise
    kernel = [rng.choice([1, 2, 3, 3, 5] if dims < 3 else [1, 2, 3]) for _ in range(dims)]
    stride, dilation = (tuple(rng.choice([1, 1, most]) for _ in kernel) for most in (3, 2))
    before, after = ([rng.randint(0, 2) for _ in kernel] for _ in range(2))
    options = {"stride": stride, "dilation": dilation, "groups": groups}
    if transposed:
        options["padding"] = tuple(before)
        options["output_padding"] = tuple(map(rng.randrange, map(max, stride, dilation)))
        reach = [1 + 2 * each for each in before]
    else:
        if rng.random() < 0.2:
            options |= {"stride": 1, "padding": "same"}
            before = after = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        elif rng.random() < 0.5:
            options["padding"] = tuple(each for pair in zip(before[::-1], after[::-1], strict=True) for each in pair)
        else:
            options["padding"], after = tuple(before), before
        options["padding_mode"] = mode = rng.choice(["zeros", "zeros", "reflect", "replicate", "circular"])
        reach = [d * (k - 1) + 1 - b - a for d, k, b, a in zip(dilation, kernel, before, after, strict=True)]
        if mode in ("reflect", "circular"):
            reach = [max(least, b + 1, a + 1) for least, b, a in zip(reach, before, after, strict=True)]
    x = randn(batch, groups * inputs, *(max(1, least) + rng.randint(0, 4) for least in reach), dtype=torch.float64)
    channels = (groups * inputs, outputs) if transposed else (groups * outputs, inputs)
    weight = randn(experts if dynamic else batch, *channels, *kernel, seed=1, dtype=torch.float64)
    bias = randn(len(weight), groups * outputs, seed=2, dtype=torch.float64) if rng.random() < 0.5 else None
    if not dynamic:
        return [x, weight, bias], options
    mixing = randn(batch, experts, seed=3, dtype=torch.float64)
    if name == "dynamic_conv2d" and rng.random() < 0.2:  # by tap
        mixing, bias = randn(batch, experts, *kernel, seed=3, dtype=torch.float64), None
    if name == "dynamic_conv2d" and rng.random() < 0.2:
        scale, shift = (randn(groups * outputs, seed=seed) for seed in (4, 5))
        options |= {"scale": scale, "shift": shift}
    return [x, weight, mixing, bias], options


def on_maps(rng: random.Random, name: str) -> tuple[list, dict]:
    """Return arguments of a function of feature maps, and its options."""
    batch, channels, hidden, side = (rng.choice(sizes) for sizes in ([1, 2, 3], [2, 5, 16, 33], [1, 4], [3, 5, 7]))
    height, width = rng.randint(1, 9), rng.randint(1, 9)

    def numbers(*shape: int, seed: int = 1) -> Tensor:
        return randn(*shape, seed=seed, dtype=torch.float64)

    def some(*shape: int) -> Tensor | None:
        return numbers(*shape, seed=2) if rng.random() < 0.5 else None

    x = numbers(batch, channels, height, width, seed=0)
    if name == "channel_gate":
        layers = [numbers(hidden, channels), some(hidden)] if rng.random() < 0.7 else [None, None]
        last = numbers(channels, hidden if layers[0] is not None else channels, seed=3)
        return [x, *layers, last, some(channels)], {"gate": rng.choice(["sigmoid", "softmax"])}
    if name == "channel_stats":
        mask = numbers(batch, channels) > 0
        mask[:, rng.randrange(channels)] = True
        return [x, mask if rng.random() < 0.7 else None], {}
    if name == "modulated_conv2d":
        options = {"stride": rng.choice([1, 2]), "padding": rng.choice([0, 1]), "demodulate": rng.random() < 0.7}
        x = numbers(batch, channels, height + 2, width + 2, seed=0)
        return [x, numbers(rng.choice([1, 7]), channels, 3, 3), 2 + numbers(batch, channels)], options
    beside = {
        "channel_scale": lambda: [numbers(batch, channels)],
        "spatial_attention": lambda: [numbers(1, 2, side, side) / side, some(1)],
        "spatial_gate": lambda: [numbers(batch, 1, height, width)],
    }
    return [x, *beside[name]()], {}


LAYOUTS = [lambda tensor: tensor, with_gaps, backwards, elsewhere, channels_last]


def assert_call_is_near_the_definition(name: str, backend: str, seed: int) -> None:
    rng = random.Random(f"{name} {seed}")
    given, options = (convolution if "conv" in name and "modulated" not in name else on_maps)(rng, name)
    dtype = rng.choice(DTYPES[backend])
    at = [place for place, each in enumerate(given) if isinstance(each, Tensor) and each.is_floating_point()]
    exact, ours = list(given), list(given)
    for place in at:
        rounded = rng.choice(LAYOUTS)(given[place].to(dtype))
        ours[place] = rounded.requires_grad_(rng.random() < 0.8 or place == 0)
        exact[place] = rounded.detach().double().requires_grad_()
    wanted = FUNCTIONS[name].reference(*exact, **options)
    grad = rng.choice(LAYOUTS)(randn(*wanted.shape, seed=6, dtype=dtype))
    gradients = torch.autograd.grad(wanted, [exact[place] for place in at], grad.double())
    with use_backend(backend):
        y = FUNCTIONS[name](*ours, **options)
        y.backward(grad)
    said = f"{name}, seed {seed}, {dtype}, {options}, {[each.shape for each in given if each is not None]}"
    assert (y.shape, y.dtype) == (wanted.shape, dtype), said
    forward, backward = TOLERANCES[dtype]
    assert_near(y, wanted, forward, wanted.square().mean().sqrt(), said)
    largest = max(each.square().mean().sqrt() for each in gradients)  # a small gradient is a difference of such numbers
    for place, gradient in zip(at, gradients, strict=True):
        assert (ours[place].grad is not None) == ours[place].requires_grad, said
        if ours[place].requires_grad:
            assert_near(ours[place].grad, gradient, backward, largest, f"gradient of {place}: {said}")


def assert_near(got: Tensor, exact: Tensor, tolerance: float, size: Tensor, said: str) -> None:
    """Assert that the RMS of the error is small beside numbers of a size."""
    assert got.shape == exact.shape, said
    error = (got.double() - exact).square().mean().sqrt()
    assert error <= SLACK * tolerance * size, f"{error:.2g} beside {size:.2g}: {said}"


every = grid(
    where=lambda name, backend: backend == "auto" or "3d" not in name,
    name=list(FUNCTIONS),
    backend={"auto": "auto", "triton": pytest.param("triton", marks=needs_interpreter)},
)


@every
def test_a_random_call_is_near_the_definition(name, backend):
    for seed in range(20 if backend == "auto" else 3):
        assert_call_is_near_the_definition(name, backend, seed)


@pytest.mark.slow
@every
def test_each_of_many_random_calls_is_near_the_definition(name, backend):
    for seed in range(20, 2000 if backend == "auto" else 60):
        assert_call_is_near_the_definition(name, backend, seed)
