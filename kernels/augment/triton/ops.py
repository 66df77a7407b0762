"""The op as one launch, in one of two forms."""

from functools import lru_cache

import torch
from torch import Tensor

from polychrome.kernels.augment.arguments import Arguments
from polychrome.kernels.augment.triton.flat import augment_flat_kernel
from polychrome.kernels.augment.triton.pixels import augment_kernel
from polychrome.kernels.launch import cdiv, launch

# Output rows and columns of a program of the pixel form: a thread's pixels lie below each other and share what depends
# on the column; and the channels that it accumulates at once, where more find the source pixels again.
BLOCK_H, BLOCK_W, WARPS = 16, 32, 4
GROUP = 4
# Output rows of a program of the flat form, and values of each.
ROWS, VALUES = 28, 256


def augment(given: Arguments) -> Tensor:
    """Return the batch [batch, channels, height, width] in `dtype`, channels_last."""
    out = given.empty()
    if out.numel() == 0:
        return out
    if _is_flat(given):
        _flat(given, out)
    else:
        _pixels(given, out)
    return out


def _is_flat(given: Arguments) -> bool:
    """Return whether the flat form makes it: no rotation, no gray, channels that lie together, two pixels a row."""
    _, _, width, channels = given.images.shape
    together = channels == 1 or given.images.stride(3) == 1
    return given.angles is None and given.grayscale is None and together and width > 1


def _flat(given: Arguments, out: Tensor) -> None:
    images = given.images
    batch, count, height, width = out.shape
    per_sample = [
        None if value is None else value.contiguous()
        for name, value in zip(given._fields[1:12], given.per_sample)
        if name not in ("angles", "grayscale")
    ]
    launch(
        augment_flat_kernel,
        (batch * cdiv(height, ROWS) * cdiv(width * count, VALUES),),
        images,
        out,
        *per_sample,
        _statistics(tuple(given.mean), tuple(given.std), images.device),
        *images.shape[:3],
        *images.stride()[:2],
        STRIDE_COLUMN=images.stride(2),
        CHANNELS=count,
        SOURCE_CHANNELS=images.shape[3],
        OUT_HEIGHT=height,
        OUT_WIDTH=width,
        RESAMPLE=given.resamples,
        INDEX64=needs_64_bits(images) or out[0].numel() >= 2**31,
        ROWS=ROWS,
        VALUES=VALUES,
        num_warps=1,
        debug=True,  # device_assert is left out without it
        sanitize_overflow=False,
    )


def _pixels(given: Arguments, out: Tensor) -> None:
    images = given.images
    batch, count, height, width = out.shape
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


def needs_64_bits(images: Tensor) -> bool:
    """Return whether a byte of an image lies further from its first one than a 32-bit offset reaches."""
    return sum((size - 1) * stride for size, stride in zip(images.shape[1:], images.stride()[1:], strict=True)) >= 2**31


@lru_cache(64)
def _statistics(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Tensor:
    """Return what values in 0..1 are multiplied by and what is added, [2, channels], copied to the device once."""
    scale = [1 / deviation for deviation in std]
    offset = [-average / deviation for average, deviation in zip(mean, std, strict=True)]
    return torch.tensor([scale, offset], dtype=torch.float32, device=device)
