"""The images of a data folder: list files or folders per class, read into one form, and an account of all files."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from polychrome.engine.data.accounting import OWN, Account
from polychrome.engine.data.files import kinds, shards
from polychrome.engine.data.files.kinds import SUFFIXES
from polychrome.engine.data.files.stacks import NAMES_FILE
from polychrome.engine.data.files.text import numbered_lines
from polychrome.engine.data.image_set import SPLITS, ImageSet, Split
from polychrome.engine.data.sets import tree
from polychrome.engine.data.sets.classes import numbered_classes
from polychrome.engine.data.sets.division import split_by_class
from polychrome.engine.errors import Unsupported, UserError, one_line

DESCRIPTIONS = (*(f"{split}.txt" for split in SPLITS), "classes.txt", NAMES_FILE)
FOLDER_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def read(root: str | Path, num_classes: int | None = None, seed: int = 0) -> ImageSet:
    """Return the set of the images under a folder, with an account of every file there; no image is decoded.

    Four forms: train.txt, val.txt and test.txt of lines `path label` (and classes.txt, if there is one);
    train/, val/ and test/ (or Training, valid, validation, Testing in any case) with a folder per class; folders per
    class alone, split 80/10/10 per class by `seed`; or tar shards, named by a folder of them or a pattern such as
    shards/{000..099}.tar (see `engine.data.sets.webdataset`). A folder of a class is read with all folders below it.

    Raises:
        UserError: anything else is there; the message names file and line.
    """
    root = Path(root).expanduser()
    try:
        images = _read(root, num_classes, seed)
    except (OSError, Unsupported) as error:
        raise UserError(_unreadable(root, error)) from error
    if len(images.class_names) < 2:
        raise UserError(f"{root} has one class: wanted at least 2")
    return images


def _read(root: Path, num_classes: int | None, seed: int) -> ImageSet:
    if not root.is_dir():
        from polychrome.engine.data.sets import webdataset

        if webdataset.names_shards(root):
            return webdataset.read(webdataset.expand(root), num_classes, seed)
        raise UserError(f"no data folder at {root}: wanted list files or a folder per class in it, or tars")
    found = tree.files(root)
    if has_lists(root):
        images = _from_lists(root, num_classes)
    elif closed := next((path for path, kind in found.items() if kind == tree.CLOSED), None):
        raise UserError(f"{root / closed} cannot be read: permission denied")
    elif parts := _split_folders(root):
        images = _from_split_folders(root, found, parts, num_classes)
    elif _folders(root):
        images = _from_class_folders(root, found, num_classes, seed)
    elif tars := [path for path, kind in found.items() if kind == shards.SUFFIX]:
        return _from_tars(root, found, tars, num_classes, seed)
    else:
        wanted = "train.txt, val.txt and test.txt nor train/, val/ and test/ nor class folders nor tars"
        raise UserError(f"{root} has neither {wanted}")
    return replace(images, account=_account(root, found, images))


def _unreadable(root: Path, error: Exception) -> str:
    file, why = getattr(error, "filename", None) or root, getattr(error, "strerror", None) or one_line(error)
    return f"{file} cannot be read: {why}"


def has_lists(root: Path) -> bool:
    """Return whether a folder has any of train.txt, val.txt and test.txt."""
    return any((root / f"{split}.txt").exists() for split in SPLITS)


def every_image(folder: str | Path) -> ImageSet:
    """Return all images below a folder, labelled or not, or those in its tar shards, in a split "all" of one class.

    `folder` may also be a tar. Raises UserError where there is no such folder, or no image in it, or a tar is damaged.
    """
    folder = Path(folder).expanduser()
    if folder.is_file() and folder.suffix == shards.SUFFIX:
        folder, found, tars = folder.parent, {}, [folder.name]
    elif folder.is_dir():
        try:
            found = tree.files(folder)
        except OSError as error:
            raise UserError(_unreadable(folder, error)) from error
        tars = [path for path, kind in found.items() if kind == shards.SUFFIX]
    else:
        raise UserError(f"{folder}: no such folder")
    paths = [path for path, kind in found.items() if kind == tree.IMAGE]
    account = Account.of(found, paths)
    if not paths:
        paths = [f"{tar}/{name}" for tar in tars for name in shards.names(folder / tar)]
        others = {path: kind for path, kind in found.items() if path not in tars}
        account = shards.account([folder / tar for tar in tars]).with_ignored(Account.of(others, ()).ignored)
    if not paths:
        raise UserError(f"{folder} has no images: wanted {' '.join(sorted(SUFFIXES))}")
    return ImageSet(folder, ("",), {"all": Split(tuple(paths), (0,) * len(paths))}, account=account)


def _account(root: Path, found: Mapping[str, str], images: ImageSet) -> Account:
    listed = {posixpath.normpath(path) for split in images.splits.values() for path in split.paths}
    # In tars, or by way of a link to a folder above.
    elsewhere = [
        path for path in listed if path not in found and (os.path.lexists(root / path) or _is_member(root, path))
    ]
    tars = {shards.container(root / path) for path in elsewhere if _is_member(root, path)}
    there = {path: kind for path, kind in found.items() if str(root / path) not in tars}
    own = {name: OWN for name in DESCRIPTIONS if name in there}
    return Account.of(there | own | dict.fromkeys(elsewhere, tree.IMAGE), listed)


def _is_member(root: Path, path: str) -> bool:
    try:
        return f"{shards.SUFFIX}/" in path and shards.exists(root / path)
    except (OSError, UserError):  # a damaged tar: the scan rejects what the lists name in it
        return False


def _from_tars(
    root: Path, found: Mapping[str, str], tars: Sequence[str], num_classes: int | None, seed: int
) -> ImageSet:
    from polychrome.engine.data.sets import webdataset

    images = webdataset.read([root / tar for tar in tars], num_classes, seed)
    others = {path: OWN if path in DESCRIPTIONS else kind for path, kind in found.items() if path not in tars}
    return replace(images, account=images.account.with_ignored(Account.of(others, ()).ignored))


def _from_lists(root: Path, num_classes: int | None) -> ImageSet:
    for split in SPLITS:
        if not (root / f"{split}.txt").is_file():
            raise UserError(f"no {split}.txt in {root}: wanted train.txt, val.txt and test.txt")
    listed = {split: list(_listed(root / f"{split}.txt")) for split in SPLITS}
    for split, rows in listed.items():
        if not rows:
            raise UserError(f"{root / split}.txt lists no images: wanted lines of `path label`")
    names, source = numbered_classes(root, num_classes, {label for _, _, label in listed["train"]}, "train.txt")
    count = len(names)
    for split, rows in listed.items():
        for number, _, label in rows:
            if not 0 <= label < count:
                where = f"{root / split}.txt:{number}"
                raise UserError(f"{where}: label {label} is outside 0..{count - 1}, as {count} classes are {source}")
    splits = {
        split: Split(tuple(path for _, path, _ in rows), tuple(label for _, _, label in rows))
        for split, rows in listed.items()
    }
    return ImageSet(root, names, splits)


def _listed(file: Path) -> Iterator[tuple[int, str, int]]:
    for number, line in numbered_lines(file):
        path, _, label = re.sub(r"\s+", " ", line[::-1], count=1)[::-1].rpartition(" ")
        if not path:
            raise UserError(f"{file}:{number}: wanted `path label`, got {line!r}")
        if not re.fullmatch(r"[+-]?[0-9]{1,9}", label):
            raise UserError(f"{file}:{number}: label must be a whole number, got {label!r}")
        if "\0" in path:
            raise UserError(f"{file}:{number}: path has a null character")
        if path.startswith("/") or re.match(r"[A-Za-z]:[\\/]", path):
            raise UserError(f"{file}:{number}: path must be relative to {file.parent}, got {path!r}")
        if posixpath.normpath(path).split("/")[0] == "..":
            raise UserError(f"{file}:{number}: path leaves the data folder: {path!r}")
        yield number, path, int(label)


def _split_folders(root: Path) -> dict[str, str]:
    """Return the folder of each split that has one; none where the folders are no splits."""
    parts: dict[str, str] = {}
    for name in _folders(root):
        split = next((split for split, names in FOLDER_NAMES.items() if name.lower() in names), None)
        if split in parts:
            raise UserError(f"{root} has {parts[split]}/ and {name}/: which of them is the split {split}?")
        if split:
            parts[split] = name
    return parts if "train" in parts or len(parts) > 1 else {}


def _from_split_folders(
    root: Path, found: Mapping[str, str], parts: Mapping[str, str], num_classes: int | None
) -> ImageSet:
    for split in SPLITS:
        if split not in parts:
            raise UserError(f"no {split}/ in {root}: wanted train/, val/ and test/ with a folder per class")
    train = root / parts["train"]
    names = _folders(train)
    _check_count(train, names, num_classes)
    splits, every = {}, []
    for split in SPLITS:
        for name in _folders(root / parts[split]):
            if name not in names:
                raise UserError(f"class {name!r} is in {root / parts[split]} but not in {train}")
        of_class = _by_class(found, f"{parts[split]}/", names)
        images = [(path, label) for label, paths in of_class.items() for path in paths]
        if not images:
            wanted = " ".join(sorted(SUFFIXES))
            raise UserError(f"no images in the class folders of {root / parts[split]}: wanted {wanted}")
        splits[split] = Split(*map(tuple, zip(*images, strict=True)))
        every += _deeper(of_class, 2)
    for label in set(range(len(names))) - set(splits["train"].labels):
        raise UserError(f"no images of class {names[label]!r} in {train / names[label]}")
    return ImageSet(root, tuple(names), splits, notes=_on_deeper(every))


def _from_class_folders(root: Path, found: Mapping[str, str], num_classes: int | None, seed: int) -> ImageSet:
    names = _folders(root)
    _check_count(root, names, num_classes)
    of_class = _by_class(found, "", names)
    splits = split_by_class(root, names, of_class, seed)
    return ImageSet(root, tuple(names), splits, notes=_on_deeper(_deeper(of_class, 1)))


def _check_count(folder: Path, names: list[str], num_classes: int | None) -> None:
    if not names:
        raise UserError(f"no class folders in {folder}: wanted one folder per class")
    if num_classes not in (None, len(names)):
        raise UserError(f"{len(names)} class folders in {folder}, {num_classes} classes asked for")


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not kinds.is_hidden(entry.name))


def _by_class(found: Mapping[str, str], prefix: str, names: Sequence[str]) -> dict[int, list[str]]:
    """Return the images below each class's folder, which is `prefix` and the class's name."""
    of_class: dict[int, list[str]] = {label: [] for label in range(len(names))}
    labels = {name: label for label, name in enumerate(names)}
    for path, kind in found.items():
        name, inside, _ = path.removeprefix(prefix).partition("/")
        if kind == tree.IMAGE and inside and name in labels and path.startswith(prefix):
            of_class[labels[name]].append(path)
    return of_class


def _deeper(of_class: Mapping[int, Sequence[str]], depth: int) -> list[str]:
    """Return the images that are not in a class's folder itself, but in a folder below it."""
    return [path for paths in of_class.values() for path in paths if path.count("/") > depth]


def _on_deeper(paths: Sequence[str]) -> tuple[str, ...]:
    if not paths:
        return ()
    count = f"{len(paths):,} images are" if len(paths) > 1 else "1 image is"
    return (f"{count} in folders below those of the classes, such as {paths[0]}: the upper folder is the class",)
