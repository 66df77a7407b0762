"""The form for any call: each program makes a tile of one sample's output pixels, up to four channels of it."""

import math

import triton
import triton.language as tl

from polychrome.kernels.augment.triton.axis import filter_of, inside, inverse, taps_of, triangle
from polychrome.kernels.augment.triton.sample import crop_of, edges, factors_of, image_of, jittered, source_channel

RADIANS = tl.constexpr(math.pi / 180)


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
    BRIGHTNESSES: tl.constexpr,
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

    source = image_of(images_ptr, indices_ptr, sample, count, stride_image)

    # A gray pixel needs all three channels of its source; any other, those it is made of.
    selected = ()
    gathered = ()
    for g in tl.static_range(GROUP):
        channel = tl.minimum(first + g, CHANNELS - 1)
        channel = source_channel(channels_ptr, sample, channel, CHANNELS, SOURCE_CHANNELS)
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

    made = ()
    for g in tl.static_range(len(gathered)):
        channel = g if grayscale_ptr is not None else tl.maximum(selected[g], 0)
        factors = factors_of(brightness_ptr, contrast_ptr, gamma_ptr, sample, channel, BRIGHTNESSES)
        made = made + (jittered(values[g] * (1 / 255), factors, brightness_ptr, contrast_ptr, gamma_ptr),)

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
            value = tl.where(channel == 0, made[0], tl.where(channel == 1, made[1], made[2]))
            luma = 0.2989 * made[0] + 0.587 * made[1] + 0.114 * made[2]
            value = tl.where(tl.load(grayscale_ptr + sample), luma, value)
        else:
            value = made[g]
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
    top, left, bottom, right = crop_of(crops_ptr, sample, height, width)
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
    crop_height, crop_width = bottom - top, right - left
    scale_y, half_y, inset_y = filter_of(crop_height, OUT_HEIGHT)
    scale_x, half_x, inset_x = filter_of(crop_width, OUT_WIDTH)
    y = inside((y + OUT_HEIGHT / 2) * scale_y, inset_y, crop_height)
    x = inside((x + OUT_WIDTH / 2) * scale_x, inset_x, crop_width)
    first_y, away_y, step_y, taps_y = taps_of(y, half_y, crop_height, 0)
    first_x, away_x, step_x, taps_x = taps_of(x, half_x, crop_width, 0)

    source += tl.cast(top, tl.int64) * stride_row + tl.cast(left, tl.int64) * stride_column
    upper = source + (first_y * stride_row + first_x * stride_column)
    # Of a crop one pixel high or wide that pixel again, of weight 0, so that no load leaves the crop.
    lower, aside = upper + tl.where(crop_height > 1, stride_row, 0), tl.where(crop_width > 1, stride_column, 0)
    weight_y, second_y = triangle(away_y), triangle(away_y + step_y)
    weight_x, second_x = triangle(away_x), triangle(away_x + step_x)
    sums = (tl.zeros_like(y + x),) * (len(gathered) + 1)
    # Two taps each way are all there are unless the image shrinks: unrolled, so that their loads overlap.
    sums = add_tap(sums, upper, weight_y * weight_x, gathered)
    sums = add_tap(sums, upper + aside, weight_y * second_x, gathered)
    sums = add_tap(sums, lower, second_y * weight_x, gathered)
    sums = add_tap(sums, lower + aside, second_y * second_x, gathered)
    for i in range(taps_y):
        for j in range(tl.where(i < 2, 2, 0), taps_x):
            weight = triangle(away_y + i * step_y) * triangle(away_x + j * step_x)
            sums = add_tap(sums, upper + (i * stride_row + j * stride_column), weight, gathered)
    share = inverse(sums[0])
    if angles_ptr is not None:
        share = share * cover
    values = ()
    for g in tl.static_range(len(gathered)):
        values = values + (sums[g + 1] * share,)
    return values


@triton.jit
def add_tap(sums, at, weight, gathered):
    """Return the sum of weights and the weighted sums, with the source pixels at `at` added."""
    added = (sums[0] + weight,)
    for g in tl.static_range(len(gathered)):
        added = added + (sums[g + 1] + weight * tl.load(at + gathered[g]).to(tl.float32),)
    return added
