"""The division of images into training, validation, test and holdout, where no list files define it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from polychrome.engine.data.image_set import SPLITS, ImageSet, Split
from polychrome.engine.errors import UserError

HELD_OUT = 0.1
HOLDOUT = "holdout"
HOLDOUT_SEED = 2500  # of the draw, the same in every run


Row = tuple[str, int]  # path and label


class Alike(NamedTuple):
    """Which files must stay in one split: for some paths the name of their group.

    joined: the groups of equal and related files together.
    related: the groups of related files alone.
    notes: lines for the user on the groups.
    """

    joined: Mapping[str, str]
    related: Mapping[str, str]
    notes: tuple[str, ...] = ()


class Grouping(Protocol):
    """Finds which files are alike, and what to tell the user of groups (see `engine.data.sets.repeats.grouping`)."""

    def __call__(self, paths: Sequence[str], divided: bool = True) -> Alike:
        """Return which of `paths` are alike; only lines for the user where the paths are not to be `divided`."""


def completed(
    root: Path,
    names: Sequence[str],
    rows: Mapping[str, Sequence[Row]],
    seed: int,
    grouping: Grouping,
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Return the three splits of path and label by split, and lines for the user on splits that were made.

    Images without a split, of the key "", are split 80/10/10 per class by `seed`. Half of each class of val is test
    where there is no test, and a tenth of each class of train is val where there is no val. The images that
    `grouping` gives one name stay together.

    Raises:
        UserError: there is no train, or a class or a split has too few images to be divided.
    """
    if "" in rows:
        alike = grouping([path for path, _ in rows[""]])
        divided = _divided(root, names, rows[""], seed, alike)
        notes = f"no split is given: {len(rows['']):,} images are split 80/10/10 per class", *alike.notes
        return {split: Split.of(divided[split]) for split in SPLITS}, notes
    if "train" not in rows:
        raise UserError(f"no train in {root}, only {' and '.join(rows)}: wanted images to train on")
    parts, notes = dict(rows), []
    lacking, source = ("val", "train") if "val" not in parts else ("test", "val")
    if lacking not in parts:
        share, words = (HELD_OUT, "a tenth") if lacking == "val" else (0.5, "half")
        alike = grouping([path for path, _ in rows[source]])
        for keys in (alike.joined, alike.related):
            parts[source], parts[lacking] = _parted(rows[source], share, seed, keys)
            whole = source != "train" or {label for _, label in parts["train"]} == {label for _, label in rows["train"]}
            if parts[source] and parts[lacking] and whole:
                break
        else:
            where = f"{source} of {root}"
            raise UserError(f"{where} has too few images, or groups of them, to divide: give it a {lacking} split")
        count = f"{len(parts[lacking]):,} of {len(rows[source]):,} images of {source}"
        notes += [f"no {lacking}: {count}, {words} of each class, are {lacking}", *alike.notes]
    else:
        notes += grouping([path for own in rows.values() for path, _ in own], divided=False).notes
    return {split: Split.of(parts[split]) for split in SPLITS}, tuple(notes)


def _divided(root: Path, names: Sequence[str], rows: Sequence[Row], seed: int, alike: Alike) -> dict[str, list[Row]]:
    """Return the rows of each split, 80/10/10 per class and in the order of classes, whole groups in one split.

    Equal files of a class that has too few others are divided nevertheless.
    """
    split_of: dict[str, str] = {}  # by group, which may have images of several classes
    found: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for label, own in sorted(_by_label(rows).items()):
        for keys in (alike.joined, alike.related):
            if chosen := _chosen(own, keys, split_of, np.random.default_rng([seed, label])):
                break
        else:
            groups = len(_groups(own, alike.related))
            which = "" if groups == len(own) else f" in {groups} groups"
            count = f"{len(own)} images of class {names[label]!r} in {root}{which}"
            raise UserError(f"{count}: wanted at least 3, for train, val and test")
        split_of |= chosen
        for path in own:
            found[chosen[keys.get(path, path)]].append((path, label))
    return found


def _chosen(
    own: Sequence[str], keys: Mapping[str, str], known: Mapping[str, str], generator: np.random.Generator
) -> dict[str, str]:
    """Return the split of each group of a class's images; empty where a split would have no image of the class.

    Groups that have images of earlier classes are in the split that is `known`.
    """
    groups = _groups(own, keys)
    held, taken = max(1, round(HELD_OUT * len(own))), dict.fromkeys(SPLITS, 0)
    order = [groups[i] for i in generator.permutation(len(groups))]
    chosen = {key: known[key] for key, _ in order if key in known}
    for key, members in order:
        if key in chosen:
            taken[chosen[key]] += len(members)
    for key, members in order:
        if key not in chosen:
            chosen[key] = next((split for split in ("val", "test") if taken[split] < held), "train")
            taken[chosen[key]] += len(members)
    return chosen if all(taken.values()) else {}


def _parted(rows: Sequence[Row], share: float, seed: int, keys: Mapping[str, str]) -> tuple[list[Row], list[Row]]:
    """Return the rows that stay and the rows, a `share` of each class drawn by `seed`, that do not, in their order."""
    goes: dict[str, bool] = {}  # by group
    for label, own in sorted(_by_label(rows).items()):
        groups, generator = _groups(own, keys), np.random.default_rng([seed, label])
        exact = share * len(own)
        # At random whether one more: else of classes with one image each none would go.
        wanted = int(exact) + (generator.random() < exact - int(exact))
        order = [groups[i] for i in generator.permutation(len(groups))]
        taken = sum(len(members) for key, members in order if goes.get(key))
        for key, members in order:
            if key not in goes:
                goes[key] = taken < wanted and (share >= 0.5 or taken + len(members) < len(own))
                taken += len(members) * goes[key]
    parts = [], []
    for path, label in rows:
        parts[goes[keys.get(path, path)]].append((path, label))
    return parts


def _by_label(rows: Sequence[Row]) -> dict[int, list[str]]:
    of_class: dict[int, list[str]] = {}
    for path, label in rows:
        of_class.setdefault(label, []).append(path)
    return of_class


def _groups(paths: Sequence[str], keys: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(keys.get(path, path), []).append(path)
    return list(groups.items())


def hold_out(images: ImageSet, count: int) -> ImageSet:
    """Return the set with `count` training images moved to a split "holdout", in proportion to the classes.

    The choice follows from the paths and labels alone, whatever their order in a list and whatever the run's seed: all
    runs on a set hold out the same images.

    Raises:
        UserError: more than half of the training images, or of a class's training images, would be held out.
    """
    train = images.splits["train"]
    of_class = _by_label(sorted(dict(zip(train.paths, train.labels, strict=True)).items()))
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
        name: Split.of(row for row in rows if (row[0] in chosen) == held)
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
    return {
        name: _digest(f"{path} {label}" for path, label in zip(split.paths, split.labels, strict=True))
        for name, split in images.splits.items()
        if name != "train"
    }


def contents(listed: Mapping[str, Split], scanned: ImageSet, of_files: Mapping[str, str]) -> dict[str, str]:
    """Return a digest of all that training or testing on a split reads, hexadecimal SHA-256.

    These are the paths and labels of the splits as they are `listed`, the contents of the files, for each path in
    `of_files`, and the channels that the image has in the `scanned` set. A file without content is unusable.
    """
    names = scanned.channels.names

    def line(path: str, label: int) -> str:
        held = scanned.arrangements.get(path)
        places = [f"{names[place]}:{held.sources[place]}" for place in held.present] if held else ()
        return " ".join((path, str(label), of_files.get(path, ""), *places))

    return {name: _digest(map(line, split.paths, split.labels)) for name, split in listed.items()}


def _digest(lines: Iterable[str]) -> str:
    """Return the SHA-256 of lines of text, which may have names of files that are not valid text."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()
