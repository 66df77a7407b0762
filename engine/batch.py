"""From the batch of a loader to what a model reads; the same for every backend."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from engine.channels import RGB, Channels
from kernels import augment


def normalise(
    images: Tensor,
    channels: Channels = RGB,
    sources: Tensor | None = None,
    vflips: Tensor | None = None,
    **parameters: Tensor,
) -> Tensor:
    """Return images [batch, channels, height, width] standardised per channel, float32, channels_last.

    Args:
        images: uint8, or float32 of the values stored.
        sources: int64 [batch, out] or [out], which channel each output channel is; a negative one is absent: zero.
        vflips: bool [batch], which images are turned upside down, before anything else is done.
        parameters: what else `kernels.augment` is to do with uint8 images.
    """
    if vflips is not None:
        images = upside_down(images, vflips)
    if images.dtype == torch.uint8:
        arguments = {"mean": channels.mean, "std": channels.std, "channels": sources}
        return augment(images.permute(0, 2, 3, 1), **arguments, **parameters)
    mean, std = _statistics(channels, images.device)
    x = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
    return x if sources is None else gathered(x, sources)


def upside_down(images: Tensor, which: Tensor) -> Tensor:
    """Return images [batch, channels, height, width], those of `which`, bool [batch], turned upside down."""
    return torch.where(which[:, None, None, None], images.flip(2), images)


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
