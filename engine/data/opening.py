"""Decoded images that are kept: read from the disk cache, or decoded as their placement says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from polychrome.engine.data.batches import Work
from polychrome.engine.data.image_set import ImageSet, Split, sizes_of
from polychrome.engine.data.readers import choice
from polychrome.engine.data.stores.disk import Entry
from polychrome.engine.data.stores.placement import Placement
from polychrome.engine.data.stores.uniform import Resident
from polychrome.engine.data.stores.whole import Pixels

BATCH = 64  # images decoded at once


def entry(
    images: ImageSet, placement: Placement, backend: str, device: torch.device, workers: int, say: Callable[[str], None]
) -> Entry:
    """Return the place in the disk cache of a scanned set kept so, decoded by `backend` for `device`."""
    # Whole images are decoded by their definition, whatever the backend.
    backend = choice.resolve(backend, images.stacks)
    decoder = f"{backend} {device.type if backend == 'dali' else 'cpu'}" if placement.resampled else "definition"
    return Entry(images, placement.form, decoder, say, workers)


def restore(images: ImageSet, placement: Placement, entry: Entry) -> Pixels | Resident | None:
    """Return the images as the disk cache has them, or None."""
    found = entry.load()
    if found is None:
        return None
    if not placement.resampled:
        return placed(Pixels.of(images, found.values, found.faults), placement)
    paths = list(sizes_of(images))
    values = found.values.reshape(len(paths), *placement.size, len(images.channels))
    return Resident.of(values, paths, placement.device, found.faults)


def decode(
    images: ImageSet,
    placement: Placement,
    backend: str,
    device: torch.device,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> Pixels | Resident:
    """Decode every image of a scanned set once; files that can no longer be read are in the result's `faults`."""
    if not placement.resampled:
        return placed(Pixels.load(images, workers, progress), placement)
    return squeezed(images, placement.size[0], backend, device, placement.device, workers, progress)


def squeezed(
    images: ImageSet,
    size: int,
    backend: str,
    device: torch.device,
    on: torch.device,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> Resident:
    """Decode every image of a scanned set, each once, squeeze it to `size` by `size`, and keep it on `on`.

    `backend` and `workers` are those of `loader.create`, and `device` is where the backend leaves its batches.
    `progress(done, total)` is called as images are decoded. Files that can no longer be read are in `faults`.
    """
    sizes = sizes_of(images)
    paths, shapes = tuple(sizes), np.array(list(sizes.values()), np.int64)
    whole = replace(images, splits={"every": Split(paths, (0,) * len(paths), tuple(sizes.values()))})
    crops = np.concatenate([np.zeros_like(shapes), shapes], 1)
    parts = [np.arange(len(paths))[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    plan = [Work(part, crops[part], np.zeros(len(part), bool), len(part)) for part in parts]
    values = torch.empty(len(paths), size, size, len(images.channels), dtype=torch.uint8, device=on)
    reader, faults = choice.reader(whole, "every", size, BATCH, backend, device, workers=workers), {}
    try:
        for part, decoded in zip(parts, reader.read(plan), strict=True):
            values[part[0] : part[-1] + 1] = decoded.images.permute(0, 2, 3, 1)
            faults |= {paths[part[position]]: reason for position, reason in decoded.faults.items()}
            if progress:
                progress(int(part[-1]) + 1, len(paths))
    finally:
        reader.close()
    return Resident(values, paths, faults)


def placed(pixels: Pixels, placement: Placement) -> Pixels | Resident:
    """Return whole images as they are, or those of one size on the placement's device."""
    if placement.size is None or placement.resampled:
        return pixels
    values = pixels.values.reshape(len(pixels.paths), *placement.size, pixels.channels)
    return Resident.of(values, pixels.paths, placement.device, pixels.faults)
