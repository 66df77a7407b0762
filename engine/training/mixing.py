"""Mixup and CutMix: batches whose images are mixed in pairs, their labels with them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2


class Mixing:
    """Mixes each image of a batch with its neighbour: mixup (Zhang et al. 2018), CutMix (Yun et al. 2019), or either.

    mixup, cutmix: the alpha of the Beta distribution that the shares are drawn from; 0 leaves the method out. With
        both, each batch is mixed by either method, with equal chance.

    All draws are of torch's global generator on the CPU; the host waits for no device.

    Raises:
        ValueError: an alpha is negative, or both are 0.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int):
        if min(mixup, cutmix) < 0 or mixup == cutmix == 0:
            raise ValueError(f"mixup and cutmix must be 0 or more, one of them more, got {mixup} and {cutmix}")
        self.num_classes = num_classes
        methods = [
            method(alpha=alpha, num_classes=num_classes)
            for method, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
            if alpha
        ]
        self._mix = v2.RandomChoice(methods)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return images [batch, channels, height, width] mixed, and targets float32 [batch, classes] that sum to 1.

        images: floating point; the result is channels_last. labels: int64 [batch]. A lone image stays as it is.
        """
        if len(images) == 1:
            return images, F.one_hot(labels, self.num_classes).float()
        images, targets = self._mix(images, labels)
        # On CUDA torch.roll, by which mixup finds the neighbours, returns NCHW.
        return images.contiguous(memory_format=torch.channels_last), targets
