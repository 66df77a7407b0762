"""Loading with Pillow in the worker processes of a DataLoader."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from polychrome.engine.data.batches import BatchRequest, DecodedBatch, Reading, Streamed
from polychrome.engine.data.faults import attempted
from polychrome.engine.data.files import stacks
from polychrome.engine.data.image_set import ImageSet, Split
from polychrome.engine.data.readers.resizing import cropped, empty
from polychrome.engine.data.readers.uploads import Uploads
from polychrome.engine.data.stores.placement import amount
from polychrome.engine.errors import RunError, one_line
from polychrome.engine.machine.workers import ROOM, attend, starting


class PillowReader:
    """Decoded, cropped and resized batches of a split's files, made by `workers` processes (0: by this one)."""

    def __init__(self, reading: Reading):
        self._upload = Uploads(reading.device)
        self._requests = _Requests()
        self._loader = DataLoader(
            _Batches(reading.images, reading.chosen, reading.size),
            sampler=self._requests,
            batch_size=None,
            num_workers=reading.workers,
            persistent_workers=reading.workers > 0,
            worker_init_fn=attend,
            pin_memory=self._upload.pinned,
            # Its own, as the seeds drawn for the workers would shift the model's dropout.
            generator=torch.Generator(),
        )

    def read(self, requests: Sequence[BatchRequest]) -> Iterator[DecodedBatch]:
        """Yield [batch, channels, size, size] on the device, channels last in memory, for each request.

        Raises:
            RunError: no worker can be started, or has shared memory to hand a batch over in.
        """
        self._requests[:] = requests
        with starting():
            decoded = iter(self._loader)
        for images, faults in decoded:
            if isinstance(faults, str):
                raise RunError(
                    f"shared memory for a batch of {amount(images)} cannot be written: {faults}; {ROOM}, or a "
                    "smaller --batch-size"
                )
            yield DecodedBatch(Streamed(self._upload(images).permute(0, 3, 1, 2)), faults)

    def close(self) -> None:
        """End the worker processes."""
        epoch = self._loader and self._loader._iterator
        self._loader = None
        if not hasattr(epoch, "_workers"):
            return
        epoch._shutdown_workers()  # an error that ended the epoch may hold it
        for worker in epoch._workers:
            if worker.is_alive():  # still at a file, seconds after it was asked to end
                worker.kill()


class _Requests(list[BatchRequest]):
    """The requests of the epoch to begin; an epoch that has begun goes on with its own."""

    def __iter__(self) -> Iterator[BatchRequest]:
        return iter(self[:])


class _Batches(Dataset):
    def __init__(self, images: ImageSet, split: Split, size: int):
        self.read, self.paths, self.sizes, self.size = stacks.opener(images), split.paths, split.sizes, size
        self.channels, self.dtype = len(images.channels), getattr(torch, images.dtype)

    def __getitem__(self, request: BatchRequest) -> tuple[torch.Tensor, dict[int, str]] | tuple[int, str]:
        """Return images and why some could not be read; where there is no memory to share them, bytes and the reason.

        A worker shares the images here: where sharing fails as torch hands them over, nobody is told, and the process
        that waits for them waits for ever.
        """
        size = request.size or self.size
        images, faults = empty(len(request.indices), size, self.channels, self.dtype), {}
        for i, (index, crop, flip) in enumerate(zip(request.indices, request.crops, request.flips, strict=True)):
            image = attempted(self.read, self.paths[index], (*self.sizes[index], self.channels))
            if isinstance(image, str):
                faults[i] = image
            else:
                images[i] = cropped(image, crop, flip, size)
        if get_worker_info() is not None:
            try:
                images.share_memory_()
            except RuntimeError as error:
                for left in Path("/dev/shm").glob(f"torch_{os.getpid()}_*"):  # torch leaves what it could not enlarge
                    left.unlink(missing_ok=True)
                return images.nbytes, one_line(error)
        return images.permute(0, 2, 3, 1), faults
