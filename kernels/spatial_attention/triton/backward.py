"""The gradients: of the logits, of the two maps and the weight, and of x."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import launch
from kernels.spatial_attention.configs import PROGRAMS, WARPS, stream_tile, tap_tile
from kernels.spatial_attention.triton.blocks import pixel_block
from kernels.streaming import constants, from_the_last, offsets, pixel_groups, sample_start
from kernels.tensors import is_channels_last, needs_64_bits

# Pixels of a block of `spread`, which holds four numbers of each beside the tile.
WIDEST_BLOCK = 128


def logit_gradient(grad: Tensor, x: Tensor, gate: Tensor, kernel: int) -> Tensor:
    """Return the gradient of the logits in float32, amid zeros: [batch, height + k - 1, width + k - 1].

    grad and x are dense in one layout.
    """
    batch, channels, height, width = x.shape
    padded = gate.new_zeros((batch, height + kernel - 1, width + kernel - 1))
    tile = stream_tile(batch, channels, height * width, is_channels_last(x), carries=True)
    launch(
        dot_kernel,
        (batch * triton.cdiv(height * width, tile.block_p),),
        grad,
        x,
        gate,
        padded,
        pixel_groups(x),
        width,
        *padded.shape[1:],
        **constants(x),
        HALF=kernel // 2,
        BLOCK_P=tile.block_p,
        BLOCK_C=tile.block_c,
        num_warps=WARPS,
    )
    return padded


def map_gradients(
    padded: Tensor, stats: Tensor, weight: Tensor, for_maps: bool, for_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the float32 gradients of the maps [batch, 2, height, width] and of the weight [2, k * k] where asked."""
    batch, _, height, width = stats.shape
    kernel = weight.shape[-1]
    tile = tap_tile(kernel)
    blocks = batch * triton.cdiv(height * width, tile.block_p)
    programs = min(blocks, PROGRAMS)
    dmaps = torch.empty_like(stats) if for_maps else None
    partial = stats.new_empty((programs, 2, kernel * kernel)) if for_weight else None
    known = constants(stats)
    launch(
        maps_kernel,
        (programs,),
        padded,
        stats,
        weight,
        dmaps,
        partial,
        blocks,
        pixel_groups(stats),
        width,
        *padded.shape[1:],
        VECTOR=known["VECTOR"],
        INDEX64=known["INDEX64"] or needs_64_bits(padded[:1]),
        KERNEL=kernel,
        TAPS=tile.block_c,
        BLOCK_P=tile.block_p,
        num_warps=2 * WARPS,
    )
    return dmaps, None if partial is None else partial.sum(0)


def spread(
    dmaps: Tensor,
    argmax: Tensor,
    mask: Tensor | None,
    dx: Tensor,
    grad: Tensor | None = None,
    gate: Tensor | None = None,
) -> None:
    """Fill `dx` with the maps' gradients, the mean's to all present channels and the max's to `argmax`, + grad * gate.

    dx, and grad where given, are dense in one layout; dmaps is dense, the rest contiguous.
    """
    batch, channels, height, width = dx.shape
    tile = stream_tile(batch, channels, height * width, is_channels_last(dx), widest=WIDEST_BLOCK)
    launch(
        spread_kernel,
        (batch * triton.cdiv(height * width, tile.block_p),),
        dmaps,
        argmax,
        mask,
        grad,
        gate,
        dx,
        pixel_groups(dx),
        **constants(dx),
        MAPS_LAST=is_channels_last(dmaps),
        BLOCK_P=tile.block_p,
        BLOCK_C=tile.block_c,
        num_warps=WARPS,
    )


@triton.jit(do_not_specialize=["groups", "width", "padded_h", "padded_w"])
def dot_kernel(
    grad_ptr,
    x_ptr,
    gate_ptr,
    padded_ptr,
    groups,
    width,
    padded_h,
    padded_w,
    CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    sample, pixels, rows = pixel_block(tl.program_id(0), groups, VECTOR, BLOCK_P, INDEX64)
    inside = rows < pixels
    grad_at = sample_start(grad_ptr, sample, pixels, CHANNELS)
    x_at = sample_start(x_ptr, sample, pixels, CHANNELS)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, CHANNELS, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)
        held = inside[:, None] & (columns < CHANNELS)[None, :]
        offset = offsets(rows[:, None], columns[None, :], pixels, CHANNELS, CHANNELS_LAST, INDEX64)
        grad = tl.load(grad_at + offset, mask=held, other=0.0).to(tl.float32)
        total += grad * tl.load(x_at + offset, mask=held, other=0.0).to(tl.float32)
    gate = tl.load(sample_start(gate_ptr, sample, pixels, 1) + rows, mask=inside, other=0.0)
    dlogit = gate * (1 - gate) * tl.sum(total, 1)
    padded_at = tl.cast(sample, tl.int64) * padded_h * padded_w
    padded_at += (rows // width + HALF).to(tl.int64) * padded_w + rows % width + HALF
    tl.store(padded_ptr + padded_at, dlogit, mask=inside)


@triton.jit(do_not_specialize=["blocks", "groups", "width", "padded_h", "padded_w"])
def maps_kernel(
    padded_ptr,
    stats_ptr,
    weight_ptr,
    dmaps_ptr,
    partial_ptr,
    blocks,
    groups,
    width,
    padded_h,
    padded_w,
    VECTOR: tl.constexpr,
    INDEX64: tl.constexpr,
    KERNEL: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    AREA: tl.constexpr = KERNEL * KERNEL
    tap = tl.arange(0, TAPS)
    # The logit that saw pixel (h, w) through tap (i, j) lies at (h + k - 1 - i, w + k - 1 - j).
    tap_at = (KERNEL - 1 - tap // KERNEL) * padded_w + KERNEL - 1 - tap % KERNEL
    if dmaps_ptr is not None:
        for_mean = tl.load(weight_ptr + tap, mask=tap < AREA, other=0.0).to(tl.float32)
        for_max = tl.load(weight_ptr + AREA + tap, mask=tap < AREA, other=0.0).to(tl.float32)
    if partial_ptr is not None:
        with_mean = tl.zeros((TAPS, BLOCK_P), tl.float32)
        with_max = tl.zeros((TAPS, BLOCK_P), tl.float32)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        sample, pixels, rows = pixel_block(block, groups, VECTOR, BLOCK_P, INDEX64)
        inside = rows < pixels
        at = rows // width * padded_w + rows % width
        padded_at = padded_ptr + tl.cast(sample, tl.int64) * padded_h * padded_w
        near = tl.load(
            padded_at + at[None, :] + tap_at[:, None], mask=(tap < AREA)[:, None] & inside[None, :], other=0.0
        )  # [TAPS, BLOCK_P]
        if dmaps_ptr is not None:
            dmaps_at = sample_start(dmaps_ptr, sample, pixels, 2) + rows
            tl.store(dmaps_at, tl.sum(near * for_mean[:, None], 0), mask=inside)
            tl.store(dmaps_at + pixels, tl.sum(near * for_max[:, None], 0), mask=inside)
        if partial_ptr is not None:
            stats_at = sample_start(stats_ptr, sample, pixels, 2) + rows
            with_mean += near * tl.load(stats_at, mask=inside, other=0.0)[None, :]
            with_max += near * tl.load(stats_at + pixels, mask=inside, other=0.0)[None, :]
    if partial_ptr is not None:
        partial_at = partial_ptr + tl.program_id(0) * (2 * AREA) + tap
        tl.store(partial_at, tl.sum(with_mean, 1), mask=tap < AREA)
        tl.store(partial_at + AREA, tl.sum(with_max, 1), mask=tap < AREA)


@triton.jit(do_not_specialize=["groups"])
def spread_kernel(
    dmaps_ptr,
    argmax_ptr,
    mask_ptr,
    grad_ptr,
    gate_ptr,
    dx_ptr,
    groups,
    CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    MAPS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    sample, pixels, rows = pixel_block(from_the_last(), groups, VECTOR, BLOCK_P, INDEX64)
    inside = rows < pixels
    step = 2 if MAPS_LAST else 1
    dmaps_at = sample_start(dmaps_ptr, sample, pixels, 2) + rows.to(tl.int64) * step
    share = tl.load(dmaps_at, mask=inside, other=0.0).to(tl.float32)
    dmax = tl.load(dmaps_at + (1 if MAPS_LAST else pixels), mask=inside, other=0.0).to(tl.float32)
    argmax = tl.load(sample_start(argmax_ptr, sample, pixels, 1) + rows, mask=inside, other=0)
    if mask_ptr is not None:
        mask_at = sample_start(mask_ptr, sample, 1, CHANNELS)
        count = tl.zeros((BLOCK_C,), tl.int32)
        for start in range(0, CHANNELS, BLOCK_C):
            columns = start + tl.arange(0, BLOCK_C)
            count += (tl.load(mask_at + columns, mask=columns < CHANNELS, other=0) != 0).to(tl.int32)
        share = share / tl.sum(count, 0).to(tl.float32)
    else:
        share = share / CHANNELS
    if grad_ptr is not None:
        gate = tl.load(sample_start(gate_ptr, sample, pixels, 1) + rows, mask=inside, other=0.0)
        grad_at = sample_start(grad_ptr, sample, pixels, CHANNELS)
    dx_at = sample_start(dx_ptr, sample, pixels, CHANNELS)
    for start in range(0, CHANNELS, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)
        held = inside[:, None] & (columns < CHANNELS)[None, :]
        offset = offsets(rows[:, None], columns[None, :], pixels, CHANNELS, CHANNELS_LAST, INDEX64)
        dx = tl.where(columns[None, :] == argmax[:, None], dmax[:, None], 0.0) + share[:, None]
        if mask_ptr is not None:
            # The max's channel may be an absent one, where all present ones are -inf.
            present = tl.load(mask_at + columns, mask=columns < CHANNELS, other=0) != 0
            dx = tl.where(present[None, :], dx, 0.0)
        if grad_ptr is not None:
            dx += tl.load(grad_at + offset, mask=held, other=0.0).to(tl.float32) * gate[:, None]
        tl.store(dx_at + offset, dx.to(dx_ptr.dtype.element_ty), mask=held)
