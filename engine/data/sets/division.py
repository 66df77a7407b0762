"""The division of images into training, validation, test and holdout, where no list files define it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from polychrome.engine.data.image_set import SPLITS, ImageSet, Split
from polychrome.engine.errors import UserError

HELD_OUT = 0.1
HOLDOUT = "holdout"
HOLDOUT_SEED = 2500  # of the draw, the same in every run


def split_by_class(
    root: Path, names: Sequence[str], of_class: Mapping[int, Sequence[str]], seed: int
) -> dict[str, Split]:
    """Split the images of each class 80/10/10 by `seed`; raises UserError for a class of fewer than three."""
    images: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    for label, paths in sorted(of_class.items()):
        if len(paths) < len(SPLITS):
            count = f"{len(paths)} images of class {names[label]!r} in {root}"
            raise UserError(f"{count}: wanted at least 3, for train, val and test")
        held = max(1, round(HELD_OUT * len(paths)))
        shuffled = np.random.default_rng([seed, label]).permutation(len(paths))
        parts = {"val": shuffled[:held], "test": shuffled[held : 2 * held], "train": shuffled[2 * held :]}
        for split, part in parts.items():
            images[split] += [(paths[i], label) for i in sorted(part)]
    return {split: Split(*map(tuple, zip(*images[split], strict=True))) for split in SPLITS}


def hold_out(images: ImageSet, count: int) -> ImageSet:
    """Return the set with `count` training images moved to a split "holdout", in proportion to the classes.

    The choice follows from the paths and labels alone, whatever their order in a list and whatever the run's seed: all
    runs on a set hold out the same images.

    Raises:
        UserError: more than half of the training images, or of a class's training images, would be held out.
    """
    train = images.splits["train"]
    of_class: dict[int, list[str]] = {}
    for path, label in sorted(dict(zip(train.paths, train.labels, strict=True)).items()):
        of_class.setdefault(label, []).append(path)
    chosen: set[str] = set()
    shares = _shares(count, {label: len(paths) for label, paths in sorted(of_class.items())})
    for label, share in shares.items():
        paths = of_class[label]
        if 2 * share > len(paths):
            raise UserError(
                f"--holdout {count}: {share} of {len(paths)} training images of class "
                f"{images.class_names[label]!r} in {images.root}; at most half of them can be held out"
            )
        drawn = np.random.default_rng([HOLDOUT_SEED, label]).permutation(len(paths))[:share]
        chosen |= {paths[number] for number in drawn}
    rows = list(zip(train.paths, train.labels, strict=True))
    parts = {
        name: Split(*map(tuple, zip(*(row for row in rows if (row[0] in chosen) == held), strict=True)))
        for name, held in (("train", False), (HOLDOUT, True))
    }
    return replace(images, splits=images.splits | parts)


def _shares(count: int, sizes: Mapping[int, int]) -> dict[int, int]:
    """Return the counts by class that make `count` in all, in proportion to the classes' sizes (largest remainders)."""
    total = sum(sizes.values())
    exact = {label: count * size / total for label, size in sizes.items()}
    shares = {label: int(share) for label, share in exact.items()}
    by_remainder = sorted(sizes, key=lambda label: shares[label] - exact[label])
    return {label: share + (label in by_remainder[: count - sum(shares.values())]) for label, share in shares.items()}


def digests(images: ImageSet) -> dict[str, str]:
    """Return a digest of the paths and labels of the splits without training, hexadecimal SHA-256."""
    found = {}
    for name, split in images.splits.items():
        if name != "train":
            digest = hashlib.sha256()
            for path, label in zip(split.paths, split.labels, strict=True):
                digest.update(f"{path} {label}\n".encode("utf-8", "backslashreplace"))
            found[name] = digest.hexdigest()
    return found
