"""Depthwise convolution: one input channel per group, no matrix product, bound by memory.

The mix is made in registers, float32, for the channels and the taps a program needs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dynamic_conv.configs import DepthwiseConfig
from kernels.dynamic_conv.triton.addressing import constants, first_tap, walk
from kernels.launch import launch
from kernels.tensors import needs_64_bits

# Accumulators a program of the gradient keeps, one per tap, and one per tap and expert.
TAPS_HELD, VECTORS_HELD = 9, 12


def convolve_depthwise(
    source: Tensor,
    weight: Tensor,
    out: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    kernel: tuple[int, int],
    config: DepthwiseConfig,
    transposed: bool = False,
    mixing: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
) -> None:
    """Fill `out` with the depthwise convolution of `source`, or with the gradient of x from y's where `transposed`.

    weight: [batch, out, taps], or [experts, out, taps] with `mixing` [batch, experts]; the rest as in `convolve`.
    """
    batch = source.shape[0]
    height, width = out.shape[2:]
    inputs = out.shape[1] if transposed else source.shape[1]
    multiplier = weight.shape[1] // inputs
    phases = stride[0] * stride[1] if transposed else 1
    extent = (triton.cdiv(height, stride[0]), triton.cdiv(width, stride[1])) if transposed else (height, width)
    row_blocks = triton.cdiv(extent[0] * extent[1], config.block_p)
    launch(
        depthwise_kernel,
        (triton.cdiv(out.shape[1], config.block_c) * phases * row_blocks * batch,),
        source,
        weight,
        out,
        mixing,
        bias,
        scale,
        shift,
        *source.shape[2:],
        height,
        width,
        EXPERTS=0 if mixing is None else weight.shape[0],
        CHANNELS=out.shape[1],
        MULTIPLIER=multiplier,
        **constants(kernel, stride, padding, dilation),
        **walk(stride, dilation, transposed),
        TRANSPOSED=transposed,
        RELU=relu,
        CHANNELS_LAST=out.is_contiguous(memory_format=torch.channels_last),
        INDEX64=needs_64_bits(source[:1], out[:1]),
        BLOCK_P=config.block_p,
        BLOCK_C=config.block_c,
        num_warps=config.warps,
    )


def depthwise_gradients(
    grad: Tensor,
    x: Tensor,
    experts: Tensor | None,
    mixing: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    kernel: tuple[int, int],
    config: DepthwiseConfig,
) -> tuple[Tensor, Tensor | None]:
    """Return the float32 gradients of experts [experts, out, taps] and mixing [batch, experts].

    Without `mixing`, those of weights given per sample, [batch, out, taps]; without `experts`, no mixing's gradient.
    """
    batch, inputs, height, width = x.shape
    outputs = grad.shape[1]
    taps = kernel[0] * kernel[1]
    count = 0 if mixing is None else mixing.shape[1]
    blocks = triton.cdiv(outputs, config.block_c)
    per_program = triton.cdiv(batch, config.splits) if count else 1
    splits = triton.cdiv(batch, per_program)
    taps_held = min(taps, TAPS_HELD, max(1, VECTORS_HELD // max(count, 1)))
    tap_blocks = triton.cdiv(taps, taps_held)
    partial = grad.new_empty((splits, max(count, 1), outputs, taps), dtype=torch.float32)
    products = None
    if experts is not None:
        products = grad.new_empty((blocks * tap_blocks, batch, count), dtype=torch.float32)
    launch(
        depthwise_gradient_kernel,
        (blocks * tap_blocks * splits,),
        grad,
        x,
        experts,
        mixing,
        partial,
        products,
        batch,
        per_program,
        height,
        width,
        *grad.shape[2:],
        EXPERTS=count,
        CHANNELS=outputs,
        MULTIPLIER=outputs // inputs,
        **constants(kernel, stride, padding, dilation),
        INDEX64=needs_64_bits(grad[:1], x[:1]),
        TAPS_HELD=taps_held,
        BLOCK_P=config.block_p,
        BLOCK_C=config.block_c,
        num_warps=config.warps,
    )
    if not count:
        return partial[:, 0], None
    gradient = partial[0] if splits == 1 else partial.sum(0)
    return gradient, None if products is None else products.sum(0)


@triton.jit
def depthwise_kernel(
    source_ptr,
    weight_ptr,
    out_ptr,
    mixing_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    source_h,
    source_w,
    out_h,
    out_w,
    EXPERTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    MULTIPLIER: tl.constexpr,
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
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    TAPS: tl.constexpr = KERNEL_H * KERNEL_W
    # channels of the weights, which are those of y
    WEIGHTS: tl.constexpr = CHANNELS * MULTIPLIER if TRANSPOSED else CHANNELS
    SOURCE: tl.constexpr = CHANNELS * MULTIPLIER if TRANSPOSED else CHANNELS // MULTIPLIER
    channel_blocks = tl.cdiv(CHANNELS, BLOCK_C)
    pid = tl.program_id(0)
    channels = pid % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_inside = channels < CHANNELS
    pid = pid // channel_blocks
    if TRANSPOSED:
        phase = pid % (STRIDE_H * STRIDE_W)
        pid = pid // (STRIDE_H * STRIDE_W)
        phase_h = phase // STRIDE_W
        phase_w = phase % STRIDE_W
        rows_h = tl.cdiv(out_h - phase_h, STRIDE_H)
        rows_w = tl.cdiv(out_w - phase_w, STRIDE_W)
        row_blocks = tl.cdiv(tl.cdiv(out_h, STRIDE_H) * tl.cdiv(out_w, STRIDE_W), BLOCK_P)
        first_h, taps_h, base_h = first_tap(phase_h, KERNEL_H, STRIDE_H, PADDING_H, DILATION_H, STEP_H)
        first_w, taps_w, base_w = first_tap(phase_w, KERNEL_W, STRIDE_W, PADDING_W, DILATION_W, STEP_W)
    else:
        rows_h = out_h
        rows_w = out_w
        row_blocks = tl.cdiv(out_h * out_w, BLOCK_P)
        first_h = 0
        first_w = 0
        taps_h = KERNEL_H
        taps_w = KERNEL_W
        base_h = -PADDING_H
        base_w = -PADDING_W
    rows = pid % row_blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    sample = (pid // row_blocks).to(tl.int64)
    if INDEX64:
        rows = rows.to(tl.int64)
    row_inside = rows < rows_h * rows_w
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

    source_at = source_ptr + sample * source_h * source_w * SOURCE
    acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for j in range(MULTIPLIER if TRANSPOSED else 1):
        if TRANSPOSED:
            weight_channel = channels * MULTIPLIER + j
            source_channel = weight_channel
        else:
            weight_channel = channels
            source_channel = channels // MULTIPLIER
        for step in range(0, taps_h * taps_w):
            tap_h = step // tl.maximum(taps_w, 1)
            tap_w = step % tl.maximum(taps_w, 1)
            tap = (first_h + tap_h * STEP_H) * KERNEL_W + first_w + tap_w * STEP_W
            weight_offset = weight_channel * TAPS + tap
            if EXPERTS > 0:
                weight = tl.zeros((BLOCK_C,), tl.float32)
                for k in range(EXPERTS):
                    expert = tl.load(
                        weight_ptr + k * (WEIGHTS * TAPS) + weight_offset, mask=channel_inside, other=0.0
                    ).to(tl.float32)
                    weight += tl.load(mixing_ptr + sample * EXPERTS + k).to(tl.float32) * expert
            else:
                weight = tl.load(
                    weight_ptr + sample * (WEIGHTS * TAPS) + weight_offset, mask=channel_inside, other=0.0
                ).to(tl.float32)
            h = at_h + tap_h * MOVE_H
            w = at_w + tap_w * MOVE_W
            inside = row_inside & (h >= 0) & (h < source_h) & (w >= 0) & (w < source_w)
            x = tl.load(
                source_at + ((h * source_w + w) * SOURCE)[:, None] + source_channel[None, :],
                mask=inside[:, None] & channel_inside[None, :],
                other=0.0,
            )  # [BLOCK_P, BLOCK_C]
            acc += x.to(tl.float32) * weight[None, :]

    if bias_ptr is not None:
        bias = tl.load(bias_ptr + sample * CHANNELS + channels, mask=channel_inside, other=0.0)
        acc += bias.to(tl.float32)[None, :]
    if scale_ptr is not None:
        acc *= tl.load(scale_ptr + channels, mask=channel_inside, other=0.0).to(tl.float32)[None, :]
    if shift_ptr is not None:
        acc += tl.load(shift_ptr + channels, mask=channel_inside, other=0.0).to(tl.float32)[None, :]
    if RELU:
        acc = tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)
    out_at = out_ptr + sample * out_h * out_w * CHANNELS
    if CHANNELS_LAST:
        out_offset = (pixel * CHANNELS)[:, None] + channels[None, :]
    else:
        out_offset = pixel[:, None] + channels[None, :] * (out_h * out_w)
    tl.store(out_at + out_offset, acc.to(out_ptr.dtype.element_ty), mask=row_inside[:, None] & channel_inside[None, :])


@triton.jit
def depthwise_gradient_kernel(
    grad_ptr,
    x_ptr,
    experts_ptr,
    mixing_ptr,
    out_ptr,
    products_ptr,
    batch,
    per_program,
    height,
    width,
    out_h,
    out_w,
    EXPERTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    INDEX64: tl.constexpr,
    TAPS_HELD: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    TAPS: tl.constexpr = KERNEL_H * KERNEL_W
    INPUTS: tl.constexpr = CHANNELS // MULTIPLIER
    COUNT: tl.constexpr = EXPERTS if EXPERTS > 0 else 1
    channel_blocks = tl.cdiv(CHANNELS, BLOCK_C)
    tap_blocks = tl.cdiv(TAPS, TAPS_HELD)
    tile = tl.program_id(0) % (channel_blocks * tap_blocks)
    split = tl.program_id(0) // (channel_blocks * tap_blocks)
    channels = tile % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    first_tap = tile // channel_blocks * TAPS_HELD
    channel_inside = channels < CHANNELS
    first = split.to(tl.int64) * per_program
    samples = tl.minimum(batch - first, per_program)
    pixels = out_h * out_w

    totals = ()
    for _ in tl.static_range(COUNT * TAPS_HELD):
        totals = totals + (tl.zeros((BLOCK_C,), tl.float32),)
    for sample in range(first, first + samples):
        grad_at = grad_ptr + sample * pixels * CHANNELS
        x_at = x_ptr + sample * height * width * INPUTS
        sums = ()
        for _ in tl.static_range(TAPS_HELD):
            sums = sums + (tl.zeros((BLOCK_P, BLOCK_C), tl.float32),)
        for block in range(0, tl.cdiv(pixels, BLOCK_P)):
            pixel = block * BLOCK_P + tl.arange(0, BLOCK_P)
            if INDEX64:
                pixel = pixel.to(tl.int64)
            grad = tl.load(
                grad_at + (pixel * CHANNELS)[:, None] + channels[None, :],
                mask=(pixel < pixels)[:, None] & channel_inside[None, :],
                other=0.0,
            ).to(tl.float32)  # [BLOCK_P, BLOCK_C]
            pixel_h = pixel // out_w * STRIDE_H - PADDING_H
            pixel_w = pixel % out_w * STRIDE_W - PADDING_W
            added = ()
            for held in tl.static_range(TAPS_HELD):
                tap = first_tap + held
                h = pixel_h + tap // KERNEL_W * DILATION_H
                w = pixel_w + tap % KERNEL_W * DILATION_W
                inside = (pixel < tl.where(tap < TAPS, pixels, 0)) & (h >= 0) & (h < height) & (w >= 0) & (w < width)
                x = tl.load(
                    x_at + ((h * width + w) * INPUTS)[:, None] + (channels // MULTIPLIER)[None, :],
                    mask=inside[:, None] & channel_inside[None, :],
                    other=0.0,
                )
                added = added + (sums[held] + grad * x.to(tl.float32),)
            sums = added
        mixed = ()
        for k in tl.static_range(COUNT):
            product = tl.zeros((BLOCK_C,), tl.float32)
            for held in tl.static_range(TAPS_HELD):
                gradient = tl.sum(sums[held], 0)  # [BLOCK_C]
                if EXPERTS > 0:
                    share = tl.load(mixing_ptr + sample * EXPERTS + k).to(tl.float32)
                    mixed = mixed + (totals[k * TAPS_HELD + held] + share * gradient,)
                    if products_ptr is not None:
                        expert = tl.load(
                            experts_ptr + (k * CHANNELS + channels) * TAPS + first_tap + held,
                            mask=channels < tl.where(first_tap + held < TAPS, CHANNELS, 0),
                            other=0.0,
                        )
                        product += gradient * expert.to(tl.float32)
                else:
                    mixed = mixed + (gradient,)
            if products_ptr is not None:
                tl.store(products_ptr + (tile * batch + sample) * EXPERTS + k, tl.sum(product))
        totals = mixed

    out_at = out_ptr + split.to(tl.int64) * (COUNT * CHANNELS * TAPS)
    for k in tl.static_range(COUNT):
        for held in tl.static_range(TAPS_HELD):
            tl.store(
                out_at + (k * CHANNELS + channels) * TAPS + first_tap + held,
                totals[k * TAPS_HELD + held],
                mask=channels < tl.where(first_tap + held < TAPS, CHANNELS, 0),
            )
