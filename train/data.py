"""The data of a run: opened, checked for files that cannot be decoded, and given out by loaders."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from polychrome.engine.data import image_set, loader, opening
from polychrome.engine.data.augmentation import Augmentations
from polychrome.engine.data.image_set import ImageSet
from polychrome.engine.data.readers import choice
from polychrome.engine.data.sets import division, generated, listing, scan
from polychrome.engine.data.stores.placement import place
from polychrome.engine.data.stores.uniform import Resident
from polychrome.engine.data.stores.whole import Pixels
from polychrome.engine.errors import UserError
from polychrome.engine.machine import distributed
from polychrome.engine.report import console
from polychrome.train import entries
from polychrome.train.config import Settings


@dataclass(frozen=True)
class Data:
    """A data set whose files can all be decoded, ready to make loaders of.

    images: the set, without the files that cannot be decoded.
    rejected: "path", "split" and "reason" of each file that was left out.
    division: for every split but training, a digest of the files that it lists.
    pixels: the decoded images, where the run keeps them in memory.
    places: for each split, the positions of its images in the list as the user gave it; None where none was left out.
    """

    images: ImageSet
    rejected: list[dict[str, str]]
    division: dict[str, str]
    pixels: Pixels | Resident | None = None
    places: dict[str, tuple[int, ...]] | None = None

    def summary(self) -> dict:
        """Return the "data" entry of `results.json`."""
        return {
            "root": str(self.images.root),
            "classes": len(self.images.class_names),
            **{name: len(split.paths) for name, split in self.images.splits.items()},
            "rejected": len(self.rejected),
            "dtype": self.images.dtype,
            "channels": list(self.images.channels.names),
            "channel_mean": list(self.images.channels.mean),
            "channel_std": list(self.images.channels.std),
            "class_names": list(self.images.class_names),
            "division": self.division,
            "rejected_files": self.rejected,
        }


def open_data(settings: Settings, task: str, splits: tuple[str, ...] = ()) -> Data:
    """Return the data set of a run, or some splits of it, each file left out named on the terminal.

    Of several processes on a machine the first decodes, and the others find what it has kept.

    Raises:
        UserError: the data is missing or malformed, does not fit where it is to be kept, or with `strict` a file cannot
            be decoded.
    """
    with distributed.main_first():
        return _open(settings, task, splits)


def _open(settings: Settings, task: str, splits: tuple[str, ...]) -> Data:
    from polychrome.engine.data.sets import cifar100

    if task == "cifar100" and (settings.data is None or cifar100.find(Path(settings.data)) is not None):
        with console.waiting("reading CIFAR-100"):
            images, pixels = cifar100.read(settings.data and Path(settings.data))
        images = _held_out(images, settings)
        return Data(images, [], _division(images), _placed(images, pixels, settings))
    if settings.data is None:
        with console.waiting("making the generated set"):
            images = listing.read(_generated())
    else:
        images = listing.read(Path(settings.data), settings.num_classes, settings.division_seed)
    images = _held_out(images, settings)
    if splits:
        images = replace(images, splits={name: images.splits[name] for name in splits})
    if settings.backend == "synthetic":
        return Data(images, [], _division(images))
    listed = images
    images, rejected = _checked(listed, settings)
    choice.resolve(settings.backend, images.stacks)
    decoded = _kept(images, settings)
    if decoded is not None and decoded.faults:
        rejected += _left_out(images, decoded.faults, settings.strict)
        images = image_set.without(images, decoded.faults)
    gone = {item["path"] for item in rejected}
    places = {
        name: tuple(place for place, path in enumerate(split.paths) if path not in gone)
        for name, split in listed.splits.items()
    }
    return Data(images, rejected, _division(listed), decoded, places)


def moved(before: dict, data: Data, splits: Iterable[str] | None = None) -> str:
    """Return in words which splits list other images than those of a run, of which `before` is the summary, if any.

    Of folders without lists one file more or less moves others of its class between training and test.
    """
    known = before.get("division", {})
    asked = data.division.keys() if splits is None else splits
    changed = [name for name in asked if name in known and known[name] != data.division.get(name)]
    if not changed:
        return ""
    return f"{', '.join(changed)} of {data.images.root} are other images: files were added, removed or renamed"


def _division(images: ImageSet) -> dict[str, str]:
    """Return a digest of the paths and labels of each split that is not trained on."""
    found = {}
    for name, split in images.splits.items():
        if name != "train":
            digest = hashlib.sha256()
            for path, label in zip(split.paths, split.labels, strict=True):
                digest.update(f"{path} {label}\n".encode("utf-8", "backslashreplace"))
            found[name] = digest.hexdigest()
    return found


def _held_out(images: ImageSet, settings: Settings) -> ImageSet:
    return division.hold_out(images, settings.holdout) if settings.holdout else images


def _checked(images: ImageSet, settings: Settings) -> tuple[ImageSet, list[dict[str, str]]]:
    """Return the set without the files that cannot be used, and these."""
    paths = list(dict.fromkeys(path for split in images.splits.values() for path in split.paths))
    with console.progress("checking files", len(paths)) as bar:
        report = scan.scan(images.root, paths, settings.workers, bar.reach)
    rejected = _left_out(images, {item.path: item.reason for item in report.rejected}, settings.strict)
    return scan.apply(images, report), rejected


def _left_out(images: ImageSet, reasons: dict[str, str], strict: bool) -> list[dict[str, str]]:
    """Name the files that cannot be used on the terminal, and return path, split and reason of each."""
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


def _kept(images: ImageSet, settings: Settings) -> Pixels | Resident | None:
    """Return the decoded images where they are to be kept, from the disk cache where they are there."""
    device = torch.device(settings.device)
    placement = place(images, settings.cache, device, _stored_size(settings))
    if placement is None:
        if settings.cache != "none":
            console.say("images are not kept, as they would take more than half of the free memory: decoded each epoch")
        return None
    backend, workers = settings.backend, settings.workers
    entry = opening.entry(images, placement, backend, device, workers, console.say)
    with console.waiting("reading decoded images"):
        found = opening.restore(images, placement, entry)
    if found is None:
        with console.progress("decoding", len({p for split in images.splits.values() for p in split.paths})) as bar:
            found = opening.decode(images, placement, backend, device, workers, bar.reach)
        with console.waiting("keeping decoded images"):
            entry.save(found.values, found.faults)
    console.say(str(placement))
    return found


def _placed(images: ImageSet, pixels: Pixels, settings: Settings) -> Pixels | Resident:
    """Return images that came decoded as the settings have them kept; they are in memory in any case."""
    placement = place(images, settings.cache, torch.device(settings.device), _stored_size(settings))
    return pixels if placement is None else opening.placed(pixels, placement)


def _stored_size(settings: Settings) -> int:
    """Return the side of the squares that images are squeezed to: no model of the run reads smaller pixels."""
    if settings.cache_size is not None:
        return settings.cache_size
    each = [entries.of(settings, entry) for entry in settings.models or ()] or [settings]
    return max(math.ceil(one.image_size / one.eval_crop) for one in each)


def _generated() -> Path:
    try:
        return generated.ensure()
    except OSError as error:
        raise UserError(
            f"the generated set cannot be written to {error.filename}: {error.strerror}; give --data"
        ) from None


def make_loader(
    images: ImageSet,
    split: str,
    settings: Settings,
    augmentations: Augmentations | None = None,
    pixels: Pixels | Resident | None = None,
    rank: int = 0,
    world_size: int = 1,
    on_fault: Callable[[str, str], None] | None = None,
) -> loader.Loader:
    """Return the loader of a split: for training with augmentations, else centre crops in the list's order.

    A file that can no longer be read is named on the terminal, unless `on_fault(path, reason)` is to deal with it.
    """
    return loader.create(
        images,
        split,
        size=settings.image_size,
        batch_size=settings.batch_size,
        train=augmentations is not None,
        backend=settings.backend,
        device=torch.device(settings.device),
        seed=settings.seed,
        workers=settings.workers,
        augmentations=augmentations or Augmentations(),
        eval_crop=settings.eval_crop,
        pixels=pixels,
        rank=rank,
        world_size=world_size,
        on_fault=on_fault or (lambda path, reason: console.warn(f"left out: {path} ({split}): {reason}")),
    )
