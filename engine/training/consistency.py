"""A consistency loss: a model's answers on some channels are drawn to its answers on all channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def beside_all(images: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return a batch twice as large: each image with zeros for its absent channels, then each with all channels.

    images: [batch, channels, height, width] with all channels; channels_last stays so. present: bool [batch, channels].
    The second result says which channels are present, bool [2 * batch, channels].
    """
    some = images * present[:, :, None, None]
    return torch.cat([some, images]), torch.cat([present, torch.ones_like(present)])


def divergence(logits: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence, in nats, between a model's answers on some and on all channels.

    logits: float32 [2 * batch, classes], the answers to the images of `beside_all`. The answers on all channels get no
        gradient.
    """
    some, every = logits.log_softmax(1).chunk(2)
    return F.kl_div(some, every.detach(), log_target=True, reduction="batchmean")
