"""From the batch of a loader to what a model reads; the same for every backend."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from polychrome.engine.channels import RGB, Channels
from polychrome.kernels import augment


def normalise(
    images: Tensor,
    channels: Channels = RGB,
    sources: Tensor | None = None,
    **parameters: Tensor,
) -> Tensor:
    """Return images [batch, channels, height, width] standardised per channel, float32, channels_last.

    Args:
        images: uint8, or float32 of the values stored.
        sources: int64 [batch, out] or [out], which channel each output channel is; a negative one is absent: zero.
        parameters: what else `kernels.augment` is to do with uint8 images; with others, `vflips` alone.
    """
    if images.dtype == torch.uint8:
        arguments = {"mean": channels.mean, "std": channels.std, "channels": sources}
        return augment(images.permute(0, 2, 3, 1), **arguments, **parameters)
    if (vflips := parameters.pop("vflips", None)) is not None:
        images = torch.where(vflips[:, None, None, None], images.flip(2), images)
    if parameters:
        raise ValueError(f"only uint8 images have {', '.join(parameters)}, not {images.dtype}")
    mean, std = _statistics(channels, images.device)
    x = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
    return x if sources is None else gathered(x, sources)


@cache
def _statistics(channels: Channels, device: torch.device) -> Tensor:
    """Return mean and deviation, [2, channels, 1, 1] float32; kept on the device, as a copy makes the host wait."""
    return torch.tensor([channels.mean, channels.std], device=device)[:, :, None, None]


def gathered(x: Tensor, sources: Tensor) -> Tensor:
    """Return the channels of x [batch, channels, height, width] that `sources` [batch, out] or [out] names.

    Absent ones, negative, are zero.
    """
    chosen = sources.expand(len(x), -1)
    samples = torch.arange(len(x), device=x.device)[:, None]
    found = x[samples, chosen.clamp_min(0)].masked_fill((chosen < 0)[:, :, None, None], 0)
    return found.contiguous(memory_format=torch.channels_last)
