"""The op as one launch: each program makes a tile of one sample's output pixels, up to four channels of it."""

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from polychrome.kernels.augment import geometry
from polychrome.kernels.augment.arguments import Arguments
from polychrome.kernels.launch import cdiv, launch

# Output rows and columns of a program: a thread's pixels lie below each other and share what depends on the column.
BLOCK_H, BLOCK_W, WARPS = 16, 32, 4
# Channels a program accumulates at once; where there are more, each group finds the source pixels again.
GROUP = 4
RADIANS = tl.constexpr(math.pi / 180)
FAR = tl.constexpr(geometry.FAR)


def augment(given: Arguments) -> Tensor:
    """Return the batch [batch, channels, height, width] in `dtype`, channels_last."""
    images, out = given.images, given.empty()
    batch, count, height, width = out.shape
    if out.numel() == 0:
        return out
    launch(
        augment_kernel,
        (batch * cdiv(height, BLOCK_H) * cdiv(width, BLOCK_W), cdiv(count, GROUP)),
        images,
        out,
        *(None if parameter is None else parameter.contiguous() for parameter in given.per_sample),
        _statistics(tuple(given.mean), tuple(given.std), images.device),
        *images.shape[:3],
        *images.stride(),
        CHANNELS=count,
        SOURCE_CHANNELS=images.shape[3],
        OUT_HEIGHT=height,
        OUT_WIDTH=width,
        RESAMPLE=given.resamples,
        INDEX64=needs_64_bits(images) or out[0].numel() >= 2**31,
        GROUP=min(GROUP, count),
        BLOCK_H=BLOCK_H,
        BLOCK_W=BLOCK_W,
        num_warps=WARPS,
        debug=True,  # device_assert is left out without it
        sanitize_overflow=False,
    )
    return out


def needs_64_bits(images: Tensor) -> bool:
    """Return whether a byte of an image lies further from its first one than a 32-bit offset reaches."""
    return sum((size - 1) * stride for size, stride in zip(images.shape[1:], images.stride()[1:], strict=True)) >= 2**31


@lru_cache(64)
def _statistics(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Tensor:
    """Return what values in 0..1 are multiplied by and what is added, [2, channels], copied to the device once."""
    scale = [1 / deviation for deviation in std]
    offset = [-average / deviation for average, deviation in zip(mean, std, strict=True)]
    return torch.tensor([scale, offset], dtype=torch.float32, device=device)


@triton.jit(do_not_specialize=["count", "height", "width"])
def augment_kernel(
    images_ptr,
    out_ptr,
    indices_ptr,
    crops_ptr,
    flips_ptr,
    vflips_ptr,
    angles_ptr,
    brightness_ptr,
    contrast_ptr,
    gamma_ptr,
    grayscale_ptr,
    channels_ptr,
    cutouts_ptr,
    statistics_ptr,
    count,
    height,
    width,
    stride_image,
    stride_row,
    stride_column,
    stride_channel,
    CHANNELS: tl.constexpr,
    SOURCE_CHANNELS: tl.constexpr,
    OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr,
    RESAMPLE: tl.constexpr,
    INDEX64: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    across: tl.constexpr = (OUT_WIDTH + BLOCK_W - 1) // BLOCK_W
    blocks: tl.constexpr = (OUT_HEIGHT + BLOCK_H - 1) // BLOCK_H * across
    sample, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    # In one dimension: of two the compiler has the threads of a warp go down, each into a line of memory of its own.
    each = tl.arange(0, BLOCK_H * BLOCK_W)
    rows = block // across * BLOCK_H + each // BLOCK_W
    columns = block % across * BLOCK_W + each % BLOCK_W
    keep = (rows < OUT_HEIGHT) & (columns < OUT_WIDTH)
    if INDEX64:
        stride_row, stride_column = tl.cast(stride_row, tl.int64), tl.cast(stride_column, tl.int64)
        stride_channel = tl.cast(stride_channel, tl.int64)
    first = tl.program_id(1) * GROUP

    image = tl.cast(sample, tl.int64)
    if indices_ptr is not None:
        image = tl.load(indices_ptr + sample).to(tl.int64)
        tl.device_assert((image >= 0) & (image < count), "augment: an index is not that of an image")
    source = images_ptr + image * stride_image

    # A gray pixel needs all three channels of its source; any other, those it is made of.
    selected = ()
    gathered = ()
    for g in tl.static_range(GROUP):
        channel = tl.minimum(first + g, CHANNELS - 1)
        if channels_ptr is not None:
            chosen = tl.load(channels_ptr + sample * CHANNELS + channel)
            tl.device_assert(chosen < SOURCE_CHANNELS, "augment: a channel is not in the images")
            channel = tl.maximum(chosen, -1).to(tl.int32)
        selected = selected + (channel,)
        gathered = gathered + (tl.maximum(channel, 0) * stride_channel,)
    if grayscale_ptr is not None:
        gathered = ()
        for g in tl.static_range(3):
            gathered = gathered + (g * stride_channel,)

    if RESAMPLE:
        values = resampled(
            source,
            gathered,
            rows,
            columns,
            crops_ptr,
            flips_ptr,
            vflips_ptr,
            angles_ptr,
            sample,
            height,
            width,
            stride_row,
            stride_column,
            OUT_HEIGHT,
            OUT_WIDTH,
        )
    else:
        row, column = rows, columns
        if flips_ptr is not None:
            column = tl.where(tl.load(flips_ptr + sample), OUT_WIDTH - 1 - columns, columns)
        if vflips_ptr is not None:
            row = tl.where(tl.load(vflips_ptr + sample), OUT_HEIGHT - 1 - rows, rows)
        at = source + (row * stride_row + column * stride_column)
        values = ()
        for g in tl.static_range(len(gathered)):
            values = values + (tl.load(at + gathered[g], mask=keep, other=0).to(tl.float32),)

    jittered = ()
    for g in tl.static_range(len(gathered)):
        jittered = jittered + (jitter(values[g], brightness_ptr, contrast_ptr, gamma_ptr, sample),)

    uncut = keep
    if cutouts_ptr is not None:
        top, left, bottom, right = edges(cutouts_ptr, sample)
        uncut = (rows < top) | (rows >= bottom) | (columns < left) | (columns >= right)

    target = out_ptr + tl.cast(sample, tl.int64) * (OUT_HEIGHT * OUT_WIDTH * CHANNELS)
    place = rows * OUT_WIDTH + columns
    if INDEX64:
        place = place.to(tl.int64)
    target += place * CHANNELS + first
    for g in tl.static_range(GROUP):
        channel = selected[g]
        if grayscale_ptr is not None:
            value = tl.where(channel == 0, jittered[0], tl.where(channel == 1, jittered[1], jittered[2]))
            luma = 0.2989 * jittered[0] + 0.587 * jittered[1] + 0.114 * jittered[2]
            value = tl.where(tl.load(grayscale_ptr + sample), luma, value)
        else:
            value = jittered[g]
        known = tl.maximum(channel, 0)
        value = value * tl.load(statistics_ptr + known) + tl.load(statistics_ptr + SOURCE_CHANNELS + known)
        value = tl.where(uncut, tl.where(channel >= 0, value, 0.0), 0.0)
        written = keep & (rows < tl.where(first + g < CHANNELS, OUT_HEIGHT, 0))
        tl.store(target + g, value.to(out_ptr.dtype.element_ty), mask=written)


@triton.jit
def resampled(
    source,
    gathered,
    rows,
    columns,
    crops_ptr,
    flips_ptr,
    vflips_ptr,
    angles_ptr,
    sample,
    height,
    width,
    stride_row,
    stride_column,
    OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr,
):
    """Return a tuple of values in 0..255 [pixels], one for each offset of `gathered`."""
    top, left, bottom, right = 0, 0, height, width
    if crops_ptr is not None:
        top, left, bottom, right = edges(crops_ptr, sample)
        top, left, bottom, right = (
            tl.maximum(top, 0),
            tl.maximum(left, 0),
            tl.minimum(bottom, height),
            tl.minimum(right, width),
        )
        tl.device_assert((bottom > top) & (right > left), "augment: a crop has nothing in its image")

    y, x = rows + (0.5 - OUT_HEIGHT / 2), columns + (0.5 - OUT_WIDTH / 2)
    if angles_ptr is not None:
        angle = tl.load(angles_ptr + sample) * RADIANS
        cosine, sine = tl.cos(angle), tl.sin(angle)
        y, x = sine * x + cosine * y, cosine * x - sine * y
        cover = tl.clamp(OUT_HEIGHT / 2 + 0.5 - tl.abs(y), 0.0, 1.0) * tl.clamp(
            OUT_WIDTH / 2 + 0.5 - tl.abs(x), 0.0, 1.0
        )
    if flips_ptr is not None:
        x = tl.where(tl.load(flips_ptr + sample), -x, x)
    if vflips_ptr is not None:
        y = tl.where(tl.load(vflips_ptr + sample), -y, y)
    scale_y, scale_x = (bottom - top) / OUT_HEIGHT, (right - left) / OUT_WIDTH
    # Counted from the crop's corner: float32 is exact enough there, however large the image.
    y = tl.minimum(tl.maximum((y + OUT_HEIGHT / 2) * scale_y, 0.0), bottom - top)
    x = tl.minimum(tl.maximum((x + OUT_WIDTH / 2) * scale_x, 0.0), right - left)
    source += tl.cast(top, tl.int64) * stride_row + tl.cast(left, tl.int64) * stride_column

    half_y, half_x = tl.maximum(scale_y, 1.0), tl.maximum(scale_x, 1.0)
    taps_y, taps_x = tl.ceil(2 * half_y).to(tl.int32), tl.ceil(2 * half_x).to(tl.int32)
    first_y, first_x = tl.floor(y - half_y + 0.5).to(tl.int32), tl.floor(x - half_x + 0.5).to(tl.int32)
    sums = (tl.zeros_like(y + x),) * (len(gathered) + 1)
    place = (y, x, 1 / half_y, 1 / half_x, bottom - top, right - left)
    # Two taps each way are all there are unless the image shrinks: unrolled, so that their loads overlap.
    for tap in tl.static_range(4):
        sums = add_tap(sums, gathered, source, first_y + tap // 2, first_x + tap % 2, place, stride_row, stride_column)
    for i in range(taps_y):
        for j in range(tl.where(i < 2, 2, 0), taps_x):
            sums = add_tap(sums, gathered, source, first_y + i, first_x + j, place, stride_row, stride_column)
    share = tl.rsqrt(sums[0])  # squared, it spares a division's slow path and the registers kept for it
    share = share * share
    if angles_ptr is not None:
        share = share * cover
    values = ()
    for g in tl.static_range(len(gathered)):
        values = values + (sums[g + 1] * share,)
    return values


@triton.jit
def near(number):
    """Return an integer as int32, as far as FAR at most."""
    return tl.minimum(tl.maximum(number.to(tl.int64), -FAR), FAR).to(tl.int32)


@triton.jit
def edges(boxes_ptr, sample):
    """Return top, left, bottom and right of a sample's box (top, left, height, width)."""
    top = near(tl.load(boxes_ptr + 4 * sample))
    left = near(tl.load(boxes_ptr + 4 * sample + 1))
    height = near(tl.load(boxes_ptr + 4 * sample + 2))
    width = near(tl.load(boxes_ptr + 4 * sample + 3))
    return top, left, top + height, left + width


@triton.jit
def add_tap(sums, gathered, source, row, column, place, stride_row, stride_column):
    """Return the sum of weights and the weighted sums, with the source pixels (row, column) added."""
    y, x, inverse_y, inverse_x, crop_height, crop_width = place
    weight_y = tl.maximum(1 - tl.abs(row + 0.5 - y) * inverse_y, 0.0)
    weight_x = tl.maximum(1 - tl.abs(column + 0.5 - x) * inverse_x, 0.0)
    # Outside the crop the weight is zero and its edge is read: no load needs a mask.
    weight_y = tl.where((row >= 0) & (row < crop_height), weight_y, 0.0)
    weight_x = tl.where((column >= 0) & (column < crop_width), weight_x, 0.0)
    row = tl.minimum(tl.maximum(row, 0), crop_height - 1)
    column = tl.minimum(tl.maximum(column, 0), crop_width - 1)
    weight = weight_y * weight_x
    at = source + (row * stride_row + column * stride_column)
    added = (sums[0] + weight,)
    for g in tl.static_range(len(gathered)):
        added = added + (sums[g + 1] + weight * tl.load(at + gathered[g]).to(tl.float32),)
    return added


@triton.jit
def jitter(value, brightness_ptr, contrast_ptr, gamma_ptr, sample):
    """Return values of 0..255 in 0..1 with the sample's brightness, contrast and gamma."""
    value = value * (1 / 255)
    if brightness_ptr is not None:
        value = tl.clamp(value * tl.load(brightness_ptr + sample), 0.0, 1.0)
    if contrast_ptr is not None:
        value = tl.clamp((value - 0.5) * tl.load(contrast_ptr + sample) + 0.5, 0.0, 1.0)
    if gamma_ptr is not None:
        power = tl.load(gamma_ptr + sample) * tl.log2(tl.where(value > 0, value, 1.0))
        value = tl.where(value > 0, tl.exp2(power), 0.0)
    return value
