"""A model's input if some channels are absent, and the channels that a training batch loses."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

DROP = 1  # makes these random numbers differ from other draws with the same seed
DROP_PROBABILITY = 0.3


def protocol(model: torch.nn.Module) -> str:
    """Return a model's protocol: "subset" for any count of channels, "mask" if a mask names them, else "zero-pad".

    Under "zero-pad" a model is shown zeros in place of absent channels.
    """
    if not getattr(model, "any_channels", False):
        return "zero-pad"
    return "mask" if getattr(model, "fixed_places", False) else "subset"


@cache
def channel_index(chosen: tuple[int, ...], device: torch.device) -> Tensor:
    """Return channel indices as int64 on a device; results are cached, because a copy makes the host wait."""
    return torch.tensor(chosen, dtype=torch.int64, device=device)


@cache
def present(chosen: tuple[int, ...], channels: int, device: torch.device) -> Tensor:
    """Return bool [channels], true for the channels `chosen`, on a device; cached as in `channel_index`."""
    return torch.tensor([channel in chosen for channel in range(channels)], device=device)


def shown(images: Tensor, chosen: tuple[int, ...], protocol: str) -> tuple[Tensor, ...]:
    """Return a model's arguments for `images` if only the channels `chosen` are present; see `select`.

    Under "mask" the tensor is that of "zero-pad", followed by the mask, bool [batch, channels].
    """
    if protocol == "mask":
        count, channels = images.shape[:2]
        return select(images, chosen, "zero-pad"), present(chosen, channels, images.device).expand(count, -1)
    return (select(images, chosen, protocol),)


def select(images: Tensor, chosen: tuple[int, ...], protocol: str) -> Tensor:
    """Return a model's input of `images` [batch, channels, height, width] when only the channels `chosen` are present.

    Under "subset" the tensor has only these channels; under "zero-pad" all channels, the absent channels zero
    (after normalisation, so an absent channel looks like a constant mean).
    """
    count = images.shape[1]
    if protocol == "subset":
        every_one = chosen == tuple(range(count))
        return images if every_one else images.index_select(1, channel_index(chosen, images.device))
    return images * present(chosen, count, images.device)[:, None, None]


def dropped(channels: int, seed: int, draw: int, batch: int) -> Tensor | None:
    """Return the channel of each input of a batch, int64 [channels], -1 for a dropped channel; None if all stay.

    With probability 0.3 the batch loses some of its channels, never all; every number of channels is equally likely
    (report D's RandomChannelDrop). The result depends only on the seed and the numbers of the pass and the batch.
    """
    generator = np.random.default_rng([DROP, seed, draw, batch])
    if channels == 1 or generator.random() >= DROP_PROBABILITY:
        return None
    lost = generator.permutation(channels)[generator.integers(1, channels) :]
    sources = np.arange(channels)
    sources[lost] = -1
    return torch.from_numpy(sources)
