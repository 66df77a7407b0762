"""The history of a training: losses, accuracies and speed of each epoch."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, astuple, dataclass, field, fields
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
    """For each epoch its row and its speed in training images per second; the total time in seconds.

    keep: which epoch has the weights to keep, the best: "loss", the one with the lowest validation loss; "last".
    lost: with "loss", how many of the first epochs cannot be the best because their weights are gone; 0 unless
        `best.pt` was damaged.
    """

    epochs: list[EpochRow] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    lost: int = 0
    keep: str = "loss"

    @property
    def best(self) -> EpochRow | None:
        """The row of the epoch whose weights are kept; None without a row.

        With "loss" the row with the lowest validation loss, the earliest at a tie, of those not lost.
        """
        if self.keep == "last":
            return self.epochs[-1] if self.epochs else None
        return min(self.epochs[self.lost :], key=_val_loss, default=None)

    @property
    def epochs_without_improvement(self) -> int:
        """The number of epochs since the epoch with the lowest validation loss."""
        return self.epochs[-1].epoch - min(self.epochs, key=_val_loss).epoch if self.epochs else 0

    def is_over(self, epochs: int, patience: int) -> bool:
        """Return whether no epoch follows where at most `epochs` are trained; a `patience` of 0 never ends earlier."""
        stale = patience and self.epochs_without_improvement >= patience
        return len(self.epochs) >= epochs or bool(stale)

    def ended_early(self, patience: int) -> str:
        """Return in words that a training ended by its patience."""
        count, kept = self.epochs_without_improvement, "; --keep last keeps its weights" * (self.keep == "last")
        return (
            f"ended after epoch {len(self.epochs)}, {count} epoch{'s' * (count != 1)} without a better validation loss "
            f"(--patience {patience}; 0 never stops){kept}"
        )

    @property
    def images_per_second(self) -> float:
        """The median speed without the first epoch, in which caches, compilers and workers warm up."""
        return median(self.speeds[1:] or self.speeds)

    def digest(self, epoch: int) -> str:
        """Return what tells a training up to an epoch from all others: a digest of the rows so far."""
        rows = repr([astuple(row) for row in self.epochs[:epoch]])
        return hashlib.blake2b(rows.encode(), digest_size=16).hexdigest()

    def as_dict(self) -> dict:
        """Return the history as a checkpoint stores it."""
        rows = list(map(asdict, self.epochs))
        return {"history": rows, "speeds": self.speeds, "seconds": self.seconds, "lost": self.lost}

    @classmethod
    def from_dict(cls, values: dict, keep: str = "loss") -> TrainingHistory:
        """Return the history that `as_dict` stored; raises KeyError or TypeError for any other dict."""
        rows = [EpochRow(**row) for row in values["history"]]
        return cls(rows, list(values["speeds"]), values["seconds"], values.get("lost", 0), keep)


def _val_loss(row: EpochRow) -> float:
    return row.val_loss
