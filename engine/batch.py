"""From the uint8 batch of a loader to what a model reads; the same for every backend."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor) -> Tensor:
    """Return uint8 images [batch, 3, height, width] as float32, channels_last, standardised as for ImageNet."""
    offset, scale = _constants(images.device)
    images = images.to(torch.float32, memory_format=torch.channels_last)
    return images.sub_(offset).mul_(scale)


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the mean and the inverse deviation of uint8 values, [3, 1, 1] each, copied to the device once."""
    mean, deviation = (255 * torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return mean.to(device), (1 / deviation).to(device)
