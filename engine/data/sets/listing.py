"""The images of a data folder: list files or folders per class, read into one form."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from polychrome.engine.data.files.text import numbered_lines
from polychrome.engine.data.image_set import SPLITS, SUFFIXES, ImageSet, Split
from polychrome.engine.data.sets.classes import numbered_classes
from polychrome.engine.data.sets.division import split_by_class
from polychrome.engine.errors import UserError


def read(root: str | Path, num_classes: int | None = None, seed: int = 0) -> ImageSet:
    """Return the set of the images under a folder; no image is opened.

    Four forms: train.txt, val.txt and test.txt of lines `path label` (and classes.txt, if there is one);
    train/, val/ and test/ with a folder per class; folders per class alone, split 80/10/10 per class by `seed`; or tar
    shards, named by a folder of them or a pattern such as shards/{000..099}.tar (see `engine.data.sets.webdataset`).
    Raises UserError, naming file and line, for anything else.
    """
    root = Path(root).expanduser()
    try:
        images = _read(root, num_classes, seed)
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    if len(images.class_names) < 2:
        raise UserError(f"{root} has one class: wanted at least 2")
    return images


def _read(root: Path, num_classes: int | None, seed: int) -> ImageSet:
    from polychrome.engine.data.sets import webdataset

    if not root.is_dir():
        if webdataset.names_shards(root):
            return webdataset.read(webdataset.expand(root), num_classes, seed)
        raise UserError(f"no data folder at {root}: wanted list files or a folder per class in it, or tars")
    if any((root / f"{split}.txt").exists() for split in SPLITS):
        return _from_lists(root, num_classes)
    if (root / "train").is_dir():
        return _from_split_folders(root, num_classes)
    if _folders(root):
        return _from_class_folders(root, num_classes, seed)
    if tars := sorted(root.glob("*.tar")):
        return webdataset.read(tars, num_classes, seed)
    wanted = "train.txt, val.txt and test.txt nor train/, val/ and test/ nor class folders nor tars"
    raise UserError(f"{root} has neither {wanted}")


def image_files(folder: str | Path) -> list[str]:
    """Return the image files below a folder or named in its list files, relative to the folder, each once.

    Without any, the images in tar shards below the folder are returned; `folder` may also be a tar.
    Raises UserError where there is no such folder, no image in it, or a list file or a tar is malformed.
    """
    from polychrome.engine.data.files import shards

    folder = Path(folder).expanduser()
    if folder.is_file() and folder.suffix == shards.SUFFIX:
        return shards.names(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    listed = [
        path
        for split in SPLITS
        if (folder / f"{split}.txt").is_file()
        for _, path, _ in _listed(folder / f"{split}.txt")
    ]
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    paths = dict.fromkeys([*listed, *sorted(path.relative_to(folder).as_posix() for path in found)])
    if not paths:
        tars = sorted(path for path in folder.rglob(f"*{shards.SUFFIX}") if path.is_file())
        paths = [f"{tar.relative_to(folder).as_posix()}/{name}" for tar in tars for name in shards.names(tar)]
    if not paths:
        raise UserError(f"{folder} has no images: wanted {' '.join(sorted(SUFFIXES))}")
    return list(paths)


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


def _from_split_folders(root: Path, num_classes: int | None) -> ImageSet:
    for split in SPLITS:
        if not (root / split).is_dir():
            raise UserError(f"no {split}/ in {root}: wanted train/, val/ and test/ with a folder per class")
    names = _folders(root / "train")
    _check_count(root / "train", names, num_classes)
    splits = {}
    for split in SPLITS:
        for name in _folders(root / split):
            if name not in names:
                raise UserError(f"class {name!r} is in {root / split} but not in {root / 'train'}")
        images = [(path, label) for label, name in enumerate(names) for path in _images(root, f"{split}/{name}")]
        if not images:
            raise UserError(f"no images in the class folders of {root / split}: wanted {' '.join(sorted(SUFFIXES))}")
        splits[split] = Split(*map(tuple, zip(*images, strict=True)))
    for label in set(range(len(names))) - set(splits["train"].labels):
        raise UserError(f"no images of class {names[label]!r} in {root / 'train' / names[label]}")
    return ImageSet(root, tuple(names), splits)


def _from_class_folders(root: Path, num_classes: int | None, seed: int) -> ImageSet:
    names = _folders(root)
    _check_count(root, names, num_classes)
    of_class = {label: _images(root, name) for label, name in enumerate(names)}
    return ImageSet(root, tuple(names), split_by_class(root, names, of_class, seed))


def _check_count(folder: Path, names: list[str], num_classes: int | None) -> None:
    if not names:
        raise UserError(f"no class folders in {folder}: wanted one folder per class")
    if num_classes not in (None, len(names)):
        raise UserError(f"{len(names)} class folders in {folder}, {num_classes} classes asked for")


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images(root: Path, folder: str) -> list[str]:
    if not (root / folder).is_dir():
        return []
    files = (entry.name for entry in (root / folder).iterdir() if entry.suffix.lower() in SUFFIXES)
    return [f"{folder}/{name}" for name in sorted(files) if not name.startswith(".")]
