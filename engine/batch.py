"""From the uint8 batch of a loader to what a model reads; the same for every backend."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import augment

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor, present: Tensor | None = None) -> Tensor:
    """Return uint8 images [batch, 3, height, width] as float32, channels_last, standardised as for ImageNet.

    Channels that `present` [batch, 3], bool, does not have are zero.
    """
    channels = None if present is None else torch.arange(3, device=images.device).where(present, -1)
    return augment(images.permute(0, 2, 3, 1), mean=MEAN, std=STD, channels=channels)
