"""Images decoded once, squeezed to one size and kept, from which one launch makes each batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from polychrome.engine.data import loader
from polychrome.engine.data.faults import Decoded
from polychrome.engine.data.listing import ImageSet, Split
from polychrome.engine.data.loader import Work
from polychrome.engine.data.pixels import sizes_of
from polychrome.engine.data.resizing import Filler, Filling, one_ahead
from polychrome.engine.data.uploads import Uploads
from polychrome.kernels import augment

if TYPE_CHECKING:
    from polychrome.engine.channels import Channels

BATCH = 64  # images decoded at once


class Resident:
    """Images by path, uint8 [count, height, width, channels], on the device or in host memory."""

    backend = "resident"

    def __init__(self, values: Tensor, paths: Sequence[str], faults: dict[str, str] | None = None):
        """Take over `values` of the images `paths`, in that order.

        Those in `faults`, with a reason each, could not be read and are not among the images.
        """
        if values.dtype != torch.uint8 or values.dim() != 4 or len(values) != len(paths):
            raise ValueError(f"{list(values.shape)} {values.dtype} of {len(paths)} images, wanted uint8 and 4 axes")
        self.values, self.faults = values, faults or {}
        self._places = {path: place for place, path in enumerate(paths) if path not in self.faults}

    @classmethod
    def load(
        cls,
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
        reader, faults = loader.reader(whole, "every", size, BATCH, backend, device, workers=workers), {}
        try:
            for part, decoded in zip(parts, reader.read(plan), strict=True):
                values[part[0] : part[-1] + 1] = decoded.images.permute(0, 2, 3, 1)
                faults |= {paths[part[position]]: reason for position, reason in decoded.faults.items()}
                if progress:
                    progress(int(part[-1]) + 1, len(paths))
        finally:
            reader.close()
        return cls(values, paths, faults)

    @classmethod
    def of(
        cls, values: np.ndarray, paths: Sequence[str], on: torch.device, faults: dict[str, str] | None = None
    ) -> Resident:
        """Return images kept on `on` of decoded ones, [count, height, width, channels], which may be read-only."""
        with warnings.catch_warnings():  # torch warns of what cannot be written to; nothing here writes
            warnings.simplefilter("ignore", UserWarning)
            return cls(torch.from_numpy(values).to(on), paths, faults)

    @property
    def nbytes(self) -> int:
        """The bytes that the images take."""
        return self.values.nbytes

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, path: str) -> bool:
        return path in self._places

    def places(self, paths: Sequence[str]) -> np.ndarray:
        """Return where each image is among the values, int64. Raises ValueError for unknown paths."""
        missing = [path for path in paths if path not in self]
        if missing:
            raise ValueError(f"{len(missing)} of {len(paths)} images are not kept, such as {missing[0]}")
        return np.array([self._places[path] for path in paths], np.int64)


@dataclass(frozen=True)
class Rendering:
    """How a batch is made of stored images.

    stored: uint8 [count, height, width, channels]. The rest is on the same device: places int64 [batch], which of them
    each image is; crops int32 [batch, 4] of (top, left, height, width) in stored pixels; flips bool [batch].
    """

    stored: Tensor
    places: Tensor
    crops: Tensor
    flips: Tensor
    size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch, channels, height, width)."""
        return len(self.places), self.stored.shape[3], self.size, self.size

    @property
    def images(self) -> Tensor:
        """uint8 [batch, channels, size, size], channels last in memory."""
        shown = augment(self.stored, self.crops, self.flips, size=self.size, indices=self.places)
        return shown.mul_(255).round_().to(torch.uint8)

    def standardised(self, channels: Channels, sources: Tensor | None = None, **parameters: Tensor) -> Tensor:
        """Return the batch standardised per channel, float32 channels_last; see `engine.data.loader.Batch`."""
        statistics = {"mean": channels.mean, "std": channels.std}
        given = {"channels": sources, "size": self.size, "indices": self.places}
        return augment(self.stored, self.crops, self.flips, **given, **statistics, **parameters)

    def __getitem__(self, rows: Tensor) -> Rendering:
        return Rendering(self.stored, self.places[rows], self.crops[rows], self.flips[rows], self.size)


class Reader:
    """Batches of a split's images, of which one launch crops, mirrors, resizes and standardises.

    Where the images are not on the device, `workers` threads gather those of a batch while the one before is used.
    """

    def __init__(self, images: Resident, split: Split, size: int, device: torch.device, workers: int):
        self.images, self.size, self.device = images, size, device
        self._places = images.places(split.paths)
        self._sizes = np.array(split.sizes, np.int64).reshape(-1, 2)
        self._upload = Uploads(device)
        self._filler = None if images.values.device.type == device.type else Filler(max(1, workers))

    def read(self, plan: Sequence[Work]) -> Iterator[Decoded]:
        """Yield how each batch is made; crops, flips and places of all of them are copied to the device together."""
        if not plan:
            return
        every = self._rows(plan)
        stored = (self.images.values for _ in plan) if self._filler is None else self._gathered(plan)
        for work, values, places, crops, flips in zip(plan, stored, *every, strict=True):
            yield Decoded(Rendering(values, places, crops, flips, work.size or self.size), {})

    def close(self) -> None:
        """End the threads."""
        if self._filler is not None:
            self._filler.close()

    def _rows(self, plan: Sequence[Work]) -> list[tuple[Tensor, ...]]:
        """Return places, crops and flips of each batch, on the device."""
        counts = [len(work.indices) for work in plan]
        indices = np.concatenate([work.indices for work in plan])
        crops = np.concatenate([work.crops for work in plan])
        flips = np.concatenate([work.flips for work in plan])
        # Gathered images lie in the order of their batch.
        places = self._places[indices] if self._filler is None else np.concatenate([np.arange(n) for n in counts])
        every = (places, stored_crops(crops, self._sizes[indices], self.images.values.shape[1:3]), flips)
        return [self._upload(self._staged(torch.from_numpy(column))).split(counts) for column in every]

    def _staged(self, values: Tensor) -> Tensor:
        return values.pin_memory() if self._upload.pinned else values

    def _gathered(self, plan: Sequence[Work]) -> Iterator[Tensor]:
        for images in one_ahead(map(self._start, plan)):
            yield self._upload(images)

    def _start(self, work: Work) -> Filling:
        places = self._places[work.indices]
        shape = (len(places), *self.images.values.shape[1:])
        # The store itself is not pinned: pinning takes seconds, and torch rounds pinned memory up to a power of two.
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=self._upload.pinned)
        return self._filler.start(images, lambda i: self.images.values[places[i]])


def stored_crops(crops: np.ndarray, sizes: np.ndarray, stored: tuple[int, int]) -> np.ndarray:
    """Return crops of images squeezed to a stored (height, width), in whole pixels of these, at least one.

    crops: int64 [n, 4] of (top, left, height, width) in pixels of images of `sizes` [n, 2]; returns int32 [n, 4].
    """
    scale = np.array(stored) / sizes
    start = np.rint(crops[:, :2] * scale).clip(0, np.array(stored) - 1)
    end = np.rint((crops[:, :2] + crops[:, 2:]) * scale).clip(start + 1, stored)
    return np.concatenate([start, end - start], 1).astype(np.int32)
