"""Batches of one split, the same ones from every backend."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.data import sampling
from engine.data.listing import ImageSet
from engine.errors import UserError

if TYPE_CHECKING:
    import torch

    from engine.augmentation import Augmentations
    from engine.data.channel_info import Channels
    from engine.data.pixels import Pixels

BACKENDS = ("dali", "torch", "synthetic")


@dataclass(frozen=True)
class Batch:
    """images: [batch, channels, size, size], uint8 or float32 of the values stored, channels last in memory, and
    labels: int64 [batch], on the device; indices: int64 [batch], a numpy array, the images' places in the split."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: np.ndarray


@dataclass(frozen=True)
class Work:
    """What a backend is to do for one batch: int64 [batch] indices, int64 [batch, 4] crops, bool [batch] flips."""

    indices: np.ndarray
    crops: np.ndarray
    flips: np.ndarray


class Loader:
    """Batches of one split; made by `create`. A context manager that frees the backend's workers."""

    def __init__(
        self,
        images: ImageSet,
        split: str,
        reader,
        *,
        batch_size: int,
        train: bool,
        seed: int,
        device: torch.device,
        augmentations: Augmentations,
        eval_crop: float,
    ):
        import torch

        chosen = images.splits[split]
        self.samples = len(chosen.paths)
        self.batch_size, self.train, self.seed, self.device = batch_size, train, seed, device
        self.augmentations, self.eval_crop = augmentations, eval_crop
        self.channels: Channels = images.channels
        # A batch of one would give batch normalisation no variance to train on.
        lone = train and batch_size > 1 and self.samples % batch_size == 1
        self._batches = -(-self.samples // batch_size) - lone
        self._sizes = np.ones((self.samples, 2), np.int64) if chosen.sizes is None else np.array(chosen.sizes, np.int64)
        self._labels = torch.tensor(chosen.labels, dtype=torch.int64)
        self._reader = reader
        self._running: Iterator[Batch] | None = None

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self._batches

    def epoch(self, epoch: int, start: int = 0, draw: int | None = None) -> Iterator[Batch]:
        """Yield the batches of an epoch, from batch number `start` on.

        Training: every image once in an order drawn by (seed, `draw`), by default the epoch, cropped and mirrored at
        random where the epoch's augmentations say so; a last batch of a single image is left out. Evaluation: every
        image once in list order, centre crop, whatever the epoch.
        Starting an epoch ends the one before it, if that is still being read.
        """
        if self._running is not None:
            self._running.close()
        self._running = self._epoch(self.plan(epoch, draw)[start:])
        return self._running

    def plan(self, epoch: int, draw: int | None = None) -> list[Work]:
        """Return what happens in each batch of an epoch."""
        draw = epoch if draw is None else draw
        names = self.augmentations.at(epoch) if self.train else ()
        order = sampling.order(self.samples, self.seed, draw) if self.train else np.arange(self.samples)
        if "crop" in names:
            scale, ratio = self.augmentations.crop_scale, self.augmentations.crop_ratio
            crops = sampling.random_crops(self._sizes, self.seed, draw, scale, ratio)
        else:
            crops = sampling.center_crops(self._sizes, self.eval_crop)
        flips = sampling.flips(self.samples, self.seed, draw) if "flip" in names else np.zeros(self.samples, bool)
        batches = [order[start : start + self.batch_size] for start in range(0, self.samples, self.batch_size)]
        return [Work(indices, crops[indices], flips[indices]) for indices in batches[: len(self)]]

    def close(self) -> None:
        """Free the backend's workers; the loader cannot be used afterwards."""
        if self._running is not None:
            self._running.close()
        self._reader.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _epoch(self, plan: list[Work]) -> Iterator[Batch]:
        import torch

        with closing(self._reader.read(plan)) as images:
            for work in plan:
                labels = self._labels[torch.from_numpy(work.indices)]
                yield Batch(next(images), labels.to(self.device, non_blocking=True), work.indices)


def create(
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
    pixels: Pixels | None = None,
) -> Loader:
    """Return a loader of images of `size` by `size` pixels from one split of a scanned set.

    `augmentations` (default: random crops and flips) say how training images are cropped and mirrored; `eval_crop` is
    the share of the short side that the central square keeps, in evaluation and where training does not crop at
    random. `workers` counts threads (dali, pixels) or processes (torch). With `pixels` the images come from there,
    whatever the backend; the batches are those of the torch backend.

    Raises:
        UserError: the backend is not there or cannot read the set, or a training split has one image.
        ValueError: the set has no sizes (see `engine.data.scan`), which only the synthetic backend can do without.
    """
    import torch

    from engine.augmentation import Augmentations

    device = torch.device(device)
    if train:
        check_trainable(images, split)
    return Loader(
        images,
        split,
        _reader(images, split, size, batch_size, backend, device, seed, workers, pixels),
        batch_size=batch_size,
        train=train,
        seed=seed,
        device=device,
        augmentations=augmentations or Augmentations(),
        eval_crop=eval_crop,
    )


def _reader(images: ImageSet, split: str, size: int, batch_size: int, backend: str, device, seed, workers, pixels):
    chosen = images.splits[split]
    backend = "cached" if pixels is not None else resolve(backend, images.stacks)
    if chosen.sizes is None and backend != "synthetic":
        raise ValueError(f"split {split!r} has no image sizes: pass the set through scan.scan and scan.apply first")
    if backend == "cached":
        from engine.data.cached import Reader

        return Reader(pixels, chosen.paths, size, device, workers)
    if backend == "dali":
        from engine.data.dali import Reader

        return Reader(images.root, chosen.paths, size, batch_size, device, workers)
    if backend == "torch":
        from engine.data.torch_backend import Reader

        return Reader(images, chosen.paths, size, device, workers)
    from engine.data.synthetic import Reader

    return Reader(images, len(chosen.paths), size, device, seed)


def check_trainable(images: ImageSet, split: str = "train") -> None:
    """Raise UserError where a split has too few images to train on."""
    count = len(images.splits[split].paths)
    if count < 2:
        raise UserError(f"{split} of {images.root} has {count} usable images: training needs at least 2")


def resolve(backend: str, stacks: bool = False) -> str:
    """Return the backend that a name stands for: "auto" is dali where it is installed and can read the set, else torch.

    Raises UserError where there is no such backend, or none that reads stacks.
    """
    if backend not in (*BACKENDS, "auto"):
        raise UserError(f"backend must be one of auto, {', '.join(BACKENDS)}, got {backend!r}")
    if backend not in ("auto", "dali"):
        return backend
    if stacks and backend == "dali":
        raise UserError("backend dali reads photos, not .npy files or TIFF files of several pages: use --backend torch")
    try:
        installed = importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        installed = False
    if backend == "dali" and not installed:
        raise UserError("backend dali needs NVIDIA DALI: pip install nvidia-dali-cuda130, or use --backend torch")
    return "dali" if installed and not stacks else "torch"
