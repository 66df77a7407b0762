"""Batches of random pixels that cost nothing to make: the ceiling for any loader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from polychrome.engine.data.batches import BatchRequest, DecodedBatch, Reading, Streamed

BANK = 256


class SyntheticReader:
    """Random images that depend on the seed and the image's index alone; no file is read."""

    def __init__(self, reading: Reading):
        generator = torch.Generator().manual_seed(reading.seed)
        images, size, channels = reading.images, reading.size, reading.images.channels
        shape = (min(len(reading.chosen.paths), BANK), size, size, len(channels))
        if images.dtype == "uint8":
            bank = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        else:
            bank = torch.randn(shape, generator=generator) * torch.tensor(channels.std) + torch.tensor(channels.mean)
        self.device, self._bank = reading.device, bank.to(reading.device)

    def read(self, requests: Sequence[BatchRequest]) -> Iterator[DecodedBatch]:
        """Yield [batch, channels, size, size] on the device, channels last in memory, for each request."""
        for request in requests:
            indices = torch.from_numpy(request.indices % len(self._bank)).to(self.device, non_blocking=True)
            size = request.size or self._bank.shape[1]
            yield DecodedBatch(Streamed(self._bank[indices, :size, :size].permute(0, 3, 1, 2)), {})

    def close(self) -> None:
        """Free the images."""
        self._bank = None
