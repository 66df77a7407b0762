"""List files: train.txt, val.txt (or valid.txt, ...) and test.txt with lines of `path label`."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from polychrome.engine.data.files.text import numbered_lines
from polychrome.engine.data.image_set import SPLITS
from polychrome.engine.data.sets.layouts.labelled import (
    UNDIVIDED,
    Entry,
    Known,
    Labelled,
    Places,
    by_split,
    inside,
    labelled,
    split_of,
)
from polychrome.engine.errors import UserError


def has_lists(root: Path) -> bool:
    """Return whether a folder has any of train.txt, val.txt and test.txt, or another list to train on."""
    names = [file.stem for file in root.glob("*.txt")]
    return any(name in SPLITS or split_of(name) == "train" for name in names)


def read(root: Path, found: Mapping[str, str], num_classes: int | None, known: Known | None = None) -> Labelled:
    """Return the images that the lists of a folder name; for `known` see `labelled`.

    Raises:
        UserError: a list is missing, empty or malformed, or names a file outside the folder; with file and line.
    """
    names = sorted(file.stem for file in root.glob("*.txt") if file.is_file())
    files = {split: root / f"{name}.txt" for split, name in by_split(names, f"{root} has", ".txt").items()}
    if "train" not in files and not known:
        raise UserError(f"no train.txt in {root}: wanted train.txt, val.txt and test.txt")
    places, entries, moved = Places(root, found), {}, []
    for split, file in files.items():
        rows = list(_listed(file))
        entries[split] = [Entry(where, places.exact(path), label) for where, path, label in rows]
        moved += [row[1] for row, entry in zip(rows, entries[split], strict=True) if entry.path != row[1]]
        if not rows:
            raise UserError(f"{file} lists no images: wanted lines of `path label`")
    if list(files) == ["train"]:
        entries = {UNDIVIDED: entries["train"]}
    images, notes = labelled(root, entries, num_classes, next(iter(files.values())).name, known), ()
    if moved:
        count = f"{len(moved):,} path{'s' * (len(moved) > 1)}"
        notes = (f"{count} of the lists have backslashes or another form of Unicode, such as {moved[0]}",)
    return replace(images, notes=images.notes + notes, own=tuple(file.name for file in files.values()))


def _listed(file: Path) -> Iterator[tuple[str, str, str]]:
    """Yield where it is written, path and label of each line."""
    for number, line in numbered_lines(file):
        path, _, label = re.sub(r"\s+", " ", line[::-1], count=1)[::-1].rpartition(" ")
        if not path:
            raise UserError(f"{file}:{number}: wanted `path label`, got {line!r}")
        if not re.fullmatch(r"[+-]?[0-9]{1,9}", label):
            raise UserError(f"{file}:{number}: label must be a whole number, got {label!r}")
        yield f"{file}:{number}", relative(f"{file}:{number}", path, file.parent), label


def relative(where: str, path: str, folder: Path) -> str:
    """Return a path, named at `where`, relative to a folder; raises UserError where no file within it can have it."""
    if "\0" in path:
        raise UserError(f"{where}: path has a null character")
    path = inside(path, folder)
    if path.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", path):
        raise UserError(f"{where}: path must be relative to {folder}, or within it, got {path!r}")
    if ".." in (posixpath.normpath(path).split("/")[0], posixpath.normpath(path.replace("\\", "/")).split("/")[0]):
        raise UserError(f"{where}: path leaves the data folder: {path!r}")
    return path
