"""The data of a run: opened, checked for files that cannot be decoded, and given out by loaders."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from engine.augmentation import Augmentations
from engine.data import generated, listing, loader, pixels, scan
from engine.data.listing import ImageSet
from engine.data.pixels import Pixels
from engine.errors import UserError
from engine.report import console
from train.config import Settings


@dataclass(frozen=True)
class Data:
    """A data set without its undecodable files, these files (path, split and reason of each), its pixels, where they
    are kept in memory, and by split the places in the list of the images that are left, where some are not."""

    images: ImageSet
    rejected: list[dict[str, str]]
    pixels: Pixels | None = None
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
            "rejected_files": self.rejected,
        }


def open_data(settings: Settings, task: str, split: str | None = None) -> Data:
    """Return the data set of a run, or one split of it, each file left out named on the terminal.

    Raises:
        UserError: the data is missing or malformed, or with `strict` a file cannot be decoded.
    """
    from engine.data import cifar100

    if task == "cifar100" and (settings.data is None or cifar100.find(Path(settings.data)) is not None):
        with console.waiting("reading CIFAR-100"):
            images, pixels = cifar100.read(settings.data and Path(settings.data))
        return Data(images, [], pixels)
    if settings.data is None:
        with console.waiting("making the generated set"):
            images = listing.read(_generated())
    else:
        images = listing.read(Path(settings.data), settings.num_classes, settings.seed)
    if split is not None:
        images = replace(images, splits={split: images.splits[split]})
    if settings.backend == "synthetic":
        return Data(images, [])
    listed = images
    images, rejected = _checked(listed, settings)
    loader.resolve(settings.backend, images.stacks)
    left_out = {item["path"] for item in rejected}
    places = {
        name: tuple(place for place, path in enumerate(split.paths) if path not in left_out)
        for name, split in listed.splits.items()
    }
    return Data(images, rejected, _kept(images, settings), places)


def _checked(images: ImageSet, settings: Settings) -> tuple[ImageSet, list[dict[str, str]]]:
    """Return the set without the files that cannot be used, and these."""
    paths = list(dict.fromkeys(path for split in images.splits.values() for path in split.paths))
    with console.progress("checking files", len(paths)) as bar:
        report = scan.scan(images.root, paths, settings.workers, bar.reach)
    reasons = {item.path: item.reason for item in report.rejected}
    rejected = [
        {"path": path, "split": name, "reason": reasons[path]}
        for name, split in images.splits.items()
        for path in split.paths
        if path in reasons
    ]
    for item in rejected:
        console.say(f"left out: {item['path']} ({item['split']}): {item['reason']}")
    if rejected and settings.strict:
        first = rejected[0]
        raise UserError(
            f"--strict: {len(rejected)} files cannot be used; the first is {first['path']}: {first['reason']}"
        )
    return scan.apply(images, report), rejected


def _kept(images: ImageSet, settings: Settings) -> Pixels | None:
    """Return the decoded images where they are to be kept in memory."""
    if settings.cache == "none" or (settings.cache == "auto" and settings.device != "cpu"):
        return None
    if settings.cache == "auto" and not pixels.fits(Pixels.bytes_needed(images)):
        return None
    with console.progress("decoding", len({path for split in images.splits.values() for path in split.paths})) as bar:
        return Pixels.load(images, settings.workers, bar.reach)


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
    pixels: Pixels | None = None,
) -> loader.Loader:
    """Return the loader of a split: for training with augmentations, else centre crops in the list's order."""
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
    )
