"""Loss, accuracy and macro precision, recall and F1 over a pass, accumulated on the device."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from engine import distributed


@dataclass(frozen=True)
class Scores:
    """Mean cross-entropy in nats; accuracy and macro precision, recall and F1 in 0..1."""

    loss: float
    accuracy: float
    precision: float
    recall: float
    f1: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Scorer:
    """Accumulates one pass of predictions, over all processes; nothing is copied to the host before `compute`.

    A class that occurs neither in the labels nor in the predictions does not enter the macro averages.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        options = {"num_classes": num_classes, "validate_args": False}
        self._metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(average="micro", **options),
                "precision": MulticlassPrecision(average="macro", **options),
                "recall": MulticlassRecall(average="macro", **options),
                "f1": MulticlassF1Score(average="macro", **options),
                "confusion": MulticlassConfusionMatrix(**options),
            }
        ).to(device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._count = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits [batch, classes] of any float type, labels [batch] int64."""
        logits = logits.float()
        self._loss += F.cross_entropy(logits, labels, reduction="sum")
        self._count += len(labels)
        self._metrics.update(logits, labels)

    def compute(self) -> Scores:
        """Return the scores of everything added so far."""
        values = self._metrics.compute()
        del values["confusion"]
        loss, count = distributed.summed(self._loss, torch.tensor(self._count, device=self._loss.device))
        return Scores(loss.item() / count.item(), **{name: value.item() for name, value in values.items()})

    def confusion(self) -> Tensor:
        """Return the counts [true class, predicted class]."""
        return self._metrics["confusion"].compute().cpu()
