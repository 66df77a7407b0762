"""From the uint8 batch of a loader to what a model reads; the same for every backend."""

from __future__ import annotations

import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor) -> Tensor:
    """Return uint8 images [batch, 3, height, width] as float32, channels_last, standardised as for ImageNet."""
    scale = 1 / (255 * torch.tensor(STD, device=images.device))
    offset = torch.tensor(MEAN, device=images.device) * 255
    images = images.to(torch.float32, memory_format=torch.channels_last)
    return images.sub_(offset[:, None, None]).mul_(scale[:, None, None])
