"""TensorBoard logs of a training: scalars of each epoch, training images, and the result."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from polychrome.engine import console
from polychrome.engine.channels.names import Channels
from polychrome.engine.report.plots import as_pictures
from polychrome.engine.watch.logger import Logger, Value, scalars

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from polychrome.engine.history import EpochRow, TrainingHistory

# Training images shown, four in a row.
SHOWN, IN_A_ROW = 16, 4


# Ends the name of the file with the result.
RESULT = ".result"


class TensorBoard(Logger):
    """Writes a training for `tensorboard --logdir` into a folder.

    Nothing is written before the first epoch ends, and nothing makes the host wait for the device within one. Without
    the package tensorboard, and where the folder cannot be written, one line says so and the training goes on.

    Args:
        first_epoch: the epoch that the training starts with. TensorBoard hides what an earlier process wrote of this
            epoch and later epochs, and of earlier ones those are written that the folder lacks, so that a resumed run
            shows each epoch once.
        settings: what the page HPARAMS shows beside the result.
    """

    def __init__(self, folder: Path, first_epoch: int = 1, settings: Mapping[str, Value] | None = None) -> None:
        self.folder, self.first_epoch, self.settings = folder, first_epoch, dict(settings or {})
        self.enabled = _is_installed()
        self._writer: SummaryWriter | None = None
        self._begun = 0.0
        self._images: tuple[Tensor, Channels] | None = None
        self._seen = False

    def epochs(self, history: TrainingHistory, idle: float | None = None) -> None:
        def look() -> None:
            self.last = _shown(self.folder, self.first_epoch - 1)

        if self._writer is None:
            self._attempt(look)
        super().epochs(history, idle)

    def batch(self, images: Tensor, channels: Channels) -> None:
        """Store some images of the first batch, float [batch, channels, height, width] as the model reads them.

        They are shown as they were before they were standardised with the mean and deviation of `channels`.
        """
        if self.enabled and not self._seen:
            self._seen = True
            self._images = images[:SHOWN].detach().clone(), channels

    def epoch(self, row: EpochRow, images_per_second: float, idle: float | None = None) -> None:
        """Write an epoch's losses, accuracies, learning rate and speed, and its idle share where it was measured."""
        images, self._images = self._images, None

        def write() -> None:
            if self._writer is None:
                self._writer, self._begun = _writer(self.folder, purge_step=row.epoch), time.time()
            for name, value in scalars(row, images_per_second, idle).items():
                self._writer.add_scalar(name, value, row.epoch)
            if images is not None:
                self._writer.add_image("training images", grid(*images), row.epoch, dataformats="HWC")
            self._writer.flush()

        self._attempt(write)

    def result(self, epoch: int, figures: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        """Write figures, pictures and the page HPARAMS as of an epoch, in a file in place of an earlier result's.

        TensorBoard shows the first page of a folder alone, which is outdated where a finished training has gone on.
        """

        def write() -> None:
            from torch.utils.tensorboard.summary import hparams

            for path in self.folder.glob(f"*{RESULT}"):
                path.unlink()
            # TensorBoard reads files by their names, which begin with the second: this one belongs after the epochs'.
            time.sleep(max(0.0, int(self._begun) + 1 - time.time()))
            with _writer(self.folder, filename_suffix=RESULT) as writer:
                for summary in hparams(self.settings, dict(figures)):
                    writer.file_writer.add_summary(summary)
                for name, value in figures.items():
                    writer.add_scalar(name, value, epoch)
                for name, path in pictures.items():
                    if path.exists():
                        with Image.open(path) as image:
                            writer.add_image(name, np.asarray(image.convert("RGB")), epoch, dataformats="HWC")

        self._attempt(write)

    def close(self, failed: bool = False) -> None:
        """Write the rest and close the files."""
        if self._writer is not None:
            self._attempt(self._writer.close)

    def _attempt(self, write: Callable[[], None]) -> None:
        """Write something; say so once where the folder cannot be written, and write no more."""
        if not self.enabled:
            return
        try:
            write()
        except OSError as error:
            self.enabled, self._writer = False, None
            console.say(f"no more TensorBoard scalars: {self.folder} cannot be written ({error.strerror or error})")


def _writer(folder: Path, **options: Any) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), **options)


def _shown(folder: Path, most: int) -> int:
    """Return up to which epoch, `most` at most, a folder's files have every epoch."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    if not most or not folder.is_dir():
        return 0
    events, tag = EventAccumulator(str(folder), {SCALARS: 0}), "loss/train"
    events.Reload()
    steps = {event.step for event in events.Scalars(tag)} if tag in events.Tags()[SCALARS] else set()
    return next(epoch for epoch in range(most + 1) if epoch == most or epoch + 1 not in steps)


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
