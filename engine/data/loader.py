"""Batches of one split, the same ones from every backend."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from polychrome.engine.data import faults, sampling
from polychrome.engine.data.listing import ImageSet
from polychrome.engine.errors import UserError

if TYPE_CHECKING:
    import torch

    from polychrome.engine.augmentation import Augmentations
    from polychrome.engine.data.channel_info import Channels
    from polychrome.engine.data.pixels import Pixels
    from polychrome.engine.data.resident import Rendering, Resident
    from polychrome.kernels.augment import Recipe

BACKENDS = ("dali", "torch", "synthetic")


@dataclass(frozen=True)
class Batch:
    """Some images of a split, those of one rank.

    source: uint8 or float32 [batch, channels, size, size] of the values stored, channels last in memory, or what makes
        them of images that are kept.
    labels: int64 [batch], on the device.
    indices: int64 [batch], a numpy array, the images' places in the split.
    total: how many images the batch has over all ranks.
    drawn: what the epoch's recipe draws of each image beside crop and flip, arguments of `kernels.augment` by their
        names, on the device.
    """

    source: torch.Tensor | Rendering
    labels: torch.Tensor
    indices: np.ndarray
    total: int
    drawn: dict[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch, channels, height, width)."""
        return tuple(self.source.shape)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.labels.device

    @property
    def images(self) -> torch.Tensor:
        """uint8 or float32 [batch, channels, size, size] of the values stored, channels last in memory.

        Of images that are kept these are made anew at each call, cropped, mirrored and resized.
        """
        return getattr(self.source, "images", self.source)

    def standardised(self, channels: Channels, sources: torch.Tensor | None = None, **parameters) -> torch.Tensor:
        """Return the images [batch, channels, size, size] standardised per channel, float32, channels_last.

        Args:
            channels: those of the set, with their mean and deviation.
            sources: int64 [batch, out] or [out], which channel each output channel is; a negative one is absent: zero.
            parameters: `vflips` and, for uint8 images, `angles`, `brightness`, `contrast`, `gamma` and `grayscale`, see
                `kernels.augment`.
        """
        from polychrome.engine import batch

        standardise = getattr(self.source, "standardised", None)
        if standardise is not None:
            return standardise(channels, sources, **parameters)
        return batch.normalise(self.source, channels, sources, **parameters)

    def rows(self, chosen: np.ndarray) -> Batch:
        """Return the batch of the rows `chosen`, int64; one may be chosen several times."""
        import torch

        rows = torch.from_numpy(chosen).to(self.device)
        drawn = {name: values[rows] for name, values in self.drawn.items()}
        return Batch(self.source[rows], self.labels[rows], self.indices[chosen], self.total, drawn)


@dataclass(frozen=True)
class Work:
    """What a backend is to do for one batch: int64 [batch] indices, int64 [batch, 4] crops, bool [batch] flips.

    total: how many images the batch has over all ranks. size: height and width to resize to; 0: the reader's own. All
    work of a plan has the same.
    """

    indices: np.ndarray
    crops: np.ndarray
    flips: np.ndarray
    total: int = 0
    size: int = 0


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
        size: int,
        rank: int = 0,
        world_size: int = 1,
        on_fault: Callable[[str, str], None] | None = None,
    ):
        import torch

        chosen = images.splits[split]
        self.samples = len(chosen.paths)
        self.rank, self.world_size = rank, world_size
        self.size, self.batch_size = size, batch_size
        self.train, self.seed, self.device = train, seed, device
        self.augmentations, self.eval_crop = augmentations, eval_crop
        self.channels: Channels = images.channels
        # A batch of one, on any rank, would give batch normalisation no variance to train on.
        left_over = self.samples % batch_size
        too_few = train and batch_size > 1 and 0 < left_over < 2 * world_size
        self._batches = -(-self.samples // batch_size) - too_few
        self._sizes = np.ones((self.samples, 2), np.int64) if chosen.sizes is None else np.array(chosen.sizes, np.int64)
        self._labels = torch.tensor(chosen.labels, dtype=torch.int64)
        self._reader = reader
        self._root, self._paths, self._on_fault, self._told = images.root, chosen.paths, on_fault, set()
        self._running: Iterator[Batch] | None = None

    def __len__(self) -> int:
        """Return the number of batches in an epoch; in evaluation a rank may have no image of the last one."""
        return self._batches

    def epoch(
        self, epoch: int, start: int = 0, draw: int | None = None, recipe: Recipe | None = None
    ) -> Iterator[Batch]:
        """Yield the batches of an epoch, from batch number `start` on.

        Training: every image once in an order drawn by (seed, `draw`), by default the epoch, cropped and mirrored at
        random where the epoch's augmentations say so; a last batch of a single image, or of fewer than two for each
        rank, is left out. What else `recipe` draws of the images is in `Batch.drawn`. Evaluation: every image once in
        list order, centre crop, whatever the epoch.
        Each rank gets its share of every batch. Of files that cannot be read, training takes another image of the batch
        twice, and evaluation leaves them out.
        Starting an epoch ends the one before it, if that is still being read.

        Raises:
            UserError: no image of a batch could be read, or of the epoch so far more than a tenth, and at least 10.
        """
        if self._running is not None:
            self._running.close()
        plan = self.plan(epoch, draw)[start:]
        self._running = self._epoch(plan, self._drawn(plan, recipe, epoch if draw is None else draw))
        return self._running

    def plan(self, epoch: int, draw: int | None = None) -> list[Work]:
        """Return what happens on this rank in each batch of an epoch, without those that it has none of."""
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
        return [Work(*row, size=size) for row in rows if len(row[0])]

    def size_of(self, epoch: int) -> int:
        """Return height and width of the images of an epoch: in training they may grow from epoch to epoch."""
        return self.augmentations.size(epoch, self.size) if self.train else self.size

    def files(self, indices: np.ndarray) -> list[str]:
        """Return the paths of images by their places in the split."""
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

    def _epoch(self, plan: list[Work], drawn: Iterator[dict[str, torch.Tensor]]) -> Iterator[Batch]:
        tally = faults.Tally(self._root, self._paths, self._on_fault, self._told)
        labels = self._all_labels(plan)
        with closing(self._reader.read(plan)) as read:
            for work, some, parameters, decoded in zip(plan, labels, drawn, read, strict=True):
                batch = Batch(decoded.images, some, work.indices, work.total, parameters)
                tally.add(work.indices, decoded.faults)
                if decoded.faults:
                    batch = batch.rows(faults.rows(len(batch), decoded.faults, self.train))
                if len(batch):
                    yield batch

    def _all_labels(self, plan: list[Work]) -> tuple[torch.Tensor, ...]:
        """Return the labels of each batch, copied to the device together."""
        return self._copied(self._labels[_indices(plan)]).split([len(work.indices) for work in plan])

    def _drawn(self, plan: list[Work], recipe: Recipe | None, draw: int) -> Iterator[dict[str, torch.Tensor]]:
        """Yield what a recipe draws of each batch's images beside crops and flips, of thousands of images at once."""
        from polychrome.kernels.augment import Recipe
        from polychrome.kernels.augment import draw as drawn_by

        recipe = replace(recipe or Recipe(), scale=None, flip=0.0)
        if recipe == Recipe():
            yield from ({} for _ in plan)
            return
        step = max(1, sampling.AT_ONCE // self.batch_size)
        for some in (plan[start : start + step] for start in range(0, len(plan), step)):
            indices, counts = self._copied(_indices(some)), [len(work.indices) for work in some]
            drawn = drawn_by(recipe, indices, (1, 1), self.seed, draw, channels=len(self.channels))._asdict()
            columns = {name: values.split(counts) for name, values in drawn.items() if values is not None}
            yield from ({name: rows[i] for name, rows in columns.items()} for i in range(len(some)))

    def _copied(self, values: torch.Tensor) -> torch.Tensor:
        """Return values on the device; the host does not wait for the copy."""
        values = values.pin_memory() if self.device.type == "cuda" else values
        return values.to(self.device, non_blocking=True)


def _indices(plan: list[Work]) -> torch.Tensor:
    """Return the indices of all images of a plan, int64."""
    import torch

    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *(work.indices for work in plan)]))


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
    pixels: Pixels | Resident | None = None,
    rank: int = 0,
    world_size: int = 1,
    on_fault: Callable[[str, str], None] | None = None,
) -> Loader:
    """Return a loader of images of `size` by `size` pixels from one split of a scanned set.

    `augmentations` (default: random crops and flips) say how training images are cropped and mirrored, and whether they
    are smaller than `size` at first; `eval_crop` is the share of the short side that the central square keeps, in
    evaluation and where training does not crop at random. `workers` counts threads (dali, pixels) or processes (torch).
    With `pixels` the images come from there, whatever the backend; of whole images the batches are those of the torch
    backend.

    Of each batch, `batch_size` images over all `world_size` processes, the loader gives out the part of process `rank`.
    `on_fault(path, reason)` is called once for each file that can no longer be read.

    Raises:
        UserError: the backend is not there or cannot read the set, or a training split or batch has too few images.
        ValueError: the set has no sizes (see `engine.data.scan`), which only the synthetic backend can do without.
    """
    import torch

    from polychrome.engine.augmentation import Augmentations

    device = torch.device(device)
    if train:
        check_trainable(images, split, world_size)
        if world_size > 1 and batch_size < 2 * world_size:
            raise UserError(f"batches of {batch_size} images for {world_size} processes: each needs at least 2")
    return Loader(
        images,
        split,
        reader(images, split, size, batch_size, backend, device, seed, workers, pixels),
        batch_size=batch_size,
        train=train,
        seed=seed,
        device=device,
        augmentations=augmentations or Augmentations(),
        eval_crop=eval_crop,
        size=size,
        rank=rank,
        world_size=world_size,
        on_fault=on_fault,
    )


def reader(
    images: ImageSet,
    split: str,
    size: int,
    batch_size: int,
    backend: str,
    device: torch.device,
    seed: int = 0,
    workers: int = 1,
    pixels: Pixels | Resident | None = None,
):
    """Return what carries out `Work` on a split's images: `read(plan)` yields a `Decoded` each; see `create`."""
    chosen = images.splits[split]
    backend = getattr(pixels, "backend", None) or resolve(backend, images.stacks)
    if chosen.sizes is None and backend != "synthetic":
        raise ValueError(f"split {split!r} has no image sizes: pass the set through scan.scan and scan.apply first")
    if backend == "cached":
        from polychrome.engine.data.cached import Reader

        return Reader(pixels, chosen.paths, size, device, workers)
    if backend == "resident":
        from polychrome.engine.data.resident import Reader

        return Reader(pixels, chosen, size, device, workers)
    if backend == "dali":
        from polychrome.engine.data.dali import Reader

        return Reader(images.root, chosen.paths, size, batch_size, device, workers)
    if backend == "torch":
        from polychrome.engine.data.torch_backend import Reader

        return Reader(images, chosen, size, device, workers)
    from polychrome.engine.data.synthetic import Reader

    return Reader(images, len(chosen.paths), size, device, seed)


def check_trainable(images: ImageSet, split: str = "train", world_size: int = 1) -> None:
    """Raise UserError where a split has too few images to train on, in each of `world_size` processes."""
    count = len(images.splits[split].paths)
    if count < 2 * world_size:
        raise UserError(f"{split} of {images.root} has {count} usable images: training needs at least {2 * world_size}")


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
