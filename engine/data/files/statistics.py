"""Mean and spread of each channel, file by file and over many, in float64."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

BLOCK = 2**22  # values measured at once
VISIBLE = 0.01  # of a channel's values
NO_DATA = (-9999, -32768, 32767, 65535, -999, -99)  # values that often stand for none
NEARER = 0.1  # of the spread of the others: so far from them one of `NO_DATA` is that, any other value the whole spread


class Apart(NamedTuple):
    """A value that looks as if it stood for none, as -9999 does: the channel's place, the value, its share in it."""

    channel: int
    value: float
    share: float


@dataclass(frozen=True)
class Moments:
    """For each channel the number of values, their mean and the sum of squared distances from it.

    `values` is float64 [3, channels]; a channel without a value has the mean 0.
    """

    values: np.ndarray

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.values.shape[1]

    @property
    def counts(self) -> np.ndarray:
        """The number of values of each channel, float64 [channels]."""
        return self.values[0]

    @property
    def constant(self) -> np.ndarray:
        """Whether each channel has one value throughout, to the precision of float32, or none, bool [channels]."""
        count, mean, squares = self.values
        return np.sqrt(squares / np.maximum(count, 1)) <= np.finfo(np.float32).eps * np.abs(mean)

    def scaled(self, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of the values divided by `scale`, float64 [channels] each.

        The deviation is 1 where a channel is constant to the precision of float32.
        """
        count, mean, squares = self.values
        return mean / scale, np.where(self.constant, 1.0, np.sqrt(squares / np.maximum(count, 1)) / scale)

    def to_text(self) -> str:
        """Return the values as text, exactly."""
        return base64.b64encode(self.values.astype("<f8").tobytes()).decode()

    @classmethod
    def from_text(cls, text: str) -> Moments:
        """Return the statistics that `to_text` wrote; raises ValueError for other text."""
        return cls(np.frombuffer(base64.b64decode(text, validate=True), "<f8").reshape(3, -1))


def measure(image: np.ndarray, missing: np.ndarray | None = None) -> Moments:
    """Return the moments of an image [height, width, channels], without the values that are `missing`, bool."""
    count = -(-image.size // BLOCK)
    pixels = np.array_split(image.reshape(-1, image.shape[2]), count)
    masks = [None] * count if missing is None else np.array_split(missing.reshape(-1, image.shape[2]), count)
    return combine([_of_block(block.astype(np.float64), mask) for block, mask in zip(pixels, masks, strict=True)])


def combine(parts: Sequence[Moments]) -> Moments:
    """Return the moments of all parts together."""
    counts, means, squares = np.stack([part.values for part in parts], 1)
    whole = counts.sum(0)
    mean = (counts * means).sum(0) / np.maximum(whole, 1)
    return Moments(np.stack([whole, mean, (squares + counts * (means - mean) ** 2).sum(0)]))


def _of_block(pixels: np.ndarray, missing: np.ndarray | None) -> Moments:
    if missing is None:
        mean = pixels.mean(0)
        return Moments(np.stack([np.full(len(mean), float(len(pixels))), mean, ((pixels - mean) ** 2).sum(0)]))
    counts = len(pixels) - missing.sum(0, dtype=np.float64)
    mean = np.where(missing, 0, pixels).sum(0) / np.maximum(counts, 1)
    return Moments(np.stack([counts, mean, np.where(missing, 0, (pixels - mean) ** 2).sum(0)]))


def apart(image: np.ndarray, missing: np.ndarray | None = None) -> Apart | None:
    """Return the value that fills the largest share of a channel, `VISIBLE` at least, far below or above all others.

    None without any; 0 is none, as it is the background of many images. The image is float32 [height, width,
    channels], without the values that are `missing`, bool.
    """
    there, found = True if missing is None else ~missing, []
    for find, start in ((np.min, np.inf), (np.max, -np.inf)):
        extremes = find(image, (0, 1), where=there, initial=start)
        shares = ((image == extremes) & there).mean((0, 1))
        found += [
            Apart(int(place), float(extremes[place]), float(shares[place]))
            for place in np.flatnonzero((shares >= VISIBLE) & (extremes != 0))
        ]
    found.sort(key=lambda each: -each.share)
    return next((each for each in found if _is_far(each, image, missing)), None)


def _is_far(each: Apart, image: np.ndarray, missing: np.ndarray | None) -> bool:
    """Return whether the lowest or the highest value of a channel is far from all others of it."""
    values, usual = image[..., each.channel].astype(np.float64), each.value in NO_DATA
    others = (
        values[values != each.value]
        if missing is None
        else values[(values != each.value) & ~missing[..., each.channel]]
    )
    if not others.size or others.min() == others.max():
        return usual
    gap = max(others.min() - each.value, each.value - others.max())
    return bool(gap >= (NEARER if usual else 1) * np.ptp(others))
