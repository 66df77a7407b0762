"""The sizes that decide how a convolution is run, and what it must move and multiply at the least."""

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor


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
    def out_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        top, bottom, left, right = self.padding
        height = (self.height + top + bottom - self.dilation[0] * (self.kernel[0] - 1) - 1) // self.stride[0] + 1
        width = (self.width + left + right - self.dilation[1] * (self.kernel[1] - 1) - 1) // self.stride[1] + 1
        return height, width

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
        """Whether each output pixel reads the one input pixel it lies on."""
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
        """Multiply-adds of one direction times two: each of forward, the gradient of x, that of the weights."""
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


def problem_of(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    per_sample: bool,
) -> Problem:
    """Return the problem of a call; weight is [experts or batch, out, in/groups, kh, kw]."""
    batch, channels, height, width = x.shape
    return Problem(
        batch,
        channels,
        weight.shape[1],
        height,
        width,
        tuple(weight.shape[3:]),
        tuple(stride),
        tuple(padding),
        tuple(dilation),
        groups,
        0 if per_sample else weight.shape[0],
        x.dtype,
    )
