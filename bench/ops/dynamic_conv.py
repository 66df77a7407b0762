"""Benchmark of dynamic convolution: the timed calls and the baselines.

A way (implementation) is `(x, experts, mixing, stride, padding, dilation, groups) -> y`, differentiable. mixing is
float32; a way rounds it to x's dtype where it would promote x.
"""

import os
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ops import availability
from polychrome import kernels
from polychrome.kernels.dynamic_conv.problem import Problem
from polychrome.kernels.dynamic_conv.reference import mix

EXPERTS = 4
BATCH = {"cuda": 64, "cpu": 16}
LARGE_IMAGES = {"cuda": 64, "cpu": 4}  # the batch of images of 128 pixels and more
OTHER_BATCHES = {"cuda": (1, 256), "cpu": (1,)}
GROWING_BATCHES = {"cuda": (1, 4, 16, 64, 256), "cpu": (1, 2, 4, 8, 16)}
GROWING_EXPERTS = {"cuda": (1, 2, 4, 8, 16), "cpu": (1, 2, 4, 8)}
GROWING_SIZES = {"cuda": (7, 14, 28, 56), "cpu": (4, 7, 10, 14)}

# float32 in torch's default layout; bfloat16 in the layout of the matrix units.
LAYOUTS = {torch.float32: torch.contiguous_format, torch.bfloat16: torch.channels_last}


class Shape(NamedTuple):
    """A square convolution without bias."""

    name: str
    batch: int
    in_channels: int
    out_channels: int
    size: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    groups: int = 1
    experts: int = EXPERTS

    @property
    def geometry(self) -> tuple[int, int, int, int]:
        """Stride, padding, dilation and groups."""
        return self.stride, self.padding, 1, self.groups

    def problem(self, dtype: torch.dtype) -> Problem:
        """Return the description of this call for the kernels."""
        pairs = [(value,) * count for value, count in ((self.kernel, 2), (self.stride, 2), (self.padding, 4), (1, 2))]
        sizes = (self.batch, self.in_channels, self.out_channels, self.size, self.size)
        return Problem(*sizes, *pairs, self.groups, self.experts, dtype)


class Growth(NamedTuple):
    """A call of a series in which one size grows: "batch", "experts" or "size", the side of the image."""

    along: str
    value: int
    shape: Shape

    @property
    def key(self) -> str:
        """The name of this call among all series."""
        return f"{self.along} {self.value}"


class Data(NamedTuple):
    """The leaves of one call, and the gradient of its output."""

    x: Tensor
    experts: Tensor
    mixing: Tensor
    grad: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """The tensors that get gradients."""
        return self.x, self.experts, self.mixing

    def to(self, dtype: torch.dtype) -> "Data":
        """Return the same numbers in another dtype and its layout; mixing is float32 unless dtype is float64."""
        layout = LAYOUTS.get(dtype, torch.contiguous_format)
        x, grad = (t.detach().to(dtype).contiguous(memory_format=layout) for t in (self.x, self.grad))
        mixing = self.mixing.detach().to(torch.float64 if dtype == torch.float64 else torch.float32).clone()
        leaves = (x.clone(), self.experts.detach().to(dtype).clone(), mixing)
        return Data(*(leaf.requires_grad_() for leaf in leaves), grad)


def shapes_on(device: str) -> list[Shape]:
    """Return the shapes to time on "cuda" or "cpu", which has smaller batches."""
    batch, few = BATCH[device], LARGE_IMAGES[device]
    named = "" if few == batch else f" b{few}"
    small = [Shape(f"C256 14x14 b{other}", other, 256, 256, 14) for other in OTHER_BATCHES[device]]
    return [
        Shape("C64 56x56", batch, 64, 64, 56),
        Shape("C128 28x28", batch, 128, 128, 28),
        Shape("C256 14x14", batch, 256, 256, 14),
        Shape("C512 7x7", batch, 512, 512, 7),
        Shape(f"C32 128x128{named}", few, 32, 32, 128),
        Shape(f"3->32 256x256{named}", few, 3, 32, 256),
        Shape(f"3->64 k7s2 224{named}", few, 3, 64, 224, kernel=7, stride=2, padding=3),
        Shape("1x1 C256 28x28", batch, 256, 256, 28, kernel=1, padding=0),
        Shape("dw C256 28x28", batch, 256, 256, 28, groups=256),
        Shape("C128 56x56 s2", batch, 128, 128, 56, stride=2),
        *small,
    ]


def growths_on(device: str) -> list[Growth]:
    """Return the series to time on "cuda" or "cpu": C256 14x14 with one size varied at a time."""
    series = {"batch": GROWING_BATCHES[device], "experts": GROWING_EXPERTS[device], "size": GROWING_SIZES[device]}
    usual = Shape("C256 14x14", BATCH[device], 256, 256, 14)
    return [
        Growth(along, value, usual._replace(**{"name": f"{along} {value}", along: value}))
        for along, values in series.items()
        for value in values
    ]


def data_of(shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> Data:
    """Return random data for a call: normal numbers, and a softmax as the mixing."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, device=device)

    fan_in = shape.in_channels // shape.groups * shape.kernel**2
    x = normal(shape.batch, shape.in_channels, shape.size, shape.size)
    experts = normal(shape.experts, shape.out_channels, shape.in_channels // shape.groups, shape.kernel, shape.kernel)
    mixing = normal(shape.batch, shape.experts).softmax(1)
    grad = normal(shape.batch, shape.out_channels, *shape.problem(dtype).out_size)
    return Data(x, experts * fan_in**-0.5, mixing, grad).to(dtype)


def ours(x, experts, mixing, *geometry):
    """Call this project's op."""
    return kernels.dynamic_conv2d(x, experts, mixing, None, *geometry)


def naive(x, experts, mixing, *geometry):
    """Mix the weights, then one grouped convolution: the definition."""
    return kernels.dynamic_conv2d.reference(x, experts, mixing, None, *geometry)


def stacked(x, experts, mixing, stride, padding, dilation, groups):
    """Convolve with every expert in one call, then add the outputs up by their weights."""
    count = len(experts)
    # The channels of a group lie together: [groups, experts, out/groups] in both weights and outputs.
    weight = experts.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 2)
    y = F.conv2d(x, weight, None, stride, padding, dilation, groups).unflatten(1, (groups, count, -1))
    return torch.einsum("bk,bgkohw->bgohw", mixing.to(x.dtype), y).flatten(1, 2)


def loop(x, experts, mixing, stride, padding, dilation, groups):
    """Convolve sample by sample."""
    samples = zip(x.split(1), mix(mixing, experts), strict=True)
    return torch.cat([F.conv2d(one, weight, None, stride, padding, dilation, groups) for one, weight in samples])


def unfold(x, experts, mixing, stride, padding, dilation, groups):
    """Lay the patches out as columns, then one batched matrix product."""
    weight = mix(mixing, experts)
    kernel = weight.shape[-2:]
    columns = F.unfold(x, kernel, dilation, padding, stride).unflatten(1, (groups, -1))
    y = weight.flatten(2).unflatten(1, (groups, -1)) @ columns
    height, width = (
        (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        for size, taps in zip(x.shape[2:], kernel, strict=True)
    )
    return y.flatten(1, 2).unflatten(2, (height, width))


def vmap(x, experts, mixing, stride, padding, dilation, groups):
    """torch.vmap of F.conv2d over samples and their weights."""

    def one(sample, weight):
        return F.conv2d(sample[None], weight, None, stride, padding, dilation, groups)[0]

    return torch.vmap(one)(x, mix(mixing, experts))


def timm(x, experts, mixing, *geometry):
    """timm's CondConv2d with the same experts."""
    layer = _condconv(x.shape[1], experts.shape[1], tuple(experts.shape[3:]), *geometry, len(experts))
    return torch.func.functional_call(layer, {"weight": experts.flatten(1)}, (x, mixing.to(x.dtype)))


def static(x, experts, mixing, *geometry):
    """A plain convolution with a single expert: a lower limit of the time, not a baseline to beat."""
    return F.conv2d(x, experts.squeeze(0), None, *geometry)


BASELINES: dict[str, Callable] = {
    "naive": naive,
    "compiled": availability.compiled(naive),
    "stacked": stacked,
    "loop": loop,
    "unfold": unfold,
    "vmap": vmap,
    "timm": timm,
}


def reason_to_skip(name: str, problem: Problem, device: str) -> str | None:
    """Return why a baseline cannot run `problem` on "cuda" or "cpu", or is left out there; None if it can."""
    reason = availability.reason_to_skip(name, device)
    if reason is not None:
        return reason
    # Forward keeps these values, and backward makes their gradient.
    needed = 2 * problem.dtype.itemsize * problem.batch * problem.pixels * _values_per_pixel(name, problem)
    free = _free_bytes(device)
    if needed > free / 2:
        return f"needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    return None


def _values_per_pixel(name: str, problem: Problem) -> int:
    if name == "unfold":
        return problem.in_channels * problem.kernel[0] * problem.kernel[1]
    return problem.out_channels * (problem.experts if name == "stacked" else 1)


def _free_bytes(device: str) -> int:
    if device == "cpu":
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


@cache
def _condconv(in_channels, out_channels, kernel, stride, padding, dilation, groups, experts):
    from timm.layers import CondConv2d

    with torch.device("meta"):
        return CondConv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, False, experts)
