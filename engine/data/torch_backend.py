"""Loading with Pillow and torchvision in the worker processes of a DataLoader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional

from engine.data import decode

if TYPE_CHECKING:
    from engine.data.loader import Work


class Reader:
    """Decoded, cropped and resized batches of the files `root/paths`, made by `workers` processes (0: by this one)."""

    def __init__(self, root: Path, paths: Sequence[str], size: int, device: torch.device, workers: int):
        self.device = device
        self._plan: Sequence[Work] = ()
        self._loader = DataLoader(
            _Batches(root, paths, size),
            sampler=_Latest(self),
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            # Its own, as the seeds drawn for the workers would shift the model's dropout.
            generator=torch.Generator(),
        )

    def read(self, plan: Sequence[Work]) -> Iterator[torch.Tensor]:
        """Yield uint8 [batch, 3, size, size] on the device, channels last in memory, for each piece of work."""
        self._plan = plan
        for images in self._loader:
            yield images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)

    def close(self) -> None:
        """End the worker processes."""
        self._loader = None


class _Latest:
    def __init__(self, reader: Reader):
        self.reader = reader

    def __iter__(self) -> Iterator[Work]:
        return iter(self.reader._plan)

    def __len__(self) -> int:
        return len(self.reader._plan)


class _Batches(Dataset):
    def __init__(self, root: Path, paths: Sequence[str], size: int):
        self.root, self.paths, self.size = root, paths, size

    def __getitem__(self, work: Work) -> torch.Tensor:
        images = torch.empty(len(work.indices), self.size, self.size, 3, dtype=torch.uint8)
        for image, index, crop, flip in zip(images, work.indices, work.crops.tolist(), work.flips, strict=True):
            whole = torch.from_numpy(decode.rgb(self.root / self.paths[index]).copy()).permute(2, 0, 1)
            resized = functional.resized_crop(whole, *crop, [self.size, self.size], antialias=True)
            image.copy_((resized.flip(-1) if flip else resized).permute(1, 2, 0))
        return images
