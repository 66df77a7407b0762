"""Names, means and deviations of a data set's channels; separate from `masks`, which imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALL = "all"
SHUFFLED = "shuffled"
# Up to so many channels all 31 combinations are tested; with more, the full set, each channel alone, some of each size.
MOST_WITH_ALL_COMBINATIONS = 5


@dataclass(frozen=True)
class Channels:
    """The channels of a data set: a name, a mean and a standard deviation for each.

    Mean and deviation are of values in 0..1 where pixels are uint8, else of the values stored.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def full(self) -> str:
        """The name of the combination of all channels."""
        return full(self.names)


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
