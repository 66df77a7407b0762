"""CIFAR-100 from its official files, read by torchvision."""

from __future__ import annotations

import os
import tarfile
import tempfile
from http.client import HTTPException
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR100
from torchvision.datasets.utils import calculate_md5

from polychrome.engine.data.accounting import Account
from polychrome.engine.data.image_set import ImageSet, Split
from polychrome.engine.data.stores.whole import WholeImages
from polychrome.engine.errors import UserError, one_line
from polychrome.engine.machine.files import cache_folder, expanded

SIDE = 32  # pixels
HELD_OUT = 10  # one training image of so many is for validation
META = CIFAR100.meta["filename"]


def find(root: Path) -> Path | None:
    """Return where under `root` the official files are: the folder or the archive, or None where there is neither."""
    for source in (root, root / CIFAR100.base_folder):
        if (source / META).is_file() and (source / "train").is_file():
            return source
    return next((source for source in (root, root / CIFAR100.filename) if source.is_file()), None)


def read(root: Path | None = None, seed: int = 0, download: bool = True) -> tuple[ImageSet, WholeImages]:
    """Return CIFAR-100 and its pixels: 45,000 training, 5,000 validation and 10,000 test images of 100 fine labels.

    The files are those in `root`: the official archive, its unpacked folder, or a folder with either of them.
    Without `root` the files are in the user's cache folder, downloaded there if missing and `download` says so. Of the
    500 official training images of a class 50 are for validation, drawn by `seed`: runs that are compared need equal
    seeds. Images are named by their position in the official files, such as "train/00042".

    Raises:
        UserError: the files are not there, cannot be downloaded, or are not the official files.
    """
    source = find(expanded(root) if root is not None else cache_folder())
    if source is None and root is not None:
        raise UserError(
            f"no CIFAR-100 in {root}: wanted {CIFAR100.filename} or the folder {CIFAR100.base_folder}/ in it"
        )
    source = source or _downloaded(cache_folder(), download)
    train, test = _from_folder(source) if source.is_dir() else _from_archive(source)
    splits = _splits(train.targets, seed) | {"test": _split("test", test.targets)}
    paths = [*_paths("train", len(train)), *splits["test"].paths]
    values = np.concatenate([train.data, test.data]).reshape(-1)
    images = ImageSet(source, tuple(train.classes), splits, account=Account(len(paths), len(paths)))
    return images, WholeImages(values, paths, np.full((len(paths), 2), SIDE), 3)


def _splits(labels: list[int], seed: int) -> dict[str, Split]:
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(np.asarray(labels) == label)
        held[np.random.default_rng([seed, label]).permutation(members)[: len(members) // HELD_OUT]] = True
    return {"train": _split("train", labels, ~held), "val": _split("train", labels, held)}


def _split(part: str, labels: list[int], mask: np.ndarray | None = None) -> Split:
    rows = range(len(labels)) if mask is None else np.flatnonzero(mask).tolist()
    paths = _paths(part, len(labels))
    return Split(tuple(paths[i] for i in rows), tuple(int(labels[i]) for i in rows), ((SIDE, SIDE),) * len(rows))


def _paths(part: str, count: int) -> list[str]:
    return [f"{part}/{i:05d}" for i in range(count)]


def _downloaded(folder: Path, download: bool) -> Path:
    """Return the folder of the official files, downloaded into `folder` whole or not at all."""
    final = folder / CIFAR100.base_folder
    ways = f"put the official {CIFAR100.filename} into {folder}, or give --data a folder with list files"
    if not download:
        raise UserError(f"no CIFAR-100 in {folder}: {ways}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="cifar100.", dir=folder) as work:
            CIFAR100(work, download=True)
            try:
                os.rename(Path(work, CIFAR100.base_folder), final)
            except OSError:
                if find(folder) != final:  # else another process was first
                    raise
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: torchvision found another checksum
        why = one_line(error)
        raise UserError(f"CIFAR-100 could not be downloaded ({why}): {ways}") from error
    return final


def _from_archive(file: Path) -> tuple[CIFAR100, CIFAR100]:
    """Return the training and the test images of an archive of any name, unpacked into a temporary folder."""
    _check(file, CIFAR100.tgz_md5, f"download it again, from {CIFAR100.url}")
    try:
        with tempfile.TemporaryDirectory(prefix="cifar100.") as work, tarfile.open(file) as archive:
            for name in _checksums():
                Path(work, name).write_bytes(archive.extractfile(f"{CIFAR100.base_folder}/{name}").read())
            return _from_folder(Path(work))
    except OSError as error:
        raise UserError(f"{file} cannot be unpacked ({error}): let TMPDIR name a folder with 200 MB free") from error


def _from_folder(folder: Path) -> tuple[CIFAR100, CIFAR100]:
    """Return the training and the test images; torchvision by itself does not name the file that is wrong."""
    for name, checksum in _checksums().items():
        _check(folder / name, checksum, f"unpack {CIFAR100.filename} again")
    return _Unpacked(folder, train=True), _Unpacked(folder, train=False)


def _checksums() -> dict[str, str]:
    return dict([*CIFAR100.train_list, *CIFAR100.test_list, (META, CIFAR100.meta["md5"])])


def _check(file: Path, checksum: str, remedy: str) -> None:
    """Raise UserError unless the file is the official file: only that file is safe to unpickle."""
    try:
        found = calculate_md5(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    if found != checksum:
        raise UserError(f"{file} is not the official file (MD5 {found}, wanted {checksum}): {remedy}")


class _Unpacked(CIFAR100):
    base_folder = ""  # the files are in the root itself, whatever its name
