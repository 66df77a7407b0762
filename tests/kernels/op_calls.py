"""Arguments of every registered op and of every public function, for tests that hold for all of them."""

from collections.abc import Callable
from inspect import isfunction

import torch
from torch import Tensor

from polychrome import kernels
from polychrome.kernels.channel_gate.scale import channel_scale
from tests.kernels.augment_cases import MEAN, PARAMETERS, STD, images
from tests.kernels.oracle import randn

NAMESPACE = "polychrome::"
SHAPE, OUT, EXPERTS = (3, 4, 7, 6), 6, 3
GEOMETRY = ([1, 1], [1, 1, 1, 1], [1, 1], 2)


def registered() -> list[str]:
    """Return the names of all our ops, as torch knows them."""
    names = (name for name in torch._C._dispatch_get_all_op_names() if name.startswith(NAMESPACE))
    return sorted(name.removeprefix(NAMESPACE) for name in names)


def differentiable() -> list[str]:
    """Return the names of the ops whose gradient is an op of its own."""
    names = set(registered())  # torch lists thousands
    return sorted(name for name in names if f"{name}_backward" in names)


def public() -> list[Callable]:
    """Return the functions of `kernels` that compute, those with a definition."""
    found = [getattr(kernels, name) for name in kernels.__all__]
    return [function for function in (*found, channel_scale) if isfunction(function) and hasattr(function, "reference")]


def function_arguments(name: str, dtype: torch.dtype, layout=torch.contiguous_format) -> tuple[list, dict]:
    """Return arguments of a public function, x first, and options."""
    x = randn(*SHAPE, dtype=dtype).to(memory_format=layout)
    batch, channels, height, width = SHAPE

    def numbers(*shape, seed):
        return randn(*shape, seed=seed, dtype=dtype)

    experts = numbers(EXPERTS, OUT, channels // 2, 3, 3, seed=1)
    turned = numbers(EXPERTS, channels, OUT // 2, 3, 3, seed=1)
    return {
        "augment": ([images()[:4], PARAMETERS["crops"]], {"size": 8, "mean": MEAN, "std": STD, "dtype": dtype}),
        "channel_gate": ([x, *_layers(numbers)], {}),
        "channel_scale": ([x, numbers(batch, channels, seed=1)], {}),
        "channel_stats": ([x, torch.tensor([[True] * channels, [True, False] * 2, [False, True, True, True]])], {}),
        "dynamic_conv2d": (
            [x, experts, randn(batch, EXPERTS, seed=2).to(dtype), numbers(EXPERTS, OUT, seed=3)],
            {"padding": 1, "groups": 2},
        ),
        "dynamic_conv1d": (
            [x.flatten(2), experts.flatten(3), randn(batch, EXPERTS, seed=2).to(dtype), numbers(EXPERTS, OUT, seed=3)],
            {"padding": 1, "groups": 2},
        ),
        "dynamic_conv3d": (
            [x[:, :, None], experts[:, :, :, None], randn(batch, EXPERTS, seed=2).to(dtype), None],
            {"padding": 1, "groups": 2},
        ),
        "per_sample_conv1d": (
            [x.flatten(2), numbers(batch, OUT, channels // 2, 5, seed=1), numbers(batch, OUT, seed=2)],
            {"padding": "same", "groups": 2},
        ),
        "per_sample_conv3d": (
            [x[:, :, None], numbers(batch, OUT, channels // 2, 1, 3, 3, seed=1), numbers(batch, OUT, seed=2)],
            {"padding": (0, 1, 1), "groups": 2},
        ),
        "dynamic_conv_transpose2d": (
            [x, turned, randn(batch, EXPERTS, seed=2).to(dtype), numbers(EXPERTS, OUT, seed=3)],
            {"padding": 1, "groups": 2},
        ),
        "per_sample_conv_transpose2d": (
            [x, numbers(batch, channels, OUT // 2, 3, 3, seed=1), numbers(batch, OUT, seed=2)],
            {"padding": 1, "groups": 2},
        ),
        "modulated_conv2d": (
            [x, numbers(OUT, channels, 3, 3, seed=1), numbers(batch, channels, seed=2)],
            {"padding": 1},
        ),
        "per_sample_conv2d": (
            [x, numbers(batch, OUT, channels // 2, 3, 3, seed=1), numbers(batch, OUT, seed=2)],
            {"padding": 1, "groups": 2},
        ),
        "spatial_attention": ([x, numbers(1, 2, 3, 3, seed=1), numbers(1, seed=2)], {}),
        "spatial_gate": ([x, numbers(batch, 1, height, width, seed=1)], {}),
    }[name]


def op_arguments(name: str, dtype: torch.dtype, layout=torch.contiguous_format, backend: str = "auto") -> list:
    """Return arguments of the op `polychrome::<name>`; a backward op's are what its forward op leaves."""
    forward = name.removesuffix("_backward")
    if forward == "augment":
        (source, crops), options = function_arguments("augment", dtype)
        beside = [None] * (len(PARAMETERS) - 2)
        return [source, None, crops, *beside, options["mean"], options["std"], 8, 8, dtype, backend]
    given, _ = function_arguments(forward.removesuffix("_affine"), dtype, layout)
    if "conv" in name:
        given = [*given, *GEOMETRY]
    if forward == "channel_gate":
        given = [*given, "sigmoid"]
    if forward.endswith("_affine"):
        given = [*given, randn(OUT, dtype=dtype), randn(OUT, seed=1, dtype=dtype), True]
    if name == forward:
        return [*given, backend]
    return [*_backward_arguments(forward, given, backend), backend]


def _backward_arguments(forward: str, given: list, backend: str) -> list:
    outputs = getattr(torch.ops.polychrome, forward)(*given, backend)
    y, *saved = outputs if isinstance(outputs, tuple) else (outputs,)
    grad = randn(*y.shape, seed=9, dtype=y.dtype).to(y.device).contiguous(memory_format=_layout(y))
    x = given[0]
    tensors = [argument for argument in given if isinstance(argument, Tensor)]
    needed = [True] * len(tensors)
    if forward == "channel_stats":
        return [grad, given[1], saved[0], x.shape[1], _layout(x) == torch.channels_last]
    if forward == "channel_gate":
        return [grad, *tensors, *saved, "sigmoid", needed]
    if forward == "spatial_attention":
        return [grad, *tensors, *saved, needed]
    if forward == "per_sample_conv2d":
        return [grad, *tensors[:2], *GEOMETRY, needed]
    if forward == "dynamic_conv2d":
        return [grad, *tensors, *GEOMETRY, needed]
    return [grad, *tensors, needed]  # a product's


def _layers(numbers) -> list[Tensor]:
    channels = SHAPE[1]
    return [numbers(2, channels, seed=1), numbers(2, seed=2), numbers(channels, 2, seed=3), numbers(channels, seed=4)]


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
