"""Loading from decoded images in memory, in threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from polychrome.engine.data.batches import BatchRequest, DecodedBatch, Reading, Streamed
from polychrome.engine.data.readers.resizing import Filler, Filling, cropped, empty, one_ahead
from polychrome.engine.data.readers.uploads import Uploads
from polychrome.engine.data.stores.whole import WholeImages


class WholeReader:
    """Cropped and resized batches of a split's images; threads make the next batch ahead of time.

    Raises:
        ValueError: an image of the split is not in the store.
        StorageError: the file that the images are mapped from was cut short.
    """

    def __init__(self, reading: Reading, store: WholeImages):
        self.images, self.paths, self.size = store, reading.chosen.paths, reading.size
        missing = [path for path in self.paths if path not in store]
        if missing:
            raise ValueError(f"{len(missing)} of {len(self.paths)} images are not in the store, such as {missing[0]}")
        self._upload = Uploads(reading.device)
        self._dtype = getattr(torch, store.values.dtype.name)
        self._filler = Filler(max(1, reading.workers))

    def read(self, requests: Sequence[BatchRequest]) -> Iterator[DecodedBatch]:
        """Yield [batch, channels, size, size] on the device, channels last in memory, for each request."""
        for images in one_ahead(map(self._start, requests)):
            yield DecodedBatch(Streamed(self._upload(images)), {})

    def close(self) -> None:
        """End the threads."""
        self._filler.close()

    def _start(self, request: BatchRequest) -> Filling:
        self.images.mapping.check()
        size = request.size or self.size

        def image(i: int) -> torch.Tensor:
            return cropped(self.images[self.paths[request.indices[i]]], request.crops[i], request.flips[i], size)

        images = empty(len(request.indices), size, self.images.channels, self._dtype, self._upload.pinned)
        return self._filler.start(images, image)
