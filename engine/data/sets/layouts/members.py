"""Splits and classes by the folders within tars, as `engine.data.sets.layouts.folders` has them of folders on disk."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from polychrome.engine.data.files import shards
from polychrome.engine.data.sets.layouts.folders import FLAT, on_deeper
from polychrome.engine.data.sets.layouts.labelled import UNDIVIDED, by_split, normal, split_of
from polychrome.engine.errors import UserError

WANTED = 'wanted a .cls, a .json with "label" or "cls", or a folder per class in the tar'


@dataclass(frozen=True)
class Sample:
    """A sample in a tar: its path, which begins with the tar's, its label, and whether its tar is cut off there."""

    path: str
    label: int | str | None
    cut: bool = False


@dataclass(frozen=True)
class _Placed:
    """A sample with the folders within its tar that it is in, of which the first are gone that told a split."""

    sample: Sample
    folders: tuple[str, ...]
    split: str


def placed(
    root: Path, found: Mapping[str, Sequence[Sample]], labelled: bool
) -> tuple[dict[str, list[Sample]], tuple[str, ...]]:
    """Return the samples of tars by split, given by the splits of the tars' names, and lines for the user.

    In tars without splits in their names the folders train/, val/ and test/ (see `split_of`) are these splits. Where
    the samples have no labels their class is the upper folder below. A folder that all samples are in says nothing.

    Raises:
        UserError: a sample is in no split, or in another than that of its tar, or it has no label.
    """
    every = [_Placed(sample, _folders(sample.path), split) for split, samples in found.items() for sample in samples]
    notes, entered = [], ""
    while _enters(every, labelled):
        entered += f"{_first(every[0])}/"
        every = [replace(each, folders=each.folders[1:]) for each in every]
    parts = _split_folders(root, every, labelled)
    if entered and (parts or not labelled):
        notes.append(f"the set is that in the only folder of the tars, {entered}")
    if parts:
        every = [_divided(root, each, parts) for each in every]
        if UNDIVIDED in found:
            notes.append(f"splits are the folders {', '.join(f'{part}/' for part in parts.values())} in the tars")
    if not labelled:
        every, more = _with_classes(root, every)
        notes += more
    splits: dict[str, list[Sample]] = {}
    for each in every:
        splits.setdefault(each.split, []).append(each.sample)
    return {UNDIVIDED: splits["train"]} if list(splits) == ["train"] else splits, tuple(notes)


def _folders(path: str) -> tuple[str, ...]:
    member = posixpath.normpath(path.partition(f"{shards.SUFFIX}/")[2])
    return tuple(name for name in member.split("/")[:-1] if name not in ("", ".."))


def _first(each: _Placed) -> str:
    return each.folders[0] if each.folders else ""


def _enters(every: Sequence[_Placed], labelled: bool) -> bool:
    """Return whether all samples are in one folder that is neither a split nor, of samples without labels, a class."""
    firsts = {_first(each) for each in every if each.folders or not each.sample.cut}
    least = 1 if labelled else 2
    return len(firsts) == 1 and not split_of(*firsts) and all(len(each.folders) >= least for each in every)


def _split_folders(root: Path, every: Sequence[_Placed], labelled: bool) -> dict[str, str]:
    """Return the folder of each split, as `folders.split_folders` does; one among others is none where labels are."""
    parts = by_split(sorted({_first(each) for each in every}), f"the tars in {root} have")
    if len(parts) < 2 and (labelled or "train" not in parts):
        return {}
    if "train" not in parts:
        raise UserError(
            f"the tars in {root} have {' and '.join(parts.values())}, but no train/: wanted images to train on"
        )
    return parts


def _divided(root: Path, each: _Placed, parts: Mapping[str, str]) -> _Placed:
    split = split_of(_first(each))
    if each.sample.cut and not split:  # it is not used anyway
        return replace(each, split=each.split or "train")
    where = root / each.sample.path
    if not split:
        raise UserError(f"{where} is in no split, though others are in {', '.join(f'{p}/' for p in parts.values())}")
    if each.split not in (UNDIVIDED, split):
        raise UserError(f"{where} is in {_first(each)}/, in a tar of the split {each.split}: which is it?")
    return replace(each, folders=each.folders[1:], split=split)


def _with_classes(root: Path, every: Sequence[_Placed]) -> tuple[list[_Placed], list[str]]:
    """Return samples with the name of their upper folder as label; without those of a test split without classes."""
    flat = {each.split for each in every} - {each.split for each in every if set(each.folders) - {FLAT}}
    notes = []
    if "test" in flat:
        every = [each for each in every if each.split != "test"]
        notes.append("test/ has images but no labels: it is not used")
    for each in every:
        if not each.folders and not each.sample.cut:
            raise UserError(f"{root / each.sample.path}: no label: {WANTED}")
    deeper = [each.sample.path for each in every if each.folders[1:] not in ((), (FLAT,))]
    named = [replace(each, sample=replace(each.sample, label=normal(_first(each)) or None)) for each in every]
    return named, [*on_deeper(deeper), *notes]
