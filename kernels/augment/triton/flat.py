"""The form without rotation: lanes lie along the values, pixels by channels, of a strip of a sample's output rows.

Without rotation the filter is a product of one along x and one along y. What a value adds up along x, which pixels and
with which weights, is the same in every row and found once for the strip; each source row is summed along x once, and
kept for the next lines of the output that it belongs to.
"""

import triton
import triton.language as tl

from polychrome.kernels.augment.triton.axis import filter_of, inside, inverse, taps_of, triangle
from polychrome.kernels.augment.triton.sample import crop_of, edges, factors_of, image_of, jittered, source_channel


@triton.jit(do_not_specialize=["count", "height", "width"])
def augment_flat_kernel(
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
    STRIDE_COLUMN: tl.constexpr,
    ROWS: tl.constexpr,
    VALUES: tl.constexpr,
):
    tl.static_assert((angles_ptr is None) & (grayscale_ptr is None), "the pixel form has rotation and gray")
    LINE: tl.constexpr = OUT_WIDTH * CHANNELS
    across: tl.constexpr = (LINE + VALUES - 1) // VALUES
    strips: tl.constexpr = (OUT_HEIGHT + ROWS - 1) // ROWS
    program = tl.program_id(0)
    sample, first_line = program // (strips * across), program // across % strips * ROWS
    # Written so, a thread gets two values side by side: a warp's stores fill lines of memory, its loads lie in few.
    lane = tl.arange(0, VALUES).to(tl.int64 if INDEX64 else tl.int32)
    each = tl.cast(program % across, lane.dtype) * VALUES + (lane // 2 * 2 + lane % 2)
    column = tl.minimum(each // CHANNELS, OUT_WIDTH - 1)
    channel = source_channel(channels_ptr, sample, each % CHANNELS, CHANNELS, SOURCE_CHANNELS)
    known = tl.maximum(channel, 0)

    top, left, bottom, right = crop_of(crops_ptr, sample, height, width)
    stride_row = tl.cast(stride_row, tl.int64)
    source = image_of(images_ptr, indices_ptr, sample, count, stride_image)
    source += top * stride_row + tl.cast(left, tl.int64) * STRIDE_COLUMN
    at = column
    if flips_ptr is not None:
        at = tl.where(tl.load(flips_ptr + sample), OUT_WIDTH - 1 - column, column)
    weights, share = (), 1 / 255
    if RESAMPLE:
        at, weights, share = weights_of(at, left, right - left, OUT_WIDTH)
    place = at.to(each.dtype) * STRIDE_COLUMN + known
    scale, offset = tl.load(statistics_ptr + known), tl.load(statistics_ptr + SOURCE_CHANNELS + known)
    factors = factors_of(brightness_ptr, contrast_ptr, gamma_ptr, sample, known, BRIGHTNESSES)
    if brightness_ptr is None and contrast_ptr is None and gamma_ptr is None:
        scale, share = scale * share, 1.0

    out_row, down = first_line, 1
    if vflips_ptr is not None:
        upside_down = tl.load(vflips_ptr + sample)
        out_row = tl.where(upside_down, OUT_HEIGHT - 1 - first_line, first_line)
        down = tl.where(upside_down, -1, 1)
    target = out_ptr + tl.cast(sample, tl.int64) * (OUT_HEIGHT * LINE) + tl.cast(out_row, tl.int64) * LINE
    if cutouts_ptr is not None:
        cut_top, cut_left, cut_bottom, cut_right = edges(cutouts_ptr, sample)
        cut = (column >= cut_left) & (column < cut_right)
    # Two tensors, not one twice: Triton would take the upper row for unchanged where it gets the lower one's values.
    kept = (tl.zeros((VALUES,), tl.float32), tl.zeros((VALUES,), tl.float32), 0.0, source)
    for line in range(first_line, tl.minimum(first_line + ROWS, OUT_HEIGHT)):
        if RESAMPLE:
            begins = line == first_line
            value, kept = line_of(
                line, begins, kept, source, bottom - top, place, weights, stride_row, STRIDE_COLUMN, OUT_HEIGHT
            )
        else:
            value = tl.load(source + line * stride_row + place).to(tl.float32)
        value = jittered(value * share, factors, brightness_ptr, contrast_ptr, gamma_ptr) * scale + offset
        if channels_ptr is not None:
            value = tl.where(channel < 0, 0.0, value)
        if cutouts_ptr is not None:
            value = tl.where((out_row >= cut_top) & (out_row < cut_bottom) & cut, 0.0, value)
        tl.store(target + each, value.to(out_ptr.dtype.element_ty), mask=each < LINE)
        out_row, target = out_row + down, target + down * LINE


@triton.jit
def weights_of(column, left, crop_width, OUT_WIDTH: tl.constexpr):
    """Return an output column's first source pixel, its weights as `summed` takes them, and what makes them 1 / 255."""
    scale, half, inset = filter_of(crop_width, OUT_WIDTH)
    x = inside((column + 0.5) * scale, inset, crop_width)
    first, away, step, taps = taps_of(x, half, crop_width, left)
    weight, second = triangle(away), triangle(away + step)
    total = weight + second
    for tap in range(2, taps):
        total += triangle(away + tap * step)
    return first, (weight, second, away, step, taps), inverse(total) * (1 / 255)


@triton.jit
def line_of(
    line,
    begins,
    kept,
    source,
    crop_height,
    place,
    weights,
    stride_row,
    STRIDE_COLUMN: tl.constexpr,
    OUT_HEIGHT: tl.constexpr,
):
    """Return a line's values, not yet divided by the weights along x, and what is kept for the next line.

    Kept are the two source rows summed last, the number of the row behind them, and where that begins.
    """
    upper, lower, row, source_row = kept
    scale, half, inset = filter_of(crop_height, OUT_HEIGHT)
    step = inverse(half)
    y = inside((line + 0.5) * scale, inset, crop_height)
    # Shrunk to less than half, a line shares more rows with the line before than are kept: it begins anew.
    if begins | (scale > 2):
        row = tl.maximum(tl.floor(y - half + 0.5), 0.0)
        source_row = source + row.to(tl.int32) * stride_row
    stop = tl.minimum(tl.maximum(y + half - 0.5, 1.5), crop_height)
    away = row - 0.5 - y
    above = tl.where(row > 0, triangle((away - 1) * step), 0.0)
    below = tl.where(row > 0, triangle(away * step), 0.0)
    value, total = above * upper + below * lower, above + below
    while row < stop:
        upper, lower = lower, summed(source_row, place, weights, STRIDE_COLUMN)
        weight = triangle((row + 0.5 - y) * step)
        value, total = value + weight * lower, total + weight
        row, source_row = row + 1, source_row + stride_row
    return value * inverse(total), (upper, lower, row, source_row)


@triton.jit
def summed(source_row, place, weights, STRIDE_COLUMN: tl.constexpr):
    """Return a source row's sums along x: two taps, and more where the image shrinks."""
    weight, second, away, step, taps = weights
    at = source_row + place
    total = weight * tl.load(at).to(tl.float32)
    total += second * tl.load(at + STRIDE_COLUMN).to(tl.float32)
    for tap in range(2, taps):
        total += triangle(away + tap * step) * tl.load(source_row + tap * STRIDE_COLUMN + place).to(tl.float32)
    return total
