"""What the memory-bound kernels share: a sample as a matrix of pixels by channels, in either memory layout.

Imports Triton.
"""

from math import gcd

import triton
import triton.language as tl
from torch import Tensor

from polychrome.kernels.tensors import is_channels_last, needs_64_bits


def pixel_groups(x: Tensor) -> int:
    """Return the pixels of an image in units of `VECTOR`: what a kernel is given, so that it knows their divisor."""
    pixels = x.shape[2] * x.shape[3]
    return pixels // _vector(pixels)


def constants(x: Tensor) -> dict[str, int | bool]:
    """Return what `offsets` and `sample_start` are compiled for; x [batch, channels, height, width] is dense."""
    return {
        "CHANNELS": x.shape[1],
        "VECTOR": _vector(x.shape[2] * x.shape[3]),
        "CHANNELS_LAST": is_channels_last(x),
        "INDEX64": needs_64_bits(x[:1]),
    }


def _vector(pixels: int) -> int:
    return gcd(pixels, 16) or 1


@triton.jit
def pixels_of(groups, VECTOR: tl.constexpr, INDEX64: tl.constexpr):
    """Return the pixels of an image from `pixel_groups`."""
    return tl.cast(groups, tl.int64 if INDEX64 else tl.int32) * VECTOR


@triton.jit
def from_the_last():
    """Return the program's number counted from the end.

    A kernel that reads what the one before it read starts with what that one left in the L2 cache.
    """
    return tl.num_programs(0) - 1 - tl.program_id(0)


@triton.jit
def sample_start(pointer, sample, pixels, CHANNELS: tl.constexpr):
    """Return where a sample of a tensor with so many pixels and channels begins."""
    return pointer + tl.cast(sample, tl.int64) * pixels * CHANNELS


@triton.jit
def offsets(rows, columns, pixels, CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX64: tl.constexpr):
    """Return the offsets within a sample of pixels `rows` and channels `columns`."""
    if INDEX64:
        rows, columns = rows.to(tl.int64), columns.to(tl.int64)
    if CHANNELS_LAST:
        return rows * CHANNELS + columns
    return columns * pixels + rows
