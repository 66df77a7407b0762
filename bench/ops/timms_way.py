"""Training as a user of timm would write it today: timm's loader, bfloat16 autocast, channels_last, Adam."""

import time
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from bench.measuring.measure import Stopwatch
from polychrome import kernels
from polychrome.engine.data.image_set import ImageSet
from polychrome.engine.machine.workers import cpus


class Training(AbstractContextManager):
    """A model trained on a split of a set, all its channels shown; each file is decoded in every epoch.

    A context manager that ends the loader's workers, one for each core, which live from epoch to epoch.

    precision: "bf16", or "fp32" without autocast.

    Raises:
        ImportError: timm is not installed.
    """

    def __init__(
        self, model: nn.Module, images: ImageSet, split: str, size: int, batch_size: int, device: str, precision: str
    ):
        from timm.data import create_loader

        self.device = torch.device(device)
        self.model = model.to(self.device, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")
        self.loader = create_loader(
            Files(images, split),
            (3, size, size),
            batch_size,
            is_training=True,
            scale=(0.35, 1.0),
            color_jitter=0.0,
            mean=images.channels.mean,
            std=images.channels.std,
            num_workers=cpus(),
            pin_memory=self.device.type == "cuda",
            device=self.device,
        )

    def epoch(self, steps: Stopwatch) -> float:
        """Train for an epoch, each step timed by `steps` from the batch to the new weights; return its seconds."""
        started = time.perf_counter()
        # The project's kernels are not what timm has.
        with kernels.use_backend("reference"):
            for images, labels in self.loader:
                steps.start()
                with self.autocast:
                    logits = self.model(images.contiguous(memory_format=torch.channels_last))
                F.cross_entropy(logits.float(), labels).backward()
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                steps.stop()
        return time.perf_counter() - started

    def __exit__(self, *_) -> None:
        self.loader = None


class Files(Dataset):
    """The files of a split as timm's loader takes a data set: decoded images, to which it gives a `transform`."""

    def __init__(self, images: ImageSet, split: str):
        chosen = images.splits[split]
        self.files, self.labels, self.transform = [images.root / path for path in chosen.paths], chosen.labels, None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.open(self.files[index]).convert("RGB")), self.labels[index]
