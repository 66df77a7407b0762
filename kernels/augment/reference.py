"""The definition in plain PyTorch, used as "naive" by tests and benchmarks. It does not check its arguments."""

import math

import torch
from torch import Tensor

from polychrome.kernels.augment.geometry import FAR, clamped, resolve_size, source_positions
from polychrome.kernels.tensors import wide_dtype

LUMA = (0.2989, 0.587, 0.114)


def augment(
    images,
    crops=None,
    flips=None,
    angles=None,
    mean=None,
    std=None,
    channels=None,
    size=None,
    dtype=torch.float32,
    *,
    indices=None,
    vflips=None,
    brightness=None,
    contrast=None,
    gamma=None,
    grayscale=None,
    cutouts=None,
):
    """Crop, resize, flip, rotate, jitter, normalise and select channels, one filter evaluation for each pixel."""
    batch = (images if indices is None else indices).shape[0]
    out = resolve_size(size, images)
    wide = wide_dtype(dtype)
    x = resampled(images, indices, clamped(crops, batch, images), flips, vflips, angles, out, wide)
    x = normalised(jittered(x / 255, brightness, contrast, gamma, grayscale), mean, std)
    x = selected(x, channels, cutouts)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def resampled(images, indices, crops, flips, vflips, angles, size, dtype) -> Tensor:
    """Return values in 0..255, [batch, channels, height, width], of the crops resized, flipped and rotated."""
    batch = crops.shape[0]
    where = torch.arange(batch, device=images.device) if indices is None else indices.long()
    y, x, cover = source_positions(crops, flips, vflips, angles, size, dtype)
    top, left, height, width = (edge[:, None, None] for edge in crops.unbind(1))
    rows, row_weights = _taps(y, height / size[0], height, dtype)
    columns, column_weights = _taps(x, width / size[1], width, dtype)
    total = torch.zeros((batch, *size, images.shape[3]), dtype=dtype, device=images.device)
    for row, row_weight in zip(rows, row_weights, strict=True):
        for column, column_weight in zip(columns, column_weights, strict=True):
            pixels = images[where[:, None, None], top + row, left + column].to(
                dtype
            )  # [batch, height, width, channels]
            total = total + (row_weight * column_weight)[..., None] * pixels
    return (total * cover[..., None]).permute(0, 3, 1, 2)


def _taps(position: Tensor, scale: Tensor, length: Tensor, dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Return the pixels along an axis that the filter about `position` meets, and their weights, which sum to one.

    The filter is a triangle of half width 1, or of the scale where that shrinks the image. Pixels outside the
    crop, of `length` along the axis, have weight zero.
    """
    half = scale.to(dtype).clamp_min(1)
    start = (position - half + 0.5).floor()
    count = math.ceil(2 * float(half.max())) if half.numel() else 0
    pixels = [start + tap for tap in range(count)]
    weights = [
        (1 - ((pixel + 0.5 - position) / half).abs()).clamp_min(0) * ((pixel >= 0) & (pixel < length))
        for pixel in pixels
    ]
    total = sum(weights)
    inside = [torch.minimum(pixel.long().clamp_min(0), length - 1) for pixel in pixels]
    return inside, [weight / total for weight in weights]


def jittered(x, brightness, contrast, gamma, grayscale) -> Tensor:
    """Return values in 0..1 [batch, channels, height, width] with each sample's jitter."""
    if brightness is not None:
        x = (x * _per_sample(brightness, x)).clamp(0, 1)  # or per sample and channel
    if contrast is not None:
        x = ((x - 0.5) * _per_sample(contrast, x) + 0.5).clamp(0, 1)
    if gamma is not None:
        x = x ** _per_sample(gamma, x)
    if grayscale is not None:
        luma = (x * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
        x = torch.where(grayscale[:, None, None, None], luma, x)
    return x


def normalised(x, mean, std) -> Tensor:
    """Return (x - mean) / std of each channel."""
    if mean is not None:
        x = x - x.new_tensor(mean)[:, None, None]
    if std is not None:
        x = x / x.new_tensor(std)[:, None, None]
    return x


def selected(x, channels, cutouts) -> Tensor:
    """Return the channels named in `channels`, [batch, out] or [out], zero where negative, with the cutouts zero."""
    if channels is not None:
        chosen = channels.long().expand(x.shape[0], -1)
        batch = torch.arange(x.shape[0], device=x.device)[:, None]
        x = torch.where((chosen >= 0)[:, :, None, None], x[batch, chosen.clamp_min(0)], 0)
    if cutouts is not None:
        x = x.masked_fill(_cut(cutouts, x.shape[2:])[:, None], 0)
    return x


def _per_sample(factor: Tensor, x: Tensor) -> Tensor:
    """Return a factor [batch] or [batch, channels] as [batch, 1 or channels, 1, 1]."""
    return factor.to(x.dtype).view(*factor.shape, *[1] * (4 - factor.dim()))


def _cut(boxes: Tensor, size) -> Tensor:
    """Return which pixels, [batch, height, width], lie in their sample's box [top, left, height, width]."""
    top, left, height, width = (edge[:, None, None] for edge in boxes.long().clamp(-FAR, FAR).unbind(1))
    row = torch.arange(size[0], device=boxes.device)[:, None]
    column = torch.arange(size[1], device=boxes.device)
    return (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
