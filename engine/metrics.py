"""Loss, accuracies, macro precision, recall and F1, and calibration over a pass, accumulated on the device."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from polychrome.engine.machine import distributed

TOP = 5
BINS = 15  # of equal width, of the probability of the likeliest class
UNIT = 2**24  # probabilities are summed as whole numbers of 1 / UNIT: in any order the sum is the same
Z = 1.96  # standard deviations that 1 in 40 normal values exceeds


@dataclass(frozen=True)
class Scores:
    """Mean cross-entropy in nats; accuracy and macro precision, recall and F1 in 0..1; the number of images.

    Balanced accuracy is the mean over the classes that have images of the share of their images that is right.

    Attributes:
        no_class: how many of the images have no likeliest class, see `likeliest`; they count as wrong.
        guessed: the balanced accuracy that 1 in 40 guessers exceed who give each class as often as the predictions do.
        largest_class: the share of the class with most images, which always answering that class is right on.
        calibration_error: the expected calibration error in 0..1, over 15 bins of equal width: the mean over the images
            of the distance, in an image's bin, between the mean probability of the likeliest class and the share of
            images that are right (Guo et al., "On Calibration of Modern Neural Networks", 2017). The probability of an
            image without a likeliest class counts as 0.
        top5_accuracy: the share of images whose class is among the five likeliest; None of five classes or fewer.
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
    calibration_error: float
    top5_accuracy: float | None = None

    def as_dict(self) -> dict[str, float | int]:
        """Return the scores by name, without those that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def likeliest(logits: Tensor) -> Tensor:
    """Return the likeliest classes, int64 [batch], of logits or probabilities [batch, classes]; -1 where none is.

    None is where the greatest value is NaN or infinite. `argmax` takes NaN for the greatest, and so names the first
    class.
    """
    return torch.where(logits.amax(1).isfinite(), logits.argmax(1), -1)


def confidence(logits: Tensor, guesses: Tensor) -> Tensor:
    """Return the probabilities of the likeliest classes, float32 [batch], of logits [batch, classes]; 0 of none.

    guesses: int64 [batch], `likeliest(logits)`.
    """
    return torch.where(guesses < 0, 0, logits.float().softmax(1).amax(1))


class Scorer:
    """Accumulates one pass of predictions, over all processes; nothing is copied to the host before `compute`.

    A class that occurs neither in the labels nor in the predictions does not enter the macro averages. Most scores
    follow from the confusion matrix; torchmetrics counts by `torch.bincount`, which makes the host wait for a GPU.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._classes = num_classes
        # The last column is for images without a likeliest class.
        self._confusion = torch.zeros(num_classes * (num_classes + 1), dtype=torch.int64, device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._count = 0
        self._among_top = torch.zeros((), dtype=torch.int64, device=device)
        # By bin: the images, those that are right, and the sum of the probabilities, in 1 / UNIT.
        self._bins = torch.zeros(BINS, 3, dtype=torch.int64, device=device)

    def update(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Add a batch, logits [batch, classes] of any float type and labels int64 [batch]; return its `likeliest`."""
        logits = logits.float()
        self._loss += F.cross_entropy(logits, labels, reduction="sum")
        self._count += len(labels)
        guesses, columns = likeliest(logits), self._classes + 1
        cells = labels * columns + guesses % columns
        ones = torch.ones_like(cells)
        self._confusion.index_add_(0, cells, ones)
        sure = confidence(logits, guesses).double()
        bins = (sure * BINS).ceil().long().clamp(1, BINS) - 1  # a bin has its upper end
        self._bins.index_add_(0, bins, torch.stack([ones, guesses == labels, (sure * UNIT).round().long()], 1))
        if self._classes > TOP:
            own, places = logits.gather(1, labels[:, None]), torch.arange(self._classes, device=logits.device)
            # Of equal logits the first class is the likelier one, as in `likeliest`.
            before = (logits > own) | ((logits == own) & (places < labels[:, None]))
            self._among_top += ((before.sum(1) < TOP) & (guesses >= 0)).sum()
        return guesses

    def compute(self) -> Scores:
        """Return the scores of everything added so far; NaN where nothing was."""
        count = torch.tensor(self._count, device=self._loss.device)
        loss, total, among = distributed.summed(self._loss, count, self._among_top)
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
        top = (among / total).item() if self._classes > TOP else None
        return Scores((loss / total).item(), accuracy, balanced, *means, *counts, guesses, largest, self._error(), top)

    def _error(self) -> float:
        (bins,) = distributed.summed(self._bins)
        images, right, sure = bins.cpu().double().T
        return ((right - sure / UNIT).abs().sum() / images.sum()).item()

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
