"""Training as the reports did it: float32, eager, NCHW, torchvision's transforms in a DataLoader, Adam."""

import time

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench.measuring.measure import Stopwatch
from polychrome import kernels
from polychrome.engine.data.image_set import ImageSet
from polychrome.engine.machine.workers import cpus


class Training:
    """A model trained on a split of a set, all its channels shown; each file is decoded in every epoch.

    A context manager that ends the DataLoader's workers, one for each core, which live from epoch to epoch.
    """

    def __init__(self, model: nn.Module, images: ImageSet, split: str, size: int, batch_size: int, device: str):
        self.device, self.model = device, model.to(device).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        photographs = Photographs(images, split, size)
        self.loader = DataLoader(photographs, batch_size, shuffle=True, num_workers=cpus(), persistent_workers=True)

    def epoch(self, steps: Stopwatch) -> float:
        """Train for an epoch, each step timed by `steps` from the batch to the new weights; return its seconds."""
        started, total = time.perf_counter(), 0.0
        # The project's kernels are not what the reports had.
        with kernels.use_backend("reference"):
            for images, labels in self.loader:
                steps.start()
                self.optimizer.zero_grad()
                loss = F.cross_entropy(self.model(images.to(self.device)), labels.to(self.device))
                loss.backward()
                self.optimizer.step()
                total += loss.item()
                steps.stop()
        return time.perf_counter() - started

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *_) -> None:
        self.loader = None


class Photographs(Dataset):
    """The images of a split, float32 [3, size, size], cropped and mirrored at random and standardised; and labels."""

    def __init__(self, images: ImageSet, split: str, size: int):
        chosen = images.splits[split]
        self.files, self.labels = [images.root / path for path in chosen.paths], chosen.labels
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=(0.35, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(images.channels.mean, images.channels.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.open(self.files[index]).convert("RGB")), self.labels[index]
