"""The images of a data folder: list files or folders per class, read into one form, and an account of all files."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from polychrome.engine.data.accounting import OWN, Account
from polychrome.engine.data.files import kinds, shards
from polychrome.engine.data.files.kinds import SUFFIXES
from polychrome.engine.data.files.stacks import NAMES_FILE
from polychrome.engine.data.image_set import SPLITS, ImageSet, Split
from polychrome.engine.data.sets import classes, division, repeats, tree
from polychrome.engine.data.sets.layouts import folders, lists, parquet, tables
from polychrome.engine.data.sets.layouts.labelled import UNDIVIDED, Known, Labelled, split_of
from polychrome.engine.data.sets.sensors import descriptions
from polychrome.engine.data.sets.sensors.channel_files import OPTION, joined
from polychrome.engine.errors import Unsupported, UserError, one_line
from polychrome.engine.machine.files import expanded

How = tuple[int | None, int, str | None, Known | None]  # number of classes, seed, group_by and the known classes
ARCHIVES = (".zip", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst")
NOT_READ = "is not read: tables are called"
DESCRIPTIONS = (*(f"{split}.txt" for split in SPLITS), "classes.txt", NAMES_FILE, descriptions.FILE)


def read(
    root: str | Path,
    num_classes: int | None = None,
    seed: int = 0,
    group_by: str | None = None,
    channel_files: str | None = None,
    known: Known | None = None,
) -> ImageSet:
    """Return the set of the images under a folder, with an account of every file there; no image is decoded.

    Its forms, in this order: lists train.txt, val.txt and test.txt of lines `path label` (and classes.txt, if there is
    one); tables train.csv, labels.csv, metadata.csv and the like; train/, val/ and test/ (or Training, valid,
    validation, Testing in any case) with a folder per class; folders per class alone; tar shards, named by a folder of
    them or a pattern such as shards/{000..099}.tar (see `engine.data.sets.webdataset`); parquet files, where there is
    no image file. A lone folder is entered.
    Splits that are not there are made, by `seed` (see `engine.data.sets.division.completed`); equal files stay together
    in them, as do files in whose paths the regular expression `group_by` finds the same. Where each channel of an image
    has a file, the regular expression `channel_files` finds the channel in the path (see
    `engine.data.sets.sensors.channel_files`). Of a set for a run its classes are `known`: the set has all of them,
    though it may have images of a part alone, in training too.

    Raises:
        UserError: anything else is there; the message names file and line.
    """
    root = expanded(root)
    try:
        images = _read(root, num_classes, seed, group_by, channel_files, known)
    except (OSError, Unsupported) as error:
        raise UserError(_unreadable(root, error)) from error
    if len(images.class_names) < 2:
        table = _passed_over(tree.files(root)) if root.is_dir() else ""
        raise UserError(f"{root} has one class: wanted at least 2{table}")
    return images if known else replace(images, notes=(*images.notes, *classes.alike(images.class_names)))


def _read(
    root: Path,
    num_classes: int | None,
    seed: int,
    group_by: str | None,
    channel_files: str | None,
    known: Known | None,
) -> ImageSet:
    how = num_classes, seed, group_by, known
    if not root.is_dir():
        from polychrome.engine.data.sets import webdataset

        if webdataset.names_shards(root):
            _check_no_tars(channel_files)
            return webdataset.read(webdataset.expand(root), *how)
        if root.is_file() and root.suffix.lower() == parquet.SUFFIX:
            _check_no_tars(channel_files)
            return _from_parquet([root], {}, how)
        if archive := _archive(root):
            raise UserError(f"no data folder at {root}: {archive}")
        raise UserError(f"no data folder at {root}: wanted list files or a folder per class in it, or tars")
    found = tree.files(root)
    if packed := _parquet(root, found):
        _check_no_tars(channel_files)
        return _from_parquet(packed, found, how)
    if images := _labelled(root, found, num_classes, known):
        images = _of_run(root, images, known)
        images, parts = joined(root, found, images, channel_files) if channel_files else (images, {})
        alike = repeats.grouping(root, group_by, parts)
        splits, notes = division.completed(root, images.class_names, images.splits, seed, alike)
        notes = (*images.notes, *notes)
        listed = ImageSet(root, images.class_names, splits, parts=parts, notes=notes, first_label=images.first)
        return replace(listed, account=_account(root, found, listed, images.own))
    if tars := [path for path, kind in found.items() if kind == shards.SUFFIX]:
        _check_no_tars(channel_files)
        return _from_tars(root, found, tars, how)
    wanted = (
        "train.txt, val.txt and test.txt nor train/, val/ and test/ nor class folders nor a table nor tars nor parquet"
    )
    raise UserError(f"{root} has neither {wanted}{_passed_over(found) or folders.unread(found)}")


def _archive(file: Path) -> str:
    """Return what to do with an archive that is no tar; empty for another file."""
    return "it is an archive: unpack it" if file.is_file() and file.suffix.lower() in ARCHIVES else ""


def _passed_over(found: Mapping[str, str]) -> str:
    """Return in words which table among files is not read, as its name tells nothing; empty where there is none."""
    for path, kind in sorted(found.items(), key=lambda item: item[0].count("/")):
        stem, suffix = posixpath.splitext(posixpath.basename(path).lower())
        told = split_of(stem) or stem in tables.OF_ALL or stem + suffix == descriptions.FILE
        if suffix in tables.SUFFIXES and kind == suffix and not told:
            return f"; {path} {NOT_READ} {', '.join(tables.OF_ALL)}, or as a split, such as train"
    return ""


def _check_no_tars(channel_files: str | None) -> None:
    if channel_files:
        raise UserError(f"{OPTION} is for folders: in tars an image has one file")


def undivided(root: str | Path, known: Known, channel_files: str | None = None) -> ImageSet | None:
    """Return all labelled images of a folder without splits as the split "test"; None where it is no such folder.

    Of a folder without images to train on they are those of its test split, or else of val. The labels are those of the
    `known` classes, of which the folder may have a part. For `channel_files` see `read`.

    Raises:
        UserError: the folder is malformed, or has another class, or one that may be either of two.
    """
    root = expanded(root)
    if not root.is_dir():
        return None
    try:
        found = tree.files(root)
        if _parquet(root, found):
            return None
        images = _labelled(root, found, None, known)
    except (OSError, Unsupported) as error:
        raise UserError(_unreadable(root, error)) from error
    if images is None or "train" in images.splits:
        return None
    split = next(name for name in (UNDIVIDED, "test", "val") if name in images.splits)
    images = _of_run(root, images, known)
    images, parts = joined(root, found, images, channel_files) if channel_files else (images, {})
    rows = images.splits[split]
    lacks, which = ("images to train on", f"images of {split}") if split else ("splits", "labelled images")
    notes = (*images.notes, f"{root} has no {lacks}: all {len(rows):,} {which} are to be tested")
    test = Split.of(rows)
    listed = ImageSet(root, images.class_names, {"test": test}, parts=parts, notes=notes, first_label=images.first)
    return replace(listed, account=_account(root, found, listed, images.own))


def _of_run(root: Path, images: Labelled, known: Known | None) -> Labelled:
    """Return the images of a folder with the known classes, if any, which are told by their names."""
    if known is None:
        return images
    places = known.places(str(root), images.class_names, of_numbers=images.first is not None)
    splits = {split: [(path, places[label]) for path, label in rows] for split, rows in images.splits.items()}
    return replace(images, class_names=known.names, splits=splits)


def _labelled(root: Path, found: Mapping[str, str], num_classes: int | None, known: Known | None) -> Labelled | None:
    """Return the labelled images of a folder in the first form that it has; None where it has none."""
    if lists.has_lists(root):
        return lists.read(root, found, num_classes, known)
    if closed := next((path for path, kind in found.items() if kind == tree.CLOSED), None):
        raise UserError(f"{root / closed} cannot be read: permission denied")
    if named := tables.of_folder(root, found):
        try:
            return tables.read(root, found, named, num_classes, known)
        except tables.NoLabels as error:
            if (images := _of_folders(root, found, num_classes, known)) is None or len(images.class_names) < 2:
                raise
            return replace(images, notes=(f"{error}; the folders are the classes", *images.notes))
        except UserError as error:
            if len(folders.below(root)) < 2:
                raise
            table = f"{' and '.join(named)} {'goes' if len(named) == 1 else 'go'} before the folders of {root}"
            raise UserError(f"{error} ({table}: remove it, if these are the classes)") from error
    table = _passed_over(found)
    try:
        images = _of_folders(root, found, num_classes, known)
    except UserError as error:
        raise UserError(f"{error}{table * (NOT_READ not in str(error))}") from error
    if images is None or not table or any(NOT_READ in note for note in images.notes):
        return images
    return replace(images, notes=(*images.notes, table.removeprefix("; ")))


def _of_folders(root: Path, found: Mapping[str, str], num_classes: int | None, known: Known | None) -> Labelled | None:
    """Return the labelled images in folders of splits and classes; None where there are no folders."""
    if parts := folders.split_folders(root):
        part = parts.get("test") or parts.get("val")
        if known and "train" not in parts and (images := _inside(root, found, part, num_classes, known)):
            return images
        return folders.of_splits(root, found, parts, num_classes, known)
    inside = folders.below(root)
    if len(inside) == 1 and (images := _inside(root, found, inside[0], num_classes, known)):
        return images
    return folders.of_classes(root, found, num_classes) if inside else None


def _inside(
    root: Path, found: Mapping[str, str], name: str, num_classes: int | None, known: Known | None
) -> Labelled | None:
    """Return the set in a folder of a folder, with paths from `root`; None where the inner folder is no set."""
    own = {path.removeprefix(f"{name}/"): kind for path, kind in found.items() if path.startswith(f"{name}/")}
    has_form = lists.has_lists(root / name) or tables.of_folder(root / name, own) or folders.below(root / name)
    images = _labelled(root / name, own, num_classes, known) if has_form else None
    if images is None or len(images.class_names) < 2:
        return None
    splits = {split: [(f"{name}/{path}", label) for path, label in rows] for split, rows in images.splits.items()}
    only = "only folder" if len(folders.below(root)) == 1 else "folder to test on"
    notes = (f"the set is that in the {only} of {root}, {name}/", *images.notes)
    return replace(images, splits=splits, notes=notes, own=tuple(f"{name}/{path}" for path in images.own))


def _unreadable(root: Path, error: Exception) -> str:
    file, why = getattr(error, "filename", None) or root, getattr(error, "strerror", None) or one_line(error)
    return f"{file} cannot be read: {why}"


def every_image(folder: str | Path) -> ImageSet:
    """Return all images below a folder, labelled or not, or those in its tar shards, in a split "all" of one class.

    `folder` may also be a tar. Raises UserError where there is no such folder, or no image in it, or a tar is damaged.
    """
    folder = expanded(folder)
    if folder.is_file() and folder.suffix == shards.SUFFIX:
        folder, found, tars = folder.parent, {}, [folder.name]
    elif folder.is_dir():
        try:
            found = tree.files(folder)
        except OSError as error:
            raise UserError(_unreadable(folder, error)) from error
        tars = [path for path, kind in found.items() if kind == shards.SUFFIX]
    else:
        raise UserError(f"{folder}: {_archive(folder) or 'no such folder'}")
    paths = [path for path, kind in found.items() if kind == tree.IMAGE]
    account = Account.of(found, paths)
    if not paths:
        paths = [f"{tar}/{name}" for tar in tars for name in shards.names(folder / tar)]
        others = {path: kind for path, kind in found.items() if path not in tars}
        account = shards.account([folder / tar for tar in tars]).with_ignored(Account.of(others, ()).ignored)
    if not paths:
        raise UserError(f"{folder} has no images: wanted {' '.join(sorted(SUFFIXES))}{folders.unread(found)}")
    return ImageSet(folder, ("",), {"all": Split(tuple(paths), (0,) * len(paths))}, account=account)


def _account(root: Path, found: Mapping[str, str], images: ImageSet, described: Sequence[str]) -> Account:
    listed = {posixpath.normpath(file) for path in images.paths for file in images.files(path)}
    # In tars, or by way of a link to a folder above.
    elsewhere = [
        path for path in listed if path not in found and (os.path.lexists(root / path) or _is_member(root, path))
    ]
    tars = {shards.container(root / path) for path in elsewhere if _is_member(root, path)}
    there = {path: kind for path, kind in found.items() if str(root / path) not in tars}
    own = {name: OWN for name in (*DESCRIPTIONS, *described) if name in there}
    return Account.of(there | own | dict.fromkeys(elsewhere, tree.IMAGE), listed)


def _is_member(root: Path, path: str) -> bool:
    try:
        return f"{shards.SUFFIX}/" in path and shards.exists(root / path)
    except (OSError, UserError):  # a damaged tar: the scan rejects what the lists name in it
        return False


def _parquet(root: Path, found: Mapping[str, str]) -> list[Path]:
    """Return the parquet files of a folder without image files and tars, whose metadata they may be."""
    if {tree.IMAGE, shards.SUFFIX} & {*found.values()}:
        return []
    return parquet.found_in(root, [path for path, kind in found.items() if kind not in (kinds.HIDDEN, tree.RUN)])


def _from_parquet(files: Sequence[Path], found: Mapping[str, str], how: How) -> ImageSet:
    from polychrome.engine.data.sets import webdataset

    tars, notes = parquet.unpacked(files)
    images = webdataset.read(tars, *how)
    others = {path: kind for path, kind in found.items() if kind != parquet.SUFFIX}
    account = images.account.with_ignored(Account.of(others, ()).ignored)
    return replace(images, account=account, notes=(*notes, *images.notes))


def _from_tars(root: Path, found: Mapping[str, str], tars: Sequence[str], how: How) -> ImageSet:
    from polychrome.engine.data.sets import webdataset

    images = webdataset.read([root / tar for tar in tars], *how)
    others = {path: OWN if path in DESCRIPTIONS else kind for path, kind in found.items() if path not in tars}
    return replace(images, account=images.account.with_ignored(Account.of(others, ()).ignored))
