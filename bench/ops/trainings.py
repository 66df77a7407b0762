"""Baselines of the engine's training: the loop of the reports, and a loop as users of timm write it."""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench.measuring.measure import Stopwatch
from polychrome import kernels
from polychrome.engine.data.image_set import ImageSet
from polychrome.engine.machine.workers import cpus

SCALE = (0.35, 1.0)  # of the area, in a random crop


class Training(AbstractContextManager):
    """Training of a model by Adam on a split of a set, with all channels; every epoch decodes each file.

    As a context manager, it ends the loader's workers, one per core, which live from epoch to epoch.
    """

    def __init__(self, model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]):
        self.model, self.loader = model.train(), loader
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)

    @abstractmethod
    def step(self, images: Tensor, labels: Tensor) -> None:
        """Train on a batch."""

    def epoch(self, steps: Stopwatch) -> float:
        """Train for an epoch, each step timed by `steps` from the batch to the new weights; return the seconds."""
        started = time.perf_counter()
        # The baselines run without our kernels.
        with kernels.use_backend("reference"):
            for images, labels in self.loader:
                steps.start()
                self.step(images, labels)
                steps.stop()
        return time.perf_counter() - started

    def __exit__(self, *_) -> None:
        self.loader = None


class Reports(Training):
    """The reports' loop: float32, eager, NCHW, torchvision's transforms in a DataLoader."""

    def __init__(self, model: nn.Module, images: ImageSet, split: str, size: int, batch_size: int, device: str):
        steps = (
            transforms.RandomResizedCrop(size, scale=SCALE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(images.channels.mean, images.channels.std),
        )
        files = Files(images, split, transforms.Compose(steps))
        loader = DataLoader(files, batch_size, shuffle=True, num_workers=cpus(), persistent_workers=True)
        super().__init__(model.to(device), loader)
        self.device, self.loss = device, 0.0

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Train on a batch, and wait for its loss."""
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(images.to(self.device)), labels.to(self.device))
        loss.backward()
        self.optimizer.step()
        self.loss += loss.item()


class Timm(Training):
    """timm's loader and a plain loop in channels_last, with autocast where the precision is "bf16", not "fp32".

    Raises:
        ImportError: timm is not installed.
    """

    def __init__(
        self, model: nn.Module, images: ImageSet, split: str, size: int, batch_size: int, device: str, precision: str
    ):
        from timm.data import create_loader

        place = torch.device(device)
        loader = create_loader(
            Files(images, split),
            (3, size, size),
            batch_size,
            is_training=True,
            scale=SCALE,
            color_jitter=0.0,
            mean=images.channels.mean,
            std=images.channels.std,
            num_workers=cpus(),
            pin_memory=place.type == "cuda",
            device=place,
        )
        super().__init__(model.to(place, memory_format=torch.channels_last), loader)
        self.autocast = torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16")

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Train on a batch."""
        with self.autocast:
            logits = self.model(images.contiguous(memory_format=torch.channels_last))
        F.cross_entropy(logits.float(), labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Files(Dataset):
    """The transformed images of a split, and their labels; timm's loader sets the transform itself."""

    def __init__(self, images: ImageSet, split: str, transform: Callable | None = None):
        chosen = images.splits[split]
        self.files, self.labels = [images.root / path for path in chosen.paths], chosen.labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.open(self.files[index]).convert("RGB")), self.labels[index]
