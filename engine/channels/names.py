"""Names, means and deviations of a data set's channels; separate from `masks`, which imports torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

ALL = "all"
SHUFFLED = "shuffled"
SENSORS = "sensors"
SENSOR = "sensor"
MOST_LISTED = 20  # names in a line
# Up to so many channels all 31 combinations are tested; with more, the full set, each channel alone, some of each size.
MOST_WITH_ALL_COMBINATIONS = 5


@dataclass(frozen=True)
class Channels:
    """The channels of a data set: a name, a mean and a standard deviation for each.

    Mean and deviation are of values in 0..1 where pixels are uint8, else of the values stored.

    `sensors` are the different choices of channels that images of the set have, the most frequent first, each the
    ascending positions of its channels; empty where every image has all channels.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sensors: tuple[tuple[int, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def full(self) -> str:
        """The name of the combination of all channels that an image has."""
        return ALL if self.sensors else full(self.names)

    @property
    def everything(self) -> tuple[int, ...] | None:
        """All channels, as a combination; None where images have different channels: those that each has."""
        return None if self.sensors else tuple(range(len(self.names)))


# Mean and deviation of ImageNet.
RGB = Channels(("R", "G", "B"), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def full(names: Sequence[str] = RGB.names) -> str:
    """Return the name of the combination of all channels: "RGB", "red+nir", or "all" in place of a long name."""
    return join(names, names) if len(names) <= MOST_WITH_ALL_COMBINATIONS else ALL


def are_letters(names: Sequence[str]) -> bool:
    """Return whether all channels of a set have names of one letter, so that combinations need no plus."""
    return all(len(name) == 1 for name in names)


def join(chosen: Sequence[str], names: Sequence[str]) -> str:
    """Return the name of a combination of the channels `names`: "RG", or "red+nir" where a name has several letters."""
    return ("" if are_letters(names) else "+").join(chosen)


def listed(names: Sequence[str]) -> str:
    """Return names in a line: all of them, or the first three and the last where they are many."""
    return ", ".join(names if len(names) <= MOST_LISTED else (*names[:3], "...", names[-1]))


def sensor(number: int, chosen: Sequence[int], names: Sequence[str]) -> str:
    """Return the name of the combination of a sensor's channels: "red+nir", or "sensor 2" in place of a long name."""
    few = len(chosen) <= MOST_WITH_ALL_COMBINATIONS
    return join([names[place] for place in chosen], names) if few else f"{SENSOR} {number}"


def is_reserved(name: str) -> bool:
    """Return whether a name stands for several channels or combinations, so that no channel can have it."""
    return name in (ALL, SHUFFLED, SENSORS) or bool(re.fullmatch(rf"{SENSOR} [0-9]+", name))
