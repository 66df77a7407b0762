"""The loggers of a run: TensorBoard, and others that the user names."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from polychrome.engine.channels.names import Channels
from polychrome.engine.errors import UserError
from polychrome.engine.history import TrainingHistory
from polychrome.engine.machine import distributed
from polychrome.engine.watch import mlflow, wandb
from polychrome.engine.watch.logger import InBackground, Logger, Training
from polychrome.engine.watch.tensorboard import TensorBoard


class Kind(NamedTuple):
    """A kind of logger: its name for the user, what makes it, and its check."""

    title: str
    make: Callable[[Training], Logger]
    check: Callable[[], None]


# By the name of the package that each needs.
KINDS = {
    "mlflow": Kind("MLflow", mlflow.MLflow, mlflow.check),
    "wandb": Kind("W&B", wandb.WandB, wandb.check),
}


def check(names: Iterable[str]) -> None:
    """Raise UserError where a logger of these names cannot begin: its package or an account is missing.

    Servers are not asked. Of several processes the first decides, which alone logs.
    """
    fault = None
    if distributed.is_main():
        try:
            for name in names:
                found = importlib.util.find_spec(name)
                # W&B's own folder of runs, below the folder that we run in, looks like a package without a file.
                if found is None or found.origin is None:
                    raise UserError(f"--logger {name} needs the package {name}: pip install {name}")
                KINDS[name].check()
        except UserError as error:
            fault = str(error)
    if fault := distributed.of_main(fault):
        raise UserError(fault)


class Loggers:
    """The loggers of a run's trainings, of the first process alone. A logger that fails is left out from then on.

    Args:
        names: some of `KINDS`.
        tensorboard: whether TensorBoard's files are written.
    """

    def __init__(self, names: Sequence[str], tensorboard: bool) -> None:
        main = distributed.is_main()
        self.names, self.tensorboard = names if main else (), tensorboard and main

    @contextmanager
    def of(self, training: Training, events: Path) -> Iterator[Logger]:
        """Return the loggers of a training as a single logger in a `with` block; TensorBoard's files go to `events`."""
        board = [TensorBoard(events, training.first_epoch, training.settings)] if self.tensorboard else []
        others = {name: InBackground(KINDS[name].title, partial(KINDS[name].make, training)) for name in self.names}
        try:
            with Together([*board, *others.values()]) as logger:
                yield logger
        finally:
            self.names = [name for name, other in others.items() if not other.failed]


class Together(Logger):
    """Several loggers as a single logger."""

    def __init__(self, each: Sequence[Logger]) -> None:
        self.each = each

    def batch(self, images: Tensor, channels: Channels) -> None:
        """Show each logger images of the first batch, float [batch, channels, height, width]."""
        for logger in self.each:
            logger.batch(images, channels)

    def epochs(self, history: TrainingHistory, idle: float | None = None) -> None:
        for logger in self.each:
            logger.epochs(history, idle)

    def result(self, epoch: int, figures: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        for logger in self.each:
            logger.result(epoch, figures, pictures)

    def close(self, failed: bool = False) -> None:
        for logger in self.each:
            logger.close(failed)
