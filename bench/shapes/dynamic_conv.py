"""The calls that are timed: their sizes, data and memory layouts."""

from typing import NamedTuple

import torch
from torch import Tensor

from polychrome.kernels.dynamic_conv.problem import Problem

EXPERTS = 4
BATCH = {"cuda": 64, "cpu": 16}
LARGE_IMAGES = {"cuda": 64, "cpu": 4}  # the batch of images of 128 pixels and more
OTHER_BATCHES = {"cuda": (1, 256), "cpu": (1,)}
GROWING_BATCHES = {"cuda": (1, 4, 16, 64, 256), "cpu": (1, 2, 4, 8, 16)}
GROWING_EXPERTS = {"cuda": (1, 2, 4, 8, 16), "cpu": (1, 2, 4, 8)}
GROWING_SIZES = {"cuda": (7, 14, 28, 56), "cpu": (4, 7, 10, 14)}

# float32 in torch's own layout, as it comes; 16 bits in the one that the matrix units want.
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
        """Return what the kernels are told of this call."""
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
        """What tells it from the others."""
        return f"{self.along} {self.value}"


class Data(NamedTuple):
    """The leaves of one call, and the gradient of its output."""

    x: Tensor
    experts: Tensor
    mixing: Tensor
    grad: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """What gradients are taken of."""
        return self.x, self.experts, self.mixing

    def to(self, dtype: torch.dtype) -> "Data":
        """Return the same numbers in another dtype, in its layout; mixing is float32 unless dtype is float64."""
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
    """Return the series to time on "cuda" or "cpu": C256 14x14, of which one size takes each of its values."""
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
