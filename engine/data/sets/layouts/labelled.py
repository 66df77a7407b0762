"""Labelled images as a layout has them: some splits or none, which `engine.data.sets.division` completes."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from polychrome.engine.channels.names import listed
from polychrome.engine.data.sets import tree
from polychrome.engine.data.sets.classes import FOUND, check_trained, class_names, every_name, numbered_classes
from polychrome.engine.errors import UserError

UNDIVIDED = ""  # the split of images that are to be divided
FOLDER_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Labelled:
    """Path and label of each image by split, the classes, lines for the user, and files that describe the set.

    `first` is what the first label was before it became 0: 0 or 1, or None where the labels were names.
    """

    class_names: tuple[str, ...]
    splits: Mapping[str, Sequence[tuple[str, int]]]
    notes: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    first: int | None = None


class Known(NamedTuple):
    """The classes of a run, of which a folder may have a part, and what their first label was (see `Labelled`)."""

    names: tuple[str, ...]
    first: int | None

    @property
    def are_shifted(self) -> bool:
        """Whether the labels 1, 2, ... have classes called 0, 1, ..., as earlier versions called them."""
        return self.first == 1 and self.names == every_name((), len(self.names), 0)

    def check(self, where: str, name: str, of_number: bool = False) -> None:
        """Raise UserError where it is not clear which class has a name, which is written at `where`.

        `of_number` says that the name is one that classes.txt gives a number.
        """
        if (count := self.names.count(name)) > 1:
            raise UserError(f"{where}: {count} classes of the run have the name {name!r}: wanted their numbers")
        if not count:
            hint = "; classes.txt beside the images names classes that have numbers" * name.isdecimal()
            raise UserError(f"{where}: class {name!r} is not among those of the run, {listed(self.names)}{hint}")
        label = self.names.index(name) + 1
        if self.first == 1 and name.isdecimal() and int(name) != label and not of_number:
            both = f"the run's label {name}, or its class {name}, which is label {label}"
            raise UserError(f"{where}: {name!r} may be {both}: give a table of files and labels")

    def places(self, where: str, names: Sequence[str], of_numbers: bool) -> Sequence[int]:
        """Return the place of each class of a set at `where` among those of the run; raises UserError as `check`."""
        if tuple(names) == self.names:
            return range(len(self.names))
        for name in names:
            self.check(where, name, of_numbers)
        return [self.names.index(name) for name in names]


@dataclass(frozen=True)
class Entry:
    """An image that a list or table names, with its label, and where that is written."""

    where: str
    path: str
    label: str


def split_of(name: str) -> str | None:
    """Return the split that a folder's or file's name stands for, in any case, as train or training_set does; or None.

    Names of files are without their suffix.
    """
    plain = re.sub("[ _-]?set$", "", name.lower())
    return next((split for split, names in FOLDER_NAMES.items() if plain in names), None)


def splits_told(files: Sequence[Path]) -> dict[Path, str]:
    """Return the split that the name or a folder of each file tells; "" for all files where none are told apart.

    A word tells a split as `split_of` has it, and the beginning of a file's name does, as in train0 or traindata.
    Folders are those below the folder that all files are in, and words that all files share tell nothing.

    Raises UserError where a file tells several splits, or none and others do, or all tell others than train.
    """
    root = Path(os.path.commonpath([file.parent for file in files]))
    words = {file: _words_of(file.relative_to(root)) for file in files}
    shared = set.intersection(*map(set, words.values()))
    told = {file: {own[word] for word in own.keys() - shared} for file, own in words.items()}
    if not any(told.values()):
        return dict.fromkeys(files, UNDIVIDED)
    for file, found in told.items():
        if len(found) != 1:
            names = f"tells the splits {' and '.join(sorted(found))}" if found else "tells no split, as others do"
            raise UserError(f"{file} {names}: which is it? wanted train, val or test in the name or a folder")
    if {"train"} not in told.values():
        raise UserError(
            f"no train in {root}, only {' and '.join(sorted(set.union(*told.values())))}: wanted images to train on"
        )
    return {file: min(found) for file, found in told.items()}


def splits_in(folder: str) -> set[str]:
    """Return the splits that words of a folder's name tell, as seg_train and train2017 do."""
    return set(_words_of(Path(folder) / "_").values())


def _words_of(file: Path) -> dict[str, str]:
    """Return the words of a relative path that tell a split, and which."""
    name = file.name.partition(".")[0]
    words = [word for part in (*file.parts[:-1], name) for word in (part, *re.findall("[A-Za-z]+", part))]
    found = {word: split for word in words if (split := split_of(word))}
    first = re.match("[A-Za-z]*", name)[0]
    if begun := [split for split in FOLDER_NAMES if first.lower().startswith(split)]:
        found[first] = begun[0]
    return found


def by_split(names: Iterable[str], where: str, suffix: str = "/") -> dict[str, str]:
    """Return the name of each split, in the order of splits, among names of folders, or of files without their suffix.

    Raises UserError, which begins with the words `where`, where two are of one split.
    """
    parts: dict[str, str] = {}
    for name in names:
        split = split_of(name)
        if split in parts:
            raise UserError(f"{where} {parts[split]}{suffix} and {name}{suffix}: which of them is the split {split}?")
        if split:
            parts[split] = name
    return {split: parts[split] for split in FOLDER_NAMES if split in parts}


def normal(name: str) -> str:
    """Return a name in the composed form of Unicode, in which equal names are equal."""
    return unicodedata.normalize("NFC", name)


def in_order(names: Iterable[str]) -> list[str]:
    """Return names of classes sorted: by their value where all are whole numbers."""
    names = sorted(names)
    return sorted(names, key=int) if all(re.fullmatch("[0-9]{1,9}", name) for name in names) else names


def inside(path: str, folder: Path) -> str:
    """Return an absolute path of a file within a folder relative to the folder; any other path as it is."""
    for base in (folder.absolute(), folder.resolve()) if path.startswith("/") else ():
        if path.startswith(f"{base}/"):
            return path.removeprefix(f"{base}/")
    return path


class Places:
    """Where the files are that lists and tables name, in whatever form they name them."""

    def __init__(self, root: Path, found: Mapping[str, str]):
        self._root, self._found = root, found
        self._normal = {normal(path): path for path, kind in found.items() if kind == tree.IMAGE}
        self._by_name: dict[str, list[str]] = {}
        self._splits = {path: _splits_of(posixpath.dirname(path)) for path in self._normal}
        self._with_folders = frozenset().union(*self._splits.values())
        for path in self._normal:
            name = posixpath.basename(path)
            for key in {name, posixpath.splitext(name)[0]}:
                self._by_name.setdefault(key, []).append(path)

    def __contains__(self, path: object) -> bool:
        """Return whether a path is that of an image, as it was found."""
        return path in self._found

    def exact(self, path: str) -> str:
        """Return the path of a named file, which may be written with backslashes or in another form of Unicode."""
        if path in self._found or os.path.lexists(self._root / path):
            return path
        for other in (normal(path), normal(path.replace("\\", "/"))):
            if (there := self._normal.get(posixpath.normpath(other))) is not None:
                return there
        return path

    def anywhere(self, where: str, path: str, folder: str, split: str) -> str:
        """Return the path of a file that a table in `folder` names, with more or less of its folders and its suffix.

        Of several files of that name the one in a folder of `split` is meant; where such a folder is, files in folders
        of other splits alone are not. A file that is nowhere is returned as named.

        Raises UserError where several files may be meant.
        """
        path = inside(path, self._root)
        for exact in (posixpath.join(folder, path), path):
            if (there := self.exact(exact)) in self._found:
                return there
        wanted = normal(posixpath.normpath(path.replace("\\", "/")))
        named = self._by_name.get(posixpath.basename(wanted), [])
        found = [other for other in named if any(f"/{each}".endswith(f"/{wanted}") for each in (other, _stem(other)))]
        near = [other for other in found if split in self._splits[other]]
        if split in self._with_folders:
            found = [other for other in found if not self._splits[other]]
        found = near or found
        if len(found) > 1:
            raise UserError(f"{where}: {path!r} may be {found[0]} or {found[1]}: wanted a path within {self._root}")
        return self._normal[found[0]] if found else path

    def is_there(self, where: str, path: str, folder: str, split: str) -> bool:
        """Return whether `anywhere` finds a file; raises UserError as it does."""
        return self.anywhere(where, path, folder, split) in self._found


def _splits_of(folder: str) -> frozenset[str]:
    """Return the splits that the names of a folder and of those above it stand for."""
    return frozenset(filter(None, map(split_of, folder.split("/"))))


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0]


def labelled(
    root: Path,
    entries: Mapping[str, Sequence[Entry]],
    num_classes: int | None,
    source: str,
    known: Known | None = None,
) -> Labelled:
    """Return entries with their classes and labels, and a line for the user.

    Labels are whole numbers from 0, or from 1 where these are as many as the classes; or else names. `source` says
    where the training labels were found. With `known` classes numbers are those of classes.txt, else of the run, and
    begin as the run's do, where its classes have numbers.

    Raises:
        UserError: there are no training images, a label is outside the classes, a class that nobody asked for and that
            is not known has no training image, or classes.txt is malformed.
    """
    first = "train" if "train" in entries else UNDIVIDED
    if first not in entries and not known:
        raise UserError(f"{root} has images of {' and '.join(entries)} alone: wanted images to train on")
    every = [entry for some in entries.values() for entry in some]
    numbers = all(re.fullmatch(r"[+-]?[0-9]{1,9}", entry.label) for entry in every)
    if not numbers or (known and known.first is None and not class_names(root / "classes.txt")):
        return _by_name(root, entries, first, num_classes, known)
    found = {int(entry.label) for entry in entries.get(first, every)}
    named, count, why = numbered_classes(root, num_classes, found, source, known.names if known else ())
    if known and known.first is not None:
        start = known.first
    else:
        found = {int(entry.label) for entry in every}
        start = int(min(found) == 1 and max(found) == count)
    names = every_name(named, count, start)
    splits = {split: [(entry.path, int(entry.label) - start) for entry in some] for split, some in entries.items()}
    for split, some in entries.items():
        for entry, (_, label) in zip(some, splits[split], strict=True):
            if not 0 <= label < len(names):
                reason = f"{count} classes are {why}"
                if why.startswith(FOUND):
                    reason += "; wanted labels without gaps, or names"
                last = count - 1 + start
                raise UserError(f"{entry.where}: label {label + start} is outside {start}..{last}, as {reason}")
    if not known and num_classes is None:
        check_trained(names, {int(entry.label) for entry in entries[first]}, str(root / source), start)
    notes = (f"labels are 1..{count}; predictions/ and evaluation/ number the classes from 0",) if start else ()
    return Labelled(names, splits, notes, first=start)


def _by_name(
    root: Path, entries: Mapping[str, Sequence[Entry]], first: str, num_classes: int | None, known: Known | None
) -> Labelled:
    names = known.names if known else in_order({normal(entry.label) for entry in entries[first]})
    if num_classes not in (None, len(names)):
        raise UserError(f"{len(names)} classes in {root}, {num_classes} classes asked for")
    labels = {name: label for label, name in enumerate(names)}
    for some in entries.values():
        for entry in some:
            if known:
                known.check(entry.where, normal(entry.label))
            elif normal(entry.label) not in labels:
                raise UserError(f"{entry.where}: class {entry.label!r} is not among those of the training images")
    splits = {split: [(entry.path, labels[normal(entry.label)]) for entry in some] for split, some in entries.items()}
    return Labelled(tuple(names), splits)
