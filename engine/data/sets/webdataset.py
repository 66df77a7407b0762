"""A labelled set in WebDataset's tar shards."""

from __future__ import annotations

import glob
import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from polychrome.engine.data.accounting import UNLISTED
from polychrome.engine.data.files import shards
from polychrome.engine.data.image_set import SPLITS, ImageSet
from polychrome.engine.data.sets.classes import check_trained, class_names, every_name, numbered_classes
from polychrome.engine.data.sets.division import completed
from polychrome.engine.data.sets.layouts import members
from polychrome.engine.data.sets.layouts.labelled import UNDIVIDED, Known, in_order, splits_told
from polychrome.engine.data.sets.layouts.members import WANTED, Sample
from polychrome.engine.data.sets.repeats import grouping
from polychrome.engine.errors import UserError
from polychrome.engine.machine.workers import cpus, parallel

SPLITS_FIRST = (*SPLITS, UNDIVIDED)
PER_PROCESS = 8  # so many shards make a process worth starting
MOST = 10**6  # a range may name so many shards

# The classes, each split's labels, and what the first label was (see `ImageSet`).
Labelled = tuple[tuple[str, ...], dict[str, list[int]], int | None]


def names_shards(data: Path) -> bool:
    """Return whether a path names tars, such as shards/{000..099}.tar, shards/*.tar or set.tar."""
    return any(mark in str(data) for mark in "*?[{") or shards.SUFFIX in data.suffixes or data.suffix == ".tgz"


def expand(pattern: str | Path) -> list[Path]:
    """Return the tars that a pattern with ranges {000..099}, lists {a,b}, * and ? names, each once, in order.

    Raises UserError where a tar of a range or list is missing, or all are.
    """
    names = _expanded(str(pattern))
    tars = [Path(match) for match in dict.fromkeys(match for name in names for match in _matches(name))]
    missing = [tar for tar in tars if not tar.is_file()]
    if missing:
        raise UserError(f"no shard at {missing[0]}: {len(missing)} of the {len(tars)} that {pattern} names are missing")
    if not tars:
        raise UserError(f"no tar matches {pattern}")
    return tars


def _matches(name: str) -> list[str]:
    literal = os.path.isfile(name) or not glob.has_magic(name)
    return [name] if literal else sorted(glob.glob(name))


def _expanded(text: str) -> list[str]:
    braces = re.search(r"\{([0-9]+)\.\.([0-9]+)\}|\{([^{}]*,[^{}]*)\}", text)
    if braces is None:
        return [text]
    first, last, listed = braces.groups()
    if listed is not None:
        items = listed.split(",")
    elif 0 <= int(last) - int(first) < MOST:
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        items = [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]
    else:
        raise UserError(f"{text}: wanted a rising range, such as {{000..099}}, got {braces[0]}")
    before, after = text[: braces.start()], text[braces.end() :]
    return [name for item in items for name in _expanded(before + item + after)]


def read(
    tars: Sequence[Path],
    num_classes: int | None = None,
    seed: int = 0,
    group_by: str | None = None,
    known: Known | None = None,
) -> ImageSet:
    """Return the set of the samples in tars: members whose paths agree up to the first dot, one of them an image.

    A sample's label is in its .cls (a whole number) or its .json (a number or name, "label" or "cls"); where none has
    such a label, the folder in the tar is its class (see `engine.data.sets.layouts.members`). Tars whose names or
    folders tell splits (see `engine.data.sets.layouts.labelled.splits_told`) are these, else folders of such names in
    the tars; those that are not there are made (see `engine.data.sets.division.completed`); else all samples are split
    80/10/10 per class by `seed`, whole groups in one split (see `engine.data.sets.repeats.grouping`), which is said.
    Paths begin with the tar's path, relative to the folder that all tars are in. Of a set for a run its classes are
    `known`, as `engine.data.sets.listing.read` has them.

    Raises:
        UserError: a tar is unreadable or damaged, samples have no label or two, or there is none to train on.
    """
    tars = [tar.absolute() for tar in tars]
    root = Path(os.path.commonpath([tar.parent for tar in tars]))
    names = splits_told(tars)
    found: dict[str, list[Sample]] = defaultdict(list)
    for tar, rows in zip(tars, _indexed(tars), strict=True):
        found[names[tar]] += _samples(tar.relative_to(root).as_posix(), rows)
    for name, samples in found.items():
        if not samples:
            raise UserError(f"no images in the tars of {name or root}: wanted members such as key.jpg")
    every = sum(map(len, found.values()))
    labelled = _has_labels(root, [sample for samples in found.values() for sample in samples])
    found, said = members.placed(root, found, labelled)
    classes, labels, first = (_by_label if labelled else _by_name)(root, found, num_classes, known)
    if known:
        places = known.places(str(root), classes, of_numbers=first is not None)
        classes, labels = known.names, {name: [places[label] for label in own] for name, own in labels.items()}
    paths = {name: [sample.path for sample in samples] for name, samples in found.items()}
    rows = {name: list(zip(paths[name], labels[name], strict=True)) for name in sorted(found, key=SPLITS_FIRST.index)}
    if list(rows) == [UNDIVIDED]:
        rows[UNDIVIDED].sort()
    splits, notes = completed(root, classes, rows, seed, grouping(root, group_by))
    account = shards.account(tars)
    if unused := every - sum(map(len, found.values())):
        account = account.with_ignored({UNLISTED: unused}, among_used=True)
    return ImageSet(root, classes, splits, account=account, notes=(*said, *notes), first_label=first)


def _indexed(tars: Sequence[Path]) -> list[np.ndarray]:
    unknown = [str(tar) for tar in tars if not shards.has_index(tar)]
    workers = min(cpus(), len(unknown) // PER_PROCESS)
    if workers > 1:
        list(parallel(shards.build_index, unknown, workers))
    return [shards.samples(tar) for tar in tars]


def _samples(tar: str, rows: np.ndarray) -> list[Sample]:
    return [
        Sample(f"{tar}/{os.fsdecode(name)}", json.loads(label) if label else None, cut)
        for name, label, cut in zip(rows["name"].tolist(), rows["label"].tolist(), rows["cut"].tolist(), strict=True)
    ]


def _has_labels(root: Path, samples: Sequence[Sample]) -> bool:
    """Return whether the samples have labels of their own; raises UserError where only some have."""
    without = next((sample.path for sample in samples if sample.label is None and not sample.cut), None)
    labelled = any(sample.label is not None for sample in samples)
    if labelled and without:
        raise UserError(f"{root / without}: no label, though other samples have one: {WANTED}")
    return labelled


def _by_label(
    root: Path, found: Mapping[str, Sequence[Sample]], num_classes: int | None, known: Known | None
) -> Labelled:
    every = [sample for samples in found.values() for sample in samples if sample.label is not None]
    kinds = {type(sample.label): sample.path for sample in every}
    if len(kinds) > 1:
        raise UserError(f"{root}: {kinds[int]} has a number as its label, {kinds[str]} a name: wanted one kind")
    if str in kinds:
        return _by_name(root, found, num_classes, known)
    if known and known.first is None and not class_names(root / "classes.txt"):
        return _by_name(root, {split: list(map(_named, samples)) for split, samples in found.items()}, None, known)
    first = "train" if "train" in found else ""
    numbers = {sample.label for sample in found[first] if sample.label is not None}
    own = known.names if known else ()
    named, count, source = numbered_classes(root, num_classes, numbers, f"{first}*.tar", own)
    start = known.first or 0 if known else 0
    names = every_name(named, count, start)
    for sample in every:
        if not start <= sample.label < start + len(names):
            outside = f"outside {start}..{start + len(names) - 1}, as {len(names)} classes are {source}"
            raise UserError(f"{root / sample.path}: label {sample.label} is {outside}")
    if num_classes is None and not known:
        check_trained(names, numbers, f"{root / first}*.tar")
    labels = {
        name: [0 if sample.label is None else sample.label - start for sample in samples]
        for name, samples in found.items()
    }
    return names, labels, start


def _named(sample: Sample) -> Sample:
    return sample if sample.label is None else replace(sample, label=str(sample.label))


def _by_name(
    root: Path, found: Mapping[str, Sequence[Sample]], num_classes: int | None, known: Known | None
) -> Labelled:
    first = "train" if "train" in found else ""
    names = known.names if known else in_order({each.label for each in found[first] if each.label is not None})
    if num_classes not in (None, len(names)):
        raise UserError(f"{len(names)} classes in {root}, {num_classes} classes asked for")
    numbers = {name: label for label, name in enumerate(names)} | {None: 0}  # a cut sample is not used anyway
    for split, samples in found.items():
        for sample in samples:
            if known and sample.label is not None:
                known.check(str(root / sample.path), sample.label)
            elif sample.label not in numbers:
                raise UserError(f"class {sample.label!r} of {root / sample.path} is in {split} but not in train")
    return tuple(names), {name: [numbers[sample.label] for sample in samples] for name, samples in found.items()}, None
