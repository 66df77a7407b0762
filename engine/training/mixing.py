"""Mixup and CutMix, and the doubled batches of the consistency loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Mixing:
    """Mixes each image of a batch with its neighbour: mixup (Zhang et al. 2018), CutMix (Yun et al. 2019), or either.

    mixup, cutmix: the alpha of the Beta distribution that the shares are drawn from; 0 leaves the method out. With
        both, each batch is mixed by either method, with equal chance.
    share: the probability that a batch is mixed at all.

    All draws come from torch's global generator on the CPU; the host does not wait for a device.

    Raises:
        ValueError: an alpha is negative, or both are 0.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int, share: float = 1.0):
        if min(mixup, cutmix) < 0 or mixup == cutmix == 0:
            raise ValueError(f"mixup and cutmix must be 0 or more, one of them more, got {mixup} and {cutmix}")
        from torchvision.transforms import v2  # here: it takes seconds, and few trainings mix

        self.num_classes, self.share = num_classes, share
        methods = [
            method(alpha=alpha, num_classes=num_classes)
            for method, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
            if alpha
        ]
        self._mix = v2.RandomChoice(methods)

    def __call__(
        self, images: Tensor, labels: Tensor, sources: Tensor | None = None, present: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return images [batch, channels, height, width] mixed, and targets float32 [batch, classes] that sum to 1.

        A lone image stays as it is, and so does one whose neighbour has none of the channels that it will be shown
        with: its label would name an image of which nothing is seen.

        Args:
            images: floating point, with all the channels that they have; the result is channels_last.
            labels: int64 [batch].
            sources: int64 [batch, inputs], the channels that each image will be shown with, -1 for none; None: all.
            present: bool [batch, channels], the channels that each image has; None: all.
        """
        if len(images) == 1 or (self.share < 1 and torch.rand(()) >= self.share):
            return images, F.one_hot(labels, self.num_classes).float()
        mixed, targets = self._mix(images, labels)
        if sources is not None and present is not None:
            seen = (present.roll(1, 0).gather(1, sources.clamp_min(0)) & (sources >= 0)).any(1)
            mixed = torch.where(seen[:, None, None, None], mixed, images)
            targets = torch.where(seen[:, None], targets, F.one_hot(labels, self.num_classes))
        # On CUDA torch.roll, by which mixup finds the neighbours, returns NCHW.
        return mixed.contiguous(memory_format=torch.channels_last), targets


def beside_all(images: Tensor, present: Tensor, every: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return a batch twice as large: each image on the channels `present`, then on all that it has; others are zero.

    images: [batch, channels, height, width]; channels_last stays so. present: bool [batch, channels]. every: bool
    [batch, channels], all channels that each image has; None: all. The second result says which channels are present,
    bool [2 * batch, channels].
    """
    some = images * present[:, :, None, None]
    if every is None:
        return torch.cat([some, images]), torch.cat([present, torch.ones_like(present)])
    return torch.cat([some, images * every[:, :, None, None]]), torch.cat([present, every])


def divergence(logits: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence, in nats, from the prediction on all channels to some channels.

    logits: float32 [2 * batch, classes] of the images of `beside_all`. The logits on all channels get no gradient.
    """
    some, every = logits.log_softmax(1).chunk(2)
    return F.kl_div(some, every.detach(), log_target=True, reduction="batchmean")
