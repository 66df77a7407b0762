"""Loss, accuracy, balanced accuracy and macro precision, recall and F1 over a pass, accumulated on the device."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from polychrome.engine.machine import distributed


@dataclass(frozen=True)
class Scores:
    """Mean cross-entropy in nats; accuracy and macro precision, recall and F1 in 0..1; the number of images.

    Balanced accuracy is the mean over the classes that have images of the share of their images that is right.
    """

    loss: float
    accuracy: float
    balanced_accuracy: float
    precision: float
    recall: float
    f1: float
    images: int

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


class Scorer:
    """Accumulates one pass of predictions, over all processes; nothing is copied to the host before `compute`.

    A class that occurs neither in the labels nor in the predictions does not enter the macro averages. All but the loss
    follows from the confusion matrix; torchmetrics counts by `torch.bincount`, which makes the host wait for a GPU.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._classes = num_classes
        self._confusion = torch.zeros(num_classes**2, dtype=torch.int64, device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._count = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits [batch, classes] of any float type, labels [batch] int64."""
        logits = logits.float()
        self._loss += F.cross_entropy(logits, labels, reduction="sum")
        self._count += len(labels)
        cells = labels * self._classes + logits.argmax(1)
        self._confusion.index_add_(0, cells, torch.ones_like(cells))

    def compute(self) -> Scores:
        """Return the scores of everything added so far; NaN where nothing was."""
        loss, total = distributed.summed(self._loss, torch.tensor(self._count, device=self._loss.device))
        confusion = self.confusion().double()
        hits, actual, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        occurs = actual + predicted > 0
        balanced = (hits / actual)[actual > 0].mean().item()
        # A divisor of 0 becomes 1, which changes nothing: the hits are 0 there as well.
        means = [
            (part / whole.clamp_min(1))[occurs].mean().item()
            for part, whole in ((hits, predicted), (hits, actual), (2 * hits, actual + predicted))
        ]
        return Scores((loss / total).item(), (hits.sum() / confusion.sum()).item(), balanced, *means, int(total))

    def confusion(self) -> Tensor:
        """Return the counts [true class, predicted class], in host memory."""
        (counts,) = distributed.summed(self._confusion)
        return counts.view(self._classes, self._classes).cpu()
