"""The pictures of a report, as PNG files."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

matplotlib.use("Agg")
# A class name in a script that no installed font has is drawn as boxes; a warning per letter helps nobody.
warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class Prediction:
    """An image uint8 [height, width, 3] with its true class, the predicted one and that one's probability."""

    image: np.ndarray
    truth: str
    predicted: str
    probability: float


def curves(history: dict[str, list], path: Path) -> None:
    """Plot loss and accuracy by epoch, a colour per model: training dashed, validation solid, best epoch marked."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for colour, (name, rows) in zip(_cycle(len(history)), history.items(), strict=True):
        epochs = [row.epoch for row in rows]
        best = min(rows, key=lambda row: row.val_loss)
        for axis, kind in zip(axes, ("loss", "accuracy"), strict=True):
            axis.plot(epochs, [getattr(row, f"train_{kind}") for row in rows], "--", color=colour, alpha=0.6)
            axis.plot(epochs, [getattr(row, f"val_{kind}") for row in rows], "-", color=colour, label=name)
            axis.plot(best.epoch, getattr(best, f"val_{kind}"), "o", color=colour)
    for axis, kind in zip(axes, ("loss", "accuracy"), strict=True):
        axis.set(xlabel="epoch", ylabel=kind, title=f"{kind}: validation solid, training dashed, best epoch marked")
        axis.title.set_fontsize(10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    axes[1].set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    _save(figure, path)


def combinations(scores: dict[str, dict[str, float]], chance: float, path: Path) -> None:
    """Plot accuracy as bars: `scores` is accuracy by channel combination, by model."""
    names = list(next(iter(scores.values())))
    width = 0.8 / len(scores)
    figure, axis = plt.subplots(figsize=(max(7, 0.9 * len(names) * max(1, len(scores) / 2)), 4), layout="constrained")
    for number, (colour, (model, values)) in enumerate(zip(_cycle(len(scores)), scores.items(), strict=True)):
        places = np.arange(len(names)) + (number - (len(scores) - 1) / 2) * width
        bars = axis.bar(places, [100 * values[name] for name in names], width, color=colour, label=model)
        axis.bar_label(bars, fmt="%.0f", fontsize=8, padding=1)
    axis.axhline(100 * chance, color="grey", linestyle=":", label="chance")
    axis.set_xticks(range(len(names)), names)
    axis.set(xlabel="channels present", ylabel="test accuracy, %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, path)


def confusion(counts: np.ndarray, class_names: tuple[str, ...], title: str, path: Path) -> None:
    """Plot a confusion matrix [true, predicted], each row as shares of its class."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(9, 4 + 0.11 * len(class_names))
    figure, axis = plt.subplots(figsize=(size + 1, size), layout="constrained")
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    axis.set(xlabel="predicted", ylabel="true", title=title)
    if len(class_names) <= 60:
        short = [_plain(name if len(name) <= 22 else name[:21] + "…") for name in class_names]
        axis.set_xticks(range(len(short)), short, rotation=90, fontsize=5)
        axis.set_yticks(range(len(short)), short, fontsize=5)
    _save(figure, path)


def predictions(shown: list[Prediction], title: str, path: Path) -> None:
    """Plot a grid of images with predicted and true names, right ones green and wrong ones red."""
    columns = min(6, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.1 * columns, 2.5 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, item in zip(axes.flat, shown, strict=False):
        right = item.predicted == item.truth
        axis.imshow(item.image)
        label = f"{_plain(item.predicted[:24])} {item.probability:.0%}"
        axis.set_title(
            label if right else f"{label}\nis {_plain(item.truth[:24])}",
            fontsize=8,
            color="#007a3d" if right else "#c0272d",
        )
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def _cycle(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _plain(text: str) -> str:
    # matplotlib reads text between dollar signs as mathematics.
    return text.replace("$", r"\$")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)
