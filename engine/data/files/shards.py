"""Files inside tar shards: a path such as 000.tar/dir/key.jpg leads into the tar 000.tar.

The headers of a tar are read once; an index of them stays in the user's cache folder until the tar's size or times
change. A member then costs one read at its offset, so that images can be read in any order. This
suits local drives. On a network drive every image is a separate request in random order: copy the shards to a local
drive, or cache the decoded images (`--cache`).
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import posixpath
import stat
import tarfile
import warnings
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from polychrome.engine.data import accounting
from polychrome.engine.data.accounting import Account
from polychrome.engine.data.files import kinds
from polychrome.engine.data.files.guard import guarded, regular_size
from polychrome.engine.errors import Unsupported, UserError
from polychrome.engine.machine.files import cache_folder, new_file

SUFFIX = ".tar"
LABELS = ("cls", "json")
LABEL_SUFFIXES = tuple(f".{label}" for label in LABELS)
RULES = 2  # raise this number when an index may change
OPEN = 128  # tars held open at once
LARGEST_LABEL = 2**20  # bytes
BLOCK, RECORD = 512, 10240  # bytes; writers fill the end of a tar up to a whole record
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


class Member(NamedTuple):
    """A member of a tar: its name, the offset of its bytes, and their number."""

    name: str
    offset: int
    size: int


class Index(NamedTuple):
    """The samples in a tar, see `samples`, and how many of its other members there are, by kind."""

    rows: np.ndarray
    ignored: dict[str, int]


def samples(tar: str | Path) -> np.ndarray:
    """Return the samples in a tar, by name; a sample's members are those whose paths agree up to the first dot.

    A structured array. name: the image's member, or another of the sample where it has no image; offset and size: where
    its bytes are; label: as JSON, empty where there is none; cut: whether the tar ends in the sample or right after it.

    Raises:
        UserError: the tar cannot be read or is damaged before its end, or a sample has two images or two labels.
    """
    return _index_of(tar).rows


def account(tars: Sequence[str | Path]) -> Account:
    """Return what became of every member of some tars; a sample is one, its labels and further members are ignored.

    Raises UserError as `samples` does.
    """
    found, count = Counter(), 0
    for tar in tars:
        index = _index_of(tar)
        count += len(index.rows)
        found.update(index.ignored)
    return Account(count, count).with_ignored(found)


def names(tar: str | Path) -> list[str]:
    """Return the name of each sample in a tar, in order; raises as `samples` does."""
    return [os.fsdecode(name) for name in samples(tar)["name"].tolist()]


def build_index(tar: str) -> None:
    """Read the headers of a tar into the cache folder, where `samples` finds them."""
    samples(tar)


def exists(file: str | Path) -> bool:
    """Return whether a path leads to a member of a tar; raises UserError or OSError where that tar is damaged."""
    if (found := _within(file)) is None:
        return False
    tar, member, state = found
    return _position(_index(tar, *_stamp(state)).rows, member) is not None


def has_index(tar: str | Path) -> bool:
    """Return whether a tar's content is known already."""
    try:
        return _index_file(str(tar), *_stamp(os.stat(tar))).is_file()
    except OSError:
        return False


def opened(file: str | Path) -> str | Path | BytesIO:
    """Return a file as decoders take files: the path as given, or the bytes of a member of a tar.

    Raises OSError where a member is missing or lies beyond the end of its tar, Unsupported where a sample has no image.
    """
    found = _within(file)
    return file if found is None else BytesIO(_member(file, *found))


def read_bytes(file: str | Path) -> bytes:
    """Return the bytes of a file or of a member of a tar; raises OSError and Unsupported as `opened` does."""
    found = _within(file)
    return Path(file).read_bytes() if found is None else _member(file, *found)


def head(file: str | Path) -> bytes:
    """Return the first bytes of a file or of a member of a tar, which tell its kind.

    Raises OSError or FileNotFoundError where it is missing, or its tar is damaged.
    """
    if (found := _within(file)) is None:
        with open(file, "rb") as stream:
            return stream.read(kinds.HEAD)
    row, (tar, _, state) = _row(file, *found), found
    return os.pread(_open(tar, *_stamp(state)).descriptor, min(kinds.HEAD, int(row["size"])), int(row["offset"]))


def size(file: str | Path) -> int:
    """Return the bytes of a file or of a member of a tar.

    Raises OSError or FileNotFoundError where it is missing, Unsupported where it is a pipe or a device.
    """
    found = _within(file)
    return regular_size(file) if found is None else int(_row(file, *found)["size"])


def container(file: str | Path) -> str | Path:
    """Return the file on disk, a tar or the file itself, whose size and time tell whether a path's file changed."""
    found = _within(file)
    return file if found is None else found[0]


def _index_of(tar: str | Path) -> Index:
    try:
        regular_size(tar)
        return _index(str(tar), *_stamp(os.stat(tar)))
    except (OSError, Unsupported) as error:
        raise UserError(f"{tar} cannot be read: {getattr(error, 'strerror', '') or error}") from error


def _within(file: str | Path) -> tuple[str, bytes, os.stat_result] | None:
    """Return the tar that a path leads into, the member's name and the tar's state; None for a file of its own."""
    text = os.fspath(file)
    end = text.find(SUFFIX + "/")
    while end >= 0:
        tar, member = text[: end + len(SUFFIX)], text[end + len(SUFFIX) + 1 :]
        try:
            state = os.stat(tar)
        except OSError:
            return None
        if stat.S_ISREG(state.st_mode):
            return tar, os.fsencode(member), state
        end = text.find(SUFFIX + "/", end + 1)
    return None


def _row(file: str | Path, tar: str, member: bytes, state: os.stat_result) -> np.void:
    try:
        rows = _index(tar, *_stamp(state)).rows
    except UserError as error:
        raise OSError(str(error)) from error
    index = _position(rows, member)
    if index is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
    return rows[index]


def _position(rows: np.ndarray, member: bytes) -> int | None:
    names = rows["name"]
    index = bisect_left(names, member)
    return index if index < len(names) and names[index] == member else None


def _member(file: str | Path, tar: str, member: bytes, state: os.stat_result) -> bytes:
    row = _row(file, tar, member, state)
    if row["cut"]:
        raise OSError(f"{Path(tar).name} ends in it or right after it") from EOFError()
    if posixpath.splitext(os.fsdecode(member))[1].lower() in LABEL_SUFFIXES:
        raise Unsupported("the sample has no image")
    length = int(row["size"])
    content = os.pread(_open(tar, *_stamp(state)).descriptor, length, int(row["offset"]))
    if len(content) != length:
        raise OSError(f"{Path(tar).name} has {len(content):,} of its {length:,} bytes") from EOFError()
    return content


def _stamp(state: os.stat_result) -> tuple[int, int, int]:
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns


class _Open:
    """A file open for reading, closed once nothing uses it."""

    def __init__(self, file: str):
        self.descriptor = os.open(file, os.O_RDONLY)

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@functools.lru_cache(OPEN)
def _open(tar: str, *_: int) -> _Open:
    return _Open(tar)


@functools.cache
def _index(tar: str, size: int, *times: int) -> Index:
    file = _index_file(tar, size, *times)
    index = _load_index(file, size)
    if index is None:
        with guarded():
            index = _read(tar, size)
        _save_index(index, file)
    return index


def _index_file(tar: str, *stamp: int) -> Path:
    path = hashlib.sha256(os.fsencode(os.path.realpath(tar))).hexdigest()[:24]
    return cache_folder() / "shards" / f"{path}-{'-'.join(map(str, stamp))}-{RULES}.npz"


def _load_index(file: Path, size: int) -> Index | None:
    try:
        with guarded(), np.load(file, allow_pickle=False) as content:
            rows, ignored = content["rows"], json.loads(str(content["ignored"]))
            if rows.dtype.names != ("name", "offset", "size", "label", "cut") or not isinstance(ignored, dict):
                return None
            ends = (rows["offset"] + rows["size"])[~rows["cut"]]
            return Index(rows, ignored) if np.max(ends, initial=0) <= size else None
    except (OSError, Unsupported):
        return None


def _save_index(index: Index, file: Path) -> None:
    try:
        old = [other for other in file.parent.glob(f"{file.name.partition('-')[0]}-*.np[yz]") if other != file]
        file.parent.mkdir(parents=True, exist_ok=True)
        with new_file(file) as stream:
            np.savez(stream, rows=index.rows, ignored=json.dumps(index.ignored))
        for other in old:
            other.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(f"the index of a shard could not be written to {file}: {error}", stacklevel=3)


def _read(tar: str, size: int) -> Index:
    with open(tar, "rb") as stream:
        members, cut, ignored = _headers(stream, tar, size)
        grouped: dict[str, dict[str, Member]] = {}
        for member in members:
            folder, base = posixpath.split(member.name)
            stem, _, extension = base.partition(".")
            parts = grouped.setdefault(posixpath.join(folder, stem), {})
            if parts.setdefault(extension.lower(), member) is not member:
                raise UserError(f"{tar} has {member.name} twice")
        last = members[-1].name if cut and members else ""
        rows = []
        for parts in grouped.values():
            shown = _image(stream, tar, parts)
            if shown or any(label in parts for label in LABELS):
                rows.append(_sample(stream, tar, size, parts, shown, last))
                shown = shown or next(parts[label] for label in LABELS if label in parts)
            ignored.update(_kind_of(extension) for extension, member in parts.items() if member is not shown)
    rows.sort()
    longest = [max((len(row[field]) for row in rows), default=0) or 1 for field in (0, 3)]
    fields = [("name", f"S{longest[0]}"), ("offset", "<i8"), ("size", "<i8"), ("label", f"S{longest[1]}"), ("cut", "?")]
    return Index(np.array(rows, fields), dict(ignored))


def _kind_of(extension: str) -> str:
    return accounting.LABELS if extension in LABELS else kinds.by_suffix(f".{extension}" if extension else "")


def _headers(stream: BinaryIO, tar: str, size: int) -> tuple[list[Member], bool, Counter]:
    """Return the files in a tar, whether the tar is cut off, and how many members of other kinds there are."""
    found, cut, offset, ignored = [], False, 0, Counter()
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # else tarfile stores every header
                offset = archive.offset
                name = posixpath.normpath("/" + member.name).lstrip("/")
                if any(map(kinds.is_hidden, name.split("/"))):
                    ignored[kinds.HIDDEN] += not member.isdir()
                elif member.isreg() and not member.issparse():
                    found.append(Member(name, member.offset_data, member.size))
                else:
                    ignored[kinds.SPECIAL] += not member.isdir()
            offset = archive.offset
    except (OSError, UserError):
        raise
    except Exception as error:  # tarfile raises several kinds over damaged headers
        if not offset:
            raise UserError(f"{tar} is not a tar that can be read: {_kind(stream) or error}") from error
        cut = True
    stream.seek(offset)
    rest = stream.read(2 * RECORD)
    if rest.strip(b"\0") and len(rest) >= (RECORD if cut else BLOCK):
        raise UserError(f"{tar} is damaged, or several tars in one: no header and no end at byte {offset:,}")
    return found, cut or 0 < len(rest) < BLOCK, +ignored


def _kind(stream: BinaryIO) -> str:
    stream.seek(0)
    kind = COMPRESSED.get(stream.read(2))
    return f"it is compressed with {kind}: unpack it, as its members have to be read in any order" if kind else ""


def _image(stream: BinaryIO, tar: str, parts: dict[str, Member]) -> Member | None:
    """Return the image of a sample by its suffix or, where no suffix is that of an image, by its first bytes."""
    images = [member for extension, member in parts.items() if f".{extension}" in kinds.SUFFIXES]
    if not images:
        images = [member for extension, member in parts.items() if extension not in LABELS and _begins(stream, member)]
    if len(images) > 1:
        raise UserError(f"{tar}: a sample has two images, {images[0].name} and {images[1].name}: wanted one")
    return images[0] if images else None


def _begins(stream: BinaryIO, member: Member) -> bool:
    stream.seek(member.offset)
    return bool(kinds.of(stream.read(min(member.size, kinds.HEAD))))


def _sample(
    stream: BinaryIO, tar: str, size: int, parts: dict[str, Member], image: Member | None, last: str
) -> tuple[bytes, int, int, bytes, bool]:
    """Return a row of the index."""
    labels = [parts[extension] for extension in LABELS if extension in parts]
    cut = any(member.name == last or member.offset + member.size > size for member in parts.values())
    found = set() if cut else {_label(stream, tar, member) for member in labels} - {""}
    if len(found) > 1:
        raise UserError(f"{tar}: a sample has two labels, {' and '.join(sorted(found))}: {labels[0].name}")
    shown = image or labels[0]
    return os.fsencode(shown.name), shown.offset, shown.size, "".join(found).encode(), cut


def _label(stream: BinaryIO, tar: str, member: Member) -> str:
    """Return a label as JSON, a whole number or a class name; nothing where a .json has none."""
    where = f"{tar}/{member.name}"
    if member.size > LARGEST_LABEL:
        raise UserError(f"{where}: {member.size:,} bytes, a label has at most {LARGEST_LABEL:,}")
    stream.seek(member.offset)
    content = stream.read(member.size)
    try:
        if member.name.lower().endswith(".cls"):
            return str(int(content))
        fields = json.loads(content)
    except (ValueError, RecursionError):
        wanted = "a whole number" if member.name.lower().endswith(".cls") else "JSON"
        raise UserError(f"{where}: wanted {wanted}, got {content[:40]!r}") from None
    values = [fields[key] for key in ("label", "cls") if key in fields] if isinstance(fields, dict) else []
    for value in values:
        if type(value) not in (int, str) or value != values[0]:
            raise UserError(f"{where}: label and cls must be one whole number or one name, got {values}")
    return json.dumps(values[0]) if values else ""
