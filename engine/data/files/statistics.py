"""Mean and spread of each channel, file by file and over many, in float64."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 2**22  # values measured at once


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

    def scaled(self, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of the values divided by `scale`, float64 [channels] each.

        The deviation is 1 where a channel is constant to the precision of float32.
        """
        count, mean, squares = self.values
        std = np.sqrt(squares / np.maximum(count, 1))
        varies = std > np.finfo(np.float32).eps * np.abs(mean)
        return mean / scale, np.where(varies, std / scale, 1.0)

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
