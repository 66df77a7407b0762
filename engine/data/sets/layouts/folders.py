"""Folders: one for each class, in a folder for each split or alone, and flat splits with a file of annotations."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from polychrome.engine.data.files import kinds
from polychrome.engine.data.files.kinds import SUFFIXES
from polychrome.engine.data.files.text import numbered_lines
from polychrome.engine.data.sets import tree
from polychrome.engine.data.sets.layouts.labelled import (
    UNDIVIDED,
    Known,
    Labelled,
    by_split,
    in_order,
    normal,
    split_of,
    splits_in,
)
from polychrome.engine.errors import UserError

TINY = "val_annotations.txt"  # of tiny-imagenet-200, in val/
SOLUTION = "LOC_val_solution.csv"  # of ILSVRC, beside the data or above it
ABOVE = 3  # folders, ILSVRC/Data/CLS-LOC
FLAT = "images"  # a folder that some archives put between a split and its images


def below(folder: Path) -> list[str]:
    """Return the names of the folders in a folder that may be classes, in their order: not hidden, nor with runs."""
    seen = (entry for entry in folder.iterdir() if entry.is_dir() and not kinds.is_hidden(entry.name))
    return in_order(entry.name for entry in seen if not tree.holds_runs(entry))


def split_folders(root: Path) -> dict[str, str]:
    """Return the folder of each split that has one; none where the folders are no splits.

    Raises UserError where two folders are of one split, or folders named after splits have the same classes inside.
    """
    names = below(root)
    parts = by_split(names, f"{root} has")
    if len(parts) < len(names) > 1 and all(re.match("train|val|test", name.lower()) for name in names):
        inside = [set(below(root / name)) for name in names]
        if inside[0] and all(each == inside[0] for each in inside):
            alike = ", ".join(f"{name}/" for name in names)
            raise UserError(f"{root} has {alike} with the same folders inside: name the splits train/, val/ and test/")
    return parts if "train" in parts or len(parts) > 1 else {}


def of_splits(
    root: Path, found: Mapping[str, str], parts: Mapping[str, str], num_classes: int | None, known: Known | None = None
) -> Labelled:
    """Return the images in the folders of splits, `parts`; a test folder without labels is left out.

    Raises:
        UserError: train/ is missing, or classes or labels are, or a class that is not `known` has no image to train on.
    """
    if "train" not in parts:
        raise UserError(f"no train/ in {root}: wanted train/, val/ and test/ with a folder per class")
    train = root / parts["train"]
    names = below(train)
    if not names and (others := [name for name in below(root) if name not in parts.values()]):
        hint = f"; if {train.name} is a class as {others[0]} is, move the folders of all classes into a folder train/"
        raise UserError(f"no class folders in {train}: wanted one folder per class{hint}")
    names = _checked(train, names, num_classes)
    if known:
        more = (name for part in parts.values() for name in below(root / part) if normal(name) in known.names)
        names = in_order({normal(name): name for name in (*more, *names)}.values())
    splits, notes, own, deep = {}, [], [], []
    for split, part in parts.items():
        folder = root / part
        if split != "train" and (annotations := _annotations(root, folder)) is not None:
            splits[split] = _annotated(annotations, folder, part, found, names)
            notes.append(f"labels of {part}/ are those of {annotations.name}")
            own += [path for path in found if root / path == annotations]
            continue
        if split != "train" and set(below(folder)) <= {FLAT} - set(names) and _images(found, f"{part}/"):
            if split == "val":
                raise UserError(f"{folder} has images but no class folders: wanted these, or {TINY}, or {SOLUTION}")
            notes.append(f"{part}/ has images but no labels: it is not used")
            continue
        for name in below(folder):
            if normal(name) not in map(normal, names):
                raise UserError(f"class {name!r} is in {folder} but not in {train}")
        of_class = _by_class(found, f"{part}/", names)
        splits[split] = [(path, label) for label, paths in of_class.items() for path in paths]
        if not splits[split]:
            wanted = " ".join(sorted(SUFFIXES)) + unread(found, f"{part}/")
            raise UserError(f"no images in the class folders of {folder}: wanted {wanted}")
        deep += _deeper(of_class, 2)
    for label in set(range(len(names))) - {label for _, label in splits["train"]} if not known else ():
        others = unread(found, f"{parts['train']}/{names[label]}/")
        raise UserError(f"no images of class {names[label]!r} in {train / names[label]}{others}")
    if list(splits) == ["train"]:
        splits = {UNDIVIDED: splits["train"]}
    return Labelled(tuple(map(normal, names)), splits, (*on_deeper(deep), *notes), tuple(own))


def of_classes(root: Path, found: Mapping[str, str], num_classes: int | None) -> Labelled:
    """Return the images in the folders of classes.

    Raises UserError where there are other than `num_classes`, or they are splits by their names.
    """
    names = _checked(root, below(root), num_classes)
    _check_no_splits(root, names)
    of_class = _by_class(found, "", names)
    for label, paths in of_class.items():
        if not paths:
            wanted = f"wanted at least 3, for train, val and test{unread(found, f'{names[label]}/')}"
            raise UserError(f"0 images of class {names[label]!r} in {root}: {wanted}")
    rows = [(path, label) for label, paths in of_class.items() for path in paths]
    return Labelled(tuple(map(normal, names)), {UNDIVIDED: rows}, on_deeper(_deeper(of_class, 1)))


def _checked(folder: Path, names: list[str], num_classes: int | None) -> list[str]:
    if not names:
        raise UserError(f"no class folders in {folder}: wanted one folder per class")
    if num_classes not in (None, len(names)):
        raise UserError(f"{len(names)} class folders in {folder}, {num_classes} classes asked for")
    if len(set(map(normal, names))) < len(names):
        raise UserError(f"two folders in {folder} have one name in different forms of Unicode: rename one of them")
    return names


def _check_no_splits(root: Path, names: Sequence[str]) -> None:
    """Raise UserError where at least half of the folders are called after splits, such as train2017 and val2017."""
    told = {name: splits for name in names if (splits := splits_in(name))}
    if len(told) * 2 >= len(names) and "train" in (splits := set().union(*told.values())) and len(splits) > 1:
        some = ", ".join(f"{name}/" for name in told)
        raise UserError(
            f"{root} has {some}, which are splits by their names and would be the classes: wanted train/, val/ and "
            "test/ with a folder per class in each, or a table of labels"
        )


def _images(found: Mapping[str, str], prefix: str) -> list[str]:
    return [path for path, kind in found.items() if kind == tree.IMAGE and path.startswith(prefix)]


def unread(found: Mapping[str, str], prefix: str = "") -> str:
    """Return in words which files below a folder are of kinds that are not read; empty where there are none."""
    others = Counter(kind for path, kind in found.items() if path.startswith(prefix))
    counts = [
        f"{count:,} {kind}" for kind, count in others.most_common() if kind not in (tree.IMAGE, kinds.HIDDEN, tree.RUN)
    ]
    return f"; not read are {', '.join(counts)}{f' in {prefix}' * bool(prefix)}" if counts else ""


def _by_class(found: Mapping[str, str], prefix: str, names: Sequence[str]) -> dict[int, list[str]]:
    """Return the images below each class's folder, which is `prefix` and the class's name."""
    of_class: dict[int, list[str]] = {label: [] for label in range(len(names))}
    labels = {normal(name): label for label, name in enumerate(names)}
    for path in _images(found, prefix):
        name, inside, _ = path.removeprefix(prefix).partition("/")
        if inside and (label := labels.get(normal(name))) is not None:
            of_class[label].append(path)
    return of_class


def _deeper(of_class: Mapping[int, Sequence[str]], depth: int) -> list[str]:
    """Return the images that are not in a class's folder itself, nor in one for images, but in a folder below it."""
    return [
        path
        for paths in of_class.values()
        for path in paths
        if path.count("/") > depth and path.split("/")[depth:-1] != [FLAT]
    ]


def on_deeper(paths: Sequence[str]) -> tuple[str, ...]:
    """Return a line for the user on images in folders below those of the classes; none where there are no such."""
    if not paths:
        return ()
    count = f"{len(paths):,} images are" if len(paths) > 1 else "1 image is"
    return (f"{count} in folders below those of the classes, such as {paths[0]}: the upper folder is the class",)


def _annotations(root: Path, folder: Path) -> Path | None:
    """Return the file with the labels of a flat folder of images, if there is one."""
    if (folder / TINY).is_file():
        return folder / TINY
    above = [root, *root.absolute().parents[:ABOVE]]
    solution = next((place / SOLUTION for place in above if (place / SOLUTION).is_file()), None)
    return solution if solution is not None and split_of(folder.name) == "val" and not below(folder) else None


def _annotated(
    annotations: Path, folder: Path, part: str, found: Mapping[str, str], names: Sequence[str]
) -> list[tuple[str, int]]:
    labels, rows, missing = {name: label for label, name in enumerate(names)}, [], []
    named = dict(_tiny(annotations) if annotations.name == TINY else _solution(annotations))
    for path in _images(found, f"{part}/"):
        name = Path(path).name
        label = named.get(name, named.get(Path(path).stem))
        if label is None:
            missing.append(path)
        elif label not in labels:
            raise UserError(f"{annotations}: class {label!r} of {name} has no folder in train")
        else:
            rows.append((path, labels[label]))
    if missing:
        raise UserError(f"{annotations} has no label of {len(missing)} images, such as {missing[0]}")
    if not rows:
        raise UserError(f"no images in {folder}, though {annotations} has labels for them")
    return rows


def _tiny(file: Path) -> Iterator[tuple[str, str]]:
    for number, line in numbered_lines(file):
        fields = line.split("\t")
        if len(fields) < 2:
            raise UserError(f"{file}:{number}: wanted a file and a class with a tab between, got {line!r}")
        yield fields[0], fields[1]


def _solution(file: Path) -> Iterator[tuple[str, str]]:
    lines = [line for _, line in numbered_lines(file)]
    for number, row in enumerate(csv.reader(lines[1:]), 2):
        if len(row) < 2 or not row[1].split():
            raise UserError(f"{file}:{number}: wanted ImageId and PredictionString, got {','.join(row)!r}")
        yield row[0], row[1].split()[0]
