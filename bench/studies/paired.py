"""Networks compared on the same images: which images each got right, and what the difference can be by chance."""

from __future__ import annotations

import csv
import lzma
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


class Answers(NamedTuple):
    """Which images several trainings predict right: the images' paths, and bool [trainings, images]."""

    images: tuple[str, ...]
    right: np.ndarray


class Difference(NamedTuple):
    """A difference of two accuracies, ours less theirs, and its 95% interval, as fractions."""

    value: float
    low: float
    high: float


def answers(files: Sequence[Path], split: str, column: str) -> Answers:
    """Return which images of a split several trainings predict right, by path of the image.

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
    return Answers(images[0], np.array([hits for _, hits in columns]))


@lru_cache(64)
def _columns(path: Path, split: str, column: str) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    with lzma.open(path, "rt", encoding="utf-8", newline="") as stream:
        rows = sorted(
            (row["image"], row[column] == row["label"]) for row in csv.DictReader(stream) if row["split"] == split
        )
    return tuple(name for name, _ in rows), tuple(hit for _, hit in rows)


def mcnemar(ours: Answers, theirs: Answers) -> float:
    """Return the largest of the p-values by McNemar's exact two-sided test of each of our trainings and each of theirs.

    A p-value is how often images that only one of the two got right would be divided at least as unevenly if both were
    equally good (McNemar 1947).

    Raises:
        ValueError: the images are not the same.
    """
    _check(ours, theirs)
    found = []
    for one, other in product(ours.right, theirs.right):
        alone, differing = int((one & ~other).sum()), int((one ^ other).sum())
        found.append(stats.binomtest(alone, differing).pvalue if differing else 1.0)
    return float(max(found))


def accuracy(ours: Answers) -> Difference:
    """Return the mean accuracy of trainings with its interval; see `difference`."""
    return _interval(float(ours.right.mean()), ours.right.mean(0), [ours.right])


def difference(ours: Answers, theirs: Answers) -> Difference:
    """Return how much better ours are than theirs, on average over trainings.

    The interval counts images, the same for both, and trainings, each network's own, as drawn at random. Its variance
    is that over images and that over trainings less what both of them count, the chance by which an image is right in
    one training and wrong in another (multiway clustering: Cameron, Gelbach and Miller 2011); its width is by Student's
    t, with degrees of freedom by Satterthwaite (1946). Of a network with one training the spread between
    trainings is not known and left out.

    Raises:
        ValueError: the images are not the same.
    """
    _check(ours, theirs)
    by_image = ours.right.mean(0) - theirs.right.mean(0)
    return _interval(float(by_image.mean()), by_image, [ours.right, theirs.right])


def _check(ours: Answers, theirs: Answers) -> None:
    if ours.images != theirs.images:
        alone = sorted(set(ours.images) ^ set(theirs.images))
        raise ValueError(f"{len(alone)} images, such as {alone[0]}, were shown to one of two compared networks alone")


def _interval(value: float, by_image: np.ndarray, networks: Sequence[np.ndarray]) -> Difference:
    count = len(by_image)
    parts = [(by_image.var(ddof=1) / count, count - 1)]  # variances of the mean, and their degrees of freedom
    for right in networks:
        trainings = len(right)
        if trainings > 1:
            means = right.mean(1)
            rest = right - right.mean(0) - means[:, None] + means.mean()
            counted_twice = (rest**2).sum() / ((trainings - 1) * (count - 1)) / (trainings * count)
            parts.append((max(0.0, means.var(ddof=1) / trainings - counted_twice), trainings - 1))
    variance = sum(part for part, _ in parts)
    if not variance:
        return Difference(value, value, value)
    freedom = variance**2 / sum(part**2 / own for part, own in parts)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * variance**0.5)
    return Difference(value, value - reach, value + reach)
