"""The data set of a run: found and opened as its settings say."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from polychrome.engine import console
from polychrome.engine.channels import combinations
from polychrome.engine.channels.combinations import Combinations
from polychrome.engine.channels.names import ALL, RGB, SENSORS, Channels
from polychrome.engine.data.augmentation import Augmentations
from polychrome.engine.data.conventions import Conventions, Trained
from polychrome.engine.data.files import shards
from polychrome.engine.data.image_set import ImageSet, having
from polychrome.engine.data.loader import Loader
from polychrome.engine.data.opening import Opened, Wanted, contents, open_set
from polychrome.engine.data.sets import division, generated, listing
from polychrome.engine.data.sets.layouts.labelled import Known
from polychrome.engine.data.sets.sensors import union
from polychrome.engine.data.stores.whole import WholeImages
from polychrome.engine.errors import UserError
from polychrome.engine.machine import distributed
from polychrome.train.settings import variants
from polychrome.train.settings.config import Settings


def open_data(
    settings: Settings,
    task: str,
    splits: tuple[str, ...] = (),
    trained: Trained | None = None,
    known: Known | None = None,
    begun: Channels | None = None,
) -> Opened:
    """Return the opened data set of a run, or some splits of it. Files left out are named on the terminal.

    `trained` is what is known of a model's data, for use with that model, and `known` are its classes, of which other
    data may have a part. `begun` are the channels of a run that goes on, whose means and deviations hold.

    Of several processes on a machine the first decodes the images, and the others read its disk cache.

    Raises:
        UserError: the data is missing or malformed, does not fit into the memory that `cache` names, or has, with
            `strict`, a file that cannot be decoded.
    """
    how = how_to_open(settings, splits)._replace(trained=trained, begun=begun)
    with distributed.main_first():
        opened = open_set(*_listed(settings, task, how, known))
    _check_everyones(opened)
    return opened


def _check_everyones(opened: Opened) -> None:
    """Raise UserError where another process has opened other images than the first."""
    if distributed.world_size() == 1:
        return
    images = opened.images
    parts = {"classes": images.class_names, "channels": images.channels}
    for name, split in images.splits.items():
        parts[f"images of {name}"] = split.paths, split.labels, opened.contents.get(name)
    own = {part: hashlib.blake2b(repr(value).encode(), digest_size=16).digest() for part, value in parts.items()}
    (_, first), *others = distributed.everyones((platform.node(), own))
    for rank, (machine, found) in enumerate(others, 1):
        if differing := [part for part in first | found if first.get(part) != found.get(part)]:
            raise UserError(
                f"{images.root} is not the same everywhere: process {rank}, on {machine}, has other "
                f"{', '.join(differing)} than process 0"
            )


def open_undivided(settings: Settings, before: dict, trained: Trained) -> Opened | None:
    """Return the labelled images of a folder without splits, all of them as the split "test", opened.

    None where the folder of the settings has splits, or holds the data of the run whose "data" entry is `before`: the
    same files by name and label, and in some split by content.

    Raises:
        UserError: a class is not among those of the run, or `strict` and a file cannot be decoded.
    """
    root = Path(settings.data)
    if root.resolve() == Path(before["root"]).resolve():
        return None
    known = known_classes(before)
    if (images := listing.undivided(root, known, settings.channel_files)) is None:
        return None
    how = how_to_open(settings)._replace(holdout=0, trained=trained)
    with suppress(UserError):  # a class may have too few images to be divided
        divided = _read(settings, root, known)
        if all(digest == before["division"].get(name) for name, digest in division.digests(divided).items()):
            if not (of_run := before.get("contents")):
                console.say(f"{root} is taken for the run's data, as its files have the same names and labels")
                return None
            if any(digest == of_run.get(name) for name, digest in contents(divided, how).items()):
                return None
            note = f"{root} has files of the names and labels of the run's, but of other content in every split"
            images = replace(images, notes=(note, *images.notes))
    return open_set(images, how)


def known_classes(before: dict) -> Known:
    """Return the classes of a run whose "data" entry is `before`."""
    # Earlier versions tell of labels from 1 in a note alone; else their classes go by their names, which are 0, 1, ...
    shifted = any(note.startswith("labels are 1..") for note in before.get("notes", ()))
    return Known(tuple(before["class_names"]), before.get("first_label", 1 if shifted else None))


def how_to_open(settings: Settings, splits: tuple[str, ...] = ()) -> Wanted:
    """Return the options of `open_set` for the settings of a run."""
    return Wanted(
        settings.backend,
        torch.device(settings.device),
        settings.workers,
        settings.cache,
        stored_size(settings),
        settings.holdout,
        splits,
        settings.strict,
        settings.group_by,
        cache_size=settings.cache_size,
    )


def _listed(
    settings: Settings, task: str, how: Wanted, known: Known | None
) -> tuple[ImageSet, Wanted, WholeImages | None]:
    """Return the data set of the settings, `how` to open it, and its images where the data holds them decoded."""
    if task == "cifar100":
        from polychrome.engine.data.sets import cifar100  # torchvision's, with all its models

        if settings.data is None or cifar100.find(Path(settings.data)) is not None:
            with console.waiting("reading CIFAR-100"):
                images, decoded = cifar100.read(settings.data and Path(settings.data))
            return images, how, decoded
    if settings.data is None:
        with console.waiting("making the generated set"):
            return listing.read(_generated()), how, None
    return _read(settings, Path(settings.data), known), how, None


def _read(settings: Settings, root: Path, known: Known | None) -> ImageSet:
    count = None if known else settings.num_classes
    return listing.read(root, count, settings.division_seed, settings.group_by, settings.channel_files, known)


def stored_size(settings: Settings) -> int:
    """Return the side in pixels of a square image kept in memory whose centre crop has full detail for every model."""
    every = [variants.of(settings, entry) for entry in settings.models or ()] or [settings]
    return max(math.ceil(own.image_size / own.eval_crop) for own in every)


def _generated() -> Path:
    try:
        return generated.ensure()
    except OSError as error:
        raise UserError(
            f"the generated set cannot be written to {error.filename}: {error.strerror}; give --data"
        ) from None


def make_loader(
    opened: Opened,
    split: str,
    settings: Settings,
    augmentations: Augmentations | None = None,
    shared: bool = False,
    on_fault: Callable[[str, str], None] | None = None,
) -> Loader:
    """Return the loader of a split for the settings of an entry; see `Opened.loader`."""
    return opened.loader(
        split,
        size=settings.image_size,
        batch_size=settings.batch_size,
        seed=settings.seed,
        augmentations=augmentations,
        eval_crop=settings.eval_crop,
        shared=shared,
        on_fault=on_fault,
    )


def restricted(opened: Opened, chosen: tuple[int, ...]) -> Opened:
    """Return the opened set with only those training and validation images that have all channels `chosen`."""
    if not opened.images.channels.sensors:
        return opened
    parts = {split: having(opened.images, split, chosen) for split in ("train", "val")}
    return replace(opened, images=replace(opened.images, splits=opened.images.splits | parts))


def combinations_to_test(
    wanted: tuple[str, ...], images: ImageSet, splits: Iterable[str], seed: int, channels: Channels | None = None
) -> Combinations:
    """Return the combinations of channels to test on splits of an opened set, as the user wants them.

    Those of "all" and "sensors" that no image has are left out and counted on the terminal. `channels` are those of a
    trained model; their sensors come first.

    Raises:
        UserError: a combination is unknown, or is named and no image has it.
    """
    channels = images.channels if channels is None else with_sensors(channels, images)
    found = combinations.parse(wanted, channels.names, seed, channels.sensors)
    paths = (path for split in splits for path in images.splits[split].paths if images.arrangements)
    choices = set(map(images.present, paths)) or {tuple(range(len(channels)))}
    nowhere = [
        name for name, chosen in found.items() if chosen and not any(set(chosen) <= set(choice) for choice in choices)
    ]
    if named := [name for name in nowhere if name in wanted and name not in (ALL, SENSORS)]:
        raise UserError(f"channels {named[0]!r}: no image of {' or '.join(splits)} has all of them")
    if nowhere:
        count = f"{len(nowhere)} combination{'s' * (len(nowhere) > 1)} of channels"
        console.say(f"{count} not tested, as no image of {' or '.join(splits)} has them, such as {nowhere[0]}")
    return {name: chosen for name, chosen in found.items() if name not in nowhere}


def with_sensors(channels: Channels, images: ImageSet) -> Channels:
    """Return a trained model's channels with the sensors of other images after those that it was trained on."""
    return replace(channels, sensors=tuple(dict.fromkeys((*channels.sensors, *images.channels.sensors))))


def summary(opened: Opened) -> dict:
    """Return the "data" entry of `results.json`."""
    images = opened.images
    return {
        "root": str(images.root),
        "classes": len(images.class_names),
        **{name: len(split.paths) for name, split in images.splits.items()},
        "rejected": len(opened.rejected),
        "dtype": images.dtype,
        "channels": list(images.channels.names),
        "channel_mean": list(images.channels.mean),
        "channel_std": list(images.channels.std),
        "sensors": union.counts(images),
        "reading": images.conventions.as_dict(),
        "class_names": list(images.class_names),
        "first_label": images.first_label,
        "division": opened.division,
        "contents": opened.contents,
        "files": opened.account.as_dict() if opened.account else None,
        "notes": list(images.notes),
        "rejected_files": opened.rejected,
    }


def channels_of(before: Mapping[str, Any]) -> Channels:
    """Return the channels of the "data" entry of `results.json`; an earlier version's are those of photos."""
    if "channels" not in before:
        return RGB
    names = tuple(before["channels"])
    sensors = (tuple(map(names.index, sensor["channels"])) for sensor in before.get("sensors", ()))
    return Channels(names, tuple(before["channel_mean"]), tuple(before["channel_std"]), tuple(sensors))


def check_fits(before: Mapping[str, Any], images: ImageSet, trained: Path) -> None:
    """Raise UserError where images differ from those of a training in classes, channels or kind of values.

    `before` is the "data" entry of the results of the training, which a message names `trained`.
    """
    if before["class_names"] != list(images.class_names):
        raise UserError(f"{trained} was trained on other classes than {images.root} has")
    channels = channels_of(before).names
    if channels != images.channels.names:
        now = ", ".join(images.channels.names)
        raise UserError(f"{trained} was trained on channels {', '.join(channels)}, {images.root} has {now}")
    dtype = before.get("dtype", "uint8")
    if dtype != images.dtype:
        raise UserError(f"{trained} was trained on values of type {dtype}, {images.root} has {images.dtype}")
    scale, now = Conventions.of(before).scale, images.conventions.scale
    if None not in (scale, now) and scale != now:
        raise UserError(f"{trained} was trained on {scale}, {images.root} has {now}: wanted one type")


def _differing(before: dict[str, str], now: dict[str, str], splits: Iterable[str] | None) -> list[str]:
    """Return the splits, of all or of some, that were known before and are otherwise now."""
    return [name for name in (now if splits is None else splits) if name in before and before[name] != now.get(name)]


def moved(before: dict, opened: Opened, splits: Iterable[str] | None = None) -> str:
    """Return a sentence about splits whose images differ from a run's; empty where all are the same.

    `before` is the "data" of the run's results. In a folder without list files, one added or removed file moves other
    files of its class between training and test.
    """
    others = _differing(before.get("division", {}), opened.division, splits)
    if not others:
        return ""
    return f"{', '.join(others)} of {opened.images.root} are other images: files were added, removed or renamed"


def changed(before: dict, opened: Opened, splits: Iterable[str] | None = None) -> str:
    """Return a sentence about splits whose files, labels or pixels differ from a run's; empty where all are the same.

    `before` is the "data" of the run's results; results of earlier versions, and data that is not in files, have
    nothing to be compared with.
    """
    differing = _differing(before.get("contents", {}), opened.contents, splits)
    if not differing:
        return ""
    which = f"{', '.join(differing)} of {opened.images.root}"
    how = "files have other content, labels or channels, or were added or removed"
    return f"{which} changed since the run began: {how}{_newest(opened, differing)}"


def _newest(opened: Opened, splits: Iterable[str]) -> str:
    """Return the file of some splits that was modified last, and when, in words; empty where no file can be looked at.

    Files that were left out count too: one that was damaged since is among them.
    """
    images, found = opened.images, {}
    paths = [path for split in splits if split in images.splits for path in images.splits[split].paths]
    for path in (*paths, *(item["path"] for item in opened.rejected if item["split"] in splits)):
        for file in images.files(path):
            with suppress(OSError):
                found[file] = os.stat(shards.container(images.root / file)).st_mtime
    if not found:
        return ""
    file = max(found, key=found.__getitem__)
    return f"; {file} was modified last, {datetime.fromtimestamp(found[file]):%Y-%m-%d %H:%M:%S}"
