"""`channels.csv`: which channels the files of a set have, where they differ or the files do not say."""

from __future__ import annotations

import csv
import os
import posixpath
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from polychrome.engine.data.arrangement import Form
from polychrome.engine.data.files import shards, stacks
from polychrome.engine.data.files.text import numbered_lines
from polychrome.engine.data.sets.layouts.labelled import normal
from polychrome.engine.errors import UserError

FILE = "channels.csv"
TOGETHER, BESIDE = "+", "|"
HEADS = ("file or folder", "file", "folder", "path", "filename", "file_name", "pattern")
WANTED = "wanted `file or folder,channels`, such as landsat,red+green+nir"


class Described(NamedTuple):
    """The names of a file's channels, in its order, how they lie in it, and the line that says so."""

    names: tuple[str, ...]
    form: Form
    where: str


class _Line(NamedTuple):
    number: int
    target: str
    described: Described


def read(root: Path, paths: Iterable[str]) -> dict[str, Described] | None:
    """Return what the lines of `channels.csv` say of each path; None where there is no such file.

    A line is `file or folder,channels`: the names joined by +, or by | where the channels lie side by side in an image
    of one channel. The file or folder is relative to `root`, and may be a pattern with * and ?. Of several lines for a
    file the last holds; files without a line are left out of the result.

    Raises:
        UserError: the file is malformed, or a line names a file or folder that is not there.
    """
    if not (root / FILE).exists():
        return None
    lines = list(_lines(root / FILE))
    exact = {line.target: line for line in lines}
    patterns = list(filter(_is_pattern, lines))
    found, used = {}, set()
    for path in paths:
        plain = normal(posixpath.normpath(path))
        candidates = [line for target in _above(plain) if (line := exact.get(target))]
        candidates += [line for line in patterns if fnmatchcase(plain, line.target)]
        if candidates:
            line = max(candidates)
            found[path] = line.described
        used.update(candidate.number for candidate in candidates)
    for line in lines:
        if line.number not in used and line not in patterns and not _is_there(root, line.target):
            raise UserError(f"{line.described.where}: no file or folder {line.target!r} in {root}")
    return found


def unmatched(root: Path, paths: Iterable[str]) -> Iterator[str]:
    """Yield a line for the user for each pattern of `channels.csv`, if there is any, that matches none of the paths.

    Raises UserError where the file is malformed.
    """
    patterns = list(filter(_is_pattern, _lines(root / FILE))) if (root / FILE).exists() else []
    plain = [normal(posixpath.normpath(path)) for path in paths] if patterns else []
    for line in patterns:
        if not any(fnmatchcase(path, line.target) for path in plain):
            yield f"{line.described.where}: no file matches {line.target}; a pattern is of the whole path below {root}"


def folder_of(folder: Path, trained: Path | None = None) -> Path | None:
    """Return the folder whose `channels.csv` or `channels.txt` describes files in a folder; None where nothing does.

    It is the nearest one that has either, the folder itself or one above. In the data folder of a training, `trained`,
    resolved, it is that folder, described or not, as it was in training.

    Raises:
        UserError: a folder within the data folder of the training has a description, which was not read in training.
    """
    nearest = None
    for each in (folder, *folder.parents):
        if nearest is None and (file := next(filter(os.path.exists, (each / FILE, each / stacks.NAMES_FILE)), None)):
            nearest = each, file
        if trained is not None and each.resolve() == trained:
            if nearest is not None and nearest[0] != each:
                raise UserError(f"{nearest[1]} was not read in training: only a file in {each} itself is")
            return each
    return nearest and nearest[0]


def names(root: Path) -> tuple[str, ...]:
    """Return the names of all channels in the lines of `channels.csv`, in the order of the lines.

    Raises:
        UserError: the file is missing or malformed.
    """
    return tuple(dict.fromkeys(name for line in _lines(root / FILE) for name in line.described.names))


def _lines(file: Path) -> Iterator[_Line]:
    found = False
    for number, text in numbered_lines(file):
        where = f"{file}:{number}"
        try:
            cells = [cell.strip() for cell in next(csv.reader([text], strict=True, skipinitialspace=True))]
        except csv.Error as error:
            raise UserError(f"{where}: {error}: {WANTED}") from error
        if len(cells) != 2 or not all(cells):
            raise UserError(f"{where}: {WANTED}, got {text!r}")
        if not found and cells[0].lower() in HEADS and cells[1].lower() == "channels":
            continue
        found = True
        yield _Line(number, normal(posixpath.normpath(cells[0].replace("\\", "/"))), _described(where, cells[1]))
    if not found:
        raise UserError(f"{file} has no line: {WANTED}")


def _is_pattern(line: _Line) -> bool:
    return "*" in line.target or "?" in line.target


def _described(where: str, text: str) -> Described:
    beside = BESIDE in text
    if beside and TOGETHER in text:
        raise UserError(f"{where}: {text!r} has both {TOGETHER} and {BESIDE}: {BESIDE} is for channels side by side")
    names = [name.strip() for name in text.split(BESIDE if beside else TOGETHER)]
    if not all(names):
        raise UserError(f"{where}: a name is empty in {text!r}")
    checked = stacks.checked_names((where, name) for name in names)
    return Described(checked, Form(len(checked), beside), where)


def _above(path: str) -> Iterator[str]:
    """Yield a path, and each folder that it is in, down to "."."""
    while path:
        yield path
        path = posixpath.dirname(path)
    yield "."


def _is_there(root: Path, target: str) -> bool:
    return f"{shards.SUFFIX}/" in f"{target}/" or os.path.lexists(root / target)
