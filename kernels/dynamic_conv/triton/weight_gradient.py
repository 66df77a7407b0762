"""The gradients of the experts and of the mixing, or of weights given per sample.

A program owns a tile [out, in] of one tap and walks over its samples. One sample's gradient G = dy^T x never leaves
the registers: it is added to one accumulator per expert, times the mixing, and its product with each expert is stored
as a partial sum of the mixing's gradient.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polychrome.kernels.dynamic_conv.configs import WeightGradientConfig, spans_taps, weight_tiles
from polychrome.kernels.dynamic_conv.problem import Geometry
from polychrome.kernels.dynamic_conv.triton.addressing import constants, lies_in
from polychrome.kernels.launch import cdiv, launch
from polychrome.kernels.sums import sum_rows
from polychrome.kernels.tensors import needs_64_bits


def expert_gradients(
    grad: Tensor,
    x: Tensor,
    experts: Tensor | None,
    mixing: Tensor,
    geometry: Geometry,
    kernel: tuple[int, int],
    config: WeightGradientConfig,
    precision: str,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of experts [experts, out, taps, in/groups] and of mixing [batch, experts] in float32.

    grad and x are channels_last; `experts` [experts, out, taps, in/groups] only where the mixing's gradient is wanted.
    That of the experts is in x's dtype where it took one pass over the batch, else it is to be rounded.
    """
    batch, count = mixing.shape
    taps, groups = kernel[0] * kernel[1], geometry.groups
    outputs, channels = grad.shape[1], x.shape[1] // groups
    splits = cdiv(batch, cdiv(batch, config.splits))
    dtype = x.dtype if splits == 1 else torch.float32
    partial = grad.new_empty((splits, count, outputs, taps, channels), dtype=dtype)
    products = None
    if experts is not None:
        tiles = groups * weight_tiles(outputs // groups, channels, taps, config)
        products = grad.new_empty((tiles, batch, count), dtype=torch.float32)
    _launch(grad, x, experts, mixing, partial, products, geometry, kernel, config, precision)
    gradient = partial[0] if splits == 1 else sum_rows(partial)
    return gradient, None if products is None else sum_rows(products)


def sample_gradients(
    grad: Tensor,
    x: Tensor,
    out: Tensor,
    geometry: Geometry,
    kernel: tuple[int, int],
    config: WeightGradientConfig,
    precision: str,
) -> Tensor:
    """Fill `out` [batch * parts, out, taps, in/groups] with each sample's own weight gradient; return it.

    Each part is of a range of pixels, as many as `configs.own_parts` says.
    """
    _launch(grad, x, None, None, out, None, geometry, kernel, config, precision)
    return out


def _launch(grad, x, experts, mixing, out, products, geometry: Geometry, kernel, config, precision):
    batch, channels, height, width = x.shape
    count = 0 if mixing is None else mixing.shape[1]
    taps, groups = kernel[0] * kernel[1], geometry.groups
    per_program = -(-batch // config.splits) if count else 1
    blocks = -(-grad.shape[2] * grad.shape[3] // config.block_k)
    parts = 1 if count else out.shape[0] // batch
    tiles = groups * weight_tiles(grad.shape[1] // groups, channels // groups, taps, config)
    launch(
        weight_gradient_kernel,
        (tiles * -(-batch // per_program) * parts,),
        grad,
        x,
        experts,
        mixing,
        out,
        products,
        batch,
        per_program,
        parts,
        -(-blocks // parts),
        height,
        width,
        *grad.shape[2:],
        EXPERTS=count,
        GROUPS=groups,
        CHANNELS=channels // groups,
        OUTPUTS=grad.shape[1] // groups,
        **constants(kernel, geometry),
        INDEX64=needs_64_bits(grad[:1], x[:1], out),
        PRECISION=precision,
        GATHER=spans_taps(channels // groups, config),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        num_warps=config.warps,
        num_stages=config.stages,
    )


@triton.jit
def weight_gradient_kernel(
    grad_ptr,
    x_ptr,
    experts_ptr,
    mixing_ptr,
    out_ptr,
    products_ptr,
    batch,
    per_program,
    parts,
    blocks_per_part,
    height,
    width,
    out_h,
    out_w,
    EXPERTS: tl.constexpr,
    GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    INDEX64: tl.constexpr,
    PRECISION: tl.constexpr,
    GATHER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    TAPS: tl.constexpr = KERNEL_H * KERNEL_W
    SIZE: tl.constexpr = GROUPS * OUTPUTS * TAPS * CHANNELS
    WHOLE_ROWS: tl.constexpr = OUTPUTS % BLOCK_M == 0
    WHOLE_COLUMNS: tl.constexpr = (TAPS * CHANNELS if GATHER else CHANNELS) % BLOCK_N == 0
    row_blocks = tl.cdiv(OUTPUTS, BLOCK_M)
    # A gather's columns run over taps and channels together, else over the channels of one tap.
    column_blocks = tl.cdiv(TAPS * CHANNELS, BLOCK_N) if GATHER else TAPS * tl.cdiv(CHANNELS, BLOCK_N)
    tiles = GROUPS * row_blocks * column_blocks
    tile = tl.program_id(0) % tiles
    split = tl.program_id(0) // tiles
    column_block = tile % column_blocks
    row_block = tile // column_blocks % row_blocks
    group = tile // (column_blocks * row_blocks)

    rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    row_inside = rows < OUTPUTS
    if GATHER:
        columns = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
        column_inside = columns < TAPS * CHANNELS
        column_tap = columns // CHANNELS
        column_h = column_tap // KERNEL_W * DILATION_H - PADDING_H
        column_w = column_tap % KERNEL_W * DILATION_W - PADDING_W
        column_offset = (column_h * width + column_w) * (GROUPS * CHANNELS) + columns % CHANNELS
        column_at = columns
    else:
        tap = column_block % TAPS
        channels = column_block // TAPS * BLOCK_N + tl.arange(0, BLOCK_N)
        column_inside = channels < CHANNELS
        column_h = tap // KERNEL_W * DILATION_H - PADDING_H
        column_w = tap % KERNEL_W * DILATION_W - PADDING_W
        column_offset = (column_h * width + column_w) * (GROUPS * CHANNELS) + channels
        column_at = tap * CHANNELS + channels
    # [BLOCK_M, BLOCK_N] of a weight [groups * out, taps, in / groups]
    weight_offset = (group * OUTPUTS + rows)[:, None] * (TAPS * CHANNELS) + column_at[None, :]
    weight_inside = row_inside[:, None] & column_inside[None, :]

    # A program takes several samples, or a part of the pixels of one.
    pixels = out_h * out_w
    blocks = tl.cdiv(pixels, BLOCK_K)
    if EXPERTS > 0:
        first = split.to(tl.int64) * per_program
        block = 0
        steps = tl.minimum(batch - first, per_program).to(tl.int32) * blocks
    else:
        first = (split // parts).to(tl.int64)
        block = split % parts * blocks_per_part
        steps = tl.minimum(blocks - block, blocks_per_part)
    grad_at = grad_ptr + first * pixels * (GROUPS * OUTPUTS) + group * OUTPUTS
    x_at = x_ptr + first * height * width * (GROUPS * CHANNELS) + group * CHANNELS

    gradient = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    totals = ()
    for _ in tl.static_range(EXPERTS):
        totals = totals + (tl.zeros((BLOCK_M, BLOCK_N), tl.float32),)
    # One flat loop over samples and pixel blocks, so that the loads of the next sample start before this one ends.
    sample = 0
    grad_step = tl.cast(pixels, tl.int64) * (GROUPS * OUTPUTS)
    x_step = tl.cast(height, tl.int64) * width * (GROUPS * CHANNELS)
    # Where a block of pixels begins is moved on by additions, as a division for each pixel would cost more than loads.
    ahead = tl.arange(0, BLOCK_K)
    ahead_h = ahead // out_w
    ahead_w = ahead % out_w
    step_h = BLOCK_K // out_w
    step_w = BLOCK_K % out_w
    block_h = block * BLOCK_K // out_w
    block_w = block * BLOCK_K % out_w
    for _ in range(0, steps):
        pixel = block * BLOCK_K + tl.arange(0, BLOCK_K)
        if INDEX64:
            pixel = pixel.to(tl.int64)
        pixel_inside = pixel < pixels
        pixel_w = block_w + ahead_w
        wrapped = pixel_w >= out_w
        pixel_h = (block_h + ahead_h + wrapped.to(tl.int32)) * STRIDE_H
        pixel_w = tl.where(wrapped, pixel_w - out_w, pixel_w) * STRIDE_W
        grad = tl.load(
            grad_at + (rows[:, None] + pixel[None, :] * (GROUPS * OUTPUTS)),
            mask=pixel_inside[None, :] if WHOLE_ROWS else row_inside[:, None] & pixel_inside[None, :],
            other=0.0,
        )  # [BLOCK_M, BLOCK_K]
        if GATHER:
            at_h = pixel_h[:, None] + column_h[None, :]
            at_w = pixel_w[:, None] + column_w[None, :]
            inside = lies_in(at_h, at_w, height, width) & pixel_inside[:, None]
        else:
            at_h = pixel_h + column_h
            at_w = pixel_w + column_w
            inside = (lies_in(at_h, at_w, height, width) & pixel_inside)[:, None]
        pixel_offset = pixel_h * width + pixel_w
        if INDEX64:
            pixel_offset = pixel_offset.to(tl.int64)
        pixel_offset *= GROUPS * CHANNELS
        x = tl.load(
            x_at + (pixel_offset[:, None] + column_offset[None, :]),
            mask=inside if WHOLE_COLUMNS else inside & column_inside[None, :],
            other=0.0,
        )  # [BLOCK_K, BLOCK_N]
        gradient = tl.dot(grad, x, gradient, input_precision=PRECISION)
        block += 1
        last = block == blocks
        block_w += step_w
        wraps = block_w >= out_w
        block_h += step_h + wraps.to(tl.int32)
        block_w = tl.where(wraps, block_w - out_w, block_w)
        if EXPERTS > 0:
            if last:
                mixed = ()
                for k in tl.static_range(EXPERTS):
                    share = tl.load(mixing_ptr + (first + sample) * EXPERTS + k).to(tl.float32)
                    mixed = mixed + (totals[k] + share * gradient,)
                    if products_ptr is not None:
                        expert = tl.load(experts_ptr + k * SIZE + weight_offset, mask=weight_inside, other=0.0)
                        product = tl.sum(gradient * expert.to(tl.float32))
                        tl.store(products_ptr + (tile * batch + first + sample) * EXPERTS + k, product)
                totals = mixed
                gradient = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            sample += last.to(tl.int32)
            grad_at += tl.where(last, grad_step, 0)
            x_at += tl.where(last, x_step, 0)
            block = tl.where(last, 0, block)
            block_h = tl.where(last, 0, block_h)
            block_w = tl.where(last, 0, block_w)

    out_at = out_ptr + split.to(tl.int64) * (SIZE * (EXPERTS if EXPERTS > 0 else 1))
    if EXPERTS > 0:
        for k in tl.static_range(EXPERTS):
            tl.store(out_at + k * SIZE + weight_offset, totals[k].to(out_ptr.dtype.element_ty), mask=weight_inside)
    else:
        tl.store(out_at + weight_offset, gradient.to(out_ptr.dtype.element_ty), mask=weight_inside)
