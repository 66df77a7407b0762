"""The gradients of the logits, and of x."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polychrome.kernels.launch import cdiv, launch
from polychrome.kernels.spatial_attention.configs import stream_tile
from polychrome.kernels.spatial_attention.triton.blocks import pixel_block
from polychrome.kernels.streaming import constants, from_the_last, offsets, pixel_groups, sample_start
from polychrome.kernels.tensors import is_channels_last

# Pixels of a block of `spread`, which holds four numbers of each beside the tile.
WIDEST_BLOCK = 128


def logit_gradient(grad: Tensor, x: Tensor, gate: Tensor) -> Tensor:
    """Return the gradient of the logits, float32 [batch, 1, height, width]; grad and x are dense in one layout."""
    batch, channels, height, width = x.shape
    dlogits = torch.empty_like(gate)
    tile = stream_tile(batch, channels, height * width, is_channels_last(x), carries=True)
    launch(
        dot_kernel,
        (batch * cdiv(height * width, tile.block_p),),
        grad,
        x,
        gate,
        dlogits,
        pixel_groups(x),
        **constants(x),
        BLOCK_P=tile.block_p,
        BLOCK_C=tile.block_c,
        num_warps=tile.warps,
    )
    return dlogits


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
        (batch * cdiv(height * width, tile.block_p),),
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
        num_warps=tile.warps,
    )


@triton.jit(do_not_specialize=["groups"])
def dot_kernel(
    grad_ptr,
    x_ptr,
    gate_ptr,
    dlogits_ptr,
    groups,
    CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    sample, pixels, rows = pixel_block(tl.program_id(0), groups, VECTOR, BLOCK_P, INDEX64)
    store_logit_gradient(
        grad_ptr,
        x_ptr,
        gate_ptr,
        dlogits_ptr,
        sample,
        pixels,
        rows,
        CHANNELS,
        CHANNELS_LAST,
        INDEX64,
        BLOCK_P,
        BLOCK_C,
        1,
    )


@triton.jit
def store_logit_gradient(
    grad_ptr,
    x_ptr,
    gate_ptr,
    dlogits_ptr,
    sample,
    pixels,
    rows,
    CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Store the logits' gradients of pixels `rows` [BLOCK_P] of a sample, `TOGETHER` blocks loaded at a time."""
    inside = rows < pixels
    grad_at = sample_start(grad_ptr, sample, pixels, CHANNELS)
    x_at = sample_start(x_ptr, sample, pixels, CHANNELS)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for begin in range(0, CHANNELS, BLOCK_C * TOGETHER):
        leading = begin + tl.arange(0, BLOCK_C)
        for block in tl.static_range(TOGETHER):
            columns = leading + block * BLOCK_C
            held = inside[:, None] & (columns < CHANNELS)[None, :]
            offset = offsets(rows[:, None], columns[None, :], pixels, CHANNELS, CHANNELS_LAST, INDEX64)
            grad = tl.load(grad_at + offset, mask=held, other=0.0).to(tl.float32)
            total += grad * tl.load(x_at + offset, mask=held, other=0.0).to(tl.float32)
    gate = tl.load(sample_start(gate_ptr, sample, pixels, 1) + rows, mask=inside, other=0.0)
    dlogits = gate * (1 - gate) * tl.sum(total, 1)
    tl.store(sample_start(dlogits_ptr, sample, pixels, 1) + rows, dlogits, mask=inside)


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
    dmean = tl.load(dmaps_at, mask=inside, other=0.0).to(tl.float32)
    dmax = tl.load(dmaps_at + (1 if MAPS_LAST else pixels), mask=inside, other=0.0).to(tl.float32)
    store_spread(
        dmean,
        dmax,
        argmax_ptr,
        mask_ptr,
        grad_ptr,
        gate_ptr,
        dx_ptr,
        sample,
        pixels,
        rows,
        inside,
        CHANNELS,
        CHANNELS_LAST,
        INDEX64,
        BLOCK_C,
    )


@triton.jit
def store_spread(
    dmean,
    dmax,
    argmax_ptr,
    mask_ptr,
    grad_ptr,
    gate_ptr,
    dx_ptr,
    sample,
    pixels,
    rows,
    inside,
    CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Store the gradient of pixels `rows` of a sample, those `inside`, from that of their maps; all [BLOCK_P]."""
    argmax = tl.load(sample_start(argmax_ptr, sample, pixels, 1) + rows, mask=inside, other=0)
    if mask_ptr is not None:
        mask_at = sample_start(mask_ptr, sample, 1, CHANNELS)
        count = tl.zeros((BLOCK_C,), tl.int32)
        for start in range(0, CHANNELS, BLOCK_C):
            columns = start + tl.arange(0, BLOCK_C)
            count += (tl.load(mask_at + columns, mask=columns < CHANNELS, other=0) != 0).to(tl.int32)
        share = dmean / tl.sum(count, 0).to(tl.float32)
    else:
        share = dmean / CHANNELS
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
