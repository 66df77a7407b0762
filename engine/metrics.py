"""Loss, accuracy, balanced accuracy and macro precision, recall and F1 over a pass, accumulated on the device."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from polychrome.engine.machine import distributed

Z = 1.96  # standard deviations that 1 in 40 normal values exceeds


@dataclass(frozen=True)
class Scores:
    """Mean cross-entropy in nats; accuracy and macro precision, recall and F1 in 0..1; the number of images.

    Balanced accuracy is the mean over the classes that have images of the share of their images that is right.

    Attributes:
        no_class: how many of the images have no likeliest class, see `likeliest`; they count as wrong.
        guessed: the balanced accuracy that 1 in 40 guessers exceed who give each class as often as the predictions do.
        largest_class: the share of the class with most images, which always answering that class is right on.
    """

    loss: float
    accuracy: float
    balanced_accuracy: float
    precision: float
    recall: float
    f1: float
    images: int
    no_class: int
    guessed: float
    largest_class: float

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


def likeliest(logits: Tensor) -> Tensor:
    """Return the likeliest classes, int64 [batch], of logits or probabilities [batch, classes]; -1 where none is.

    None is where the greatest value is NaN or infinite. `argmax` takes NaN for the greatest, and so names the first
    class.
    """
    return torch.where(logits.amax(1).isfinite(), logits.argmax(1), -1)


class Scorer:
    """Accumulates one pass of predictions, over all processes; nothing is copied to the host before `compute`.

    A class that occurs neither in the labels nor in the predictions does not enter the macro averages. All but the loss
    follows from the confusion matrix; torchmetrics counts by `torch.bincount`, which makes the host wait for a GPU.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._classes = num_classes
        # The last column is for images without a likeliest class.
        self._confusion = torch.zeros(num_classes * (num_classes + 1), dtype=torch.int64, device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._count = 0

    def update(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Add a batch, logits [batch, classes] of any float type and labels int64 [batch]; return its `likeliest`."""
        logits = logits.float()
        self._loss += F.cross_entropy(logits, labels, reduction="sum")
        self._count += len(labels)
        guesses, columns = likeliest(logits), self._classes + 1
        cells = labels * columns + guesses % columns
        self._confusion.index_add_(0, cells, torch.ones_like(cells))
        return guesses

    def compute(self) -> Scores:
        """Return the scores of everything added so far; NaN where nothing was."""
        loss, total = distributed.summed(self._loss, torch.tensor(self._count, device=self._loss.device))
        confusion = self._counts().double()
        hits, actual, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)[:-1]
        occurs = actual + predicted > 0
        balanced = (hits / actual)[actual > 0].mean().item()
        # A divisor of 0 becomes 1, which changes nothing: the hits are 0 there as well.
        means = [
            (part / whole.clamp_min(1))[occurs].mean().item()
            for part, whole in ((hits, predicted), (hits, actual), (2 * hits, actual + predicted))
        ]
        accuracy, there = (hits.sum() / confusion.sum()).item(), actual > 0
        guesses = guessed((predicted / confusion.sum())[there], actual[there])
        largest = (actual.max() / confusion.sum()).item()
        counts = int(total), int(confusion[:, -1].sum())
        return Scores((loss / total).item(), accuracy, balanced, *means, *counts, guesses, largest)

    def confusion(self) -> Tensor:
        """Return the counts [true class, likeliest class], in host memory, of the images that have such a class."""
        return self._counts()[:, :-1]

    def _counts(self) -> Tensor:
        (counts,) = distributed.summed(self._confusion)
        return counts.view(self._classes, self._classes + 1).cpu()


def guessed(rates: Tensor, images: Tensor) -> float:
    """Return the balanced accuracy that 1 in 40 guessers exceed who give each class at a rate whatever the image.

    A guesser's shares of right answers are binomial, class by class. Their mean spreads as the smallest classes do, and
    is skewed where these are rarely given: its quantile is that of Cornish and Fisher (1938), to the third cumulant.

    Args:
        rates: [classes], dtype float64, the share of the guesses that each class has.
        images: [classes], dtype float64, the images of each class, none of them 0.
    """
    classes, spread = len(rates), rates * (1 - rates) / images
    variance = (spread.sum() / classes**2).item()
    third = ((spread * (1 - 2 * rates) / images).sum() / classes**3).item()
    skew = max(0.0, third / variance) if variance > 0 else 0.0
    return (rates.sum() / classes).item() + Z * math.sqrt(variance) + (Z**2 - 1) / 6 * skew
