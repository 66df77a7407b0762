"""What a logger of a training is: it is told of images, epochs and the result, and shows them somewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Self

from polychrome.engine import console
from polychrome.engine.errors import first_line
from polychrome.engine.history import EpochRow, TrainingHistory

if TYPE_CHECKING:
    from torch import Tensor

    from polychrome.engine.channels.names import Channels

PATIENCE = 60.0  # seconds that the end of a training waits for a logger

Value = str | int | float | bool


@dataclass(frozen=True)
class Training:
    """A network's training as loggers know it.

    Attributes:
        run: the name of the run's folder.
        begun: when the run began, which tells it from another run of this name.
        settings: what the network is trained with, by name.
        first_epoch: the epoch that this process starts with.
        course: tells the training from others of the network that were left and begun again; may be empty.
        anew: whether no earlier process was on this course, or none that came to a checkpoint.
    """

    task: str
    run: str
    network: str
    begun: str
    settings: Mapping[str, Value]
    first_epoch: int = 1
    course: str = ""
    anew: bool = False

    @property
    def name(self) -> str:
        """The names of run and network, for a list of trainings."""
        return f"{self.run} {self.network}"

    @property
    def id(self) -> str:
        """A name of 16 letters and digits, the same when the training goes on, wherever its folder then is."""
        parts = "\n".join((self.task, self.run, self.network, self.begun, *([self.course] if self.course else [])))
        return hashlib.blake2b(parts.encode(), digest_size=8).hexdigest()


class Logger:
    """Shows a training somewhere, told of it in the process that trains; this class shows nothing.

    Attributes:
        last: the last epoch that is shown already; earlier epochs and this one are not shown again.
    """

    last = 0

    def batch(self, images: Tensor, channels: Channels) -> None:
        """Take images of the first batch, float [batch, channels, height, width] as the model reads them."""

    def epochs(self, history: TrainingHistory, idle: float | None = None) -> None:
        """Show the epochs of a history that are not shown yet; `idle` is the idle share of the newest."""
        for row, speed in zip(history.epochs, history.speeds, strict=True):
            if row.epoch > self.last:
                self.epoch(row, speed, idle if row is history.epochs[-1] else None)
                self.last = row.epoch

    def epoch(self, row: EpochRow, images_per_second: float, idle: float | None = None) -> None:
        """Show an epoch: what `scalars` returns."""

    def result(self, epoch: int, figures: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        """Show what came of the training after its last epoch: figures and files of pictures by name."""

    def close(self, failed: bool = False) -> None:
        """Show what is left and let go of files and connections; `failed`: an error ended the training."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close(failed=kind is not None)


def scalars(row: EpochRow, images_per_second: float, idle: float | None = None) -> dict[str, float]:
    """Return an epoch's figures by name; without the idle share where it was not measured."""
    found = {
        "loss/train": row.train_loss,
        "loss/validation": row.val_loss,
        "accuracy/train": row.train_accuracy,
        "accuracy/validation": row.val_accuracy,
        "learning rate": row.lr,
        "images per second": images_per_second,
    }
    return found if idle is None else found | {"idle share": idle}


class InBackground(Logger):
    """Tells another logger of the training in a thread, so that the training never waits for a network.

    Where the other logger fails, or is not done `patience` seconds after the end of the training, one line says so,
    and it is told no more.

    Args:
        title: the other logger's name for the user.
        make: returns the other logger; called in the thread.

    Attributes:
        failed: whether the other logger has failed.
    """

    def __init__(self, title: str, make: Callable[[], Logger], patience: float = PATIENCE) -> None:
        self.title, self.patience, self.failed = title, patience, False
        self._calls: SimpleQueue[Callable[[Logger], None] | None] = SimpleQueue()
        # A daemon: a server that does not answer must not keep the process.
        self._thread = Thread(target=self._work, args=(make,), name=title, daemon=True)
        self._thread.start()

    def epochs(self, history: TrainingHistory, idle: float | None = None) -> None:
        seen = replace(history, epochs=list(history.epochs), speeds=list(history.speeds))
        self._calls.put(lambda logger: logger.epochs(seen, idle))

    def result(self, epoch: int, figures: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        self._calls.put(lambda logger: logger.result(epoch, figures, pictures))

    def close(self, failed: bool = False) -> None:
        self._calls.put(lambda logger: logger.close(failed))
        self._calls.put(None)
        self._thread.join(self.patience)
        if self._thread.is_alive():
            self._fail(f"no answer within {self.patience:g} s")

    def _work(self, make: Callable[[], Logger]) -> None:
        try:
            logger = make()
            while (call := self._calls.get()) is not None and not self.failed:
                call(logger)
        except Exception as error:
            self._fail(first_line(error))

    def _fail(self, reason: str) -> None:
        if not self.failed:
            self.failed = True
            console.say(f"nothing more is logged to {self.title}, the training goes on: {reason}")
