"""Mean, max and the channel of the max over channels, in one read of x."""

import triton
import triton.language as tl
from torch import Tensor

from polychrome.kernels.launch import cdiv, launch
from polychrome.kernels.spatial_attention.configs import stream_tile
from polychrome.kernels.spatial_attention.triton.blocks import pixel_block
from polychrome.kernels.streaming import constants, offsets, pixel_groups, sample_start
from polychrome.kernels.tensors import is_channels_last

# Blocks of channels on their way at once along the pixels: on an H200, 51 us in place of 62 at 256x256x28x28.
BLOCKS_AHEAD = 4


def write_stats(x: Tensor, mask: Tensor | None, stats: Tensor, argmax: Tensor) -> None:
    """Fill `stats` [batch, 2, height, width] and `argmax` [batch, 1, height, width]; x is dense, mask contiguous."""
    batch, channels, height, width = x.shape
    tile = stream_tile(batch, channels, height * width, is_channels_last(x), carries=True)
    # The other checks of debug mode would cost registers.
    checks = {} if mask is None else {"debug": True, "sanitize_overflow": False}
    launch(
        stats_kernel,
        (batch * cdiv(height * width, tile.block_p),),
        x,
        mask,
        stats,
        argmax,
        pixel_groups(x),
        **constants(x),
        STATS_LAST=is_channels_last(stats),
        BLOCK_P=tile.block_p,
        BLOCK_C=tile.block_c,
        TOGETHER=1 if is_channels_last(x) else min(BLOCKS_AHEAD, cdiv(channels, tile.block_c)),
        num_warps=tile.warps,
        **checks,
    )


@triton.jit(do_not_specialize=["groups"])
def stats_kernel(
    x_ptr,
    mask_ptr,
    stats_ptr,
    argmax_ptr,
    groups,
    CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    STATS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    sample, pixels, rows = pixel_block(tl.program_id(0), groups, VECTOR, BLOCK_P, INDEX64)
    store_stats(
        x_ptr,
        mask_ptr,
        stats_ptr,
        argmax_ptr,
        sample,
        pixels,
        rows,
        CHANNELS,
        CHANNELS_LAST,
        INDEX64,
        STATS_LAST,
        BLOCK_P,
        BLOCK_C,
        TOGETHER,
    )


@triton.jit
def store_stats(
    x_ptr,
    mask_ptr,
    stats_ptr,
    argmax_ptr,
    sample,
    pixels,
    rows,
    CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    STATS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Store the statistics of pixels `rows` [BLOCK_P] of a sample, `TOGETHER` blocks of channels loaded at a time."""
    inside = rows < pixels
    x_at = sample_start(x_ptr, sample, pixels, CHANNELS)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    best = tl.full((BLOCK_P, BLOCK_C), float("-inf"), tl.float32)
    index = tl.zeros((BLOCK_P, BLOCK_C), tl.int32) + tl.arange(0, BLOCK_C)[None, :]
    count = tl.zeros((BLOCK_C,), tl.int32)
    ALL_AT_ONCE: tl.constexpr = (CHANNELS <= BLOCK_C) & (mask_ptr is None)
    if ALL_AT_ONCE:  # nothing to compare a block with, which is half of a block's work
        columns = tl.arange(0, BLOCK_C)
        present = columns < CHANNELS
        at = offsets(rows[:, None], columns[None, :], pixels, CHANNELS, CHANNELS_LAST, INDEX64)
        total = tl.load(x_at + at, mask=inside[:, None] & present[None, :], other=0.0).to(tl.float32)
        best = total
        if CHANNELS < BLOCK_C:
            best = tl.where(present[None, :], total, float("-inf"))
    for begin in range(CHANNELS if ALL_AT_ONCE else 0, CHANNELS, BLOCK_C * TOGETHER):
        leading = begin + tl.arange(0, BLOCK_C)
        for block in tl.static_range(TOGETHER):
            columns = leading + block * BLOCK_C
            present = columns < CHANNELS
            at = offsets(rows[:, None], columns[None, :], pixels, CHANNELS, CHANNELS_LAST, INDEX64)
            x = tl.load(x_at + at, mask=inside[:, None] & present[None, :], other=0.0).to(tl.float32)
            if mask_ptr is not None:
                # Not part of the load's mask: that would end the 16-byte loads.
                present = tl.load(sample_start(mask_ptr, sample, 1, CHANNELS) + columns, mask=present, other=0) != 0
                count += present.to(tl.int32)
                total += tl.where(present[None, :], x, 0.0)
            else:
                total += x
            if mask_ptr is not None or CHANNELS % (BLOCK_C * TOGETHER) > 0:
                x = tl.where(present[None, :], x, float("-inf"))
            index = tl.where(x > best, columns[None, :], index)
            best = tl.maximum(best, x)

    summed = tl.sum(total, 1)
    if mask_ptr is not None:
        channels = tl.sum(count, 0)
        tl.device_assert(
            channels > 0, "channel_stats: the mask leaves no channel in a sample; blocks are numbered sample by sample"
        )
        mean = summed / channels.to(tl.float32)
    else:
        mean = summed / CHANNELS
    largest = tl.max(best, 1)
    argmax = tl.min(tl.where(best == largest[:, None], index, CHANNELS), 1)
    if tl.max((summed != summed).to(tl.int32), 0) > 0:
        # NaN somewhere, or infinities of both signs. It is the largest number, so the first one's channel is the max's.
        first = tl.full((BLOCK_P, BLOCK_C), CHANNELS, tl.int32)
        for start in range(0, CHANNELS, BLOCK_C):
            columns = start + tl.arange(0, BLOCK_C)
            present = columns < CHANNELS
            at = offsets(rows[:, None], columns[None, :], pixels, CHANNELS, CHANNELS_LAST, INDEX64)
            x = tl.load(x_at + at, mask=inside[:, None] & present[None, :], other=0.0).to(tl.float32)
            if mask_ptr is not None:
                present = tl.load(sample_start(mask_ptr, sample, 1, CHANNELS) + columns, mask=present, other=0) != 0
                x = tl.where(present[None, :], x, 0.0)
            first = tl.where(x != x, tl.minimum(first, columns[None, :]), first)
        channel = tl.min(first, 1)
        argmax = tl.where(channel < CHANNELS, channel, argmax)
        largest = tl.where(channel < CHANNELS, float("nan"), largest)

    step = 2 if STATS_LAST else 1
    apart = 1 if STATS_LAST else pixels
    stats_at = sample_start(stats_ptr, sample, pixels, 2) + rows.to(tl.int64) * step
    tl.store(stats_at, mean.to(stats_ptr.dtype.element_ty), mask=inside)
    tl.store(stats_at + apart, largest.to(stats_ptr.dtype.element_ty), mask=inside)
    tl.store(sample_start(argmax_ptr, sample, pixels, 1) + rows, argmax, mask=inside)
