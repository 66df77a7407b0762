"""Mean and spread of each channel, file by file and over many, in float64."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 2**22  # values measured at once


@dataclass(frozen=True)
class Moments:
    """Of `count` pixels, for each channel the mean and the sum of squared distances from it, float64 [2, channels]."""

    count: int
    values: np.ndarray

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.values.shape[1]

    def scaled(self, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of the pixels divided by `scale`, float64 [channels] each.

        The deviation is 1 where a channel is constant to the precision of float32.
        """
        mean, std = self.values[0], np.sqrt(self.values[1] / self.count)
        varies = std > np.finfo(np.float32).eps * np.abs(mean)
        return mean / scale, np.where(varies, std / scale, 1.0)

    def to_text(self) -> str:
        """Return the values as text, exactly."""
        return base64.b64encode(self.values.astype("<f8").tobytes()).decode()

    @classmethod
    def from_text(cls, count: int, text: str) -> Moments:
        """Return the statistics that `to_text` wrote; raises ValueError for other text."""
        return cls(count, np.frombuffer(base64.b64decode(text, validate=True), "<f8").reshape(2, -1))


def measure(image: np.ndarray) -> Moments:
    """Return the moments of an image [height, width, channels]."""
    pixels = image.reshape(-1, image.shape[2])
    blocks = np.array_split(pixels, -(-image.size // BLOCK))
    return combine([_of_block(block.astype(np.float64)) for block in blocks])


def combine(parts: Sequence[Moments]) -> Moments:
    """Return the moments of all parts together."""
    counts = np.array([part.count for part in parts], np.float64)[:, None]
    means, squares = np.stack([part.values for part in parts], 1)
    mean = (counts * means).sum(0) / counts.sum()
    return Moments(int(counts.sum()), np.stack([mean, (squares + counts * (means - mean) ** 2).sum(0)]))


def _of_block(pixels: np.ndarray) -> Moments:
    mean = pixels.mean(0)
    return Moments(len(pixels), np.stack([mean, ((pixels - mean) ** 2).sum(0)]))
