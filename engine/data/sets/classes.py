"""The names of a set's classes, from classes.txt, else numbers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from polychrome.engine.data.files.text import numbered_lines
from polychrome.engine.errors import UserError

FOUND = "found in"  # the labels, as the source of the number of classes


def numbered_classes(
    root: Path, num_classes: int | None, labels: Collection[int], where: str, known: Sequence[str] = ()
) -> tuple[tuple[str, ...], str]:
    """Return the names of the classes of labels found at `where`, and in words the source of their number.

    The source is `num_classes`, else classes.txt in the folder, else the classes of a run, `known`, else the number of
    different labels.

    Raises:
        UserError: classes.txt cannot be read or is malformed.
    """
    names = class_names(root / "classes.txt")
    if num_classes is not None:
        count, source = num_classes, "asked for"
    elif names:
        count, source = len(names), "named in classes.txt"
    elif known:
        names, count, source = list(known), len(known), "the run's"
    else:
        count, source = len(labels), f"{FOUND} {where}"
    return tuple([*names, *map(str, range(len(names), count))][:count]), source


def check_trained(names: Sequence[str], labels: Collection[int], where: str) -> None:
    """Raise UserError where classes have no training label, among those found at `where`."""
    absent = [label for label in range(len(names)) if label not in labels]
    if absent:
        which = f"class {names[absent[0]]!r} (label {absent[0]}, counted from 0)"
        count = f"{which} has" if len(absent) == 1 else f"{len(absent):,} classes, such as {which}, have"
        raise UserError(
            f"{where}: {count} no image to train on: give some, or leave it out of the names and the numbers, or say "
            f"--num-classes {len(names)} to train with an output that is never right"
        )


def class_names(file: Path) -> list[str]:
    """Return the names in a `classes.txt`, none where it is not there; raises UserError as `numbered_classes` does."""
    if not file.exists():
        return []
    names = []
    for number, line in numbered_lines(file):
        fields = line.split("\t")
        if len(fields) > 1 and fields[0].strip() != str(len(names)):
            raise UserError(f"{file}:{number}: wanted label {len(names)}, got {fields[0]!r}")
        names.append(fields[-1].split(",")[0].strip())
    if not names:
        raise UserError(f"{file} names no classes: wanted a line for each")
    return names
