"""Decodes every file once before training, so that no damaged file stops a training later."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from polychrome.engine.channels.names import RGB, Channels
from polychrome.engine.data.files import shards, stacks
from polychrome.engine.data.files.statistics import Moments, combine, measure
from polychrome.engine.data.image_set import ImageSet, Split
from polychrome.engine.errors import UserError, one_line
from polychrome.engine.machine.files import cache_folder, new_file
from polychrome.engine.machine.workers import cpus, parallel

RULES = 3  # raise this number when a file's verdict may change
CHUNK = 64
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM")
TIFF_MAGIC = (b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class Stack:
    """A usable file of any number of channels; `as_photo` says why the file is not a photo, empty for .npy files."""

    height: int
    width: int
    dtype: str
    moments: Moments
    as_photo: str

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.moments.channels


class Photo(NamedTuple):
    """A usable photo: its size, and how it is encoded (see `engine.data.files.decode.encoding`)."""

    height: int
    width: int
    encoding: str


Verdict = Photo | Stack | str  # or why the file is rejected


@dataclass(frozen=True)
class Rejected:
    """A file that cannot be used and, in one line, why."""

    path: str
    reason: str


@dataclass(frozen=True)
class ScanReport:
    """(height, width) in pixels of each usable file, the rejected files, and how many files had to be decoded.

    `stacks` describes each usable file that is not a photo, `encodings` says of each photo how it is encoded.
    """

    sizes: dict[str, tuple[int, int]]
    rejected: tuple[Rejected, ...]
    decoded: int
    stacks: dict[str, Stack] = field(default_factory=dict)
    encodings: dict[str, str] = field(default_factory=dict)


def scan(
    root: str | Path,
    paths: Sequence[str],
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cache: bool = True,
    channels: int | None = None,
) -> ScanReport:
    """Return files' sizes or faults, found by decoding each fully in `workers` processes (default: one per core).

    `paths` are relative to `root`. `progress(done, total)` is called as files are processed. With `cache`, verdicts
    stay in the user's cache folder until a file's size or modification time changes. Where DALI is installed
    DALI is asked too, since a single file that it refuses ends its pipeline.

    `channels` is the number of channels of .npy files whose shape alone does not say which axis has the channels; by
    default the number of names in channels.txt. The pages of a TIFF file are read as channels. A set has either
    images of several channels or photos: the kind with fewer files is rejected, at a tie the photos.

    Raises:
        UserError: channels.txt is malformed.
    """
    root = Path(root).resolve()
    paths = list(dict.fromkeys(paths))
    channels = channels or len(stacks.channel_names(root) or ()) or None
    known = _Cache(root, cache, channels)
    verdicts = {path: verdict for path in paths if (verdict := known.get(path)) is not None}
    todo = sorted(path for path in paths if path not in verdicts)  # mostly the order of a tar's members
    chunks = [todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)]
    try:
        inspected = parallel(partial(_inspect, str(root), channels), chunks, workers or cpus())
        for chunk, found in zip(chunks, inspected, strict=True):
            for path, verdict in zip(chunk, found, strict=True):
                verdicts[path] = verdict
                known.put(path, verdict)
            if progress:
                progress(len(verdicts), len(paths))
    finally:
        if todo:
            known.save()
    if progress and not todo:
        progress(len(paths), len(paths))
    return _report({path: verdicts[path] for path in paths}, len(todo))


def _report(verdicts: dict[str, Verdict], decoded: int) -> ScanReport:
    verdicts = _of_one_kind(verdicts)
    found = {path: verdict for path, verdict in verdicts.items() if isinstance(verdict, Stack)}
    sizes = {path: (each.height, each.width) for path, each in verdicts.items() if not isinstance(each, str)}
    encodings = {path: each.encoding for path, each in verdicts.items() if isinstance(each, Photo)}
    rejected = tuple(Rejected(path, verdict) for path, verdict in verdicts.items() if isinstance(verdict, str))
    return ScanReport(sizes, rejected, decoded, found, encodings)


def _of_one_kind(verdicts: dict[str, Verdict]) -> dict[str, Verdict]:
    """Return the verdicts with either the photos or the TIFF files of several pages rejected, whichever are fewer."""
    photos = {path for path, verdict in verdicts.items() if isinstance(verdict, Photo)}
    paged = [path for path, verdict in verdicts.items() if getattr(verdict, "as_photo", "")]
    if not photos or not paged:
        return verdicts
    if len(photos) > len(paged):
        return verdicts | {path: verdicts[path].as_photo for path in paged}
    count = f"{len(paged)} TIFF file{'s' * (len(paged) > 1)} of several pages such as {paged[0]}"
    return verdicts | dict.fromkeys(photos, f"a single page or photo among {count}: remove it")


def apply(images: ImageSet, report: ScanReport, channels: Channels | None = None) -> ImageSet:
    """Return the set without the rejected files, with sizes and, of files that are not photos, their channels.

    Mean and deviation of the channels are measured over the training images, or over all images where there is no
    training split; `channels` may give other values, such as a trained model's.

    Raises:
        UserError: a split is left empty, or the files differ in kind or number of channels among each other, from
            channels.txt or from `channels`.
    """
    splits = {name: _usable(f"{name} of {images.root}", split, report) for name, split in images.splits.items()}
    encodings = {path: how for split in splits.values() for path in split.paths if (how := report.encodings.get(path))}
    scanned = replace(images, splits=splits, encodings=encodings)
    found = {path: report.stacks.get(path) for split in splits.values() for path in split.paths}
    return _with_photos(scanned, found) if None in found.values() else _with_stacks(scanned, found, channels)


def _with_photos(images: ImageSet, found: dict[str, Stack | None]) -> ImageSet:
    for path, stack in found.items():
        if stack is not None:
            photo = next(path for path, stack in found.items() if stack is None)
            raise UserError(f"{images.root} mixes photos and arrays, such as {photo} and {path}: wanted one kind")
    names = stacks.channel_names(images.root)
    if names not in (None, RGB.names):
        file = images.root / stacks.NAMES_FILE
        raise UserError(f"{file} names {len(names)} channels, but the images are photos of R, G and B: remove it")
    return images


def _with_stacks(images: ImageSet, found: dict[str, Stack], channels: Channels | None) -> ImageSet:
    first, example = next(iter(found.items()))
    for path, stack in found.items():
        if stack.channels != example.channels:
            counts = f"{first} has {example.channels} channels, {path} has {stack.channels}"
            raise UserError(f"{images.root}: {counts}: wanted equal numbers")
        if stack.dtype != example.dtype:
            kinds = f"{first} has values of type {example.dtype}, {path} of {stack.dtype}"
            raise UserError(f"{images.root}: {kinds}: wanted one type")
    channels = channels or _measured(images, found)
    if len(channels) != example.channels:
        raise UserError(f"{images.root / first} has {example.channels} channels, wanted {len(channels)}")
    return replace(images, channels=channels, dtype=example.dtype, stacks=True)


def _measured(images: ImageSet, found: dict[str, Stack]) -> Channels:
    first, example = next(iter(found.items()))
    names = stacks.channel_names(images.root) or tuple(map(str, range(example.channels)))
    if len(names) != example.channels:
        file = images.root / stacks.NAMES_FILE
        raise UserError(f"{file}:{len(names)}: names {len(names)} channels, but {first} has {example.channels}")
    paths = images.splits["train"].paths if "train" in images.splits else found
    whole = combine([found[path].moments for path in paths])
    mean, std = whole.scaled(255 if example.dtype == "uint8" else 1)
    return Channels(names, tuple(mean.tolist()), tuple(std.tolist()))


def _usable(name: str, split: Split, report: ScanReport) -> Split:
    rows = [
        (path, label, report.sizes[path])
        for path, label in zip(split.paths, split.labels, strict=True)
        if path in report.sizes
    ]
    if not rows:
        reasons = {fault.path: fault.reason for fault in report.rejected}
        first = split.paths[0]
        why = f"{first}: {reasons.get(first, 'not scanned')}"
        raise UserError(f"no usable image in {name}: all {len(split.paths)} were rejected, the first is {why}")
    return Split(*map(tuple, zip(*rows, strict=True)))


def _inspect(root: str, channels: int | None, paths: Sequence[str]) -> list[Verdict]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [_verdict(os.path.join(root, path), channels) for path in paths]


def _verdict(file: str, channels: int | None) -> Verdict:
    from PIL import UnidentifiedImageError

    from polychrome.engine.data.files import decode

    try:
        if shards.size(file) == 0:
            return "empty file"
        return _stack(file, channels) if stacks.is_array(file) else _photo(file)
    except FileNotFoundError:
        return "missing file"
    except UnidentifiedImageError:
        return _unidentified(file)
    except decode.Unsupported as error:
        return one_line(error)
    except OSError as error:
        return error.strerror or _damage(error)


def _photo(file: str) -> Verdict:
    from polychrome.engine.data.files import decode

    decode.verify(shards.opened(file))
    try:
        height, width, _ = decode.rgb(shards.opened(file)).shape
    except decode.SeveralPages as error:
        try:
            return _stack(file, as_photo=str(error))
        except decode.Unsupported as why:
            return f"{error}; they are not channels either: {why}"
    if _dali_version():
        from polychrome.engine.data.files.dali_check import decoded_shape

        seen = decoded_shape(shards.read_bytes(file))
        if seen != (height, width):
            return "damaged: DALI cannot decode it" if seen is None else f"DALI sees it as {seen}, not {height, width}"
    return Photo(height, width, decode.encoding(shards.opened(file)))


def _stack(file: str, channels: int | None = None, as_photo: str = "") -> Stack | str:
    values = stacks.read(Path(file), channels)
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        return f"{bad:,} of {values.size:,} values are NaN or infinite"
    return Stack(*values.shape[:2], values.dtype.name, measure(values), as_photo)


def _unidentified(file: str) -> str:
    head = shards.read_bytes(file)[:24]
    if head.startswith(TIFF_MAGIC):
        return "a damaged TIFF, or one that Pillow cannot read, as with several bands in a page: save it as .npy"
    if head.startswith(MAGIC):
        return "truncated or damaged in its header"
    return f"not an image: it starts with {head!r}"


def _damage(error: OSError) -> str:
    text = one_line(error)
    cut = "truncated" in text.lower() or isinstance(error.__cause__, EOFError)
    return f"truncated: {text}" if cut else text if text.startswith("damaged") else f"damaged: {text}"


@functools.cache
def _dali_version() -> str | None:
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return None
    names = {name for name in metadata.packages_distributions().get("nvidia", ()) if "dali" in name}
    return metadata.version(min(names)) if names else "unknown"


class _Cache:
    """Verdicts of one root, by path, file size and modification time; a damaged file counts as an empty one."""

    def __init__(self, root: Path, use: bool, channels: int | None):
        self.root = root
        self.file = cache_folder() / f"scan-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.json" if use else None
        self.rules = f"{RULES} dali {_dali_version()} channels {channels}"
        self.stamps: dict[str, list[int]] = {}
        self.entries: dict[str, list] = self._load() if use else {}

    def get(self, path: str) -> Verdict | None:
        try:
            state = os.stat(shards.container(self.root / path))
        except OSError:
            return None
        self.stamps[path] = [state.st_size, state.st_mtime_ns]
        entry = self.entries.get(path, ())
        return _from_entry(entry[2:]) if isinstance(entry, list) and entry[:2] == self.stamps[path] else None

    def put(self, path: str, verdict: Verdict) -> None:
        if path in self.stamps:
            self.entries[path] = [*self.stamps[path], *_to_entry(verdict)]

    def save(self) -> None:
        if self.file is None:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with new_file(self.file) as stream:
                content = {"rules": self.rules, "root": str(self.root), "files": self.entries}
                stream.write(json.dumps(content).encode())
        except OSError as error:
            warnings.warn(f"the scan's results could not be kept in {self.file}: {error}", stacklevel=3)

    def _load(self) -> dict[str, list]:
        try:
            content = json.loads(self.file.read_text())
            if (content["rules"], content["root"]) != (self.rules, str(self.root)):
                return {}
            return dict(content["files"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}


def _to_entry(verdict: Verdict) -> list:
    if isinstance(verdict, str):
        return [verdict]
    if isinstance(verdict, Stack):
        return [verdict.height, verdict.width, verdict.dtype, verdict.moments.to_text(), verdict.as_photo]
    return list(verdict)


def _from_entry(entry: list) -> Verdict | None:
    """Return the verdict that `_to_entry` stored; None for any other list."""
    match entry:
        case [str(reason)]:
            return reason
        case [int(height), int(width), str(encoding)]:
            return Photo(height, width, encoding)
        case [int(height), int(width), str(dtype), str(moments), str(as_photo)]:
            with suppress(ValueError):
                return Stack(height, width, dtype, Moments.from_text(height * width, moments), as_photo)
    return None
