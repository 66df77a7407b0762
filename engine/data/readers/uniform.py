"""A reader of images decoded once, squeezed to one size and kept: each batch is made by one launch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from polychrome.engine.data.batches import Decoded, Reading, Rendering, Work
from polychrome.engine.data.readers.resizing import Filler, Filling, one_ahead
from polychrome.engine.data.readers.uploads import Uploads
from polychrome.engine.data.stores.uniform import UniformImages


class UniformReader:
    """Batches of a split's images, of which one launch crops, mirrors, resizes and standardises.

    Where the images are not on the device, threads gather a batch's images while the batch before is used.
    """

    def __init__(self, reading: Reading, store: UniformImages):
        self.images, self.size, self.device = store, reading.size, reading.device
        self._places = store.places(reading.chosen.paths)
        self._sizes = np.array(reading.chosen.sizes, np.int64).reshape(-1, 2)
        self._upload = Uploads(reading.device)
        on_device = store.values.device.type == reading.device.type
        self._filler = None if on_device else Filler(max(1, reading.workers))

    def read(self, plan: Sequence[Work]) -> Iterator[Decoded]:
        """Yield each batch's rendering; crops, flips and places of all batches are copied to the device together."""
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
    """Return crops of images squeezed to a stored (height, width), in whole stored pixels, at least one.

    crops: int64 [n, 4] of (top, left, height, width) in pixels of images of `sizes` [n, 2]; returns int32 [n, 4].
    """
    scale = np.array(stored) / sizes
    start = np.rint(crops[:, :2] * scale).clip(0, np.array(stored) - 1)
    end = np.rint((crops[:, :2] + crops[:, 2:]) * scale).clip(start + 1, stored)
    return np.concatenate([start, end - start], 1).astype(np.int32)
