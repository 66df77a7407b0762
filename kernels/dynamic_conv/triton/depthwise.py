"""Depthwise convolution: one input channel per group, no matrix product, bound by memory.

Each direction has two forms. *Blocks* take any geometry: a program reads the pixels that a block of outputs meets
through one tap after another. *Strips* are for strides and dilations of 1: a program goes down a strip of an image,
reads a row of pixels once for each column of the kernel and keeps in registers what the kernel's rows share.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polychrome.kernels.dynamic_conv.configs import DepthwiseConfig, own_parts
from polychrome.kernels.dynamic_conv.problem import Geometry
from polychrome.kernels.dynamic_conv.triton.addressing import constants, first_tap, lies_in, walk
from polychrome.kernels.dynamic_conv.triton.splits import NOTHING, Epilogue, scaled
from polychrome.kernels.launch import cdiv, launch
from polychrome.kernels.tensors import needs_64_bits

# Weights that a program mixes and keeps in registers for all of its rows; taps of a program of the gradient, in blocks
# and in strips.
WEIGHTS_HELD, TAPS_HELD = 9, {False: 9, True: 14}


def holds_weights(config: DepthwiseConfig, taps: int) -> bool:
    """Return whether a program mixes a sample's weights itself and keeps them."""
    return config.strips and taps <= WEIGHTS_HELD


def convolve_depthwise(
    source: Tensor,
    weight: Tensor,
    out: Tensor,
    geometry: Geometry,
    kernel: tuple[int, int],
    config: DepthwiseConfig,
    transposed: bool = False,
    mixing: Tensor | None = None,
    epilogue: Epilogue = NOTHING,
) -> None:
    """Fill `out` with the depthwise convolution of `source`, or with the gradient of x from y's where `transposed`.

    weight: [batch, taps, out]; where `holds_weights`, [batch, out, taps], or [experts, out, taps] with `mixing` [batch,
    experts]. The rest as in `convolve`.

    Raises:
        ValueError: strips were asked for that the geometry does not allow.
    """
    batch, stride, padding = source.shape[0], geometry.stride, geometry.padding
    height, width = out.shape[2:]
    rest = (*epilogue[:3], *source.shape[2:], height, width)
    shared = {
        "CHANNELS": out.shape[1],
        "RELU": epilogue.relu,
        "CHANNELS_LAST": out.is_contiguous(memory_format=torch.channels_last),
        "INDEX64": needs_64_bits(source[:1], out[:1]),
        "BLOCK_C": config.block_c,
        "num_warps": config.warps,
    }
    channel_blocks, taps = cdiv(out.shape[1], config.block_c), kernel[0] * kernel[1]
    inputs = out.shape[1] if transposed else source.shape[1]
    if config.strips:
        _check_strips(geometry, inputs, weight.shape[1 if holds_weights(config, taps) else 2])
        parts = cdiv(height, config.rows)
        launch(
            strip_kernel,
            (channel_blocks * cdiv(width, config.block_p) * parts * batch,),
            source,
            weight,
            out,
            mixing,
            *rest,
            parts,
            config.rows,
            EXPERTS=0 if mixing is None else weight.shape[0],
            KERNEL_H=kernel[0],
            KERNEL_W=kernel[1],
            PADDING_H=kernel[0] - 1 - padding[0] if transposed else padding[0],
            PADDING_W=kernel[1] - 1 - padding[2] if transposed else padding[2],
            FLIPPED=transposed,
            HELD=holds_weights(config, taps),
            BLOCK_W=config.block_p,
            **shared,
        )
        return
    phases = stride[0] * stride[1] if transposed else 1
    extent = (cdiv(height, stride[0]), cdiv(width, stride[1])) if transposed else (height, width)
    launch(
        depthwise_kernel,
        (channel_blocks * phases * cdiv(extent[0] * extent[1], config.block_p) * batch,),
        source,
        weight,
        out,
        *rest,
        MULTIPLIER=weight.shape[2] // inputs,
        **constants(kernel, geometry),
        **walk(geometry, transposed),
        TRANSPOSED=transposed,
        BLOCK_P=config.block_p,
        **shared,
    )


def _check_strips(geometry: Geometry, inputs: int, outputs: int) -> None:
    if {*geometry.stride, *geometry.dilation} != {1} or inputs != outputs:
        found = f"stride {geometry.stride}, dilation {geometry.dilation}, {inputs} to {outputs} channels"
        raise ValueError(f"strips are for strides and dilations of 1 and as many channels in as out, not {found}")


def depthwise_gradients(
    grad: Tensor, x: Tensor, own: Tensor, geometry: Geometry, kernel: tuple[int, int], config: DepthwiseConfig
) -> Tensor:
    """Fill `own` [batch * parts, taps, out] with each sample's own weight gradient, in parts that are to be summed.

    grad and x are channels_last; the parts of own are those of `configs.own_parts`.

    Raises:
        ValueError: strips were asked for that the geometry does not allow, or own has other parts.
    """
    batch, inputs, height, width = x.shape
    outputs, out_h, out_w = grad.shape[1:]
    parts = len(own) // batch
    held = min(kernel[0] * kernel[1], TAPS_HELD[config.strips])
    channel_blocks = cdiv(outputs, config.block_c)
    given = (grad, x, own, height, width, out_h, out_w, parts)
    shared = {
        "CHANNELS": outputs,
        "INDEX64": needs_64_bits(grad[:1], x[:1]),
        "BLOCK_C": config.block_c,
        "num_warps": config.warps,
    }
    if config.strips:
        _check_strips(geometry, inputs, outputs)
        if parts != own_parts((out_h, out_w), config):
            raise ValueError(f"own must have the parts of {config} at {out_h} x {out_w} pixels, not {parts}")
        rows_held = min(kernel[0], max(1, held // kernel[1]))
        launch(
            strip_gradient_kernel,
            (channel_blocks * cdiv(kernel[0], rows_held) * len(own),),
            *given,
            config.rows,
            KERNEL_H=kernel[0],
            KERNEL_W=kernel[1],
            PADDING_H=geometry.padding[0],
            PADDING_W=geometry.padding[2],
            ROWS_HELD=rows_held,
            BLOCK_W=config.block_p,
            **shared,
        )
        return own
    launch(
        depthwise_gradient_kernel,
        (channel_blocks * cdiv(kernel[0] * kernel[1], held) * len(own),),
        *given,
        MULTIPLIER=outputs // inputs,
        **constants(kernel, geometry),
        TAPS_HELD=held,
        BLOCK_P=config.block_p,
        **shared,
    )
    return own


@triton.jit
def finished(
    acc,
    sample,
    channels,
    inside,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    CHANNELS: tl.constexpr,
    RELU: tl.constexpr,
):
    """Return the sums `acc` [pixels, channels] with bias, scale, shift and ReLU where given."""
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + sample * CHANNELS + channels, mask=inside, other=0.0).to(tl.float32)[None, :]
    return scaled(acc, scale_ptr, shift_ptr, channels, inside, RELU)


@triton.jit
def depthwise_kernel(
    source_ptr,
    weight_ptr,
    out_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    source_h,
    source_w,
    out_h,
    out_w,
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
    weight_at = weight_ptr + sample * (TAPS * WEIGHTS)
    acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for j in range(MULTIPLIER if TRANSPOSED else 1):
        if TRANSPOSED:
            weight_channel = channels * MULTIPLIER + j
            source_channel = weight_channel
        else:
            weight_channel = channels
            source_channel = channels // MULTIPLIER
        for tap_h in range(taps_h):
            h = at_h + tap_h * MOVE_H
            for tap_w in range(taps_w):
                w = at_w + tap_w * MOVE_W
                tap = (first_h + tap_h * STEP_H) * KERNEL_W + first_w + tap_w * STEP_W
                weight = tl.load(weight_at + tap * WEIGHTS + weight_channel, mask=channel_inside, other=0.0)
                x = tl.load(
                    source_at + ((h * source_w + w) * SOURCE)[:, None] + source_channel[None, :],
                    mask=(row_inside & lies_in(h, w, source_h, source_w))[:, None] & channel_inside[None, :],
                    other=0.0,
                )  # [BLOCK_P, BLOCK_C]
                acc += x.to(tl.float32) * weight.to(tl.float32)[None, :]

    acc = finished(acc, sample, channels, channel_inside, bias_ptr, scale_ptr, shift_ptr, CHANNELS, RELU)
    out_at = out_ptr + sample * out_h * out_w * CHANNELS
    if CHANNELS_LAST:
        out_offset = (pixel * CHANNELS)[:, None] + channels[None, :]
    else:
        out_offset = pixel[:, None] + channels[None, :] * (out_h * out_w)
    tl.store(out_at + out_offset, acc.to(out_ptr.dtype.element_ty), mask=row_inside[:, None] & channel_inside[None, :])


@triton.jit(do_not_specialize=["parts", "rows"])
def strip_kernel(
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
    parts,
    rows,
    EXPERTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    FLIPPED: tl.constexpr,
    HELD: tl.constexpr,
    RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    TAPS: tl.constexpr = KERNEL_H * KERNEL_W
    channel_blocks = tl.cdiv(CHANNELS, BLOCK_C)
    strips = tl.cdiv(out_w, BLOCK_W)
    pid = tl.program_id(0)
    channels = pid % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_inside = channels < CHANNELS
    pid = pid // channel_blocks
    at_w = tl.cast(pid % strips * BLOCK_W, tl.int64 if INDEX64 else tl.int32) + tl.arange(0, BLOCK_W)
    pid = pid // strips
    top = pid % parts * rows
    bottom = tl.minimum(top + rows, out_h)
    sample = (pid // parts).to(tl.int64)

    weight_at = weight_ptr + sample * (TAPS * CHANNELS) + channels
    held = ()
    if HELD:
        for _ in tl.static_range(TAPS):
            held = held + (tl.zeros((BLOCK_C,), tl.float32),)
        for k in range(EXPERTS if EXPERTS > 0 else 1):
            if EXPERTS > 0:
                share = tl.load(mixing_ptr + sample * EXPERTS + k).to(tl.float32)
                expert_at = weight_ptr + k * (TAPS * CHANNELS) + channels * TAPS
            else:
                share = 1.0
                expert_at = weight_ptr + sample * (TAPS * CHANNELS) + channels * TAPS
            mixed = ()
            for tap in tl.static_range(TAPS):
                at = TAPS - 1 - tap if FLIPPED else tap
                expert = tl.load(expert_at + at, mask=channel_inside, other=0.0)
                mixed = mixed + (held[tap] + share * expert.to(tl.float32),)
            held = mixed
    # Sums of the output rows that the row of pixels at hand reaches: through the kernel's first row the last of them.
    sums = ()
    for _ in tl.static_range(KERNEL_H):
        sums = sums + (tl.zeros((BLOCK_W, BLOCK_C), tl.float32),)
    stride = tl.cast(source_w, tl.int64 if INDEX64 else tl.int32) * CHANNELS
    source_at = source_ptr + sample * source_h * stride
    source_at += ((at_w - PADDING_W) * CHANNELS)[:, None] + channels[None, :]
    out_stride = tl.cast(out_w, tl.int64 if INDEX64 else tl.int32)
    out_at = out_ptr + sample * out_h * out_stride * CHANNELS
    if CHANNELS_LAST:
        out_at += (at_w * CHANNELS)[:, None] + channels[None, :]
    else:
        out_at += at_w[:, None] + channels[None, :] * (out_h * out_stride)
    for met_h in tl.range(top - PADDING_H, bottom - PADDING_H + KERNEL_H - 1, num_stages=3):
        row_inside = (met_h >= 0) & (met_h < source_h)
        for tap_w in tl.static_range(KERNEL_W):
            met_w = at_w - PADDING_W + tap_w
            inside = row_inside & (met_w >= 0) & (met_w < source_w)
            x = tl.load(
                source_at + met_h * stride + tap_w * CHANNELS,
                mask=inside[:, None] & channel_inside[None, :],
                other=0.0,
            ).to(tl.float32)  # [BLOCK_W, BLOCK_C]
            added = ()
            for tap_h in tl.static_range(KERNEL_H):
                if HELD:
                    weight = held[tap_h * KERNEL_W + tap_w]
                else:
                    tap = tap_h * KERNEL_W + tap_w
                    at = (TAPS - 1 - tap if FLIPPED else tap) * CHANNELS
                    weight = tl.load(weight_at + at, mask=channel_inside, other=0.0).to(tl.float32)
                added = added + (sums[tap_h] + x * weight[None, :],)
            sums = added
        pixel_h = met_h + PADDING_H - (KERNEL_H - 1)
        done = finished(
            sums[KERNEL_H - 1], sample, channels, channel_inside, bias_ptr, scale_ptr, shift_ptr, CHANNELS, RELU
        )
        written = (at_w < tl.where(pixel_h >= top, out_w, 0))[:, None] & channel_inside[None, :]
        row_at = out_at + pixel_h * (out_stride * CHANNELS if CHANNELS_LAST else out_stride)
        tl.store(row_at, done.to(out_ptr.dtype.element_ty), mask=written)
        moved = (tl.zeros((BLOCK_W, BLOCK_C), tl.float32),)
        for tap_h in tl.static_range(KERNEL_H - 1):
            moved = moved + (sums[tap_h],)
        sums = moved


@triton.jit(do_not_specialize=["parts", "rows"])
def strip_gradient_kernel(
    grad_ptr,
    x_ptr,
    own_ptr,
    height,
    width,
    out_h,
    out_w,
    parts,
    rows,
    CHANNELS: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    ROWS_HELD: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channel_blocks = tl.cdiv(CHANNELS, BLOCK_C)
    strips = tl.cdiv(out_w, BLOCK_W)
    pid = tl.program_id(0)
    channels = pid % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_inside = channels < CHANNELS
    pid = pid // channel_blocks
    first = pid % tl.cdiv(KERNEL_H, ROWS_HELD) * ROWS_HELD  # of the kernel's rows that are the program's
    slot = (pid // tl.cdiv(KERNEL_H, ROWS_HELD)).to(tl.int64)
    sample = slot // parts
    part = (slot % parts).to(tl.int32)
    at_w = tl.cast(part % strips * BLOCK_W, tl.int64 if INDEX64 else tl.int32) + tl.arange(0, BLOCK_W)
    top = part // strips * rows
    bottom = tl.minimum(top + rows, out_h)

    sums, window = (), ()
    for _ in tl.static_range(ROWS_HELD * KERNEL_W):
        sums = sums + (tl.zeros((BLOCK_W, BLOCK_C), tl.float32),)
    for _ in tl.static_range(ROWS_HELD):
        window = window + (tl.zeros((BLOCK_W, BLOCK_C), tl.float32),)
    stride = tl.cast(width, tl.int64 if INDEX64 else tl.int32) * CHANNELS
    x_at = x_ptr + sample * height * stride + ((at_w - PADDING_W) * CHANNELS)[:, None] + channels[None, :]
    grad_stride = tl.cast(out_w, tl.int64 if INDEX64 else tl.int32) * CHANNELS
    grad_at = grad_ptr + sample * out_h * grad_stride + (at_w * CHANNELS)[:, None] + channels[None, :]
    for pixel_h in range(top, bottom + ROWS_HELD - 1):
        grad = tl.load(
            grad_at + pixel_h * grad_stride,
            mask=(at_w < tl.where(pixel_h < bottom, out_w, 0))[:, None] & channel_inside[None, :],
            other=0.0,
        )
        # Gradients of the rows that meet this row of x through the program's rows of the kernel.
        moved = (grad.to(tl.float32),)
        for row in tl.static_range(ROWS_HELD - 1):
            moved = moved + (window[row],)
        window = moved
        met_h = pixel_h + first - PADDING_H
        row_inside = (met_h >= 0) & (met_h < height)
        added = ()
        for tap_w in tl.static_range(KERNEL_W):
            met_w = at_w - PADDING_W + tap_w
            inside = row_inside & (met_w >= 0) & (met_w < width)
            x = tl.load(
                x_at + met_h * stride + tap_w * CHANNELS,
                mask=inside[:, None] & channel_inside[None, :],
                other=0.0,
            ).to(tl.float32)  # [BLOCK_W, BLOCK_C]
            for row in tl.static_range(ROWS_HELD):
                added = added + (sums[tap_w * ROWS_HELD + row] + window[row] * x,)
        sums = added

    own_at = own_ptr + slot * (KERNEL_H * KERNEL_W * CHANNELS) + channels
    for row in tl.static_range(ROWS_HELD):
        for tap_w in tl.static_range(KERNEL_W):
            tl.store(
                own_at + ((first + row) * KERNEL_W + tap_w) * CHANNELS,
                tl.sum(sums[tap_w * ROWS_HELD + row], 0),
                mask=channels < tl.where(first + row < KERNEL_H, CHANNELS, 0),
            )


@triton.jit(do_not_specialize=["parts"])
def depthwise_gradient_kernel(
    grad_ptr,
    x_ptr,
    own_ptr,
    height,
    width,
    out_h,
    out_w,
    parts,
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
    channel_blocks = tl.cdiv(CHANNELS, BLOCK_C)
    pid = tl.program_id(0)
    channels = pid % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_inside = channels < CHANNELS
    pid = pid // channel_blocks
    first_tap = pid % tl.cdiv(TAPS, TAPS_HELD) * TAPS_HELD
    slot = (pid // tl.cdiv(TAPS, TAPS_HELD)).to(tl.int64)
    sample = slot // parts
    pixels = tl.cast(out_h, tl.int64 if INDEX64 else tl.int32) * out_w
    blocks = tl.cdiv(tl.cdiv(pixels, BLOCK_P), parts)
    begin = (slot % parts).to(tl.int32) * blocks

    grad_at = grad_ptr + sample * pixels * CHANNELS
    x_at = x_ptr + sample * height * width * INPUTS
    sums = ()
    for _ in tl.static_range(TAPS_HELD):
        sums = sums + (tl.zeros((BLOCK_P, BLOCK_C), tl.float32),)
    for block in range(begin, begin + blocks):
        pixel = block * BLOCK_P + tl.arange(0, BLOCK_P)
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
            inside = (pixel < tl.where(tap < TAPS, pixels, 0)) & lies_in(h, w, height, width)
            x = tl.load(
                x_at + ((h * width + w) * INPUTS)[:, None] + (channels // MULTIPLIER)[None, :],
                mask=inside[:, None] & channel_inside[None, :],
                other=0.0,
            )
            added = added + (sums[held] + grad * x.to(tl.float32),)
        sums = added

    own_at = own_ptr + slot * (TAPS * CHANNELS) + channels
    for held in tl.static_range(TAPS_HELD):
        tl.store(
            own_at + (first_tap + held) * CHANNELS,
            tl.sum(sums[held], 0),
            mask=channels < tl.where(first_tap + held < TAPS, CHANNELS, 0),
        )
