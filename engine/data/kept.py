"""Decoded images that are kept: read from the disk cache, or decoded as their placement says."""

from __future__ import annotations

from collections.abc import Callable

import torch

from polychrome.engine.data import loader
from polychrome.engine.data.disk_cache import Entry
from polychrome.engine.data.listing import ImageSet
from polychrome.engine.data.pixels import Pixels, sizes_of
from polychrome.engine.data.placement import Placement
from polychrome.engine.data.resident import Resident


def entry(
    images: ImageSet, placement: Placement, backend: str, device: torch.device, workers: int, say: Callable[[str], None]
) -> Entry:
    """Return the place in the disk cache of a scanned set kept so, decoded by `backend` for `device`."""
    # Whole images are decoded by their definition, whatever the backend.
    backend = loader.resolve(backend, images.stacks)
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
    return Resident.load(images, placement.size[0], backend, device, placement.device, workers, progress)


def placed(pixels: Pixels, placement: Placement) -> Pixels | Resident:
    """Return whole images as they are, or those of one size on the placement's device."""
    if placement.size is None or placement.resampled:
        return pixels
    values = pixels.values.reshape(len(pixels.paths), *placement.size, pixels.channels)
    return Resident.of(values, pixels.paths, placement.device, pixels.faults)
