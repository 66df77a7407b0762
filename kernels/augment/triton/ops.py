"""The op as one launch, in one of two forms."""

from functools import lru_cache

import torch
from torch import Tensor

from polychrome.kernels.augment.arguments import Arguments
from polychrome.kernels.augment.triton.flat import augment_flat_kernel
from polychrome.kernels.augment.triton.pixels import augment_kernel
from polychrome.kernels.launch import cdiv, launch

# Of a program of the flat form: output rows, and values of each. One warp, of which a thread has eight values.
ROWS, VALUES = 28, 256
# Of the pixel form: output rows and columns, where a thread's pixels lie below each other and share what depends on the
# column; and the channels made at once, where more find the source pixels again.
BLOCK_H, BLOCK_W, WARPS = 16, 32, 4
GROUP = 4


def augment(given: Arguments) -> Tensor:
    """Return the batch [batch, channels, height, width] in `dtype`, channels_last."""
    images, out = given.images, given.empty()
    batch, count, height, width = out.shape
    if out.numel() == 0:
        return out
    arguments = (
        *(None if parameter is None else parameter.contiguous() for parameter in given.per_sample),
        _statistics(tuple(given.mean), tuple(given.std), images.device),
        *images.shape[:3],
        *images.stride(),
    )
    constants = {
        "CHANNELS": count,
        "SOURCE_CHANNELS": images.shape[3],
        "BRIGHTNESSES": 1 if given.brightness is None or given.brightness.dim() == 1 else given.brightness.shape[1],
        "OUT_HEIGHT": height,
        "OUT_WIDTH": width,
        "RESAMPLE": given.resamples,
        "INDEX64": needs_64_bits(images) or out[0].numel() >= 2**31,
        "debug": True,  # device_assert is left out without it
        "sanitize_overflow": False,
    }
    if is_flat(given):
        kernel, grid = augment_flat_kernel, (batch * cdiv(height, ROWS) * cdiv(width * count, VALUES),)
        constants |= {"STRIDE_COLUMN": images.stride(2), "ROWS": ROWS, "VALUES": VALUES, "num_warps": 1}
    else:
        kernel, grid = augment_kernel, (batch * cdiv(height, BLOCK_H) * cdiv(width, BLOCK_W), cdiv(count, GROUP))
        constants |= {"GROUP": min(GROUP, count), "BLOCK_H": BLOCK_H, "BLOCK_W": BLOCK_W, "num_warps": WARPS}
    launch(kernel, grid, images, out, *arguments, **constants)
    return out


def is_flat(given: Arguments) -> bool:
    """Return whether a call takes the flat form: no rotation, no gray, channels side by side, two pixels a row."""
    width, channels = given.images.shape[2:]
    together = channels == 1 or given.images.stride(3) == 1
    return given.angles is None and given.grayscale is None and together and width > 1


def needs_64_bits(images: Tensor) -> bool:
    """Return whether a byte of an image lies further from its first one than a 32-bit offset reaches."""
    return sum((size - 1) * stride for size, stride in zip(images.shape[1:], images.stride()[1:], strict=True)) >= 2**31


@lru_cache(64)
def _statistics(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Tensor:
    """Return what values in 0..1 are multiplied by and what is added, [2, channels], copied to the device once."""
    scale = [1 / deviation for deviation in std]
    offset = [-average / deviation for average, deviation in zip(mean, std, strict=True)]
    return torch.tensor([scale, offset], dtype=torch.float32, device=device)
