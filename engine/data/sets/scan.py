"""Decodes every file once before training, so that no damaged file stops a training later."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from polychrome.engine.channels.names import RGB, Channels
from polychrome.engine.data.files import dali_check, kinds, shards, stacks
from polychrome.engine.data.files.guard import guarded, most_pixels
from polychrome.engine.data.files.kinds import FRAMES
from polychrome.engine.data.files.statistics import Moments, combine, measure
from polychrome.engine.data.image_set import ImageSet, Split
from polychrome.engine.errors import SeveralPages, Unsupported, UserError, one_line
from polychrome.engine.machine.files import cache_folder, new_file
from polychrome.engine.machine.workers import cpus, parallel_chunks

RULES = 4  # raise this number when a file's verdict may change
CHUNK = 64
AT_ONCE = 2**28  # bytes of a file that are read at once
TOLERANCE = 2  # of a photo's bytes, between decoders
MISSING, NOWHERE = "missing file", "a link that leads nowhere"
KILLS = "damaged: it crashes the decoder, or needs more memory than there is"
UNIDENTIFIED = "UnidentifiedImageError"  # of Pillow, which is not imported where every verdict is known
DAMAGED = (b"\x89PNG", b"RIFF", b"BM")  # what damaged images begin with


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
    """A usable photo: its size, and how it is encoded (see `engine.data.files.decode.inspected`).

    `by_pillow` says why Pillow has to decode it where DALI decodes the others; empty where DALI decodes it alike.
    """

    height: int
    width: int
    encoding: str
    by_pillow: str = ""


Verdict = Photo | Stack | str  # or why the file is rejected


@dataclass(frozen=True)
class Rejected:
    """A file that cannot be used and, in one line, why."""

    path: str
    reason: str


@dataclass(frozen=True)
class ScanReport:
    """(height, width) in pixels of each usable file, the rejected files, and how many files had to be decoded.

    `stacks` describes each usable file that is not a photo, `encodings` says of each photo how it is encoded, and
    `by_pillow` of some why DALI is not to decode them.
    """

    sizes: dict[str, tuple[int, int]]
    rejected: tuple[Rejected, ...]
    decoded: int
    stacks: dict[str, Stack] = field(default_factory=dict)
    encodings: dict[str, str] = field(default_factory=dict)
    by_pillow: dict[str, str] = field(default_factory=dict)


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
    it decodes the photos too: those that come out otherwise, by more than 2, are left to Pillow.

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
    inspect = partial(_inspect, str(root), channels, bool(_dali_version()))
    try:
        inspected = parallel_chunks(inspect, chunks, workers or cpus(), KILLS)
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
    by_pillow = {path: each.by_pillow for path, each in verdicts.items() if isinstance(each, Photo) and each.by_pillow}
    return ScanReport(sizes, rejected, decoded, found, encodings, by_pillow)


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
    by_pillow = frozenset(path for split in splits.values() for path in split.paths if path in report.by_pillow)
    scanned = replace(images, splits=splits, encodings=encodings, by_pillow=by_pillow)
    found = {path: report.stacks.get(path) for split in splits.values() for path in split.paths}
    return _with_photos(scanned, found) if None in found.values() else _with_stacks(scanned, found, channels)


def remarks(report: ScanReport, by_dali: bool) -> tuple[str, ...]:
    """Return lines for the user on photos of which a part is used and, where DALI decodes, that it does not decode."""
    several = [path for path, how in report.encodings.items() if FRAMES in how]
    groups = [(several, "of several frames, of which the first is used")]
    if by_dali:
        groups.append((list(report.by_pillow), "left to Pillow, as DALI decodes them otherwise or not at all"))
    counted = ((f"{len(paths):,} photo{'s' * (len(paths) > 1)}", paths, what) for paths, what in groups if paths)
    return tuple(f"{count} {what}, such as {paths[0]}" for count, paths, what in counted)


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


def _inspect(root: str, channels: int | None, compared: bool, paths: Sequence[str]) -> list[Verdict]:
    if compared:
        dali_check.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [_verdict(os.path.join(root, path), channels, compared) for path in paths]


def _verdict(file: str, channels: int | None, compared: bool) -> Verdict:
    """Return the verdict on a file; photos are decoded by DALI too and `compared`."""
    try:
        with guarded():
            if (size := shards.size(file)) == 0:
                return "empty file"
            if (size > AT_ONCE or file.lower().endswith(kinds.ARRAY)) and stacks.is_array(file):
                return _stack(file, channels)
            content = shards.read_bytes(file) if size <= AT_ONCE else b""
            if kinds.of(content[: kinds.HEAD]) == "array":
                return _stack(file, channels)
            return _photo(file, content, compared)
    except FileNotFoundError:
        return NOWHERE if os.path.islink(file) else MISSING
    except Unsupported as error:
        return one_line(error)
    except OSError as error:
        return _unidentified(file) if type(error).__name__ == UNIDENTIFIED else error.strerror or _damage(error)


def _photo(file: str, content: bytes, compared: bool) -> Verdict:
    """Return the verdict on a file of these bytes; of a file that is too large to be read at once they are empty."""
    from polychrome.engine.data.files import decode

    decode.verify(content)
    try:
        pixels, how = decode.inspected(BytesIO(content) if content else shards.opened(file))
    except SeveralPages as error:
        try:
            return _stack(file, as_photo=str(error))
        except Unsupported as why:
            return f"{error}; they are not channels either: {why}"
    by_pillow = ""
    if compared:
        by_pillow = dali_check.difference(content, pixels, TOLERANCE) if content else "it is too large to be compared"
    return Photo(*pixels.shape[:2], how, by_pillow)


def _stack(file: str, channels: int | None = None, as_photo: str = "") -> Stack | str:
    values = stacks.read(Path(file), channels)
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        return f"{bad:,} of {values.size:,} values are NaN or infinite"
    return Stack(*values.shape[:2], values.dtype.name, measure(values), as_photo)


def _unidentified(file: str) -> str:
    try:
        head = shards.head(file)
    except OSError as error:
        return _damage(error)
    kind = kinds.of(head)
    if kind == "TIFF":
        return "a damaged TIFF, or one that Pillow cannot read, as with several bands in a page: save it as .npy"
    if kind in ("AVIF", "HEIC", "JPEG XL"):
        return f"{kind}, which this installation of Pillow does not read: install a plugin, or save it as PNG"
    if kind or head.startswith(DAMAGED):
        return "truncated or damaged in its header"
    return f"not an image: it starts with {head[:24]!r}"


def _damage(error: OSError) -> str:
    text = one_line(error)
    cut = "truncated" in text.lower() or isinstance(error.__cause__, EOFError)
    return f"truncated: {text}" if cut else text if text.startswith("damaged") else f"damaged: {text}"


@functools.cache
def _dali_version() -> str | None:
    return dali_check.version()


class _Cache:
    """Verdicts of one root, by path, file size and modification time; a damaged file counts as an empty one."""

    def __init__(self, root: Path, use: bool, channels: int | None):
        self.root = root
        self.file = cache_folder() / f"scan-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.json" if use else None
        self.rules = f"{RULES} dali {_dali_version()} channels {channels} pixels {most_pixels()}"
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
        case [int(height), int(width), str(encoding), str(by_pillow)]:
            return Photo(height, width, encoding, by_pillow)
        case [int(height), int(width), str(dtype), str(moments), str(as_photo)]:
            with suppress(ValueError):
                return Stack(height, width, dtype, Moments.from_text(height * width, moments), as_photo)
    return None
