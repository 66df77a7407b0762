"""Loading from decoded images in memory, in threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from polychrome.engine.data.batches import Decoded
from polychrome.engine.data.readers.resizing import Filler, Filling, cropped, empty, one_ahead
from polychrome.engine.data.readers.uploads import Uploads

if TYPE_CHECKING:
    from polychrome.engine.data.batches import Work
    from polychrome.engine.data.stores.whole import Pixels


class Reader:
    """Cropped and resized batches of the images `paths`, made by `workers` threads while the batch before is used."""

    def __init__(self, pixels: Pixels, paths: Sequence[str], size: int, device: torch.device, workers: int):
        missing = [path for path in paths if path not in pixels]
        if missing:
            raise ValueError(f"{len(missing)} of {len(paths)} images are not among the pixels, such as {missing[0]}")
        self.pixels, self.paths, self.size = pixels, paths, size
        self._upload = Uploads(device)
        self._dtype = getattr(torch, pixels.dtype.name)
        self._filler = Filler(max(1, workers))

    def read(self, plan: Sequence[Work]) -> Iterator[Decoded]:
        """Yield [batch, channels, size, size] on the device, channels last in memory, for each piece of work."""
        for images in one_ahead(map(self._start, plan)):
            yield Decoded(self._upload(images), {})

    def close(self) -> None:
        """End the threads."""
        self._filler.close()

    def _start(self, work: Work) -> Filling:
        size = work.size or self.size

        def image(i: int) -> torch.Tensor:
            return cropped(self.pixels[self.paths[work.indices[i]]], work.crops[i], work.flips[i], size)

        images = empty(len(work.indices), size, self.pixels.channels, self._dtype, self._upload.pinned)
        return self._filler.start(images, image)
