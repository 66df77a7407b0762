"""Files and folders that are written whole or not at all, and locks on folders."""

from __future__ import annotations

import csv
import errno
import glob
import io
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from polychrome.engine.errors import StorageError, UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# The suffix of unfinished files and folders, and the seconds without a change after which they are removed.
PARTIAL, STALE = ".partial", 3600
LONGEST = 255  # bytes of a name on a disk

_held: dict[tuple[int, int], int] = {}  # open descriptors of folders, by device and number


def csv_text(heads: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Return rows of text and numbers as CSV below a row of heads; None is an empty field."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heads, *rows])
    return text.getvalue()


def hold(folder: Path) -> bool:
    """Lock a folder until `release` or the end of the process; return whether no other process holds the lock.

    On a file system without locks the result is always true.
    """
    if fcntl is None:
        return True
    descriptor = os.open(folder, os.O_RDONLY)
    facts = os.fstat(descriptor)
    key = facts.st_dev, facts.st_ino
    try:
        if key not in _held:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _held[key] = descriptor
            return True
    except OSError as error:
        os.close(descriptor)
        return not isinstance(error, BlockingIOError)
    os.close(descriptor)
    return True


def release() -> None:
    """Release the locks on all folders."""
    while _held:
        os.close(_held.popitem()[1])


# A lock ends with the last descriptor of its folder: not with a child that outlives this process.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=release)


def within(folder: Path, name: str, *, room: int = 0) -> Path:
    """Return the path of `name` in a folder, where the name is somebody else's: of a run, a model, or channels.

    `room` is the number of bytes for what the names of files have beside it.

    Raises:
        UserError: the name would lead to another folder, or is too long for a disk.
    """
    try:
        size = len(os.fsencode(name))
    except UnicodeEncodeError:
        size = 0
    if name in ("", ".", "..") or "\0" in name or Path(name).name != name or not size:
        raise UserError(f"{name!r} cannot be the name of a file")
    if size > LONGEST - room:
        raise UserError(f"{name!r} is too long for the name of a file: {size} bytes, {LONGEST - room} at most")
    return folder / name


def check_writable(folder: Path) -> None:
    """Raise UserError where files cannot be made in a folder, or the folder itself cannot be made."""
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror} ({place})") from None


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a stream whose bytes become the file `path` at the end: whole, on the disk, with the mode of a new file.

    An earlier file stays until then, and for good where the block raises. Several processes may write the same path:
    the file of the last process stays, whole.

    Raises:
        OSError: the file cannot be written.
    """
    _remove_stale(path)
    partial = _partial(path)
    try:
        with open(partial, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        rename(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` at the end, whole; the folder is removed where the block raises.

    Raises:
        OSError: the folder cannot be written, or `path` is there already.
    """
    _remove_stale(path)
    partial = _partial(path)
    partial.mkdir()
    try:
        yield partial
        for written in (*partial.rglob("*"), partial):
            _to_disk(written)
        os.rename(partial, path)
        _to_disk(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def rename(source: Path, target: Path) -> None:
    """Give a file another name in its folder, on the disk too; a file of this name is replaced. Raises OSError."""
    os.replace(source, target)
    _to_disk(target.parent)


def write_atomically(path: Path, content: bytes | memoryview | str) -> None:
    """Write `content` as `new_file` does; text is UTF-8, with escapes for bytes of file names that are not text.

    Raises:
        StorageError: the file cannot be written, as where the disk is full.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    try:
        with new_file(path) as file:
            file.write(content)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}; an earlier file is intact") from error


def _partial(path: Path) -> Path:
    """Return an unused name beside a path."""
    return path.with_name(f"{_begin(path)}.{secrets.token_hex(8)}{PARTIAL}")


def _begin(path: Path) -> str:
    """Return the part of a file's name that leaves room for what the names of unfinished files have beside it."""
    return os.fsdecode(os.fsencode(path.name)[:200])


def _remove_stale(path: Path) -> None:
    """Remove unfinished files of `path` whose writers were killed."""
    for partial in path.parent.glob(f"{glob.escape(_begin(path))}.*{PARTIAL}"):
        if time.time() - last_written(partial) < STALE:
            continue
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the unfinished files under a folder that no other process writes, however young they are."""
    for partial in folder.rglob(f"*{PARTIAL}"):
        with suppress(OSError):
            partial.unlink()


def last_written(path: Path) -> float:
    """Return the time of the last change to a file, or to a folder and its content."""
    try:
        return max(os.stat(each).st_mtime for each in (path, *path.rglob("*")))
    except OSError:  # its writer is at work
        return time.time()


def _to_disk(path: Path) -> None:
    """Flush a file's content, or a folder's names, to the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:  # some file systems flush no folders
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


class Stamps:
    """What tells, without reading it, whether a file is the one that was read before; each folder is resolved once."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def of(self, file: str | Path) -> list[int | str]:
        """Return a file's size, the times at which it was modified and changed, and where links to it lead, if any do.

        A file put in its place may have the size and the time of modification, which tools keep, but not the rest.

        Raises OSError where the file is missing.
        """
        state = os.stat(file)
        folder, name = os.path.split(os.fspath(file))
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        where = os.path.join(self._folders[folder], name)
        if os.path.islink(where):
            where = os.path.realpath(where)
        return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, "" if where == os.fspath(file) else where]


def cache_folder() -> Path:
    """Return the folder for files that can be made again; it need not exist yet.

    Raises:
        UserError: the user has no home folder, and no other folder is named.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "polychrome"
    try:
        return Path.home() / ".cache" / "polychrome"
    except RuntimeError:
        raise UserError("no home folder is known to keep files in: set HOME, or XDG_CACHE_HOME") from None


def expanded(path: Path | str) -> Path:
    """Return a path with a home folder in place of `~`. Raises UserError where the folder is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: no home folder is known") from None
