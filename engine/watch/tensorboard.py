"""TensorBoard logs of a training: scalars of each epoch, training images, and pictures."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from polychrome.engine.channels.names import Channels
from polychrome.engine.report import console
from polychrome.engine.report.plots import as_pictures

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from polychrome.engine.history import EpochRow

# Training images shown, four in a row.
SHOWN, IN_A_ROW = 16, 4


class Scalars:
    """Writes a model's scalars and images for `tensorboard --logdir` into a folder; does nothing unless `enabled`.

    Nothing is written before the first epoch ends, and nothing makes the host wait for the device within one. Without
    the package tensorboard, and where the folder cannot be written, one line says so and the training goes on.

    Args:
        first_epoch: the epoch that the training starts with. TensorBoard hides the entries of an earlier process about
            this epoch and later epochs, so that a resumed run shows each epoch once.
    """

    def __init__(self, folder: Path, enabled: bool = True, first_epoch: int = 1) -> None:
        self.folder, self.first_epoch = folder, first_epoch
        self.enabled = enabled and _is_installed()
        self._writer: SummaryWriter | None = None
        self._images: tuple[Tensor, Channels] | None = None
        self._seen = False

    def batch(self, images: Tensor, channels: Channels) -> None:
        """Store some images of the first batch, float [batch, channels, height, width] as the model reads them.

        They are shown as they were before they were standardised with the mean and deviation of `channels`.
        """
        if self.enabled and not self._seen:
            self._seen = True
            self._images = images[:SHOWN].detach().clone(), channels

    def epoch(self, row: EpochRow, images_per_second: float, idle: float | None = None) -> None:
        """Write an epoch's losses, accuracies, learning rate and speed, and its idle share where it was measured."""
        values = {
            "loss/train": row.train_loss,
            "loss/validation": row.val_loss,
            "accuracy/train": row.train_accuracy,
            "accuracy/validation": row.val_accuracy,
            "learning rate": row.lr,
            "images per second": images_per_second,
        }
        if idle is not None:
            values["idle share"] = idle
        images, self._images = self._images, None

        def write(writer: SummaryWriter) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, row.epoch)
            if images is not None:
                writer.add_image("training images", grid(*images), row.epoch, dataformats="HWC")
            writer.flush()

        self._attempt(write)

    def picture(self, name: str, path: Path, epoch: int) -> None:
        """Show a picture from a file, where there is one, as of an epoch."""
        if self.enabled and path.exists():
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            self._attempt(lambda writer: writer.add_image(name, pixels, epoch, dataformats="HWC"))

    def close(self) -> None:
        """Write the rest and close the files."""
        if self._writer is not None:
            self._attempt(lambda writer: writer.close())

    def __enter__(self) -> Scalars:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _attempt(self, write: Callable[[SummaryWriter], None]) -> None:
        """Write something; say so once where the folder cannot be written, and write no more."""
        if not self.enabled:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.folder), purge_step=self.first_epoch)
            write(self._writer)
        except OSError as error:
            self.enabled, self._writer = False, None
            console.say(f"no more TensorBoard scalars: {self.folder} cannot be written ({error.strerror or error})")


def grid(images: Tensor, channels: Channels) -> np.ndarray:
    """Return standardised images [batch, channels, height, width] beside each other, uint8 [height, width, 3].

    Of more than three channels the first three are shown, of fewer the first. Values that are not in 0..1 where they
    were not standardised are stretched from each image's least to its greatest.
    """
    from torchvision.utils import make_grid

    images = images.float().cpu()
    if images.shape[1] == len(channels):
        mean, std = (torch.tensor(values)[:, None, None] for values in (channels.mean, channels.std))
        images = images * std + mean
    if images.min() >= -0.01 and images.max() <= 1.01:
        images = (images * 255).round().clamp(0, 255).to(torch.uint8)
    pictures = torch.from_numpy(as_pictures(images)).permute(0, 3, 1, 2)
    return make_grid(pictures, nrow=IN_A_ROW, padding=2).permute(1, 2, 0).numpy()


@cache
def _is_installed() -> bool:
    found = importlib.util.find_spec("tensorboard") is not None
    if not found:
        console.say("no TensorBoard scalars: pip install tensorboard")
    return found
