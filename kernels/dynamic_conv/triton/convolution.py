"""One implicit matrix product for the forward pass and the gradient of x, with weights per sample or shared experts.

Rows are output pixels, columns output channels of one group; the product runs over taps and input channels. The
gradient of x is the same product with the roles of x and y exchanged: input pixels of equal remainder modulo the
stride see the same taps, so each remainder (phase) is a dense problem of its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polychrome.kernels.dynamic_conv.configs import ConvolutionConfig
from polychrome.kernels.dynamic_conv.problem import Geometry
from polychrome.kernels.dynamic_conv.triton.addressing import constants, first_tap, lies_in, walk
from polychrome.kernels.dynamic_conv.triton.splits import NOTHING, Epilogue, add_up, scaled
from polychrome.kernels.launch import cdiv, launch, next_power_of_2
from polychrome.kernels.tensors import needs_64_bits


def convolve(
    source: Tensor,
    weight: Tensor,
    out: Tensor,
    geometry: Geometry,
    kernel: tuple[int, int],
    config: ConvolutionConfig,
    precision: str,
    transposed: bool = False,
    mixing: Tensor | None = None,
    epilogue: Epilogue = NOTHING,
    probe: Tensor | None = None,
    products: Tensor | None = None,
) -> None:
    """Fill `out` with the convolution of `source`, or with its gradient's form where `transposed`.

    Args:
        source: [batch, channels, height, width] channels_last; y's gradient where transposed.
        weight: [batch, out, taps, in/groups], or [experts, out, taps, in/groups] with `mixing` [batch, experts].
        out: [batch, channels, height, width], dense, channels_last or not.
        probe: [batch, channels, height, width] channels_last, multiplied with each expert's result; the sums over a
            column block go to `products` [column blocks, experts, batch, height * width], float32.

    Raises:
        ValueError: `config` splits a product with `mixing`, whose experts are not met in parts.
    """
    if config.splits > 1 and mixing is not None:
        raise ValueError(f"splits must be 1 where experts are mixed in the product, got {config.splits}")
    partial = None
    if config.splits > 1:
        partial = out.new_empty((config.splits, len(out), *out.shape[2:], out.shape[1]), dtype=torch.float32)
    at_once = epilogue if partial is None else NOTHING
    stride, groups = geometry.stride, geometry.groups
    batch, channels = source.shape[0], source.shape[1] // groups
    outputs = out.shape[1] // groups
    height, width = out.shape[2:]
    phases = stride[0] * stride[1] if transposed else 1
    extent = (cdiv(height, stride[0]), cdiv(width, stride[1])) if transposed else (height, width)
    rows = extent[0] * extent[1] * (batch if mixing is not None else 1)
    tiles = cdiv(rows, config.block_m) * cdiv(outputs, config.block_n) * groups * phases
    grid = (tiles * (1 if mixing is not None else config.splits * batch),)
    launch(
        convolution_kernel,
        grid,
        source,
        weight,
        out if partial is None else partial,
        mixing,
        *at_once[:3],
        probe,
        products,
        batch,
        *source.shape[2:],
        height,
        width,
        EXPERTS=0 if mixing is None else weight.shape[0],
        GROUPS=groups,
        CHANNELS=channels,
        OUTPUTS=outputs,
        **constants(kernel, geometry),
        **walk(geometry, transposed),
        TRANSPOSED=transposed,
        RELU=at_once.relu,
        CHANNELS_LAST=partial is not None or out.is_contiguous(memory_format=torch.channels_last),
        INDEX64=needs_64_bits(source, out, products),
        PRECISION=precision,
        GATHER=channels < 16,
        SPLITS=config.splits,
        SWAP=config.swap,
        SIDE_BY_SIDE=next_power_of_2(weight.shape[0]) if config.together and mixing is not None else 1,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    if partial is not None:
        add_up(partial, out, epilogue)


@triton.jit
def gather(
    source_at,
    weight_at,
    k_x,
    k_w,
    row_x,
    h_x,
    w_x,
    inside_x,
    column_w,
    inside_w,
    source_h,
    source_w,
    first_h,
    first_w,
    taps_h,
    taps_w,
    CHANNELS: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    MOVE_H: tl.constexpr,
    MOVE_W: tl.constexpr,
    PIXEL: tl.constexpr,
    WEIGHT_TAP: tl.constexpr,
    WEIGHT_CHANNEL: tl.constexpr,
):
    """Return tiles of x and of the weights whose inner dimension counts channels, then taps: for few channels."""
    tap = k_x // CHANNELS
    tap_h = tap // tl.maximum(taps_w, 1)
    tap_w = tap % tl.maximum(taps_w, 1)
    h = h_x + tap_h * MOVE_H
    w = w_x + tap_w * MOVE_W
    offset = row_x + (tap_h * MOVE_H * source_w + tap_w * MOVE_W) * PIXEL + k_x % CHANNELS
    mask = inside_x & (tap_h < taps_h) & lies_in(h, w, source_h, source_w)
    x = tl.load(source_at + offset, mask=mask, other=0.0)
    tap = k_w // CHANNELS
    tap_h = tap // tl.maximum(taps_w, 1)
    tap_w = tap % tl.maximum(taps_w, 1)
    offset = ((first_h + tap_h * STEP_H) * KERNEL_W + first_w + tap_w * STEP_W) * WEIGHT_TAP
    offset = column_w + offset + (k_w % CHANNELS) * WEIGHT_CHANNEL
    weight = tl.load(weight_at + offset, mask=inside_w & (tap_h < taps_h), other=0.0)
    return x, weight


@triton.jit
def seen_by(
    probe_ptr,
    row_sample,
    pixel,
    row_inside,
    out_channel,
    column_inside,
    pixels,
    OUT_CHANNELS: tl.constexpr,
):
    """Return what the probe holds where the tile's results lie, [BLOCK_M, BLOCK_N] in float32."""
    probe_at = (row_sample * pixels + pixel) * OUT_CHANNELS
    mask = row_inside[:, None] & column_inside[None, :]
    return tl.load(probe_ptr + probe_at[:, None] + out_channel[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def convolution_kernel(
    source_ptr,
    weight_ptr,
    out_ptr,
    mixing_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    probe_ptr,
    products_ptr,
    batch,
    source_h,
    source_w,
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
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    MOVE_H: tl.constexpr,
    MOVE_W: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    PRECISION: tl.constexpr,
    GATHER: tl.constexpr,
    SPLITS: tl.constexpr,
    SWAP: tl.constexpr,
    SIDE_BY_SIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tl.static_assert(SIDE_BY_SIDE == 1 or not SWAP)
    tl.static_assert(SPLITS == 1 or EXPERTS == 0)
    STACKED: tl.constexpr = EXPERTS > 0
    # Experts side by side are columns of one product; else they are met one after the other.
    IN_TURN: tl.constexpr = STACKED and SIDE_BY_SIDE == 1
    WIDTH: tl.constexpr = SIDE_BY_SIDE * BLOCK_N
    TAPS: tl.constexpr = KERNEL_H * KERNEL_W
    column_blocks = tl.cdiv(OUTPUTS, BLOCK_N)
    pid = tl.program_id(0)
    column_block = pid % column_blocks
    pid = pid // column_blocks

    # Which output pixels: the whole image, or those of one phase.
    if TRANSPOSED:
        phase = pid % (STRIDE_H * STRIDE_W)
        pid = pid // (STRIDE_H * STRIDE_W)
        phase_h = phase // STRIDE_W
        phase_w = phase % STRIDE_W
        rows_h = tl.cdiv(out_h - phase_h, STRIDE_H)
        rows_w = tl.cdiv(out_w - phase_w, STRIDE_W)
        blocks_per = tl.cdiv(out_h, STRIDE_H) * tl.cdiv(out_w, STRIDE_W)
        first_h, taps_h, base_h = first_tap(phase_h, KERNEL_H, STRIDE_H, PADDING_H, DILATION_H, STEP_H)
        first_w, taps_w, base_w = first_tap(phase_w, KERNEL_W, STRIDE_W, PADDING_W, DILATION_W, STEP_W)
    else:
        rows_h = out_h
        rows_w = out_w
        blocks_per = out_h * out_w
        first_h = 0
        first_w = 0
        taps_h = KERNEL_H
        taps_w = KERNEL_W
        base_h = -PADDING_H
        base_w = -PADDING_W
    row_blocks = tl.cdiv(blocks_per * (batch if STACKED else 1), BLOCK_M)
    row_block = pid % row_blocks
    pid = pid // row_blocks
    group = pid % GROUPS
    result = pid // GROUPS  # a sample's, or of a part of its product
    sample = (result % batch if SPLITS > 1 else result).to(tl.int64)

    rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    if INDEX64:
        rows = rows.to(tl.int64)
    row_inside = rows < rows_h * rows_w * (batch if STACKED else 1)
    row_sample = rows // tl.maximum(rows_h * rows_w, 1) if STACKED else rows * 0
    rows = rows - row_sample * (rows_h * rows_w)
    row_h = rows // tl.maximum(rows_w, 1)
    row_w = rows % tl.maximum(rows_w, 1)
    if TRANSPOSED:
        at_h = row_h + base_h
        at_w = row_w + base_w
        pixel = (row_h * STRIDE_H + phase_h) * out_w + row_w * STRIDE_W + phase_w
    else:
        at_h = row_h * STRIDE_H + base_h
        at_w = row_w * STRIDE_W + base_w
        pixel = rows
    columns = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    column_inside = columns < OUTPUTS
    out_channel = group * OUTPUTS + columns
    block = group * column_blocks + column_block
    pixels = out_h * out_w

    # Weights are [.., groups * out, taps, in / groups] whichever of the two the product runs over.
    if TRANSPOSED:
        WEIGHT_COLUMN: tl.constexpr = 1
        WEIGHT_CHANNEL: tl.constexpr = TAPS * OUTPUTS
        WEIGHT_TAP: tl.constexpr = OUTPUTS
        weight_base = group * (CHANNELS * TAPS * OUTPUTS)
    else:
        WEIGHT_COLUMN: tl.constexpr = TAPS * CHANNELS
        WEIGHT_CHANNEL: tl.constexpr = 1
        WEIGHT_TAP: tl.constexpr = CHANNELS
        weight_base = group * (OUTPUTS * TAPS * CHANNELS)
    WEIGHT_SIZE: tl.constexpr = GROUPS * OUTPUTS * TAPS * CHANNELS
    tl.static_assert(WEIGHT_SIZE * (EXPERTS if STACKED else 1) < 2**31, "offsets of weights have 32 bits")
    PIXEL: tl.constexpr = GROUPS * CHANNELS
    source_at = source_ptr + sample * source_h * source_w * PIXEL + group * CHANNELS
    row_offset = ((row_sample * source_h + at_h) * source_w + at_w) * PIXEL  # [BLOCK_M]
    weight_at = weight_ptr + sample * WEIGHT_SIZE + weight_base

    # Each operand is loaded the way round the product takes it: x [BLOCK_M, BLOCK_K] times weight [BLOCK_K, BLOCK_N],
    # or both transposed and exchanged.
    inner = tl.arange(0, BLOCK_K)
    inner_x = inner[:, None] if SWAP else inner[None, :]
    inner_w = inner[None, :] if SWAP else inner[:, None]
    met = tl.arange(0, WIDTH)
    column_of = column_block * BLOCK_N + met % BLOCK_N
    column_known = column_of < OUTPUTS
    column_of = column_of * WEIGHT_COLUMN
    if SIDE_BY_SIDE > 1:
        column_known = column_known & (met // BLOCK_N < EXPERTS)
        column_of += met // BLOCK_N * WEIGHT_SIZE
    column_w = column_of[:, None] if SWAP else column_of[None, :]
    inside_w = column_known[:, None] if SWAP else column_known[None, :]
    inside_x = row_inside[None, :] if SWAP else row_inside[:, None]
    h_x = at_h[None, :] if SWAP else at_h[:, None]
    w_x = at_w[None, :] if SWAP else at_w[:, None]
    row_x = row_offset[None, :] if SWAP else row_offset[:, None]
    source_ptrs = source_at + row_x + inner_x
    weight_ptrs = weight_at + column_w + inner_w * WEIGHT_CHANNEL
    # a gather runs over taps and channels together
    IN_A_TAP: tl.constexpr = tl.cdiv(CHANNELS, BLOCK_K)
    steps = tl.cdiv(taps_h * taps_w * CHANNELS, BLOCK_K) if GATHER else taps_h * taps_w * IN_A_TAP

    if SWAP:
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        acc = tl.zeros((BLOCK_M, WIDTH), tl.float32)
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)

    # One flat loop over experts, taps and channel blocks; the counters move by tl.where: an `if` stops prefetching.
    step = 0
    channel = 0
    tap_h = 0
    tap_w = 0
    expert = 0
    end = steps * (EXPERTS if IN_TURN else 1)
    if SPLITS > 1:
        per_split = tl.cdiv(steps, SPLITS)
        step = result // batch * per_split
        end = tl.minimum(steps - step, per_split)
        channel = step % IN_A_TAP * BLOCK_K
        tap_h = step // IN_A_TAP // tl.maximum(taps_w, 1)
        tap_w = step // IN_A_TAP % tl.maximum(taps_w, 1)
    for _ in range(0, end):
        if GATHER:
            x, weight = gather(
                source_at,
                weight_at + expert * WEIGHT_SIZE,
                step * BLOCK_K + inner_x,
                step * BLOCK_K + inner_w,
                row_x,
                h_x,
                w_x,
                inside_x,
                column_w,
                inside_w,
                source_h,
                source_w,
                first_h,
                first_w,
                taps_h,
                taps_w,
                CHANNELS,
                KERNEL_W,
                STEP_H,
                STEP_W,
                MOVE_H,
                MOVE_W,
                PIXEL,
                WEIGHT_TAP,
                WEIGHT_CHANNEL,
            )
        else:
            h = h_x + tap_h * MOVE_H
            w = w_x + tap_w * MOVE_W
            mask_x = inside_x & lies_in(h, w, source_h, source_w)
            mask_w = inside_w
            if CHANNELS % BLOCK_K != 0:
                mask_x = mask_x & (channel + inner_x < CHANNELS)
                mask_w = mask_w & (channel + inner_w < CHANNELS)
            move = (tap_h * MOVE_H * source_w + tap_w * MOVE_W) * PIXEL + channel
            x = tl.load(source_ptrs + move, mask=mask_x, other=0.0)
            tap = (first_h + tap_h * STEP_H) * KERNEL_W + first_w + tap_w * STEP_W
            move = expert * WEIGHT_SIZE + tap * WEIGHT_TAP + channel * WEIGHT_CHANNEL
            if OUTPUTS % BLOCK_N == 0 and CHANNELS % BLOCK_K == 0 and (SIDE_BY_SIDE == 1 or SIDE_BY_SIDE == EXPERTS):
                weight = tl.load(weight_ptrs + move)
            else:
                weight = tl.load(weight_ptrs + move, mask=mask_w, other=0.0)
        if SWAP:
            acc = tl.dot(weight, x, acc, input_precision=PRECISION)
        else:
            acc = tl.dot(x, weight, acc, input_precision=PRECISION)

        step += 1
        channel += BLOCK_K
        wrapped = channel >= CHANNELS
        channel = tl.where(wrapped, 0, channel)
        tap_w = tl.where(wrapped, tap_w + 1, tap_w)
        wrapped = tap_w >= taps_w
        tap_w = tl.where(wrapped, 0, tap_w)
        tap_h = tl.where(wrapped, tap_h + 1, tap_h)
        if IN_TURN:
            last = step == steps
            if last:
                share = tl.load(mixing_ptr + row_sample * EXPERTS + expert, mask=row_inside, other=0.0).to(tl.float32)
                total += (share[None, :] if SWAP else share[:, None]) * acc
                if products_ptr is not None:
                    seen = seen_by(
                        probe_ptr, row_sample, pixel, row_inside, out_channel, column_inside, pixels, GROUPS * OUTPUTS
                    )
                    product = tl.sum(seen * (acc.T if SWAP else acc), 1)
                    product_at = ((block * EXPERTS + expert) * batch + row_sample) * pixels + pixel
                    tl.store(products_ptr + product_at, product, mask=row_inside)
                acc = tl.zeros_like(acc)
            expert = tl.where(last, expert + 1, expert)
            tap_h = tl.where(last, 0, tap_h)
            step = tl.where(last, 0, step)

    if SIDE_BY_SIDE > 1:
        apart = tl.reshape(acc, (BLOCK_M, SIDE_BY_SIDE, BLOCK_N))
        of = tl.arange(0, SIDE_BY_SIDE)
        held = row_inside[:, None] & (of < EXPERTS)[None, :]
        if products_ptr is not None:
            seen = seen_by(
                probe_ptr, row_sample, pixel, row_inside, out_channel, column_inside, pixels, GROUPS * OUTPUTS
            )
            product_at = ((block * EXPERTS + of[None, :]) * batch + row_sample[:, None]) * pixels + pixel[:, None]
            tl.store(products_ptr + product_at, tl.sum(seen[:, None, :] * apart, 2), mask=held)
        share = tl.load(mixing_ptr + row_sample[:, None] * EXPERTS + of[None, :], mask=held, other=0.0).to(tl.float32)
        total = tl.sum(apart * share[:, :, None], 1)
    elif not STACKED:
        total = acc
    if SWAP:
        total = total.T
    if bias_ptr is not None:
        if STACKED:
            bias_at = row_sample[:, None] * (GROUPS * OUTPUTS) + out_channel[None, :]
            bias_mask = row_inside[:, None] & column_inside[None, :]
            total += tl.load(bias_ptr + bias_at, mask=bias_mask, other=0.0).to(tl.float32)
        else:
            bias_at = sample * (GROUPS * OUTPUTS) + out_channel
            total += tl.load(bias_ptr + bias_at, mask=column_inside, other=0.0).to(tl.float32)[None, :]
    total = scaled(total, scale_ptr, shift_ptr, out_channel, column_inside, RELU)
    out_at = out_ptr + result.to(tl.int64) * out_h * out_w * (GROUPS * OUTPUTS)
    if CHANNELS_LAST:
        out_offset = ((row_sample * (out_h * out_w) + pixel) * (GROUPS * OUTPUTS))[:, None] + out_channel[None, :]
    else:
        out_offset = row_sample[:, None] * (GROUPS * OUTPUTS * out_h * out_w) + pixel[:, None]
        out_offset += out_channel[None, :] * (out_h * out_w)
    tl.store(
        out_at + out_offset,
        total.to(out_ptr.dtype.element_ty),
        mask=row_inside[:, None] & column_inside[None, :],
    )
