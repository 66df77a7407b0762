"""Decode every file once before training, so that no damaged one can stop it later."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path

from engine.data import cache as places
from engine.data.listing import ImageSet, Split
from engine.errors import UserError

RULES = 1  # raise it when a file's verdict may change
CHUNK = 64
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*")

Verdict = tuple[int, int] | str  # (height, width), or why the file is rejected


@dataclass(frozen=True)
class Rejected:
    """A file that cannot be used and, in one line, why."""

    path: str
    reason: str


@dataclass(frozen=True)
class ScanReport:
    """(height, width) in pixels of each usable file, the rejected ones, and how many files had to be decoded."""

    sizes: dict[str, tuple[int, int]]
    rejected: tuple[Rejected, ...]
    decoded: int


def scan(
    root: str | Path,
    paths: Sequence[str],
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cache: bool = True,
) -> ScanReport:
    """Decode files fully, in `workers` processes (default: one per core), and report their sizes or faults.

    `paths` are relative to `root`. `progress(done, total)` is called as files are dealt with. With `cache`, verdicts
    are kept in the user's cache folder until a file's size or modification time changes. Where DALI is installed
    it is asked too, since one file that it refuses ends its pipeline.
    """
    root = Path(root).resolve()
    paths = list(dict.fromkeys(paths))
    known = _Cache(root, cache)
    verdicts: dict[str, Verdict] = {}
    todo = []
    for path in paths:
        verdict = known.get(path)
        if verdict is None:
            todo.append(path)
        else:
            verdicts[path] = verdict
    chunks = [todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)]
    try:
        for chunk, found in zip(
            chunks, places.parallel(partial(_inspect, str(root)), chunks, workers or places.cpus()), strict=True
        ):
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
    sizes = {path: verdicts[path] for path in paths if not isinstance(verdicts[path], str)}
    rejected = tuple(Rejected(path, verdicts[path]) for path in paths if isinstance(verdicts[path], str))
    return ScanReport(sizes, rejected, len(todo))


def apply(images: ImageSet, report: ScanReport) -> ImageSet:
    """Return the set without the rejected files and with sizes; raises UserError where a split is left empty."""
    splits = {name: _kept(f"{name} of {images.root}", split, report) for name, split in images.splits.items()}
    return replace(images, splits=splits)


def _kept(name: str, split: Split, report: ScanReport) -> Split:
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


def _inspect(root: str, paths: Sequence[str]) -> list[Verdict]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [_verdict(os.path.join(root, path)) for path in paths]


def _verdict(file: str) -> Verdict:
    from PIL import UnidentifiedImageError

    from engine.data import decode

    try:
        if os.path.getsize(file) == 0:
            return "empty file"
        decode.verify(file)
        height, width, _ = decode.rgb(file).shape
    except FileNotFoundError:
        return "missing file"
    except UnidentifiedImageError:
        return _unidentified(file)
    except decode.Unsupported as error:
        return _one_line(error)
    except OSError as error:
        return error.strerror or _damage(error)
    if _dali_version():
        from engine.data.dali_check import decoded_shape

        seen = decoded_shape(file)
        if seen != (height, width):
            return "damaged: DALI cannot decode it" if seen is None else f"DALI sees it as {seen}, not {height, width}"
    return height, width


def _unidentified(file: str) -> str:
    with open(file, "rb") as stream:
        head = stream.read(24)
    if head.startswith(MAGIC):
        return "truncated or damaged in its header"
    return f"not an image: it starts with {head!r}"


def _damage(error: OSError) -> str:
    text = _one_line(error)
    cut = "truncated" in text.lower() or isinstance(error.__cause__, EOFError)
    return f"truncated: {text}" if cut else text if text.startswith("damaged") else f"damaged: {text}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@functools.cache
def _dali_version() -> str | None:
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return None
    names = {name for name in metadata.packages_distributions().get("nvidia", ()) if "dali" in name}
    return metadata.version(min(names)) if names else "unknown"


class _Cache:
    """Verdicts of one root, by path, file size and modification time; a damaged file counts as an empty one."""

    def __init__(self, root: Path, use: bool):
        self.root = root
        self.file = places.folder() / f"scan-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.json" if use else None
        self.rules = f"{RULES} dali {_dali_version()}"
        self.stamps: dict[str, list[int]] = {}
        self.entries: dict[str, list] = self._load() if use else {}

    def get(self, path: str) -> Verdict | None:
        try:
            state = os.stat(self.root / path)
        except OSError:
            return None
        self.stamps[path] = [state.st_size, state.st_mtime_ns]
        entry = self.entries.get(path)
        if entry is None or entry[:2] != self.stamps[path]:
            return None
        return entry[2] if isinstance(entry[2], str) else (entry[2], entry[3])

    def put(self, path: str, verdict: Verdict) -> None:
        if path in self.stamps:
            self.entries[path] = [*self.stamps[path], *([verdict] if isinstance(verdict, str) else verdict)]

    def save(self) -> None:
        if self.file is None:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.file.parent, suffix=".tmp", delete=False) as stream:
                json.dump({"rules": self.rules, "root": str(self.root), "files": self.entries}, stream)
            os.replace(stream.name, self.file)
        except OSError as error:
            warnings.warn(f"the scan's results could not be kept in {self.file}: {error}", stacklevel=3)

    def _load(self) -> dict[str, list]:
        try:
            content = json.loads(self.file.read_text())
            if (content["rules"], content["root"]) != (self.rules, str(self.root)):
                return {}
            return {path: entry for path, entry in content["files"].items() if _well_formed(entry)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}


def _well_formed(entry: list) -> bool:
    kinds = [type(value) for value in entry]
    return kinds in ([int, int, str], [int, int, int, int])
