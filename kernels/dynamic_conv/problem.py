"""The sizes that decide how a convolution is run, and its least bytes and multiply-adds."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from polychrome.kernels.checks import as_int


class Geometry(NamedTuple):
    """How kernels go over an image, in the order and form of the ops' arguments.

    stride, dilation: of rows and columns. padding: top, bottom, left, right.
    """

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    def output_size(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """Return (height, width) of the convolution of an image of `size`; not positive where `kernel` does not fit."""
        stride, (top, bottom, left, right), dilation, _ = self
        height = (size[0] + top + bottom - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
        width = (size[1] + left + right - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
        return height, width

    def input_size(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """Return (height, width) of the smallest image whose convolution has this `size`."""
        stride, (top, bottom, left, right), dilation, _ = self
        height = (size[0] - 1) * stride[0] - top - bottom + dilation[0] * (kernel[0] - 1) + 1
        width = (size[1] - 1) * stride[1] - left - right + dilation[1] * (kernel[1] - 1) + 1
        return height, width

    def input_shape(self, y: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
        """Return [batch, in_channels, height, width] of the smallest image whose convolution has y's shape."""
        return y.shape[0], weight.shape[2] * self.groups, *self.input_size(y.shape[2:], weight.shape[3:])

    def output_shape(self, x: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
        """Return the output's [batch, out_channels, height, width]; weight is [.., out, in/groups, kh, kw]."""
        return x.shape[0], weight.shape[1], *self.output_size(x.shape[2:], weight.shape[3:])


class Problem(NamedTuple):
    """One call, without its data. `experts` is 0 where the weights are given per sample."""

    batch: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    experts: int
    dtype: torch.dtype

    @property
    def geometry(self) -> Geometry:
        """How the kernels go over x."""
        return Geometry(self.stride, self.padding, self.dilation, self.groups)

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        return self.geometry.output_size((self.height, self.width), self.kernel)

    @property
    def pixels(self) -> int:
        """Output pixels of one sample."""
        return prod(self.out_size)

    @property
    def weights(self) -> int:
        """Elements of one sample's weight."""
        return self.out_channels * self.in_channels // self.groups * prod(self.kernel)

    @property
    def is_pointwise(self) -> bool:
        """Whether each output pixel reads only the input pixel at its own position."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0, 0, 0) and self.groups == 1

    @property
    def is_depthwise(self) -> bool:
        """Whether every group has one input channel."""
        return self.groups == self.in_channels and self.groups > 1

    @property
    def key(self) -> str:
        """The problem in words, without the batch: what the tables of measured choices are looked up by."""
        height, width = self.out_size
        sizes = f"{self.in_channels}->{self.out_channels} {height}x{width}"
        kernel = f"k{self.kernel[0]}x{self.kernel[1]} s{self.stride[0]}x{self.stride[1]}"
        dilation = f"d{self.dilation[0]}x{self.dilation[1]} g{self.groups}"
        return f"{str(self.dtype).removeprefix('torch.')} {sizes} {kernel} {dilation} experts={self.experts}"

    @property
    def flops(self) -> int:
        """Twice the multiply-adds of one direction: forward, the gradient of x, or the gradient of the weights."""
        return 2 * self.batch * self.pixels * self.weights

    @property
    def forward_bytes(self) -> int:
        """Bytes that must cross device memory in forward: x, the weights, the mixing in; y out."""
        return self.dtype.itemsize * (self._x + self._y + self._given) + 4 * self.batch * self.experts

    @property
    def backward_bytes(self) -> int:
        """Bytes of backward with all gradients: dy, x, the weights in; their gradients out."""
        return self.dtype.itemsize * (self._y + 2 * self._x + 2 * self._given) + 8 * self.batch * self.experts

    @property
    def _x(self) -> int:
        return self.batch * self.in_channels * self.height * self.width

    @property
    def _y(self) -> int:
        return self.batch * self.out_channels * self.pixels

    @property
    def _given(self) -> int:
        return (self.experts or self.batch) * self.weights


def problem_of(x: Tensor, weight: Tensor, geometry: Geometry, per_sample: bool) -> Problem:
    """Return the problem of a call; weight is [experts or batch, out, in/groups, kh, kw]."""
    batch, channels, height, width = x.shape
    pairs = map(tuple, (weight.shape[3:], *geometry[:3]))
    experts = 0 if per_sample else weight.shape[0]
    return Problem(batch, channels, weight.shape[1], height, width, *pairs, geometry.groups, experts, x.dtype)


def axes_of(x: Tensor) -> tuple[str, ...]:
    """Return the names of the dimensions of x [batch, channels, ...] that a kernel goes over."""
    return ("depth", "height", "width")[5 - x.dim() :] if x.dim() > 3 else ("length",)


def resolve_geometry(kernel: Sequence[int], stride, padding, dilation, groups: int) -> Geometry:
    """Return the geometry for these arguments of a public function.

    Raises:
        ValueError: stride or dilation is not an int or a pair of ints, at least 1; or padding is not an int, a pair of
            ints or four (left, right, top, bottom), at least 0, nor "same" with stride 1, nor "valid".
    """
    stride, dilation = resolve_pair("stride", stride), resolve_pair("dilation", dilation)
    return Geometry(stride, resolve_padding(padding, kernel, stride, dilation), dilation, groups)


def resolve_transposed(stride, padding, output_padding, dilation, groups: int) -> Geometry:
    """Return the geometry of the convolution whose adjoint a public transposed convolution is.

    Output padding is padding that the convolution lacks at the bottom and on the right, so that its input has the rows
    and columns.

    Raises:
        ValueError: stride or dilation is not an int or a pair of ints, at least 1; padding or output_padding not one at
            least 0; or output_padding not below the stride or the dilation of its axis.
    """
    stride, dilation = resolve_pair("stride", stride), resolve_pair("dilation", dilation)
    padding, extra = (
        resolve_pair(name, value, least=0) for name, value in (("padding", padding), ("output_padding", output_padding))
    )
    if any(more >= max(s, d) for more, s, d in zip(extra, stride, dilation, strict=True)):
        raise ValueError(
            f"output_padding must be below stride {tuple(stride)} or dilation {tuple(dilation)}, got {output_padding!r}"
        )
    sides = [padding[0], padding[0] - extra[0], padding[1], padding[1] - extra[1]]
    return Geometry(stride, sides, dilation, groups)


def resolve_pair(name: str, value, least: int = 1) -> list[int]:
    """Return an int or a pair of ints, each at least `least`, as a list of two; raise ValueError for anything else."""
    return resolve_ints(name, value, 2, least)


def resolve_ints(name: str, value, count: int, least: int = 1) -> list[int]:
    """Return an int, or one for each of `count` axes, each at least `least`, as a list; raise ValueError if neither."""
    ints = _ints(value, count)
    if None in ints or min(ints) < least:
        words = {1: "an int", 2: "an int or a pair of ints", 3: "an int or three ints"}[count]
        raise ValueError(f"{name} must be {words}, at least {least}, got {value!r}")
    return ints


def resolve_padding(padding, kernel: Sequence[int], stride: list[int], dilation: list[int]) -> list[int]:
    """Return the padding before and after each axis, the first axis first: [top, bottom, left, right] of images.

    `same` puts the odd row and column last, as F.conv2d does.

    Raises:
        ValueError: padding is no int, no int for each axis, no two for each with the last axis first, as in F.pad, or
            one is negative; nor is it "same" with stride 1, nor "valid".
    """
    count = len(kernel)
    if padding == "valid":
        return [0] * (2 * count)
    if padding == "same":
        if max(stride) > 1:
            raise ValueError(f"padding='same' needs stride 1, got stride {tuple(stride)}")
        # torch.jit.trace has tensors for sizes, and an op takes none in a list of ints
        widths = [int(k) if isinstance(k, torch.Tensor) else k for k in kernel]
        totals = [d * (k - 1) for d, k in zip(dilation, widths, strict=True)]
        return [side for total in totals for side in (total // 2, total - total // 2)]
    if isinstance(padding, tuple | list) and len(padding) == 2 * count:
        ints = [as_int(each) for each in padding]
        sides = [side for axis in reversed(range(count)) for side in ints[2 * axis : 2 * axis + 2]]
    else:
        sides = [side for each in _ints(padding, count) for side in (each, each)]
    if None in sides or min(sides) < 0:
        words = {
            1: "an int or two (left, right)",
            2: "an int, a pair of ints or four (left, right, top, bottom)",
            3: "an int, three ints or six (left, right, top, bottom, front, back)",
        }[count]
        raise ValueError(f"padding must be {words}, at least 0, 'same' or 'valid', got {padding!r}")
    return sides


def _ints(value, count: int) -> list[int | None]:
    """Return an integer `count` times, as many of them as a list, and a None in place of anything else."""
    if type(value) is int:
        return [value] * count
    if isinstance(value, tuple | list):
        return [as_int(each) for each in value] if len(value) == count else [None]
    return [as_int(value)] * count
