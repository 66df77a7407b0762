"""The history of a training: losses, accuracies and speed of each epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from statistics import median


@dataclass(frozen=True)
class EpochRow:
    """A row of `history.csv`. It has no times, so that equal runs write equal files. lr: of the epoch's first step."""

    model: str
    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float

    @classmethod
    def from_text(cls, row: dict[str, str]) -> EpochRow:
        """Return a row read from `history.csv`."""
        return cls(row["model"], int(row["epoch"]), **{item.name: float(row[item.name]) for item in fields(cls)[2:]})


@dataclass
class TrainingHistory:
    """For each epoch its row and its speed in training images per second; the total time in seconds."""

    epochs: list[EpochRow] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def best(self) -> EpochRow:
        """The row with the lowest validation loss, the earliest at a tie."""
        return min(self.epochs, key=lambda row: row.val_loss)

    @property
    def epochs_without_improvement(self) -> int:
        """The number of epochs since the best epoch."""
        return self.epochs[-1].epoch - self.best.epoch if self.epochs else 0

    @property
    def images_per_second(self) -> float:
        """The median speed without the first epoch, in which caches, compilers and workers warm up."""
        return median(self.speeds[1:] or self.speeds)

    def as_dict(self) -> dict:
        """Return the history as a checkpoint stores it."""
        return {"history": list(map(asdict, self.epochs)), "speeds": self.speeds, "seconds": self.seconds}

    @classmethod
    def from_dict(cls, values: dict) -> TrainingHistory:
        """Return the history that `as_dict` stored; raises KeyError or TypeError for any other dict."""
        return cls([EpochRow(**row) for row in values["history"]], list(values["speeds"]), values["seconds"])
