"""The op on a CPU: torch's own interpolation sample by sample, or else the definition."""

import torch
import torch.nn.functional as F
from torch import Tensor

from polychrome.kernels.augment import reference
from polychrome.kernels.augment.arguments import Arguments
from polychrome.kernels.augment.geometry import clamped
from polychrome.kernels.tensors import wide_dtype


def augment(given: Arguments) -> Tensor:
    """Return the batch [batch, channels, height, width] in `dtype`, channels_last."""
    if given.batch == 0:
        return given.empty()
    images, indices, crops, flips, vflips = given[:5]
    wide, jittered = wide_dtype(given.dtype), any(factor is not None for factor in given.jitter)
    # torch resizes uint8 images three times as fast, off by about one step at most, which jitter would magnify. Other
    # dtypes come out wrong when the width shrinks to one pixel (torch 2.11 to 2.15).
    fast = not jittered and images.shape[3] <= 4 and wide == torch.float32
    if not given.resamples:
        x = _copied(images, indices, flips, vflips, wide)
    elif given.angles is None and images.device.type == "cpu" and (fast or given.width > 1):
        dtype = torch.uint8 if fast else wide
        x = _interpolated(images, indices, crops, flips, vflips, given.size, dtype).to(wide)
    else:
        boxes = clamped(crops, given.batch, images)
        x = reference.resampled(images, indices, boxes, flips, vflips, given.angles, given.size, wide)
    if jittered:
        x = reference.normalised(reference.jittered(x / 255, *given.jitter), given.mean, given.std)
    else:
        x = _normalised(x, given.mean, given.std)
    channels = given.channels
    if channels is not None and _stay_in_place(channels, x.shape[1]):
        x, channels = x.mul_((channels >= 0)[:, :, None, None]), None  # a mask costs less than a gather
    x = reference.selected(x, channels, given.cutouts)
    out = given.empty()
    return x if (x.dtype, x.stride()) == (out.dtype, out.stride()) else out.copy_(x)


def _normalised(x: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Return values of 0..255 [batch, channels, height, width] normalised, channels last in memory."""
    batch, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(batch * height, width * channels)
    # Whole rows of constants: broadcast over pixels, the innermost loop would have as many turns as there are channels.
    offset, scale = ((255 * x.new_tensor(values)).repeat(width) for values in (mean, std))
    rows.sub_(offset).mul_(1 / scale)
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _stay_in_place(channels: Tensor, count: int) -> bool:
    """Return whether every present channel keeps its place."""
    places = torch.arange(count, device=channels.device)
    return channels.shape[1] == count and bool(((channels < 0) | (channels == places)).all())


def _copied(images: Tensor, indices: Tensor | None, flips, vflips, dtype: torch.dtype) -> Tensor:
    """Return whole images of the wanted size in 0..255."""
    x = images if indices is None else images[indices]
    for which, axis in ((flips, 2), (vflips, 1)):
        if which is not None:
            x = torch.where(which[:, None, None, None], x.flip(axis), x)
    return x.to(dtype).permute(0, 3, 1, 2)


def _interpolated(
    images: Tensor, indices: Tensor | None, crops: Tensor | None, flips, vflips, size, dtype: torch.dtype
) -> Tensor:
    """Return crops resized to `size` and flipped, values of 0..255 in `dtype`, channels last in memory."""
    where = range(len(images)) if indices is None else indices.tolist()
    boxes = clamped(crops, len(where), images).tolist()
    axes = _flipped_axes(flips, vflips, len(where))
    x = images.new_empty((len(where), *size, images.shape[3]), dtype=dtype).permute(0, 3, 1, 2)
    for target, index, (top, left, height, width), flipped in zip(x, where, boxes, axes, strict=True):
        crop = images[index, top : top + height, left : left + width].permute(2, 0, 1)[None].to(dtype)
        if tuple(size) == (1, 1):  # torch cannot take three planes of uint8 to one pixel
            crop = crop.contiguous(memory_format=torch.channels_last)
        resized = F.interpolate(crop, size, mode="bilinear", antialias=True)[0]
        target.copy_(resized.flip(flipped) if flipped else resized)
    return x


def _flipped_axes(flips: Tensor | None, vflips: Tensor | None, batch: int) -> list[list[int]]:
    """Return for each sample the axes of [channels, height, width] along which it is reversed."""
    switches = ([False] * batch if which is None else which.tolist() for which in (vflips, flips))
    return [[axis for axis, is_on in enumerate(sample, 1) if is_on] for sample in zip(*switches, strict=True)]
