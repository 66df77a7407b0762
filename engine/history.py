"""The course of a training: what each epoch came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from statistics import median


@dataclass(frozen=True)
class EpochRow:
    """A row of `history.csv`. It has no times, so that equal runs write equal files.

    lr: the rate of the epoch's first step.
    """

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
class Course:
    """A row and a speed (images a second of training) per epoch, and the seconds in all."""

    history: list[EpochRow] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def best(self) -> EpochRow:
        """The row of least validation loss, the earliest of equals."""
        return min(self.history, key=lambda row: row.val_loss)

    @property
    def waited(self) -> int:
        """Epochs since the best one."""
        return self.history[-1].epoch - self.best.epoch if self.history else 0

    @property
    def images_per_second(self) -> float:
        """The median over the epochs, without the first, which warms up caches, compilers and worker processes."""
        return median(self.speeds[1:] or self.speeds)

    def as_dict(self) -> dict:
        """Return the course as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> Course:
        """Return what `as_dict` gave. Raises KeyError or TypeError where the values are of another kind."""
        return cls([EpochRow(**row) for row in values["history"]], list(values["speeds"]), values["seconds"])
