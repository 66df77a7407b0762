"""x times a gate given by its logits, and the gradients of both, each in one pass over x."""

import triton
import triton.language as tl
from torch import Tensor

from polychrome.kernels.launch import cdiv, launch
from polychrome.kernels.spatial_attention.configs import stream_tile
from polychrome.kernels.spatial_attention.triton.blocks import pixel_block
from polychrome.kernels.streaming import constants, offsets, pixel_groups, sample_start
from polychrome.kernels.tensors import is_channels_last


def scale_pixels(x: Tensor, logits: Tensor, y: Tensor) -> None:
    """Fill `y = x * sigmoid(logits)`; x and y are dense in one layout, logits [batch, 1, height, width] contiguous."""
    batch, channels, height, width = x.shape
    tile = stream_tile(batch, channels, height * width, is_channels_last(x))
    launch(
        scale_pixels_kernel,
        (batch * cdiv(height * width, tile.block_p),),
        x,
        logits,
        y,
        pixel_groups(x),
        **constants(x),
        BLOCK_P=tile.block_p,
        BLOCK_C=tile.block_c,
        num_warps=tile.warps,
    )


def scale_pixels_backward(
    grad: Tensor, x: Tensor | None, logits: Tensor, dx: Tensor | None, dlogits: Tensor | None
) -> None:
    """Fill `dx` and `dlogits` where given; the second needs x.

    grad, x and dx are dense in one layout, logits and dlogits [batch, 1, height, width] contiguous.
    """
    batch, channels, height, width = grad.shape
    tile = stream_tile(batch, channels, height * width, is_channels_last(grad), carries=dlogits is not None)
    launch(
        scale_pixels_backward_kernel,
        (batch * cdiv(height * width, tile.block_p),),
        grad,
        x,
        logits,
        dx,
        dlogits,
        pixel_groups(grad),
        **constants(grad),
        BLOCK_P=tile.block_p,
        BLOCK_C=tile.block_c,
        num_warps=tile.warps,
    )


@triton.jit(do_not_specialize=["groups"])
def scale_pixels_kernel(
    x_ptr,
    logits_ptr,
    y_ptr,
    groups,
    CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    sample, pixels, rows = pixel_block(tl.program_id(0), groups, VECTOR, BLOCK_P, INDEX64)
    inside = rows < pixels
    logits = tl.load(sample_start(logits_ptr, sample, pixels, 1) + rows, mask=inside, other=0.0)
    gate = tl.sigmoid(logits.to(tl.float32))
    x_at = sample_start(x_ptr, sample, pixels, CHANNELS)
    y_at = sample_start(y_ptr, sample, pixels, CHANNELS)
    for start in range(0, CHANNELS, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)
        held = inside[:, None] & (columns < CHANNELS)[None, :]
        offset = offsets(rows[:, None], columns[None, :], pixels, CHANNELS, CHANNELS_LAST, INDEX64)
        x = tl.load(x_at + offset, mask=held, other=0.0).to(tl.float32)  # [BLOCK_P, BLOCK_C]
        tl.store(y_at + offset, (x * gate[:, None]).to(y_ptr.dtype.element_ty), mask=held)


@triton.jit(do_not_specialize=["groups"])
def scale_pixels_backward_kernel(
    grad_ptr,
    x_ptr,
    logits_ptr,
    dx_ptr,
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
    inside = rows < pixels
    logits = tl.load(sample_start(logits_ptr, sample, pixels, 1) + rows, mask=inside, other=0.0)
    gate = tl.sigmoid(logits.to(tl.float32))
    grad_at = sample_start(grad_ptr, sample, pixels, CHANNELS)
    if dx_ptr is not None:
        dx_at = sample_start(dx_ptr, sample, pixels, CHANNELS)
    if dlogits_ptr is not None:
        x_at = sample_start(x_ptr, sample, pixels, CHANNELS)
        total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, CHANNELS, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)
        held = inside[:, None] & (columns < CHANNELS)[None, :]
        offset = offsets(rows[:, None], columns[None, :], pixels, CHANNELS, CHANNELS_LAST, INDEX64)
        grad = tl.load(grad_at + offset, mask=held, other=0.0).to(tl.float32)  # [BLOCK_P, BLOCK_C]
        if dlogits_ptr is not None:
            total += grad * tl.load(x_at + offset, mask=held, other=0.0).to(tl.float32)
        if dx_ptr is not None:
            tl.store(dx_at + offset, (grad * gate[:, None]).to(dx_ptr.dtype.element_ty), mask=held)
    if dlogits_ptr is not None:
        dlogits = gate * (1 - gate) * tl.sum(total, 1)
        dlogits_at = sample_start(dlogits_ptr, sample, pixels, 1) + rows
        tl.store(dlogits_at, dlogits.to(dlogits_ptr.dtype.element_ty), mask=inside)
