"""The data of a run: opened, checked for files that cannot be decoded, and given out by loaders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from engine.data import generated, listing, loader, scan
from engine.data.listing import ImageSet
from engine.errors import UserError
from engine.report import console
from train.config import Settings


@dataclass(frozen=True)
class Data:
    """A data set without its undecodable files, and these: path, split and reason of each."""

    images: ImageSet
    rejected: list[dict[str, str]]

    def summary(self) -> dict:
        """Return the "data" entry of `results.json`."""
        return {
            "root": str(self.images.root),
            "classes": len(self.images.class_names),
            **{name: len(split.paths) for name, split in self.images.splits.items()},
            "rejected": len(self.rejected),
            "class_names": list(self.images.class_names),
            "rejected_files": self.rejected,
        }


def open_data(settings: Settings) -> Data:
    """Return the data set, each file left out named on the terminal.

    Raises:
        UserError: the data is missing or malformed, or with `strict` a file cannot be decoded.
    """
    if settings.data is None:
        with console.waiting("making the generated set"):
            images = listing.read(_generated())
    else:
        images = listing.read(Path(settings.data), settings.num_classes, settings.seed)
    if settings.backend == "synthetic":
        return Data(images, [])
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
    return Data(scan.apply(images, report), rejected)


def _generated() -> Path:
    try:
        return generated.ensure()
    except OSError as error:
        raise UserError(
            f"the generated set cannot be written to {error.filename}: {error.strerror}; give --data"
        ) from None


def make_loader(images: ImageSet, split: str, settings: Settings, train: bool = False) -> loader.Loader:
    """Return the loader of a split: random crops and flips in training, the centre crop otherwise."""
    return loader.create(
        images,
        split,
        size=settings.image_size,
        batch_size=settings.batch_size,
        train=train,
        backend=settings.backend,
        device=torch.device(settings.device),
        seed=settings.seed,
        workers=settings.workers,
        crop_scale=(settings.crop_scale, 1.0),
        eval_crop=settings.eval_crop,
    )
