"""A reader of decoded images of one size: one kernel launch makes a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from polychrome.engine.data.batches import BatchRequest, DecodedBatch, Reading, Rendering
from polychrome.engine.data.readers.resizing import Filler, Filling, one_ahead
from polychrome.engine.data.readers.uploads import Uploads
from polychrome.engine.data.stores.uniform import UniformImages


class UniformReader:
    """Batches that one kernel launch crops, mirrors, resizes and standardises.

    If the images are not on the device, threads gather the images of the next batch ahead of time.

    Raises:
        StorageError: the file that the images are mapped from was cut short.
        ValueError: a crop is not of what is stored of an image, of which that may be the central square.
    """

    def __init__(self, reading: Reading, store: UniformImages):
        self.images, self.size, self.device = store, reading.size, reading.device
        self._indices = store.indices(reading.chosen.paths)
        sizes = np.array(reading.chosen.sizes, np.int64).reshape(-1, 2)
        self._regions = store.regions(self._indices, sizes)
        self._upload = Uploads(reading.device)
        on_device = store.values.device.type == reading.device.type
        self._filler = None if on_device else Filler(max(1, reading.workers))

    def read(self, requests: Sequence[BatchRequest]) -> Iterator[DecodedBatch]:
        """Yield each batch's rendering; crops, flips and indices of all batches are copied to the device together."""
        if not requests:
            return
        every = self._rows(requests)
        stored = (self.images.values for _ in requests) if self._filler is None else self._gathered(requests)
        for request, values, rows, crops, flips in zip(requests, stored, *every, strict=True):
            self.images.mapping.check()
            yield DecodedBatch(Rendering(values, rows, crops, flips, request.size or self.size), {})

    def close(self) -> None:
        """End the threads."""
        if self._filler is not None:
            self._filler.close()

    def _rows(self, requests: Sequence[BatchRequest]) -> list[tuple[Tensor, ...]]:
        """Return indices among the stored images, crops and flips of each batch, on the device."""
        counts = [len(request.indices) for request in requests]
        indices = np.concatenate([request.indices for request in requests])
        crops = np.concatenate([request.crops for request in requests])
        flips = np.concatenate([request.flips for request in requests])
        # Gathered images lie in the order of their batch.
        rows = self._indices[indices] if self._filler is None else np.concatenate([np.arange(n) for n in counts])
        every = (rows, stored_crops(crops, self._regions[indices], self.images.values.shape[1:3]), flips)
        return [self._upload(self._staged(torch.from_numpy(column))).split(counts) for column in every]

    def _staged(self, values: Tensor) -> Tensor:
        return values.pin_memory() if self._upload.pinned else values

    def _gathered(self, requests: Sequence[BatchRequest]) -> Iterator[Tensor]:
        for images in one_ahead(map(self._start, requests)):
            yield self._upload(images)

    def _start(self, request: BatchRequest) -> Filling:
        self.images.mapping.check()
        rows = self._indices[request.indices]
        shape = (len(rows), *self.images.values.shape[1:])
        # The store itself is not pinned: pinning takes seconds, and torch rounds pinned memory up to a power of two.
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=self._upload.pinned)
        return self._filler.start(images, lambda i: self.images.values[rows[i]])


def stored_crops(crops: np.ndarray, regions: np.ndarray, stored: tuple[int, int]) -> np.ndarray:
    """Return crops of images of which parts are squeezed to a stored (height, width), in whole stored pixels.

    crops, regions: int64 [n, 4] of (top, left, height, width) in pixels of the images, of the crops and of the parts.
    Returns int32 [n, 4]; height and width are at least 1.

    Raises:
        ValueError: a crop is not within its part, by more than the pixel that rounding makes.
    """
    begin = crops[:, :2] - regions[:, :2]
    if ((begin < -1) | (begin + crops[:, 2:] > regions[:, 2:] + 1)).any():
        raise ValueError("a crop is not of what is stored: of images that are not trained on, the central square")
    scale = np.array(stored) / regions[:, 2:]
    start = np.rint(begin * scale).clip(0, np.array(stored) - 1)
    end = np.rint((begin + crops[:, 2:]) * scale).clip(start + 1, stored)
    return np.concatenate([start, end - start], 1).astype(np.int32)
