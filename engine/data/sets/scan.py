"""Decodes every file once before training, so that no damaged file stops a training later."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from polychrome.engine.channels.names import RGB, listed
from polychrome.engine.data.arrangement import Form
from polychrome.engine.data.conventions import Conventions, Trained
from polychrome.engine.data.files import dali_check, shards, stacks
from polychrome.engine.data.files.guard import most_pixels
from polychrome.engine.data.files.kinds import FRAMES, SCALED, TRANSPARENT, UNHEARD
from polychrome.engine.data.files.statistics import Apart
from polychrome.engine.data.image_set import ImageSet, Split, sizes_of, with_classes
from polychrome.engine.data.sets import inspection
from polychrome.engine.data.sets.inspection import Passing, Photo, Stack, Verdict, is_passing
from polychrome.engine.data.sets.sensors import channel_files, descriptions, union
from polychrome.engine.errors import UserError
from polychrome.engine.machine.files import Stamps, cache_folder, new_file
from polychrome.engine.machine.workers import cpus, parallel_chunks

RULES = 12  # raise this number when a file's verdict may change
CHUNK = 64
KILLS = Passing("damaged: it crashes the decoder, or needs more memory than there is")
LACKS = f"NaN stands for a channel that an image lacks, or {descriptions.FILE} tells its channels"
DIM = 2**14  # a quarter of the range of 16 bits


@dataclass(frozen=True)
class Rejected:
    """A file that cannot be used and, in one line, why."""

    path: str
    reason: str


@dataclass(frozen=True)
class ScanReport:
    """(height, width) in pixels of each usable file, the rejected files, and how many files had to be decoded.

    `stacks` describes each usable file that is not a photo, `encodings` says of each photo how it is encoded,
    `by_pillow` of some why DALI is not to decode them, and `scaled` has the highest value of each photo of 16 bits.
    `digests` are the same for equal files alone.
    """

    sizes: dict[str, tuple[int, int]]
    rejected: tuple[Rejected, ...]
    decoded: int
    stacks: dict[str, Stack] = field(default_factory=dict)
    encodings: dict[str, str] = field(default_factory=dict)
    by_pillow: dict[str, str] = field(default_factory=dict)
    scaled: dict[str, float] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def contents(self) -> dict[str, str]:
        """Return for each usable file text that is the same for files of equal size in pixels and equal content alone.

        Of a file that is too large for a digest the text has only the size.
        """
        return {path: f"{height}x{width} {self.digests.get(path, '')}" for path, (height, width) in self.sizes.items()}


def scan(
    root: str | Path,
    paths: Sequence[str],
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cache: bool = True,
    channels: int | None = None,
    photos: bool | None = None,
    parts: Mapping[str, Mapping[str, str]] | None = None,
    measured: bool = False,
) -> ScanReport:
    """Return files' sizes or faults, found by decoding each fully in `workers` processes (default: one per core).

    `paths` are relative to `root`; of an image among `parts` all files are read, and the report is on the images (see
    `ImageSet`). `progress(done, total)` is called as files are processed. With `cache`, verdicts
    stay in the user's cache folder until a file's size or times change, or links lead to another. Where DALI is
    installed it decodes the photos too: those that come out otherwise, by more than 2, are left to Pillow.

    `channels` is the number of channels of files whose shape alone does not say which axis has the channels; by
    default the number of names in channels.txt, or in a file's line of channels.csv. Where there is a channels.csv, or
    an image has a file for each channel, or with `measured`, all are stacks: the samples of photos are values too.

    A set is else either of photos or of stacks, as `photos` says; by default of stacks where channels.txt names other
    channels than R, G and B, else of the kind of more files, at a tie of stacks. Among photos a file of 16 bits is one,
    scaled by the range of its type, as is a TIFF of four samples of 8 bits, whose last sample is transparency where it
    looks so in most files, or channels.txt names R, G and B. Files of the other kind are rejected.

    Raises:
        UserError: channels.txt or channels.csv is malformed.
    """
    root, parts = Path(root).resolve(), {path: parts[path] for path in paths if path in parts} if parts else {}
    images, paths = paths, list(dict.fromkeys(file for path in paths for file in _files(path, parts)))
    names = stacks.channel_names(root)
    described = descriptions.read(root, paths)
    forms = dict.fromkeys(paths, Form(channels or len(names or ()) or None)) | {
        path: line.form for path, line in (described or {}).items()
    }
    measured = measured or described is not None or bool(parts)
    if photos is None and names not in (None, RGB.names):
        photos = False
    known = _Cache(root, cache, forms, measured)
    verdicts = {path: verdict for path in paths if (verdict := known.get(path)) is not None}
    todo = sorted(path for path in paths if path not in verdicts)  # mostly the order of a tar's members
    chunks = [todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)]
    inspect = partial(_inspect, str(root), bool(dali_check.version()), measured)
    jobs = [[(path, forms[path]) for path in chunk] for chunk in chunks]
    try:
        inspected = parallel_chunks(inspect, jobs, workers or cpus(), KILLS)
        for chunk, found in zip(chunks, inspected, strict=True):
            for path, verdict in zip(chunk, found, strict=True):
                verdicts[path] = verdict
                if not is_passing(verdict):
                    known.put(path, verdict)
            if progress:
                progress(len(verdicts), len(paths))
    finally:
        if todo:
            known.save()
    if progress and not todo:
        progress(len(paths), len(paths))
    if parts:
        verdicts = verdicts | channel_files.assembled(verdicts, parts)
    alpha = names == RGB.names
    found = {path: _with_alpha(verdicts[path]) if alpha else verdicts[path] for path in images}
    return _report(found, len(todo), photos)


def _files(path: str, parts: Mapping[str, Mapping[str, str]]) -> Iterable[str]:
    return parts[path].values() if path in parts else (path,)


def _with_alpha(verdict: Verdict) -> Verdict:
    """Return a verdict in which the fourth sample of 8 bits, if there is one, is transparency."""
    is_alpha = isinstance(verdict, Stack) and verdict.stored == "uint8" and isinstance(verdict.as_photo, Photo)
    return replace(verdict, looks_photo=True) if is_alpha else verdict


def _report(verdicts: dict[str, Verdict], decoded: int, photos: bool | None) -> ScanReport:
    single = {path: verdict for path, verdict in verdicts.items() if isinstance(verdict, Stack)}
    verdicts = _of_one_kind(verdicts, photos)
    deep = {path: stack.highest for path, stack in single.items() if stack.stored != "uint8"}
    shown = {path: each.encoding for path, each in verdicts.items() if isinstance(each, Photo)}
    scaled = {path: highest for path, highest in deep.items() if path in shown and SCALED not in shown[path]}
    found = {path: verdict for path, verdict in verdicts.items() if isinstance(verdict, Stack)}
    sizes = {path: (each.height, each.width) for path, each in verdicts.items() if not isinstance(each, str)}
    rejected = tuple(Rejected(path, verdict) for path, verdict in verdicts.items() if isinstance(verdict, str))
    by_pillow = {path: each.by_pillow for path, each in verdicts.items() if isinstance(each, Photo) and each.by_pillow}
    digests = {path: each.digest for path, each in verdicts.items() if not isinstance(each, str) and each.digest}
    return ScanReport(sizes, rejected, decoded, found, shown, by_pillow, scaled, digests)


def _of_one_kind(verdicts: dict[str, Verdict], photos: bool | None) -> dict[str, Verdict]:
    """Return the verdicts with all files of one kind, photos or stacks, and the others rejected.

    Arrays among photos stay, which `apply` refuses.
    """
    plain = [path for path, verdict in verdicts.items() if isinstance(verdict, Photo)]
    found = {path: verdict for path, verdict in verdicts.items() if isinstance(verdict, Stack)}
    images = {path: stack for path, stack in found.items() if stack.as_photo}
    if not images:
        return verdicts
    if photos is None:
        alike = sum(stack.looks_photo for stack in found.values())
        photos = len(plain) + alike > len(found) - alike
    if photos:
        return verdicts | {path: stack.as_photo for path, stack in images.items()}
    first = next(iter(found))
    count = f"{len(found):,} file{'s' * (len(found) > 1)} of measured values such as {first}"
    return verdicts | dict.fromkeys(plain, f"a photo or page of 8 bits among {count}: remove it")


def apply(
    images: ImageSet, report: ScanReport, trained: Trained | None = None, asked: tuple[str, ...] = ()
) -> ImageSet:
    """Return the set without the rejected files, with sizes and, of files that are not photos, their channels.

    Mean and deviation of the channels are measured over the training images, or over all images where there is no
    training split, unless the images are for a model that is `trained` (see `union.of_stacks`).

    Raises:
        UserError: a split is left empty, or a class without an image to train on, or the files differ in kind or
            number of channels among each other, from channels.txt or from the trained model.
    """
    splits = {name: _usable(f"{name} of {images.root}", split, report) for name, split in images.splits.items()}
    encodings = {path: how for split in splits.values() for path in split.paths if (how := report.encodings.get(path))}
    by_pillow = frozenset(path for split in splits.values() for path in split.paths if path in report.by_pillow)
    scanned = replace(images, splits=splits, encodings=encodings, by_pillow=by_pillow, digests=report.digests)
    scanned = with_classes(images, scanned, {item.path: item.reason for item in report.rejected})
    found = {path: report.stacks.get(path) for split in splits.values() for path in split.paths}
    return _with_photos(scanned, found) if None in found.values() else _with_stacks(scanned, found, trained, asked)


def remarks(report: ScanReport, by_dali: bool) -> tuple[str, ...]:
    """Return lines for the user on files of which a part is used or that are changed, and on what DALI does not decode.

    `by_dali` says whether DALI decodes the photos.
    """
    several, clear, deep, unheard = (
        [path for path, how in report.encodings.items() if word in how]
        for word in (FRAMES, TRANSPARENT, SCALED, UNHEARD)
    )
    dim = {path: highest for path, highest in report.scaled.items() if highest < DIM}
    lost = {path: int((stack.moments.counts == 0).sum()) for path, stack in report.stacks.items() if stack.missing}
    incomplete = [path for path, count in lost.items() if _is_missing_elsewhere(report.stacks[path], count)]
    lacking = [path for path, count in lost.items() if count]
    flat = [
        path for path, stack in report.stacks.items() if (stack.moments.constant & (stack.moments.counts > 1)).any()
    ]
    groups = [
        ("photo", several, "of several frames, of which the first is used"),
        ("photo", clear, "with transparency, which is dropped"),
        ("photo", deep, "of more than 8 bits, scaled from 0..their maximum to 0..255"),
        ("photo", unheard, f"with names of channels or nodata, which photos have not: {descriptions.FILE} tells bands"),
        ("photo", list(report.scaled), "of 16 bits among photos of 8, scaled from 0..65535 to 0..255"),
        ("photo", list(dim), f"of these with no value above {max(dim.values(), default=0):,.0f}: they become dark"),
        ("stack", incomplete, "with missing values, which become the mean of their channel"),
        ("stack", lacking, "with channels that have no value, which they are taken to lack"),
        ("stack", flat, f"with channels of one value throughout, taken as measured: {LACKS}"),
    ]
    if by_dali:
        groups.append(("photo", list(report.by_pillow), "left to Pillow, as DALI decodes them otherwise or not at all"))
    counted = ((f"{len(paths):,} {kind}{'s' * (len(paths) > 1)}", paths, what) for kind, paths, what in groups if paths)
    return (*(f"{count} {what}, such as {paths[0]}" for count, paths, what in counted), *_apart(report))


def _apart(report: ScanReport) -> Iterator[str]:
    """Yield a line for each value that looks as if it stood for none in stacks."""
    by_value: dict[float, dict[str, Apart]] = {}
    for path, stack in report.stacks.items():
        if stack.apart:
            by_value.setdefault(stack.apart.value, {})[path] = stack.apart
    for value, found in by_value.items():
        path, (place, _, share) = next(iter(found.items()))
        name = (report.stacks[path].names or {place: place})[place]
        where = f"{len(found):,} stack{'s' * (len(found) > 1)}, such as {share:.0%} of channel {name} of {path}"
        yield (
            f"the value {value:.6g}, far from all others, fills a part of {where}: if it stands for missing values, "
            "save them as NaN, or give a GeoTIFF its nodata value"
        )


def _is_missing_elsewhere(stack: Stack, channels: int) -> bool:
    """Return whether values are missing outside the `channels` that have none."""
    return stack.missing > channels * stack.height * stack.width


def shape(images: ImageSet) -> str:
    """Return a scanned set of stacks in a line: how many channels, the sizes of the images, and the channels' names.

    Raises:
        ValueError: the set has not been scanned.
    """
    sizes = np.array(list(sizes_of(images).values()))
    least, most = (" x ".join(map(str, each)) for each in (sizes.min(0), sizes.max(0)))
    names = images.channels.names
    count = f"{len(names)} channel{'s' * (len(names) > 1)}"
    return f"{count}, {least}{f' to {most}' * (least != most)}, named {listed(names)}; values are {images.dtype}"


def _with_photos(images: ImageSet, found: dict[str, Stack | None]) -> ImageSet:
    for path, stack in found.items():
        if stack is not None:
            photo = next(path for path, stack in found.items() if stack is None)
            raise UserError(f"{images.root} mixes photos and arrays, such as {photo} and {path}: wanted one kind")
    names = stacks.channel_names(images.root)
    if names not in (None, RGB.names):
        file = images.root / stacks.NAMES_FILE
        line = f"if their samples are these, have {descriptions.FILE} with the line `.,{'+'.join(names)}` instead"
        count = len(names)
        raise UserError(
            f"{file} names {count} channels, but the images are photos of R, G and B: remove it, or, {line}"
        )
    return replace(images, conventions=Conventions("uint8"))


def _with_stacks(
    images: ImageSet, found: dict[str, Stack], trained: Trained | None, asked: tuple[str, ...]
) -> ImageSet:
    first, example = next(iter(found.items()))
    for path, stack in found.items():
        if stack.scale != example.scale:
            types = f"{first} has values of type {example.stored}, {path} of {stack.stored}"
            raise UserError(f"{images.root}: {types}: wanted one type, such as float32 in all")
    images = replace(images, dtype=example.dtype, stacks=True, conventions=Conventions(example.scale))
    return union.of_stacks(images, found, trained, asked)


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
    return Split.of(rows)


def _inspect(root: str, compared: bool, measured: bool, files: Sequence[tuple[str, Form]]) -> list[Verdict]:
    if compared and not measured:
        dali_check.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return inspection.of_all([(os.path.join(root, path), form) for path, form in files], compared, measured)


class _Cache:
    """Verdicts of one root, by path, `Stamps` and form; a damaged file counts as an empty one."""

    def __init__(self, root: Path, use: bool, forms: Mapping[str, Form], measured: bool):
        self.root, self.forms = root, forms
        self.file = cache_folder() / f"scan-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.json" if use else None
        self.rules = f"{RULES} dali {dali_check.version()} measured {measured} pixels {most_pixels()}"
        self.stamps: dict[str, list[int | str]] = {}
        self._stamps = Stamps()
        self.entries: dict[str, list] = self._load() if use else {}

    def get(self, path: str) -> Verdict | None:
        try:
            stamp = self._stamps.of(shards.container(self.root / path))
        except OSError:
            return None
        form = self.forms[path]
        self.stamps[path] = [*stamp, form.channels or 0, int(form.side_by_side)]
        entry = self.entries.get(path, ())
        known = isinstance(entry, list) and entry[: len(self.stamps[path])] == self.stamps[path]
        return inspection.from_entry(entry[len(self.stamps[path]) :]) if known else None

    def put(self, path: str, verdict: Verdict) -> None:
        if path in self.stamps:
            self.entries[path] = [*self.stamps[path], *inspection.to_entry(verdict)]

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
