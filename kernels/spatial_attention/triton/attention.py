"""The gate from the two maps, and x times it."""

import triton
import triton.language as tl
from torch import Tensor

from polychrome.kernels.launch import cdiv, launch, next_power_of_2
from polychrome.kernels.spatial_attention.configs import SampleTile, stream_tile
from polychrome.kernels.spatial_attention.triton.blocks import pixel_block
from polychrome.kernels.spatial_attention.triton.statistics import store_stats
from polychrome.kernels.streaming import constants, from_the_last, offsets, pixel_groups, pixels_of, sample_start
from polychrome.kernels.tensors import is_channels_last

# Elements of the tile of columns by pixels that logits are made from: it is beside what `stream_tile` counts.
LOGIT_ELEMENTS = 1024


def attend(x: Tensor, stats: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor, y: Tensor) -> None:
    """Fill `gate` [batch, 1, height, width] and `y = x * gate`; x and y are dense in one layout, all else contiguous.

    The mean and max of x in `stats` [batch, 2, height, width] and the gate are float32.
    """
    batch, channels, height, width = x.shape
    kernel = weight.shape[-1]
    columns = next_power_of_2(kernel)
    widest = max(1, LOGIT_ELEMENTS // columns)
    tile = stream_tile(batch, channels, height * width, is_channels_last(x), widest=widest)
    if is_channels_last(x) and channels <= tile.block_c:
        # What each warp finds anew for the gate is half as much: on an H200, 82 us in place of 90 at 64x64x128x128.
        tile = tile._replace(warps=tile.warps // 2)
    launch(
        attend_kernel,
        (batch * cdiv(height * width, tile.block_p),),
        x,
        stats,
        weight,
        bias,
        gate,
        y,
        pixel_groups(x),
        height,
        width,
        **constants(x),
        KERNEL=kernel,
        COLUMNS=columns,
        BLOCK_P=tile.block_p,
        BLOCK_C=tile.block_c,
        num_warps=tile.warps,
    )


def attend_sample(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stats: Tensor,
    argmax: Tensor,
    gate: Tensor,
    y: Tensor,
    tile: SampleTile,
) -> None:
    """Fill what `write_stats` and `attend` fill, in one launch: its programs own whole samples."""
    batch, _, height, width = x.shape
    kernel = weight.shape[-1]
    launch(
        attend_sample_kernel,
        (batch * tile.shares,),
        x,
        weight,
        bias,
        stats,
        argmax,
        gate,
        y,
        pixel_groups(x),
        tile.shares,
        height,
        width,
        **constants(x),
        KERNEL=kernel,
        COLUMNS=next_power_of_2(kernel),
        BLOCK_P=tile.block_p,
        BLOCK_C=tile.block_c,
        TOGETHER=tile.together,
        num_warps=tile.warps,
        maxnreg=tile.registers,
    )


@triton.jit(do_not_specialize=["groups", "height", "width"])
def attend_kernel(
    x_ptr,
    stats_ptr,
    weight_ptr,
    bias_ptr,
    gate_ptr,
    y_ptr,
    groups,
    height,
    width,
    CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    KERNEL: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    sample, pixels, rows = pixel_block(from_the_last(), groups, VECTOR, BLOCK_P, INDEX64)
    gate = store_gate(
        stats_ptr, weight_ptr, bias_ptr, gate_ptr, sample, pixels, rows, height, width, KERNEL, COLUMNS, BLOCK_P, 1
    )
    store_product(x_ptr, y_ptr, gate, sample, pixels, rows, 0, BLOCK_C, CHANNELS, CHANNELS_LAST, INDEX64, BLOCK_C)


@triton.jit(do_not_specialize=["groups", "shares", "height", "width"])
def attend_sample_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    stats_ptr,
    argmax_ptr,
    gate_ptr,
    y_ptr,
    groups,
    shares,
    height,
    width,
    CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    KERNEL: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Programs that share a sample all make its maps and its gate, and divide the channels of the product."""
    sample = tl.program_id(0) // shares
    share = tl.program_id(0) % shares
    pixels = pixels_of(groups, VECTOR, INDEX64)
    rows = tl.arange(0, BLOCK_P)
    store_stats(
        x_ptr,
        None,
        stats_ptr,
        argmax_ptr,
        sample,
        pixels,
        rows,
        CHANNELS,
        CHANNELS_LAST,
        INDEX64,
        False,
        BLOCK_P,
        BLOCK_C,
        TOGETHER,
    )
    # The maps come back to other threads than those that stored them. Others may store the same numbers meanwhile.
    tl.debug_barrier()
    gate = store_gate(
        stats_ptr, weight_ptr, bias_ptr, gate_ptr, sample, pixels, rows, height, width, KERNEL, COLUMNS, BLOCK_P, KERNEL
    )
    first, step = share * BLOCK_C, shares * BLOCK_C
    store_product(x_ptr, y_ptr, gate, sample, pixels, rows, first, step, CHANNELS, CHANNELS_LAST, INDEX64, BLOCK_C)


@triton.jit
def store_gate(
    stats_ptr,
    weight_ptr,
    bias_ptr,
    gate_ptr,
    sample,
    pixels,
    rows,
    height,
    width,
    KERNEL: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Store the gate of pixels `rows` [BLOCK_P] of a sample and return it; `TOGETHER` rows of the kernel at a time."""
    inside = rows < pixels
    stats_at = sample_start(stats_ptr, sample, pixels, 2)
    taps = tl.arange(0, COLUMNS)
    at_w = (rows % width)[None, :] + taps[:, None] - KERNEL // 2
    across = inside[None, :] & (taps < KERNEL)[:, None] & (at_w >= 0) & (at_w < width)
    logits = tl.zeros((COLUMNS, BLOCK_P), tl.float32)
    for begin in range(0, KERNEL, TOGETHER):
        highest = rows // width + begin - KERNEL // 2
        for row in tl.static_range(TOGETHER):
            at_h = highest + row
            near = across & ((at_h >= 0) & (at_h < height))[None, :]
            at = (at_h * width)[None, :] + at_w
            for m in tl.static_range(2):
                weight_at = weight_ptr + (m * KERNEL + begin + row) * KERNEL + taps
                weight = tl.load(weight_at, mask=taps < KERNEL, other=0.0)
                values = tl.load(stats_at + m * pixels + at, mask=near, other=0.0)  # [COLUMNS, BLOCK_P]
                logits += weight.to(tl.float32)[:, None] * values
    logit = tl.sum(logits, 0)
    if bias_ptr is not None:
        logit += tl.load(bias_ptr).to(tl.float32)
    gate = tl.sigmoid(logit)
    tl.store(sample_start(gate_ptr, sample, pixels, 1) + rows, gate, mask=inside)
    return gate


@triton.jit
def store_product(
    x_ptr,
    y_ptr,
    gate,
    sample,
    pixels,
    rows,
    first,
    step,
    CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Store x * gate [BLOCK_P] of pixels `rows` of a sample, a block of channels every `step` from `first` on."""
    inside = rows < pixels
    x_at = sample_start(x_ptr, sample, pixels, CHANNELS)
    y_at = sample_start(y_ptr, sample, pixels, CHANNELS)
    for start in range(first, CHANNELS, step):
        columns = start + tl.arange(0, BLOCK_C)
        held = inside[:, None] & (columns < CHANNELS)[None, :]
        offset = offsets(rows[:, None], columns[None, :], pixels, CHANNELS, CHANNELS_LAST, INDEX64)
        x = tl.load(x_at + offset, mask=held, other=0.0).to(tl.float32)
        tl.store(y_at + offset, (x * gate[:, None]).to(y_ptr.dtype.element_ty), mask=held)
