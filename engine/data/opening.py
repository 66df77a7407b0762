"""Opens an image set: scans its files, leaves out unusable files, and decodes the images once if they are cached."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from polychrome.engine import console
from polychrome.engine.channels.names import RGB, Channels
from polychrome.engine.data.accounting import OTHER_SPLITS, Account
from polychrome.engine.data.augmentation import Augmentations
from polychrome.engine.data.batches import BatchRequest, Reading
from polychrome.engine.data.conventions import Trained
from polychrome.engine.data.image_set import ImageSet, Split, lacking, sizes_of, without
from polychrome.engine.data.loader import Loader
from polychrome.engine.data.readers import choice
from polychrome.engine.data.readers.choice import Store
from polychrome.engine.data.sets import division, repeats, scan
from polychrome.engine.data.sets.sensors import union
from polychrome.engine.data.stores.disk import ImageCache
from polychrome.engine.data.stores.placement import Placement, choose_placement
from polychrome.engine.data.stores.uniform import UniformImages
from polychrome.engine.data.stores.whole import WholeImages
from polychrome.engine.data.units import far_off
from polychrome.engine.errors import UserError
from polychrome.engine.machine import distributed

BATCH = 64  # images decoded at once


class Wanted(NamedTuple):
    """Options for opening an image set.

    backend: the decoder, one of `choice.BACKENDS` or "auto", with `workers` threads or processes.
    device: the device of the batches.
    cache: the memory for decoded images, "auto", "device", "host" or "none".
    stored_size: height and width in pixels that a cached square image needs; cache_size: those that cached images are
        squeezed to, by default as `choose_placement` says.
    holdout: the number of training images to hold out.
    splits: the splits to open; empty: all.
    strict: whether an unusable file is an error instead of being left out.
    group_by: a regular expression that related files have in common; those in two splits are told.
    trained: what is known of a trained model's data. It says whether the files are photos, and missing values become
        the means of its channels.
    begun: the channels of a training that goes on, whose means and deviations hold in place of those of the files.
    """

    backend: str
    device: torch.device
    workers: int
    cache: str = "none"
    stored_size: int = 0
    holdout: int = 0
    splits: tuple[str, ...] = ()
    strict: bool = False
    group_by: str | None = None
    trained: Trained | None = None
    begun: Channels | None = None
    cache_size: int | None = None


@dataclass(frozen=True)
class Opened:
    """An image set without unusable files, from which loaders are made.

    images: the set without the files that were left out.
    rejected: "path", "split" and "reason" of each file that was left out.
    account: how many of the files that are there are used, rejected and ignored; None where no file is read.
    division: a digest of the listed files of each split except training.
    contents: a digest of the files, labels and pixels of each split; none where no file is read.
    store: the decoded images, if they are cached in memory.
    positions: for each split, where its images are in the user's list; None where no file was left out.
    """

    images: ImageSet
    wanted: Wanted
    rejected: list[dict[str, str]] = field(default_factory=list)
    account: Account | None = None
    division: dict[str, str] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    store: Store | None = None
    positions: dict[str, tuple[int, ...]] | None = None

    def loader(
        self,
        split: str,
        *,
        augmentations: Augmentations | None = None,
        shared: bool = False,
        on_fault: Callable[[str, str], None] | None = None,
        **options: Any,
    ) -> Loader:
        """Return the loader of a split: with `augmentations` for training, else centre crops in the list's order.

        With `shared`, each process gets its share of every batch. A file that can no longer be read is named on the
        terminal, or given to `on_fault(path, reason)`. `options` are further arguments of `engine.data.loader.Loader`.
        """
        return Loader(
            self.images,
            split,
            train=augmentations is not None,
            backend=self.wanted.backend,
            device=self.wanted.device,
            workers=self.wanted.workers,
            augmentations=augmentations,
            store=self.store,
            rank=distributed.rank() if shared else 0,
            world_size=distributed.world_size() if shared else 1,
            on_fault=on_fault or (lambda path, reason: console.warn(f"left out: {path} ({split}): {reason}")),
            **options,
        )


def open_set(images: ImageSet, wanted: Wanted, decoded: WholeImages | None = None) -> Opened:
    """Open a listed set, or a set that is `decoded` already; each file that is left out is named on the terminal.

    Raises:
        UserError: too few images are usable, the images do not fit into the cache, the backend cannot read them, or
            with `strict` a file is unusable.
    """
    if wanted.holdout and wanted.group_by:
        raise UserError("--holdout draws single images, and --group-by keeps groups together: give one of the two")
    images = division.hold_out(images, wanted.holdout) if wanted.holdout else images
    account = images.account
    if wanted.splits:
        every = _files(images)
        images = replace(images, splits={name: images.splits[name] for name in wanted.splits})
        if account and (others := len(every - _files(images))):
            account = account.with_ignored({OTHER_SPLITS: others}, among_used=True)
    digests = division.digests(images)
    if decoded is not None:
        placement = choose_placement(images, wanted.cache, wanted.device, wanted.stored_size, wanted.cache_size)
        store = placed(decoded, placement) if placement else decoded
        return Opened(images, wanted, account=account, division=digests, store=store)
    if wanted.backend == "synthetic":
        return Opened(images, wanted, division=digests)
    listed, report = images, _checked(images, wanted)
    rejected = _left_out(images, {item.path: item.reason for item in report.rejected}, wanted.strict)
    images = scan.apply(images, report, _of_stacks(wanted))
    contents = division.contents(listed.splits, images, report.contents())
    measured = images.channels
    if wanted.begun is not None:
        images = _with_statistics(images, wanted.begun)
    by_dali = choice.resolve(wanted.backend, images.stacks) == "dali"
    shape = (scan.shape(images),) if images.stacks else ()
    notes = (
        *images.notes,
        *shape,
        *scan.remarks(report, by_dali),
        *repeats.notes(images, report.digests, wanted.group_by),
    )
    images = replace(images, notes=notes)
    for note in (*images.notes, *union.notes(images)):
        console.say(note)
    known = wanted.trained is not None or images.channels != measured
    if images.stacks and known and (line := far_off(images, report.stacks, images.channels)):
        console.warn(line)
    store = open_store(images, wanted)
    if store is not None and store.faults:
        rejected += _left_out(images, store.faults, wanted.strict)
        images = without(images, store.faults)
    for note in (told := (*lacking(images), *union.told_apart(images))):
        console.say(note)
    images = replace(images, notes=(*images.notes, *told))
    gone = {item["path"] for item in rejected}
    positions = {
        name: tuple(position for position, path in enumerate(split.paths) if path not in gone)
        for name, split in listed.splits.items()
    }
    if account:
        account = account.without(len({posixpath.normpath(file) for path in gone for file in listed.files(path)}))
        if account.is_notable:
            console.say(str(account))
    return Opened(images, wanted, rejected, account, digests, contents, store, positions)


def _with_statistics(images: ImageSet, begun: Channels) -> ImageSet:
    """Return a set with the means and deviations of another's channels, and a note where its own differ from these."""
    own = images.channels
    if own.names != begun.names:
        return images
    rows = zip(own.names, begun.mean, begun.std, own.mean, own.std, strict=True)
    if not (moved := [row for row in rows if row[1:3] != row[3:]]):
        return images
    name, mean, std, own_mean, own_std = max(moved, key=lambda row: abs(row[3] - row[1]) / max(row[2], 1e-12))
    note = (
        f"channels are standardised as before by their mean and deviation, such as {mean:.6g} and {std:.6g} of {name}, "
        f"of which the training images have {own_mean:.6g} and {own_std:.6g} now"
    )
    return replace(images, channels=replace(own, mean=begun.mean, std=begun.std), notes=(*images.notes, note))


def contents(images: ImageSet, wanted: Wanted) -> dict[str, str]:
    """Return what `Opened.contents` would be of a listed set of files; raises UserError as `open_set` does."""
    report = _checked(images, wanted)
    return division.contents(images.splits, scan.apply(images, report, _of_stacks(wanted)), report.contents())


def _checked(images: ImageSet, wanted: Wanted) -> scan.ScanReport:
    paths = images.paths
    photos = None if wanted.trained is None else are_photos(wanted.trained.channels, wanted.trained.dtype)
    with console.progress("checking files", sum(len(images.files(path)) for path in paths)) as bar:
        return scan.scan(images.root, paths, wanted.workers, bar.reach, photos=photos, parts=images.parts)


def _of_stacks(wanted: Wanted) -> Trained | None:
    """Return what a model was trained on where that were stacks, which a set of stacks is read as."""
    trained = wanted.trained
    return None if trained is None or are_photos(trained.channels, trained.dtype) else trained


def open_store(images: ImageSet, wanted: Wanted) -> Store | None:
    """Return the decoded images of a scanned set, read from the disk cache if possible; None without a cache in memory.

    Raises:
        UserError: the images do not fit into the cache, or the backend cannot read them.
        ValueError: the set has not been scanned.
    """
    backend = choice.resolve(wanted.backend, images.stacks)
    how = wanted.stored_size, wanted.cache_size, wanted.trained is None
    placement = choose_placement(images, wanted.cache, wanted.device, *how)
    if placement is None:
        if wanted.cache != "none":
            console.say("images are not kept, as they would take more than half of the free memory: decoded each epoch")
        return None
    cache = disk_cache(images, placement, backend, wanted.device, wanted.workers)
    with console.waiting("reading decoded images"):
        store = load_store(images, placement, cache)
    if store is None:
        with console.progress("decoding", len(sizes_of(images))) as bar:
            store = decode(images, placement, backend, wanted.device, wanted.workers, bar.reach)
        with console.waiting("keeping decoded images"):
            cache.save(store.values, store.faults)
    console.say(str(placement))
    return store


def disk_cache(
    images: ImageSet,
    placement: Placement,
    backend: str,
    device: torch.device,
    workers: int,
    say: Callable[[str], None] = console.say,
) -> ImageCache:
    """Return the disk cache of a scanned set with this placement, decoded by `backend` for `device`."""
    # Whole images have the pixels that `engine.data.files.decode` defines, whatever the backend.
    by = f"{backend} {device.type if backend == 'dali' else 'cpu'}" if placement.resampled else "definition"
    return ImageCache(images, placement.form, by, say, workers, placement.regions(images))


def load_store(images: ImageSet, placement: Placement, cache: ImageCache) -> Store | None:
    """Return the images in the disk cache; None where there are none. Raises ValueError for a set not scanned."""
    found = cache.load()
    if found is None:
        return None
    if not placement.resampled:
        return placed(WholeImages.of(images, found.values, found.faults), placement)
    paths = list(sizes_of(images))
    values = found.values.reshape(len(paths), *placement.size, len(images.channels))
    return UniformImages.of(values, paths, placement.device, found.faults, placement.regions(images))


def decode(
    images: ImageSet,
    placement: Placement,
    backend: str,
    device: torch.device,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Store:
    """Decode every image of a scanned set; files that can no longer be read are in the `faults` of the result.

    The backend decodes to `device`; `progress(done, total)` is called as images are decoded.

    Raises:
        ValueError: the set has not been scanned.
    """
    if not placement.resampled:
        return placed(WholeImages.load(images, workers, progress), placement)
    sizes, side, crops = sizes_of(images), placement.size[0], placement.regions(images)
    paths = tuple(sizes)
    every = replace(images, splits={"every": Split(paths, (0,) * len(paths), tuple(sizes.values()))})
    parts = [np.arange(len(paths))[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    requests = [BatchRequest(part, crops[part], np.zeros(len(part), bool), len(part)) for part in parts]
    values = torch.empty(len(paths), side, side, len(images.channels), dtype=torch.uint8, device=placement.device)
    reader, faults = choice.reader(Reading(every, "every", side, BATCH, device, workers), backend), {}
    try:
        for part, decoded in zip(parts, reader.read(requests), strict=True):
            values[part[0] : part[-1] + 1] = decoded.source.images.permute(0, 2, 3, 1)
            faults |= {paths[part[position]]: reason for position, reason in decoded.faults.items()}
            progress(int(part[-1]) + 1, len(paths))
    finally:
        reader.close()
    return UniformImages(values, paths, faults, regions=crops)


def placed(images: WholeImages, placement: Placement) -> Store:
    """Return whole images as they are, or, if all have one size, as `UniformImages` on the device of the placement."""
    if placement.size is None or placement.resampled:
        return images
    values = images.values.reshape(len(images.paths), *placement.size, images.channels)
    return UniformImages.of(values, images.paths, placement.device, images.faults)


def are_photos(channels: Channels, dtype: str) -> bool:
    """Return whether data of these channels and this type of values is of photos, not of stacks."""
    return channels == RGB and dtype == "uint8"


def _files(images: ImageSet) -> set[str]:
    return {posixpath.normpath(file) for path in images.paths for file in images.files(path)}


def _left_out(images: ImageSet, reasons: Mapping[str, str], strict: bool) -> list[dict[str, str]]:
    """Name unusable files on the terminal, and return path, split and reason of each."""
    rejected = [
        {"path": path, "split": name, "reason": reasons[path]}
        for name, split in images.splits.items()
        for path in split.paths
        if path in reasons
    ]
    for item in rejected:
        console.say(f"left out: {item['path']} ({item['split']}): {item['reason']}")
    if rejected and strict:
        first = rejected[0]
        raise UserError(
            f"--strict: {len(rejected)} files cannot be used; the first is {first['path']}: {first['reason']}"
        )
    return rejected
