"""Files and Pillow images for a trained network, read as the files that it was trained on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polychrome.engine.channels.names import RGB
from polychrome.engine.data.conventions import Trained
from polychrome.engine.data.files import shards, stacks
from polychrome.engine.data.files.kinds import SCALED
from polychrome.engine.data.image_set import ImageSet, Split
from polychrome.engine.data.opening import are_photos
from polychrome.engine.data.sets import inspection, scan
from polychrome.engine.data.sets.inspection import Stack
from polychrome.engine.data.sets.scan import Rejected, ScanReport
from polychrome.engine.data.sets.sensors import channel_files, descriptions, union
from polychrome.engine.data.units import far_off
from polychrome.engine.errors import Unsupported, UserError

if TYPE_CHECKING:
    from PIL.Image import Image

FEW = 64  # files that are not worth starting processes for

Sets = list[tuple[list[int], ImageSet]]
Apart = Mapping[Path, Mapping[str, Path]]
Said = Callable[[str], None]


def image_sets(
    files: Sequence[Path],
    trained: Trained,
    asked: tuple[str, ...] = (),
    fail: Callable[[int, str], None] | None = None,
    warn: Said = lambda line: None,
    workers: int = 1,
    apart: Apart | None = None,
) -> Sets:
    """Return files as image sets of one kind each, in a split "images", with the statistics of the training.

    The files are read as photos where the training was on photos, else as stacks, with what `channels.csv` or
    `channels.txt` says in the folder that `descriptions.folder_of` finds. Stacks may have some of the channels: for
    which, see `naming.of_model`. With each set come the places of its images among `files`.

    Args:
        asked: the channels that are asked for, in order.
        fail: called with the place of a file and the reason why it cannot be used; by default that is raised.
        warn: called with a line on files whose values are far from those of the training.
        workers: the processes that decode more than `FEW` files.
        apart: the files of each image that has one for each channel, by the one among `files`, see `together`.

    Raises:
        UserError: without `fail`, a file cannot be decoded, or its channels or values are others than the training's.
    """
    fail = fail or partial(refuse, files)
    home = trained.root and trained.root.resolve()
    apart = apart or {}
    by_folder: dict[Path, dict[int, Path]] = {}
    for place, file in enumerate(files):
        absolute = located(file)
        by_folder.setdefault(absolute.parent, {})[place] = absolute
    by_root: dict[tuple[Path | None, bool], dict[int, Path]] = {}
    for folder, inside in by_folder.items():
        try:
            root = descriptions.folder_of(folder, home)
        except UserError as error:
            for place in inside:
                fail(place, str(error))
            continue
        for place, file in inside.items():
            by_root.setdefault((root, file in apart), {})[place] = file
    sets = []
    for (own, in_parts), inside in by_root.items():
        parts_of = {place: apart[file] for place, file in inside.items() if in_parts}
        every = [*inside.values(), *(part for parts in parts_of.values() for part in parts.values())]
        root = own or Path(os.path.commonpath([Path(shards.container(file)).parent for file in every]))
        paths = {place: file.relative_to(root).as_posix() for place, file in inside.items()}
        parts = {
            paths[place]: {name: os.path.relpath(part, root) for name, part in parts.items()}
            for place, parts in parts_of.items()
        }
        sets += _of_root(root, own is not None, paths, parts, trained, asked, fail, warn, workers)
    return sets


def together(files: Sequence[Path], trained: Trained) -> tuple[list[Path], Apart]:
    """Return the files that images go by, and the files of each image that has one for each of its channels.

    Files are of one image where the training took such files for one. Files outside of its folder are told by their
    paths from the folder that all of them lie in; where these do not tell, a file is left on its own.

    Args:
        files: `located`, each once.
    """
    if trained.channel_files is None:
        return list(files), {}
    home = trained.root and trained.root.resolve()
    folders = dict.fromkeys(file.parent for file in files)
    inside = {each: next((up for up in (each, *each.parents) if up.resolve() == home), None) for each in folders}
    outside = [folder for folder, base in inside.items() if base is None]
    common = Path(os.path.commonpath(outside)) if outside else None
    by_base: dict[Path, list[Path]] = {}
    for file in files:
        by_base.setdefault(inside[file.parent] or common, []).append(file)
    apart = {}
    for base, own in by_base.items():
        paths = [file.relative_to(base).as_posix() for file in own]
        for path, parts in channel_files.together(paths, trained.channel_files).items():
            apart[base / path] = {name: base / part for name, part in parts.items()}
    others = {file for first, parts in apart.items() for file in parts.values() if file != first}
    return [file for file in files if file not in others], apart


def located(file: Path) -> Path:
    """Return the absolute path of a file, which links lead through as its user wrote it."""
    return file.resolve() if ".." in file.parts else file.absolute()


def _of_root(
    root: Path,
    described: bool,
    paths: Mapping[int, str],
    parts: Mapping[str, Mapping[str, str]],
    trained: Trained,
    asked: tuple[str, ...],
    fail: Callable[[int, str], None],
    warn: Said,
    workers: int,
) -> Sets:
    """Return the sets of files below a folder that describes them; of one that does not, shapes go by the model."""
    counts = () if described or parts else (len(trained.channels), len(asked))
    try:
        report = _scanned(root, tuple(paths.values()), parts, trained, counts, workers)
    except UserError as error:
        for place in paths:
            fail(place, str(error))
        return []
    reasons = {item.path: item.reason for item in report.rejected}
    kinds: dict[str, list[int]] = {}
    for place, path in paths.items():
        stack = report.stacks.get(path)
        if why := reasons.get(path) or (stack and _other_values(stack, trained)):
            fail(place, why)
        else:
            kinds.setdefault(stack.scale if stack else "photos", []).append(place)

    def made(places: Sequence[int]) -> ImageSet | None:
        own = [paths[place] for place in places]
        split = Split(tuple(own), (0,) * len(own))
        listed = ImageSet(root, ("",), {"images": split}, parts={path: parts[path] for path in own if path in parts})
        try:
            found = scan.apply(listed, report, trained, asked)
        except UserError as error:
            if len(places) == 1:
                fail(places[0], str(error).removeprefix(f"{root}: ").removeprefix(f"{root / own[0]} "))
            return None
        tables = {name: getattr(report, name) for name in ("stacks", "encodings", "scaled")}
        part = replace(report, **{name: {path: of[path] for path in own if path in of} for name, of in tables.items()})
        return replace(found, notes=(*found.notes, *scan.remarks(part, by_dali=False)))

    sets = [(places, images) for rows in kinds.values() for places, images in _largest_sets(rows, made)]
    for _, images in sets:
        if line := far_off(images, report.stacks, trained.channels):
            warn(line)
    return sets


def _largest_sets(places: list[int], made: Callable[[Sequence[int]], ImageSet | None]) -> Sets:
    """Return as large sets as can be made of some files, halving them where some do not fit."""
    if (images := made(places)) is not None:
        return [(places, images)]
    if len(places) == 1:
        return []
    half = len(places) // 2
    return [*_largest_sets(places[:half], made), *_largest_sets(places[half:], made)]


def _scanned(
    root: Path,
    paths: tuple[str, ...],
    parts: Mapping[str, Mapping[str, str]],
    trained: Trained,
    counts: tuple[int, ...],
    workers: int,
) -> ScanReport:
    """Return the report on files whose shapes may have one of `counts` channels; empty: as in training."""
    photos = are_photos(trained.channels, trained.dtype)
    workers = workers if len(paths) > FEW else 1
    how = {"workers": workers, "cache": False, "photos": photos, "measured": not photos, "parts": parts}
    report = scan.scan(root, paths, channels=counts[0] if counts else None, **how)
    if len(set(counts) - {0}) < 2:
        return report
    wanted, asked = counts
    by_asked = scan.scan(root, paths, channels=asked, **how).stacks
    doubtful, other = [], {}
    for path, stack in report.stacks.items():
        if path not in by_asked or by_asked[path].channels != asked:
            continue
        if stack.channels == wanted:
            why = f"may have {wanted} channels or {asked} by its shape: {descriptions.FILE} in its folder can name them"
            doubtful.append(Rejected(path, why))
        else:
            other[path] = by_asked[path]
    sizes = report.sizes | {path: (stack.height, stack.width) for path, stack in other.items()}
    return replace(report, sizes=sizes, stacks=report.stacks | other, rejected=(*report.rejected, *doubtful))


def _other_values(stack: Stack, trained: Trained) -> str | None:
    """Return why the values of a file cannot be compared with those of the training; None where they can."""
    before = trained.conventions.scale
    if before in (None, stack.scale) and stack.dtype == trained.dtype:
        return None
    return f"has values of type {stack.stored}, the run was trained on {before or trained.dtype}: wanted one type"


def of_pillow(
    image: Image, trained: Trained, asked: tuple[str, ...] = ()
) -> tuple[np.ndarray, tuple[int, ...], tuple[str, ...]]:
    """Return a Pillow image as its file is read: [height, width, channels of the training], and which of them it has.

    Channels that it lacks are 0. With it come the lines for the user that its file has.

    Raises:
        UserError: the image is not of the training's kind, or Pillow does not tell what its file does.
    """
    from polychrome.engine.data.files import decode

    name = getattr(image, "filename", "")
    file = located(Path(name or "/image"))
    home = trained.root and trained.root.resolve()
    root = descriptions.folder_of(file.parent, home) if name else None
    path = file.relative_to(root or file.parent).as_posix()
    line = root and (descriptions.read(root, [path]) or {}).get(path)
    names = root and stacks.channel_names(root)
    try:
        if are_photos(trained.channels, trained.dtype) and not line and names in (None, RGB.names):
            photo, how, highest = decode.of_pillow(image)
            scaled = {} if highest is None or SCALED in how else {path: highest}
            report = ScanReport({}, (), 0, encodings={path: how}, scaled=scaled)
            return photo, (0, 1, 2), scan.remarks(report, by_dali=False)
        if trained.dtype != "uint8":
            raise Unsupported("the network was trained on measured values: give the path of the file, or an array")
        if line and line.form.side_by_side:
            raise Unsupported("its channels lie side by side: give the path of the file, or an array of all channels")
        count = len(line.names) if line else len(names) if names else None if root else len(trained.channels)
        stack = inspection.stack(pixels := decode.samples_of_pillow(image, count))
    except Unsupported as error:
        raise UserError(f"{type(image).__name__}: {error}") from None
    listed = ImageSet(root or file.parent, ("",), {"images": Split((path,), (0,))}, dtype="uint8", stacks=True)
    images = union.of_stacks(listed, {path: stack}, trained, asked)
    arrangement = images.arrangements.get(path)
    values = pixels.values if arrangement is None else arrangement.placed(pixels.values)
    report = ScanReport({}, (), 0, {path: stack})
    return values, images.present(path), (*images.notes, *scan.remarks(report, by_dali=False))


def refuse(files: Sequence[Path], place: int, reason: str) -> None:
    """Raise UserError for a file, by its place among the files, with the reason."""
    raise UserError(f"{files[place]}: {reason}")
