"""A consistency loss: what a model says of some channels is drawn to what it says of all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def beside_all(images: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return a batch of twice as many images: each without its absent channels, which are zero, then each with all.

    images: [batch, channels, height, width] with all channels; channels_last stays so. present: bool [batch, channels].
    The second result is which channels are present, bool [2 * batch, channels].
    """
    some = images * present[:, :, None, None]
    return torch.cat([some, images]), torch.cat([present, torch.ones_like(present)])


def divergence(logits: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence, in nats, from the answers on all channels to those on some.

    logits: float32 [2 * batch, classes] of what `beside_all` gives. The answers on all channels get no gradient.
    """
    some, every = logits.log_softmax(1).chunk(2)
    return F.kl_div(some, every.detach(), log_target=True, reduction="batchmean")
