"""Channels by name: their combinations, the test protocols, and what training leaves out or reorders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from polychrome.engine.data.channel_info import ALL, MOST_WITH_ALL_COMBINATIONS, RGB, SHUFFLED, are_letters, join
from polychrome.engine.data.channel_info import Channels as Channels
from polychrome.engine.data.channel_info import full as full
from polychrome.engine.errors import UserError

DRAWS_OF_EACH_SIZE = 3
DROP = 1  # apart from other draws by the same numbers
DROP_PROBABILITY = 0.3

# The order in which the reports list the combinations of three channels.
_REPORTED = ("RGB", "RG", "GB", "RB", "R", "G", "B")
# The order in which report C trains on them.
_IN_TURN = ("R", "RG", "G", "GB", "B", "RB", "RGB")

# Positions of the channels by the name of their combination; empty where each sample gets a random choice and order.
Combinations = Mapping[str, tuple[int, ...]]


def every(names: Sequence[str] = RGB.names, seed: int = 0) -> Combinations:
    """Return the combinations that are tested by default, the full set first.

    Up to five channels these are all; beyond, the full set, each channel alone, and three different random choices of
    each size between, drawn by `seed` and named as "12 of 48 #1".
    """
    count = len(names)
    everything = tuple(range(count))
    if tuple(names) == RGB.names:
        return {name: tuple(map(names.index, name)) for name in _REPORTED}
    if count <= MOST_WITH_ALL_COMBINATIONS:
        chosen = (some for size in range(count, 0, -1) for some in combinations(everything, size))
        return {join([names[place] for place in some], names): some for some in chosen}
    found = {ALL: everything}
    generator = np.random.default_rng([seed, count])
    for size in range(count - 1, 1, -1):
        drawn: set[tuple[int, ...]] = set()
        while len(drawn) < DRAWS_OF_EACH_SIZE:
            chosen = tuple(sorted(generator.choice(count, size, replace=False).tolist()))
            if chosen not in drawn:
                drawn.add(chosen)
                found[f"{size} of {count} #{len(drawn)}"] = chosen
    return found | {names[place]: (place,) for place in everything}


def in_turn(names: Sequence[str] = RGB.names) -> tuple[tuple[int, ...], ...]:
    """Return the combinations that "cycle" trains on, in its order: the full one last.

    Raises:
        UserError: the channels have too many combinations.
    """
    if tuple(names) == RGB.names:
        return tuple(tuple(map(names.index, name)) for name in _IN_TURN)
    if len(names) > MOST_WITH_ALL_COMBINATIONS:
        raise UserError(f"channel sampling cycle takes up to {MOST_WITH_ALL_COMBINATIONS} channels, got {len(names)}")
    return tuple(every(names).values())[::-1]


def parse(wanted: Sequence[str], names: Sequence[str] = RGB.names, seed: int = 0) -> Combinations:
    """Return the combinations the user asked for, by name.

    "all" stands for `every`, "shuffled" for a random choice and order of the channels for each sample.

    Raises:
        UserError: a combination names a channel that is not there, or one twice, or is itself named twice.
    """
    found: dict[str, tuple[int, ...]] = {}
    for combination in wanted:
        if wanted.count(combination) > 1:
            raise UserError(f"channels {combination!r} are named {wanted.count(combination)} times")
        if combination == ALL:
            found |= every(names, seed)
        else:
            found[combination] = () if combination == SHUFFLED else indices(combination, names)
    return MappingProxyType(found)


def indices(combination: str, names: Sequence[str] = RGB.names) -> tuple[int, ...]:
    """Return the positions of a combination's channels, in the order it names them.

    Raises:
        UserError: as `parse`.
    """
    chosen = _split(combination, names)
    unknown = [channel for channel in chosen if channel not in names]
    if not chosen:
        raise UserError(f"channels must name at least one of {', '.join(names)}")
    if unknown:
        raise UserError(
            f"channels {combination!r}: no channel {join(unknown, names)!r}; the data has {', '.join(names)}"
        )
    if len(set(chosen)) != len(chosen):
        raise UserError(f"channels {combination!r}: a channel is named twice")
    return tuple(map(list(names).index, chosen))


def _split(combination: str, names: Sequence[str]) -> list[str]:
    if combination in names:
        return [combination]
    letters = "+" not in combination and are_letters(names)
    return list(combination) if letters else [name.strip() for name in combination.split("+") if name.strip()]


def protocol(model: torch.nn.Module) -> str:
    """Return "subset" for a model that takes any channel count, "mask" for one that is also told which ones they are.

    Any other is shown zeros in place of absent channels, "zero-pad".
    """
    if not getattr(model, "any_channels", False):
        return "zero-pad"
    return "mask" if getattr(model, "fixed_places", False) else "subset"


@cache
def places(chosen: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the positions of channels as int64 on a device; kept there, as every copy makes the host wait."""
    return torch.tensor(chosen, dtype=torch.int64, device=device)


@cache
def present(chosen: tuple[int, ...], channels: int, device: torch.device) -> Tensor:
    """Return which channels are among `chosen`, bool [channels], kept on a device as `places` are."""
    return torch.tensor([place in chosen for place in range(channels)], device=device)


def shown(images: Tensor, chosen: tuple[int, ...], how: str) -> tuple[Tensor, ...]:
    """Return a model's arguments for `images` when only `chosen` are present: as `select`, and under "mask" a mask.

    The mask, [batch, channels] bool, comes with the tensor of "zero-pad".
    """
    if how == "mask":
        count, channels = images.shape[:2]
        return select(images, chosen, "zero-pad"), present(chosen, channels, images.device).expand(count, -1)
    return (select(images, chosen, how),)


def select(images: Tensor, chosen: tuple[int, ...], how: str) -> Tensor:
    """Return what a model is shown of `images` [batch, channels, height, width] when only `chosen` are present.

    Under "subset" the tensor has only these channels; under "zero-pad" all of them, the absent ones zero
    (after normalisation, so an absent channel looks like a constant mean).
    """
    count = images.shape[1]
    if how == "subset":
        every_one = chosen == tuple(range(count))
        return images if every_one else images.index_select(1, places(chosen, images.device))
    return images * present(chosen, count, images.device)[:, None, None]


def dropped(channels: int, seed: int, draw: int, batch: int) -> Tensor | None:
    """Return which channel each input channel of a batch is, int64 [channels], -1 where it is lost; None: all stay.

    With probability 0.3 the batch loses some of its channels, never all, every number of them as often (report D's
    RandomChannelDrop). It follows from the seed, the number of the draw and that of the batch.
    """
    generator = np.random.default_rng([DROP, seed, draw, batch])
    if channels == 1 or generator.random() >= DROP_PROBABILITY:
        return None
    lost = generator.permutation(channels)[generator.integers(1, channels) :]
    sources = np.arange(channels)
    sources[lost] = -1
    return torch.from_numpy(sources)
