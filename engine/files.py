"""Files that are written whole or not at all, and folders that one process at a time writes to."""

from __future__ import annotations

import os
from pathlib import Path

from engine.errors import StorageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_held: dict[tuple[int, int], int] = {}  # open descriptors of folders, by device and number


def hold(folder: Path) -> bool:
    """Keep a folder for this process, until `release` or its end, however that comes; False where another has it.

    Where the file system has no locks, every folder is free.
    """
    if fcntl is None:
        return True
    descriptor = os.open(folder, os.O_RDONLY)
    facts = os.fstat(descriptor)
    key = facts.st_dev, facts.st_ino
    free = True
    if key not in _held:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _held[key] = descriptor
            return True
        except BlockingIOError:
            free = False
        except OSError:
            pass
    os.close(descriptor)
    return free


def release() -> None:
    """Let go of all folders that are held."""
    while _held:
        os.close(_held.popitem()[1])


# A lock ends with the last descriptor of its folder: not with a child that outlives this process.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=release)


def write_atomically(path: Path, content: bytes | memoryview | str) -> None:
    """Write a file: into another name, to the disk, then renamed; what stood there stays until then.

    Text is UTF-8, with names of files that are no valid text as escapes.

    Raises:
        StorageError: it cannot be written, as where the disk is full.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    partial = path.with_name(path.name + ".partial")
    try:
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}; what stood there is intact"
        ) from error
