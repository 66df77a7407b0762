"""Tables of files and labels: train.csv, labels.csv, Hugging Face's metadata.csv and metadata.jsonl."""

from __future__ import annotations

import csv
import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from polychrome.engine.data.files.guard import guarded
from polychrome.engine.data.files.kinds import SUFFIXES as IMAGES
from polychrome.engine.data.files.text import numbered_lines
from polychrome.engine.data.sets.layouts.labelled import UNDIVIDED, Entry, Known, Labelled, Places, labelled, split_of
from polychrome.engine.data.sets.layouts.lists import relative
from polychrome.engine.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl")
MARKS = ",;\t"  # between cells
SAMPLE, FIRST = 100, 3  # lines that tell the mark, and a column of files
OF_LABELS = ("labels", "annotations")
OF_ALL = (*OF_LABELS, "metadata")  # names of tables of a whole folder
FILES = ("file_name", "filename", "file", "path", "filepath", "file_path", "image_path", "image", "img", "image_name")
FILES += ("fname", "image_id", "imageid", "img_id", "patch_id", "id", "name")
LABELS = ("label", "labels", "class", "class_name", "classname", "category", "target", "label_name", "species", "breed")
LABELS += ("class_id", "classid", "category_id", "y", "diagnosis", "dx")
UNNAMED = ("0", "1")  # columns of a table without a line of names
MOST = 8  # columns that a line names
SPLIT = ("split", "set", "partition", "subset")
FLAGS = {"is_test": "test", "is_valid": "val", "is_val": "val"}  # columns that say whether a row is of a split
TRUE, FALSE = ("true", "1", "yes", "1.0"), ("false", "0", "no", "0.0", "")


class NoLabels(UserError):
    """No table names images and their labels; the message says what one lacks, and its columns."""


@dataclass(frozen=True)
class Table:
    """A table: its file, the folder that its paths are in, the split that its name tells, its columns and its rows.

    `roles` are the columns of files, of labels and, if there are any, of splits; None where no column has labels.
    """

    file: Path
    folder: str
    split: str
    columns: tuple[str, ...]
    roles: tuple[int, int, tuple[int, ...]] | None
    rows: tuple[tuple[int, tuple[str, ...]], ...]

    @property
    def label(self) -> str:
        """The name of the column of labels, for a table that has one."""
        return self.columns[self.roles[1]]


def of_folder(root: Path, found: Mapping[str, str]) -> list[str]:
    """Return the paths of the tables that label the images of a folder, in it or in its splits' folders."""
    tables = []
    for path in found:
        folder, name = posixpath.split(path)
        stem, suffix = posixpath.splitext(name)
        if suffix.lower() not in SUFFIXES or "/" in folder:
            continue
        if (not folder and (_split_of(stem) or stem.lower() in OF_ALL)) or (
            split_of(folder) and stem.lower() == "metadata"
        ):
            tables.append(path)
    return tables


def _split_of(stem: str) -> str | None:
    """Return the split that a table's name tells, as train, train_labels and trainLabels do; None where it does not."""
    return split_of(re.sub(f"[ _-]?({'|'.join((*OF_ALL, 'label'))})$", "", stem, flags=re.IGNORECASE) or stem)


def read(
    root: Path, found: Mapping[str, str], paths: Sequence[str], num_classes: int | None, known: Known | None = None
) -> Labelled:
    """Return the images that tables name; for `known` see `labelled`.

    Raises:
        NoLabels: no table has a column of files and a column of labels, which in class folders is called so.
        UserError: a table is malformed, or one that is called after labels names files and no labels, or a name is that
            of several files, or some rows alone have a split.
    """
    places, entries, notes, own = Places(root, found), {}, [], []
    read = {file: _table(root, file, places) for file in paths}
    training = next((table for table in read.values() if table.split in ("train", UNDIVIDED) and table.roles), None)
    for file, table in read.items():
        before = sum(map(len, entries.values()))
        if table.roles is None:
            if table.file.stem.lower() in OF_LABELS and _named(table.columns) is not None:
                raise UserError(_lacking(table))
            notes.append(f"{file} has no labels: it is not used")
            continue
        if training and not _are_alike(table, training):
            notes.append(f"{file} has no column {training.label}, as {training.file.name} has: it is not used")
            continue
        if _goes_after_folders(table, places):
            notes.append(f"{file} has no column called label or the like: it is not used")
            continue
        columns, (named, kind, parts) = table.columns, table.roles
        own.append(file)
        said = f"labels of {file}: files in the column {columns[named]}, classes in {columns[kind]}"
        said += f", splits in {' and '.join(columns[part] for part in parts)}" if parts else ""
        unused = [name for i, name in enumerate(columns) if i not in (named, kind, *parts)]
        notes.append(said + f"; not used: {_listed(unused)}" * bool(unused))
        for number, row in table.rows:
            where = f"{table.file}:{number}"
            if len(row) <= max(named, kind) or not row[named] or not row[kind]:
                raise UserError(f"{where}: wanted a file and a label, got {','.join(row)!r}")
            relative(where, row[named], root)
            split = _named_split(where, row, columns, parts) if parts else table.split
            path = places.anywhere(where, row[named], table.folder, split)
            entries.setdefault(split, {}).setdefault((path, row[kind]), Entry(where, path, row[kind]))
        if again := before + len(table.rows) - sum(map(len, entries.values())):
            notes.append(f"{again:,} row{'s' * (again > 1)} of {file} repeat a file and its label: taken once")
    if not entries:
        raise NoLabels(_lacking(read[paths[-1]]))
    if UNDIVIDED in entries and len(entries) > 1:
        raise UserError(f"{root}: {' and '.join(own)} name images with and without a split: wanted one of them")
    listed = {split: list(some.values()) for split, some in entries.items()}
    first = next((file for file in own if read[file] is training), own[0])
    images = labelled(root, listed, num_classes, f"{first}, column {read[first].label}", known)
    splits = {UNDIVIDED: images.splits["train"]} if list(images.splits) == ["train"] else images.splits
    return replace(images, splits=splits, notes=(*notes, *images.notes), own=tuple(own))


def _are_alike(table: Table, training: Table) -> bool:
    """Return whether the labels of a table are of the same column as those of the training, or called so in both."""
    names = {table.label.lower(), training.label.lower()}
    return len(names) == 1 or names <= {*LABELS, UNNAMED[1]}


def _lacking(table: Table) -> str:
    """Return what columns a table has, and which it should have."""
    wanted = "wanted filename and label"
    if table.roles is None and (named := _named(table.columns)) is not None:
        wanted = f"the files are in {table.columns[named]}, wanted a column of their labels called label"
    return f"{table.file} has the columns {_listed(table.columns)}: {wanted}"


def _listed(columns: Sequence[str]) -> str:
    names = [name or "(no name)" for name in columns]
    return ", ".join(names[:MOST]) + f" and {len(names) - MOST} more" * (len(names) > MOST)


def _goes_after_folders(table: Table, places: Places) -> bool:
    """Return whether a table's images are in folders of classes, and its labels only what is left beside its files.

    A table that is called after labels has them in whatever column.
    """
    named, kind, _ = table.roles
    if table.columns[kind].lower() in LABELS or table.file.stem.lower() in OF_LABELS:
        return False
    rows = ((f"{table.file}:{number}", row[named]) for number, row in table.rows if row[named])
    paths = (places.anywhere(where, path, table.folder, table.split) for where, path in rows)
    inside = [path.split("/")[:-1] for path in paths]
    while inside and all(inside) and len({folders[0] for folders in inside}) == 1:  # a lone folder
        inside = [folders[1:] for folders in inside]
    inside = [folders[1:] if folders and split_of(folders[0]) else folders for folders in inside]
    return all(inside) and len({folders[0] for folders in inside}) > 1


def _named_split(where: str, row: Sequence[str], columns: Sequence[str], parts: Sequence[int]) -> str:
    """Return the split that a row's cell names, or the one that a flag says it is of, else train."""
    flags = {FLAGS[columns[part].lower()]: row[part] for part in parts if columns[part].lower() in FLAGS}
    for split, cell in flags.items():
        if cell.lower() in TRUE:
            return split
        if cell.lower() not in FALSE:
            raise UserError(f"{where}: wanted true or false for the split {split}, got {cell!r}")
    if flags:
        return "train"
    name = row[parts[0]]
    if (split := split_of(name)) is None:
        raise UserError(f"{where}: wanted a split such as train, val or test, got {name!r}")
    return split


def _table(root: Path, path: str, places: Places) -> Table:
    file, (folder, name) = root / path, posixpath.split(path)
    stem = posixpath.splitext(name)[0]
    split = (split_of(folder) if stem.lower() in OF_ALL and folder else _split_of(stem)) or UNDIVIDED
    lines = list(numbered_lines(file, " \r"))  # a tab begins a cell, which may be empty
    if not lines:
        raise UserError(f"{file} is empty: wanted a line of columns such as filename,label")
    rows = list(_objects(file, lines) if path.lower().endswith(".jsonl") else _cells(file, lines))
    (_, header), *others = rows

    def there(column: int, number: int, row: Sequence[str]) -> bool:
        try:
            return bool(row[column]) and places.is_there(f"{file}:{number}", row[column], folder, split)
        except UserError:  # several may be meant, which is told where the row is read
            return True

    roles = _roles(header)
    if roles and not any(there(roles[0], *row) for row in others[:SAMPLE]):
        rest = (i for i in range(len(header)) if i not in (roles[0], roles[1], *roles[2]))
        roles = (next((i for i in rest if any(there(i, *row) for row in others[:FIRST])), roles[0]), *roles[1:])
    if roles is None and len(header) == 2:  # of no known names, or a table without a line of names
        found = [there(0, *row) for row in rows[:2]]
        roles = (0, 1, ()) if any(found) else None
        if roles and (found[0] or _is_data(header, others)):
            header, others = UNNAMED, rows
    return Table(file, folder, split, header, roles, tuple(others))


def _cells(file: Path, lines: Sequence[tuple[int, str]]) -> Iterator[tuple[int, tuple[str, ...]]]:
    mark = _mark([line for _, line in lines[:SAMPLE]])
    columns = len(_row(lines[0][1], mark))
    for number, line in lines:
        row = _row(line, mark)
        if not row:
            raise UserError(
                f"{file}:{number}: wanted cells with {mark!r} between, got quotes that do not fit in {line!r}"
            )
        if len(row) != columns:
            wanted = f"wanted {columns} cells with {mark!r} between, as in the first line"
            raise UserError(f"{file}:{number}: {wanted}, got {len(row)} in {line!r}")
        yield number, row


def _mark(lines: Sequence[str]) -> str:
    """Return the mark between cells: the one that makes the most of the first line, and equally many of the others."""

    def cells(mark: str) -> tuple[bool, int]:
        counts = [len(_row(line, mark)) for line in lines]
        return counts[0] > 1 and len(set(counts)) == 1, counts[0]

    return max(MARKS, key=cells)


def _row(line: str, mark: str) -> tuple[str, ...]:
    """Return the cells of a line; none where its quotes do not fit."""
    try:
        (row,) = csv.reader([line], delimiter=mark, skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        return ()
    return tuple(cell.strip() for cell in row)


def _is_data(first: Sequence[str], others: Sequence[tuple[int, Sequence[str]]]) -> bool:
    """Return whether the first row names an image, which may be missing, and its label, and not two columns."""
    named, kind = first
    return posixpath.splitext(named)[1].lower() in IMAGES or kind in {row[1] for _, row in others}


def _objects(file: Path, lines: Sequence[tuple[int, str]]) -> Iterator[tuple[int, tuple[str, ...]]]:
    rows: list[tuple[int, dict]] = []
    for number, line in lines:
        try:
            with guarded():
                content = json.loads(line)
        except OSError:
            content = None
        if not isinstance(content, dict):
            raise UserError(f"{file}:{number}: wanted a JSON object, got {line[:40]!r}")
        rows.append((number, content))
    columns = tuple(dict.fromkeys(name for _, content in rows for name in content))  # some writers omit empty fields
    if rows:
        yield rows[0][0], columns
    for number, content in rows:
        yield number, tuple(_cell(content.get(column)) for column in columns)


def _cell(value: object) -> str:
    """Return a value of JSON as the text of a cell; a whole number is the same with a fraction of 0."""
    if value is None:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _roles(columns: Sequence[str]) -> tuple[int, int, tuple[int, ...]] | None:
    """Return `Table.roles` by the names of columns, or by what is left where one is left."""
    lower, named = [column.lower() for column in columns], _named(columns)
    kind = next((lower.index(name) for name in LABELS if name in lower and lower.index(name) != named), None)
    parts = tuple(lower.index(name) for name in SPLIT if name in lower)[:1]
    parts = parts or tuple(lower.index(name) for name in FLAGS if name in lower)
    others = [i for i in range(len(lower)) if i not in (named, *parts)]
    if named is not None and kind is None and len(others) == 1:
        kind = others[0]
    return None if named is None or kind is None else (named, kind, parts)


def _named(columns: Sequence[str]) -> int | None:
    """Return the column of files by its name; None where none has such a name."""
    lower = [column.lower() for column in columns]
    return next((lower.index(name) for name in FILES if name in lower), None)
