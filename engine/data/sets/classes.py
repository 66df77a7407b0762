"""The names of a set's classes, from classes.txt, else numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from polychrome.engine.data.files.text import numbered_lines
from polychrome.engine.errors import UserError

FOUND = "found in"  # the labels, as the source of the number of classes


def numbered_classes(
    root: Path, num_classes: int | None, labels: Collection[int], where: str, known: Sequence[str] = ()
) -> tuple[list[str], int, str]:
    """Return the names of the first classes of labels found at `where`, how many classes there are, and why so many.

    Their number is `num_classes`, else that of the names in classes.txt in the folder, else of the classes of a run,
    `known`, else of the different labels. For the names of all see `every_name`.

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
    return names, count, source


def every_name(names: Sequence[str], count: int, first: int) -> tuple[str, ...]:
    """Return the names of `count` classes, whose labels are `first` and on: those without a name have their label."""
    return tuple([*names, *map(str, range(first + len(names), first + count))][:count])


def check_trained(names: Sequence[str], labels: Collection[int], where: str, first: int = 0) -> None:
    """Raise UserError where classes have no training label, of those found at `where`, which count from `first`."""
    absent = [label for label in range(len(names)) if label + first not in labels]
    if absent:
        which = f"class {names[absent[0]]!r} (label {absent[0] + first}, counted from {first})"
        count = f"{which} has" if len(absent) == 1 else f"{len(absent):,} classes, such as {which}, have"
        raise UserError(
            f"{where}: {count} no image to train on: give some, or leave it out of the names and the numbers, or say "
            f"--num-classes {len(names)} to train with an output that is never right"
        )


def class_names(file: Path) -> list[str]:
    """Return the names in a `classes.txt`, none where it is not there; raises UserError as `numbered_classes` does.

    Of lines of a label, a tab and words, as ImageNet has them, the words before the first comma are the name, unless
    those of another line are the same. Other lines are names as they are.
    """
    if not file.exists():
        return []
    names, short = [], []
    for number, line in numbered_lines(file):
        fields = line.split("\t")
        if len(fields) > 1 and fields[0].strip() != str(len(names)):
            raise UserError(f"{file}:{number}: wanted label {len(names)}, got {fields[0]!r}")
        names.append(fields[-1].strip())
        short.append(names[-1].split(",")[0].strip() if len(fields) > 1 else names[-1])
    if not names:
        raise UserError(f"{file} names no classes: wanted a line for each")
    counts = Counter(short)
    return [own if own and counts[own] == 1 else name for own, name in zip(short, names, strict=True)]


def alike(names: Sequence[str]) -> tuple[str, ...]:
    """Return a line for the user on classes that have the name of another; none where all names differ."""
    first: dict[str, int] = {}
    again = [place for place, name in enumerate(names) if first.setdefault(name, place) != place]
    if not again:
        return ()
    pair = f"classes {first[names[again[0]]]} and {again[0]}, counted from 0, are both called {names[again[0]]!r}"
    more = f" (and {len(again) - 1:,} more)" if len(again) > 1 else ""
    return (f"{pair}{more}: have classes.txt tell them apart",)
