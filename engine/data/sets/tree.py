"""Every file below a folder: the images, and the kinds of the others."""

from __future__ import annotations

import os
from pathlib import Path

from polychrome.engine.data.files import kinds, shards

IMAGE = ""
CIRCULAR, NOWHERE, CLOSED = "link to a folder above it", "link that leads nowhere", "folder that cannot be opened"


def files(root: str | Path) -> dict[str, str]:
    """Return each file below a folder, by posix path relative to it in the order of names, with its kind.

    The kind of images is empty; of others it says in words why they are none: hidden, no regular file, or their suffix.
    Links are followed. Files without the suffix of an image are opened: their first bytes say whether they are images.

    A folder without permission to open it counts as one file, of the kind `CLOSED`.

    Raises:
        OSError: the folder itself cannot be read.
    """
    found: dict[str, str] = {}
    _add(str(root), "", (_identity(str(root)),), False, found)
    return dict(sorted(found.items()))


def _add(folder: str, prefix: str, above: tuple, hidden: bool, found: dict[str, str]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            path, unseen = prefix + entry.name, hidden or kinds.is_hidden(entry.name)
            if not entry.is_dir():
                found[path] = kinds.HIDDEN if unseen else _kind(entry)
                continue
            identity = _identity(entry.path)
            if identity in above:
                found[path] = CIRCULAR
                continue
            try:
                _add(entry.path, path + "/", (*above, identity), unseen, found)
            except PermissionError:
                found[path] = kinds.HIDDEN if unseen else CLOSED


def _identity(folder: str) -> tuple[int, int]:
    state = os.stat(folder)
    return state.st_dev, state.st_ino


def _kind(entry: os.DirEntry) -> str:
    suffix = os.path.splitext(entry.name)[1].lower()
    broken = entry.is_symlink() and not os.path.exists(entry.path)
    if not broken and not entry.is_file():
        return kinds.SPECIAL
    if suffix in kinds.SUFFIXES:
        return IMAGE  # a link that leads nowhere too: the scan names it
    if broken:
        return NOWHERE
    if suffix == shards.SUFFIX:  # it begins with the name of a member, whatever it is
        return suffix
    try:
        with open(entry.path, "rb") as file:
            image = kinds.of(file.read(kinds.HEAD))
    except OSError:
        return "cannot be opened"
    return IMAGE if image else kinds.by_suffix(suffix)
