"""The passes over pixels: sums over them, and the product with a number per sample and channel.

The second starts where the first ended, with what the L2 cache still holds.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polychrome.kernels.channel_gate.configs import reduce_config, scale_tile
from polychrome.kernels.launch import cdiv, launch
from polychrome.kernels.streaming import constants, from_the_last, offsets, pixel_groups, pixels_of, sample_start
from polychrome.kernels.tensors import empty_as, is_channels_last

# Tiles of the sums that are on their way at once; along the pixels more of them made an H200 slower.
TILES_AHEAD = 5


def sum_over_pixels(x: Tensor, other: Tensor | None = None) -> Tensor:
    """Return partial sums [splits, batch, channels], float32, of x or of x * other; both dense, in one layout."""
    batch, channels, height, width = x.shape
    config = reduce_config(batch, channels, height * width, is_channels_last(x))
    partial = x.new_empty((config.splits, batch, channels), dtype=torch.float32)
    launch(
        reduce_kernel,
        (cdiv(channels, config.block_c) * config.splits * batch,),
        x,
        other,
        partial,
        batch,
        pixel_groups(x),
        config.splits,
        config.blocks,
        **constants(x),
        AHEAD=TILES_AHEAD if is_channels_last(x) else 1,
        BLOCK_P=config.block_p,
        BLOCK_C=config.block_c,
        num_warps=4,
    )
    return partial


def scale_channels(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """Return x * scale + shift, rounded once, in x's layout; x is dense, scale and shift [batch, channels] float32."""
    batch, channels, height, width = x.shape
    block_p, block_c = scale_tile(batch, channels, height * width, is_channels_last(x))
    y = empty_as(x, x.shape)
    launch(
        scale_kernel,
        (cdiv(channels, block_c) * cdiv(height * width, block_p) * batch,),
        x,
        scale,
        shift,
        y,
        pixel_groups(x),
        **constants(x),
        BLOCK_P=block_p,
        BLOCK_C=block_c,
        num_warps=4,
    )
    return y


@triton.jit(do_not_specialize=["batch", "groups", "splits", "blocks"])
def reduce_kernel(
    x_ptr,
    other_ptr,
    partial_ptr,
    batch,
    groups,
    splits,
    blocks,
    CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channel_blocks = tl.cdiv(CHANNELS, BLOCK_C)
    channels = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    split = tl.program_id(0) // channel_blocks % splits
    sample = tl.program_id(0) // channel_blocks // splits
    pixels = pixels_of(groups, VECTOR, INDEX64)
    first = tl.cast(split, tl.int64 if INDEX64 else tl.int32) * blocks * BLOCK_P
    last = tl.minimum(first + blocks * BLOCK_P, pixels)
    acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for begin in tl.range(first, last, BLOCK_P, num_stages=AHEAD):
        rows = begin + tl.arange(0, BLOCK_P)
        acc += summands(x_ptr, other_ptr, sample, rows, channels, pixels, CHANNELS, CHANNELS_LAST, INDEX64)
    row = tl.cast(split, tl.int64) * batch + sample
    tl.store(partial_ptr + row * CHANNELS + channels, tl.sum(acc, 0), mask=channels < CHANNELS)


@triton.jit(do_not_specialize=["groups"])
def scale_kernel(
    x_ptr,
    scale_ptr,
    shift_ptr,
    y_ptr,
    groups,
    CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    program = from_the_last()
    pixels = pixels_of(groups, VECTOR, INDEX64)
    channel_blocks = tl.cdiv(CHANNELS, BLOCK_C)
    pixel_blocks = tl.cdiv(pixels, BLOCK_P)
    channels = program % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    rows = program // channel_blocks % pixel_blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    sample = tl.cast(program // channel_blocks // pixel_blocks, tl.int64)
    scale = tl.load(scale_ptr + sample * CHANNELS + channels, mask=channels < CHANNELS, other=0.0)
    shift = None
    if shift_ptr is not None:
        shift = tl.load(shift_ptr + sample * CHANNELS + channels, mask=channels < CHANNELS, other=0.0)
    store_scaled(x_ptr, y_ptr, scale, shift, sample, rows, channels, pixels, CHANNELS, CHANNELS_LAST, INDEX64)


@triton.jit
def summands(
    x_ptr,
    other_ptr,
    sample,
    rows,
    channels,
    pixels,
    CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
):
    """Return x, or x * other, in float32 [BLOCK_P, BLOCK_C], zero outside the image."""
    inside = (rows < pixels)[:, None] & (channels < CHANNELS)[None, :]
    at = offsets(rows[:, None], channels[None, :], pixels, CHANNELS, CHANNELS_LAST, INDEX64)
    x = tl.load(sample_start(x_ptr, sample, pixels, CHANNELS) + at, mask=inside, other=0.0).to(tl.float32)
    if other_ptr is not None:
        x *= tl.load(sample_start(other_ptr, sample, pixels, CHANNELS) + at, mask=inside, other=0.0).to(tl.float32)
    return x


@triton.jit
def store_scaled(
    x_ptr,
    y_ptr,
    scale,
    shift,
    sample,
    rows,
    channels,
    pixels,
    CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
):
    """Store x * scale + shift, rounded once, in y; scale and shift, which may be None, are [BLOCK_C]."""
    inside = (rows < pixels)[:, None] & (channels < CHANNELS)[None, :]
    at = offsets(rows[:, None], channels[None, :], pixels, CHANNELS, CHANNELS_LAST, INDEX64)
    x = tl.load(sample_start(x_ptr, sample, pixels, CHANNELS) + at, mask=inside, other=0.0)  # [BLOCK_P, BLOCK_C]
    y = x.to(tl.float32) * scale[None, :]
    if shift is not None:
        y += shift[None, :]
    tl.store(sample_start(y_ptr, sample, pixels, CHANNELS) + at, y.to(y_ptr.dtype.element_ty), mask=inside)
