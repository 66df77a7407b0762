"""Networks compared on the same images: which images each got right, and what the difference can be by chance."""

from __future__ import annotations

import csv
import lzma
from collections.abc import Sequence
from functools import lru_cache
from math import comb
from pathlib import Path
from typing import NamedTuple

import numpy as np

DRAWS = 2000
LEVEL = 0.95


class Difference(NamedTuple):
    """A difference of two accuracies, ours less theirs, and its 95% interval, as fractions."""

    value: float
    low: float
    high: float


def right(files: Sequence[Path], split: str, column: str) -> np.ndarray:
    """Return which images of a split several trainings predict right, bool [trainings, images], by path of the image.

    Args:
        files: each training's predictions, as `polychrome.train.results.predictions_of` writes them, compressed by xz.
        column: the combination of channels, or "COMBINATION flipped".

    Raises:
        ValueError: the files have no such images, or not the same ones.
    """
    columns = [_columns(path, split, column) for path in files]
    images = [names for names, _ in columns]
    if not images or not images[0] or any(names != images[0] for names in images):
        raise ValueError(f"{', '.join(map(str, files))} differ in the images of {split}, or have none")
    return np.array([hits for _, hits in columns])


@lru_cache(64)
def _columns(path: Path, split: str, column: str) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    with lzma.open(path, "rt", encoding="utf-8", newline="") as stream:
        rows = sorted(
            (row["image"], row[column] == row["label"]) for row in csv.DictReader(stream) if row["split"] == split
        )
    return tuple(name for name, _ in rows), tuple(hit for _, hit in rows)


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return McNemar's exact two-sided p-value for two trainings' right answers, bool [images] each.

    That is how often images that only one of the two got right would be divided at least as unevenly if both were
    equally good (McNemar 1947).
    """
    one, other = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    tail = sum(comb(one + other, count) for count in range(min(one, other) + 1))
    return min(1.0, 2 * tail / 2 ** (one + other))


def accuracy(ours: np.ndarray) -> Difference:
    """Return the mean accuracy of trainings [trainings, images] with its interval; see `difference`."""
    return _interval(ours.mean(), _resampled(np.random.default_rng(0), ours))


def difference(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """Return how much better ours are than theirs, on average over trainings, bool [trainings, images] each.

    The interval is a bootstrap's percentiles (Efron 1979): images are drawn anew, the same for both, and the trainings
    of each apart.
    """
    found = _resampled(np.random.default_rng(0), ours, theirs)
    return _interval(ours.mean() - theirs.mean(), found)


def _resampled(generator: np.random.Generator, ours: np.ndarray, theirs: np.ndarray | None = None) -> np.ndarray:
    """Return DRAWS means of `ours`, or differences of means, over images and trainings drawn anew."""
    count, found = ours.shape[1], np.empty(DRAWS)
    for number in range(DRAWS):
        images = generator.integers(0, count, count)
        means = [
            each[generator.integers(0, len(each), len(each))][:, images].mean()
            for each in (ours, theirs)
            if each is not None
        ]
        found[number] = means[0] - (means[1] if len(means) > 1 else 0.0)
    return found


def _interval(value: float, found: np.ndarray) -> Difference:
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(float(value), float(low), float(high))
