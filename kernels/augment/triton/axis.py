"""The filter along an axis of a crop. Positions are in pixels from the crop's corner: float32 is exact enough there."""

import triton
import triton.language as tl


@triton.jit
def filter_of(length, OUT: tl.constexpr):
    """Return how much an axis of a crop is scaled, the filter's half width, and how far inside positions stay.

    That is half a pixel where the crop is enlarged: nearer to its edge the outermost pixel is alone, as it is there.
    """
    scale = length / OUT
    return scale, tl.maximum(scale, 1.0), tl.where(scale > 1, 0.0, 0.5)


@triton.jit
def taps_of(position, half, length, before):
    """Return what the filter about each position meets: the first pixel, how far away that is and the step to the
    next, both in half widths, and how many they are.

    All pixels lie in the crop. At the least they are two: where `length` is 1, with the pixel `before` or behind it,
    whose weight is 0.
    """
    step = inverse(half)
    count = tl.maximum(tl.minimum(tl.ceil(2 * half).to(tl.int32), length), 2)
    last = tl.maximum(length - count, -before)
    first = tl.minimum(tl.maximum(tl.floor(position - half + 0.5), 0.0), last)
    away = (first + 0.5 - position) * step
    return first.to(tl.int32), away, step, count


@triton.jit
def triangle(away):
    """Return the filter's weight, which is 0 from a distance of 1 on."""
    return tl.maximum(1 - tl.abs(away), 0.0)


@triton.jit
def inside(position, inset, length):
    """Return a position as far inside a crop as the filter wants it."""
    return tl.minimum(tl.maximum(position, inset), length - inset)


@triton.jit
def inverse(number):
    """Return 1 / number of a positive one, without a division's slow path and the registers kept for it."""
    root = tl.rsqrt(number)
    return root * root
