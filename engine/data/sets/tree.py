"""Every file below a folder: the images, and the kinds of the others."""

from __future__ import annotations

import os
from pathlib import Path

from polychrome.engine.data.files import kinds, shards

IMAGE = ""
RUN, RUN_FILES = "of a run", ("config.toml", "results.json")
CIRCULAR, NOWHERE, CLOSED = "link to a folder above it", "link that leads nowhere", "folder that cannot be opened"


def files(root: str | Path) -> dict[str, str]:
    """Return each file below a folder, by posix path relative to it in the order of names, with its kind.

    The kind of images is empty; of others it says in words why they are none: hidden, of a run that was trained
    here, no regular file, or their suffix.
    Links are followed. Files without the suffix of an image are opened: their first bytes say whether they are images.

    A folder without permission to open it counts as one file, of the kind `CLOSED`.

    Raises:
        OSError: the folder itself cannot be read.
    """
    found: dict[str, str] = {}
    _add(str(root), "", (_identity(str(root)),), "", found)
    return dict(sorted(found.items()))


def holds_runs(folder: Path) -> bool:
    """Return whether a folder is a run's, or has files in folders of runs alone."""
    found = False
    for place, inside, names in os.walk(folder):
        if _is_run(place):
            inside.clear()
            found = True
        elif not all(map(kinds.is_hidden, names)):
            return False
        inside[:] = [name for name in inside if not kinds.is_hidden(name)]
    return found


def _is_run(folder: str) -> bool:
    return all(os.path.isfile(os.path.join(folder, name)) for name in RUN_FILES)


def _add(folder: str, prefix: str, above: tuple, unused: str, found: dict[str, str]) -> None:
    """Add the files below a folder, of which all have the kind `unused` where it is not empty."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path, unseen = prefix + entry.name, unused or (kinds.HIDDEN if kinds.is_hidden(entry.name) else "")
            if not entry.is_dir():
                found[path] = unseen or _kind(entry)
                continue
            identity = _identity(entry.path)
            if identity in above:
                found[path] = CIRCULAR
                continue
            try:
                unseen = unseen or (RUN if _is_run(entry.path) else "")
                _add(entry.path, path + "/", (*above, identity), unseen, found)
            except PermissionError:
                found[path] = unseen or CLOSED


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
    if suffix in (shards.SUFFIX, kinds.OVERVIEWS):  # a tar begins with the name of a member, whatever it is
        return suffix
    try:
        with open(entry.path, "rb") as file:
            image = kinds.of(file.read(kinds.HEAD))
    except OSError:
        return "cannot be opened"
    return IMAGE if image else kinds.by_suffix(suffix)
