"""Batches of one split, the same from every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch

from polychrome.engine.data import faults, sampling
from polychrome.engine.data.augmentation import Augmentations
from polychrome.engine.data.batches import Batch, BatchRequest, Reading
from polychrome.engine.data.image_set import ImageSet, Split
from polychrome.engine.data.readers.choice import Store, reader
from polychrome.engine.errors import UserError
from polychrome.kernels.augment import Recipe
from polychrome.kernels.augment import draw as drawn_by


class Loader:
    """Batches of one split of a scanned set, images of `size` by `size` pixels; a context manager that frees workers.

    Args:
        batch_size: images of a batch over all `world_size` processes, of which the loader yields the part of process
            `rank`.
        backend: reads the files, with `workers` threads, or processes of the torch backend.
        augmentations: how training images are cropped and mirrored, and whether they are smaller at first; by default
            random crops and flips.
        eval_crop: the share of the short side that the central square keeps, in evaluation and where training does not
            crop at random.
        store: decoded images to read instead of the files.
        on_fault: called once as `on_fault(path, reason)` for each file that can no longer be read.

    `present` is bool [images, channels], a numpy array: the channels of each image; None where all have all.

    Raises:
        UserError: the backend is not there or cannot read the set, or a training split or batch has too few images.
        ValueError: the set has no sizes (see `engine.data.sets.scan`), which only the synthetic backend can do without.
    """

    def __init__(
        self,
        images: ImageSet,
        split: str,
        *,
        size: int,
        batch_size: int,
        train: bool,
        backend: str = "auto",
        device: str | torch.device = "cpu",
        seed: int = 0,
        workers: int = 1,
        augmentations: Augmentations | None = None,
        eval_crop: float = 0.875,
        store: Store | None = None,
        rank: int = 0,
        world_size: int = 1,
        on_fault: Callable[[str, str], None] | None = None,
    ):
        if train:
            check_trainable(images, split, world_size)
            if world_size > 1 and batch_size < 2 * world_size:
                raise UserError(f"batches of {batch_size} images for {world_size} processes: each needs at least 2")
        chosen = images.splits[split]
        self.samples = len(chosen.paths)
        self.rank, self.world_size = rank, world_size
        self.size, self.batch_size = size, batch_size
        self.train, self.seed, self.device = train, seed, torch.device(device)
        self.augmentations, self.eval_crop = augmentations or Augmentations(), eval_crop
        self.channels = images.channels
        # A batch of one, on any rank, would give batch normalisation no variance to train on.
        left_over = self.samples % batch_size
        too_few = train and batch_size > 1 and 0 < left_over < 2 * world_size
        self._batches = -(-self.samples // batch_size) - too_few
        self._sizes = np.ones((self.samples, 2), np.int64) if chosen.sizes is None else np.array(chosen.sizes, np.int64)
        self._labels = torch.tensor(chosen.labels, dtype=torch.int64)
        self.present = _present(images, chosen)
        self._present = None if self.present is None else torch.from_numpy(self.present)
        self._reader = reader(Reading(images, split, size, batch_size, self.device, workers, seed), backend, store)
        self._root, self._paths, self._on_fault, self._reported = images.root, chosen.paths, on_fault, set()
        self._running: Iterator[Batch] | None = None

    def __len__(self) -> int:
        """Return the number of batches in an epoch; in evaluation a rank may have no image of the last batch."""
        return self._batches

    def epoch(
        self, epoch: int, start: int = 0, draw: int | None = None, recipe: Recipe | None = None
    ) -> Iterator[Batch]:
        """Yield the batches of an epoch, from batch number `start` on; an earlier epoch that is still read ends.

        Training: every image once in an order seeded by (seed, `draw`), by default the epoch, with the crops and flips
        of the epoch's augmentations; a last batch of a single image, or of fewer than two for each rank, is left out.
        Further parameters that `recipe` draws are in `Batch.drawn`. Evaluation: every image once in list order, centre
        crop, whatever the epoch. Each rank gets its share of every batch. In place of an unreadable file, training
        repeats another image of the batch, and a batch of one is empty, so that the batches keep their numbers;
        evaluation leaves the file out.

        Raises:
            UserError: no image of a batch could be read, or of the epoch so far more than a tenth, and at least 10.
        """
        if self._running is not None:
            self._running.close()
        requests = self.requests(epoch, draw)[start:]
        draw = epoch if draw is None else draw
        self._running = self._epoch(requests, self._drawn(requests, recipe, draw, self.size_of(epoch)))
        return self._running

    def requests(self, epoch: int, draw: int | None = None) -> list[BatchRequest]:
        """Return this rank's request for each batch of an epoch, without batches that have no image for the rank."""
        draw = epoch if draw is None else draw
        order = sampling.order(self.samples, self.seed, draw) if self.train else np.arange(self.samples)
        batches = [order[start : start + self.batch_size] for start in range(0, self.samples, self.batch_size)]
        shares = [np.array_split(batch, self.world_size)[self.rank] for batch in batches[: len(self)]]
        own = np.concatenate(shares)
        crops = flips = None
        if self.train:
            recipe = self.augmentations.recipe(epoch)
            crops, flips = sampling.crops_and_flips(recipe, own, self._sizes[own], self.seed, draw)
        crops = sampling.center_crops(self._sizes[own], self.eval_crop) if crops is None else crops
        flips = np.zeros(len(own), bool) if flips is None else flips
        ends = np.cumsum([len(share) for share in shares])[:-1]
        rows = zip(shares, np.split(crops, ends), np.split(flips, ends), map(len, batches), strict=False)
        size = self.size_of(epoch)
        return [BatchRequest(*row, size=size) for row in rows if len(row[0])]

    def size_of(self, epoch: int) -> int:
        """Return height and width of the images of an epoch: in training they may grow from epoch to epoch."""
        return self.augmentations.size(epoch, self.size) if self.train else self.size

    def files(self, indices: np.ndarray) -> list[str]:
        """Return the paths of images by their positions in the split."""
        return [self._paths[index] for index in indices]

    def close(self) -> None:
        """Free the backend's workers; the loader cannot be used afterwards."""
        if self._running is not None:
            self._running.close()
        self._reader.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _epoch(self, requests: list[BatchRequest], drawn: Iterator[dict[str, torch.Tensor]]) -> Iterator[Batch]:
        tally = faults.Tally(self._root, self._paths, self._on_fault, self._reported)
        all_labels, all_present = self._all(self._labels, requests), self._all(self._present, requests)
        with closing(self._reader.read(requests)) as read:
            rows = zip(requests, all_labels, all_present, drawn, read, strict=True)
            for request, labels, present, parameters, decoded in rows:
                batch = Batch(decoded.source, labels, request.indices, request.total, parameters, present)
                tally.add(request.indices, decoded.faults)
                if decoded.faults:
                    batch = batch.rows(faults.rows(len(batch), decoded.faults, self.train))
                if len(batch) or self.train:
                    yield batch

    def _all(self, column: torch.Tensor | None, requests: list[BatchRequest]) -> Sequence[torch.Tensor | None]:
        """Return the rows of each batch from a value for each image, copied to the device together; None of None."""
        if column is None:
            return [None] * len(requests)
        return self._copied(column[_indices(requests)]).split([len(request.indices) for request in requests])

    def _drawn(
        self, requests: list[BatchRequest], recipe: Recipe | None, draw: int, size: int
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Yield what a recipe draws for each batch beside crops and flips, computed for thousands of images at once."""
        recipe = replace(recipe or Recipe(), scale=None, flip=0.0)
        if recipe == Recipe():
            yield from ({} for _ in requests)
            return
        step = max(1, sampling.AT_ONCE // self.batch_size)
        for chunk in (requests[start : start + step] for start in range(0, len(requests), step)):
            indices, counts = self._copied(_indices(chunk)), [len(request.indices) for request in chunk]
            present = None if self._present is None else self._copied(self._present[_indices(chunk)])
            drawn = drawn_by(
                recipe, indices, (1, 1), self.seed, draw, (size, size), channels=len(self.channels), present=present
            )._asdict()
            columns = {name: values.split(counts) for name, values in drawn.items() if values is not None}
            yield from ({name: rows[i] for name, rows in columns.items()} for i in range(len(chunk)))

    def _copied(self, values: torch.Tensor) -> torch.Tensor:
        """Return values on the device; the host does not wait for the copy."""
        values = values.pin_memory() if self.device.type == "cuda" else values
        return values.to(self.device, non_blocking=True)


def _indices(requests: list[BatchRequest]) -> torch.Tensor:
    """Return the indices of all requested images, int64."""
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *(request.indices for request in requests)]))


def _present(images: ImageSet, split: Split) -> np.ndarray | None:
    """Return which channels each image of a split has, bool [images, channels]; None where all have all."""
    found = np.zeros((len(split.paths), len(images.channels)), bool)
    for row, path in enumerate(split.paths) if images.arrangements else ():
        found[row, list(images.present(path))] = True
    return found if images.arrangements and not found.all() else None


def check_trainable(images: ImageSet, split: str = "train", world_size: int = 1) -> None:
    """Raise UserError where a split has too few images to train on, in each of `world_size` processes."""
    count = len(images.splits[split].paths)
    if count < 2 * world_size:
        raise UserError(f"{split} of {images.root} has {count} usable images: training needs at least {2 * world_size}")
