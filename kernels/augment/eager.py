"""The op on a CPU: torch's own interpolation sample by sample; the definition where that has no such form."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.augment import reference
from kernels.augment.geometry import clamped
from kernels.tensors import wide_dtype


def augment(
    images: Tensor,
    indices: Tensor | None,
    crops: Tensor | None,
    flips: Tensor | None,
    angles: Tensor | None,
    brightness: Tensor | None,
    contrast: Tensor | None,
    gamma: Tensor | None,
    grayscale: Tensor | None,
    channels: Tensor | None,
    cutouts: Tensor | None,
    mean: list[float],
    std: list[float],
    height: int,
    width: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return the batch [batch, channels, height, width] in `dtype`, channels_last."""
    size, wide = (height, width), wide_dtype(dtype)
    jittered = any(factor is not None for factor in (brightness, contrast, gamma, grayscale))
    if crops is None and angles is None and size == images.shape[1:3]:
        x = _copied(images, indices, flips, wide)
    elif angles is None and images.device.type == "cpu":
        # torch resizes uint8 images three times as fast, off by less than one step, which jitter would magnify
        fast = not jittered and images.shape[3] <= 4 and wide == torch.float32
        x = _interpolated(images, indices, crops, flips, size, torch.uint8 if fast else wide).to(wide)
    else:
        batch = len(images) if indices is None else len(indices)
        x = reference.resampled(images, indices, clamped(crops, batch, images), flips, angles, size, wide)
    if not jittered:
        offset, scale = (255 * x.new_tensor(values)[:, None, None] for values in (mean, std))
        x.sub_(offset).mul_(1 / scale)  # in place: a training batch passes here
        if channels is not None and _stay_in_place(channels, x.shape[1]):
            x.mul_((channels >= 0)[:, :, None, None])
            channels = None
        x = reference.finished(x, None, None, None, None, None, None, channels, cutouts)
    else:
        x = reference.finished(x / 255, brightness, contrast, gamma, grayscale, mean, std, channels, cutouts)
    return _laid_out(x, dtype)


def _stay_in_place(channels: Tensor, count: int) -> bool:
    """Return whether every channel that is present is where it was."""
    places = torch.arange(count, device=channels.device)
    return channels.shape[1] == count and bool(((channels < 0) | (channels == places)).all())


def _laid_out(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x` in `dtype` with the very strides of channels_last, which `contiguous` leaves open for one channel."""
    _, channels, height, width = x.shape
    if x.dtype == dtype and x.stride() == (height * width * channels, 1, width * channels, channels):
        return x
    return torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=torch.channels_last).copy_(x)


def _copied(images: Tensor, indices: Tensor | None, flips: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return whole images of the wanted size in 0..255."""
    x = images if indices is None else images[indices]
    if flips is not None:
        x = torch.where(flips[:, None, None, None], x.flip(2), x)
    return x.to(dtype).permute(0, 3, 1, 2)


def _interpolated(
    images: Tensor, indices: Tensor | None, crops: Tensor | None, flips: Tensor | None, size, dtype: torch.dtype
) -> Tensor:
    """Return crops resized to `size` and flipped, values of 0..255 in `dtype`, channels last in memory."""
    where = range(len(images)) if indices is None else indices.tolist()
    boxes = clamped(crops, len(where), images).tolist()
    mirrored = [False] * len(where) if flips is None else flips.tolist()
    x = images.new_empty((len(where), *size, images.shape[3]), dtype=dtype).permute(0, 3, 1, 2)
    for target, index, (top, left, height, width), flip in zip(x, where, boxes, mirrored, strict=True):
        crop = images[index, top : top + height, left : left + width].permute(2, 0, 1)[None].to(dtype)
        resized = F.interpolate(crop, size, mode="bilinear", antialias=True)[0]
        target.copy_(resized.flip(2) if flip else resized)
    return x
