"""What both forms of the kernel read of a sample: its image, its boxes, its jitter."""

import triton
import triton.language as tl

from polychrome.kernels.augment import geometry

FAR = tl.constexpr(geometry.FAR)


@triton.jit
def image_of(images_ptr, indices_ptr, sample, count, stride_image):
    """Return where a sample's image begins."""
    image = tl.cast(sample, tl.int64)
    if indices_ptr is not None:
        image = tl.load(indices_ptr + sample).to(tl.int64)
        tl.device_assert((image >= 0) & (image < count), "augment: an index is not that of an image")
    return images_ptr + image * stride_image


@triton.jit
def crop_of(crops_ptr, sample, height, width):
    """Return top, left, bottom and right of a sample's crop, cut at the edges of its image."""
    top, left, bottom, right = 0, 0, height, width
    if crops_ptr is not None:
        top, left, bottom, right = edges(crops_ptr, sample)
        top, left = tl.maximum(top, 0), tl.maximum(left, 0)
        bottom, right = tl.minimum(bottom, height), tl.minimum(right, width)
        tl.device_assert((bottom > top) & (right > left), "augment: a crop has nothing in its image")
    return top, left, bottom, right


@triton.jit
def edges(boxes_ptr, sample):
    """Return top, left, bottom and right of a sample's box (top, left, height, width)."""
    top = near(tl.load(boxes_ptr + 4 * sample))
    left = near(tl.load(boxes_ptr + 4 * sample + 1))
    height = near(tl.load(boxes_ptr + 4 * sample + 2))
    width = near(tl.load(boxes_ptr + 4 * sample + 3))
    return top, left, top + height, left + width


@triton.jit
def near(number):
    """Return an integer as int32, as far as FAR at most."""
    return tl.minimum(tl.maximum(number.to(tl.int64), -FAR), FAR).to(tl.int32)


@triton.jit
def source_channel(channels_ptr, sample, channel, CHANNELS: tl.constexpr, SOURCE_CHANNELS: tl.constexpr):
    """Return which channel of the images an output channel is, negative where it is absent."""
    if channels_ptr is not None:
        chosen = tl.load(channels_ptr + sample * CHANNELS + channel)
        tl.device_assert(chosen < SOURCE_CHANNELS, "augment: a channel is not in the images")
        channel = tl.maximum(chosen, -1).to(tl.int32)
    return channel


@triton.jit
def factors_of(brightness_ptr, contrast_ptr, gamma_ptr, sample, channel, BRIGHTNESSES: tl.constexpr):
    """Return a sample's brightness, contrast and gamma, 1 where there is none.

    Of several BRIGHTNESSES, one for each channel of the image, that of `channel`.
    """
    brightness, contrast, gamma = 1.0, 1.0, 1.0
    if brightness_ptr is not None:
        if BRIGHTNESSES == 1:
            brightness = tl.load(brightness_ptr + sample)
        else:
            brightness = tl.load(brightness_ptr + sample * BRIGHTNESSES + channel)
    if contrast_ptr is not None:
        contrast = tl.load(contrast_ptr + sample)
    if gamma_ptr is not None:
        gamma = tl.load(gamma_ptr + sample)
    return brightness, contrast, gamma


@triton.jit
def jittered(value, factors, brightness_ptr, contrast_ptr, gamma_ptr):
    """Return values in 0..1 with what of the factors there is."""
    brightness, contrast, gamma = factors
    if brightness_ptr is not None:
        value = tl.clamp(value * brightness, 0.0, 1.0)
    if contrast_ptr is not None:
        value = tl.clamp((value - 0.5) * contrast + 0.5, 0.0, 1.0)
    if gamma_ptr is not None:
        power = gamma * tl.log2(tl.where(value > 0, value, 1.0))
        value = tl.where(value > 0, tl.exp2(power), 0.0)
    return value
