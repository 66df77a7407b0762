"""The pictures of a report, as PNG files; charts also as SVG files, in which a page's colour scheme can be put."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox
from torch import Tensor

from polychrome.engine import console
from polychrome.engine.errors import one_line, shown
from polychrome.engine.machine.files import new_file
from polychrome.engine.report import scores

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Dark enough for letters.
LABEL_COLOURS = ("#0072B2", "#B34700", "#00785A", "#8E4585", "#000000")
CURVES_KEY = "training dashed, validation solid, least validation loss marked"
CHANCE_COLOUR = "#E69F00"
# More models than this are too many for bars side by side, or for ranges on top of each other.
MOST_BARS = 4
# More combinations than this stand below each other, where long names have room.
MOST_BESIDE = 12
# Inches: on a phone the letters can still be read, elsewhere two pictures of this width stand beside each other.
NARROW = 6.0
DOTS_PER_INCH = 144
# Classes of a confusion matrix that are named.
MOST_NAMED = 60
MARKERS = {
    "subset": "o",
    "mask": "D",
    "zero-pad": "s",
    "one-per-combination": "^",
    "one-per-combination, zero-pad": "v",
}
# Where a label may stand about its point: offset in points, horizontal and vertical alignment; the best first.
PLACES = (
    ((7, 0), "left", "center"),
    ((-7, 0), "right", "center"),
    ((0, 7), "center", "bottom"),
    ((0, -7), "center", "top"),
    ((5, 6), "left", "bottom"),
    ((5, -6), "left", "top"),
    ((-5, 6), "right", "bottom"),
    ((-5, -6), "right", "top"),
    ((14, 12), "left", "center"),
    ((14, -12), "left", "center"),
    ((-14, 12), "right", "center"),
    ((-14, -12), "right", "center"),
    ((14, 24), "left", "center"),
    ((14, -24), "left", "center"),
    ((-14, 24), "right", "center"),
    ((-14, -24), "right", "center"),
)
# A label takes its next place to save more square pixels of overlap than this.
WORTH_A_PLACE = 12


@dataclass(frozen=True)
class Prediction:
    """An image uint8 [height, width, 3] of a path, with its true class, the predicted class and its probability."""

    path: str
    image: np.ndarray
    truth: str
    predicted: str
    probability: float


def as_pictures(images: Tensor, present: Tensor | None = None) -> np.ndarray:
    """Return images [batch, channels, height, width] as uint8 [batch, height, width, 3] to look at.

    The first three channels are pictures as red, green and blue, of fewer channels the first in gray. Values
    other than uint8 are stretched from the least to the greatest of each image. `present` is bool [batch, channels]:
    the channels that each image has; None where all have all.
    """
    if present is not None:
        first = present.int().argsort(dim=1, descending=True, stable=True)[:, :3]
        first = torch.where(present.sum(1, keepdim=True) >= 3, first, first[:, :1])
        images = images[torch.arange(len(images), device=images.device)[:, None], first]
    pictures = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    if pictures.dtype != torch.uint8:
        least, greatest = pictures.float().aminmax(dim=1)
        least, greatest = least.amin((1, 2)), greatest.amax((1, 2))
        span = (greatest - least).clamp_min(torch.finfo(torch.float32).tiny)
        pictures = (
            ((pictures.float() - least.view(-1, 1, 1, 1)) * (255 / span).view(-1, 1, 1, 1)).round().to(torch.uint8)
        )
    return pictures.permute(0, 2, 3, 1).cpu().numpy()


def _styled(picture: Callable[..., None]) -> Callable[..., None]:
    """Return a function that draws a picture in our style, and leaves matplotlib's settings as they were."""

    @wraps(picture)
    def drawn(*content: Any) -> None:
        # Names may have dollar signs.
        with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
            # A class name in a script that no installed font has is drawn as boxes; a warning per letter helps nobody.
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
            picture(*content)

    return drawn


def _figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    """Return a new figure of a size in inches that is drawn in memory, whatever a notebook or a desktop draws on."""
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def draw(results: dict, history: dict[str, list], folder: Path) -> None:
    """Draw a run's pictures, as its content allows: `curves`, `combinations` or `channels_kept`, and `tradeoff`.

    Args:
        results: the content of `results.json`.
        history: rows with `epoch` and `{train,val}_{loss,accuracy}`, by entry.
        folder: the run's `plots/`.
    """
    entries = {shown(name): entry for name, entry in results["models"].items()}
    results = results | {"models": entries}
    if any(history.values()):
        attempt(curves, {shown(name): rows for name, rows in history.items()}, folder / "curves.png")
    if scores.is_long(results):
        if any(scores.sizes(results).values()):
            attempt(channels_kept, results, folder / "channels_kept.png")
    elif scores.labels(results):
        accuracy = {
            name: {shown(label): scores.score(entry, label) for label in scores.labels(results)}
            for name, entry in entries.items()
        }
        attempt(combinations, accuracy, scores.baseline(results), folder / "combinations.png")
    if len(_costs(results)) > 1:
        attempt(tradeoff, results, folder / "tradeoff.png")


def attempt(picture: Callable[..., None], *content: Any) -> None:
    """Draw one of the pictures below; its last argument is its file. Where that fails a line says so.

    A picture that cannot be drawn costs neither the others nor the tables.
    """
    path: Path = content[-1]
    try:
        picture(*content)
    except Exception as error:
        for file in (path, path.with_suffix(".svg")):
            file.unlink(missing_ok=True)
        console.say(f"{path} could not be drawn: {one_line(error)}")


@_styled
def curves(history: dict[str, list], path: Path) -> None:
    """Plot loss and accuracy by epoch: training dashed, validation solid, least validation loss marked.

    A few models share a pair of axes, loss above accuracy, a colour each. Many models, or variants such as with and
    without augmentation, get a pair of axes per model, with its variants together.
    """
    history = {name: rows for name, rows in history.items() if rows}
    panels: dict[str, dict[str, list]] = {}
    for name, rows in history.items():
        panels.setdefault(scores.base(name), {})[name] = rows
    if len(history) <= len(COLOURS) and len(panels) == len(history):
        _curves_together(history, path)
    else:
        _curves_apart(panels, path)


def _curves_together(history: dict[str, list], path: Path) -> None:
    figure = _figure(NARROW, 6)
    axes = figure.subplots(2, 1, sharex=True)
    for axis, kind in zip(axes, ("loss", "accuracy"), strict=True):
        _draw_curves(axis, kind, history)
        axis.set_ylabel(kind)
    axes[1].set_xlabel("epoch")
    axes[0].legend(frameon=False)
    figure.suptitle(CURVES_KEY, fontsize=10)
    _save(figure, path, vector=True)


def _curves_apart(panels: dict[str, dict[str, list]], path: Path) -> None:
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(max(NARROW, 3.3 * columns + 0.6), 4.2 * rows + 0.5)
    cells = figure.subfigures(rows, columns, squeeze=False)
    for cell, (model, members) in zip(cells.flat, panels.items(), strict=False):
        axes = cell.subplots(2, 1, sharex=True)
        for axis, kind in zip(axes, ("loss", "accuracy"), strict=True):
            _draw_curves(axis, kind, members)
            axis.set_ylabel(kind)
        axes[0].set_title(model, fontsize=10, fontweight="bold")
        axes[1].set_xlabel("epoch")
        if len(members) > 1:
            names = [name.removeprefix(model).strip() or "base" for name in members]
            style = {"fontsize": 8, "loc": "lower right", "ncols": 1 + (len(names) > 4), "columnspacing": 1}
            axes[1].legend(axes[1].lines[1::3], names, frameon=False, **style)
    figure.suptitle(CURVES_KEY, fontsize=10)
    _save(figure, path, vector=True)


def _draw_curves(axis: Axes, kind: str, history: dict[str, list]) -> None:
    for colour, (name, rows) in zip(_cycle(len(history)), history.items(), strict=True):
        epochs = [row.epoch for row in rows]
        best = min(rows, key=lambda row: row.val_loss)
        # A line of a single point would not be seen.
        form = "--" if len(rows) > 1 else "x"
        axis.plot(epochs, [getattr(row, f"train_{kind}") for row in rows], form, color=colour, alpha=0.6)
        axis.plot(epochs, [getattr(row, f"val_{kind}") for row in rows], "-", color=colour, label=name)
        axis.plot(best.epoch, getattr(best, f"val_{kind}"), "o", color=colour)
    last = max(row.epoch for rows in history.values() for row in rows)
    axis.set_xlim(0.5 if last == 1 else None, 1.5 if last == 1 else None)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if kind == "accuracy":
        axis.set_ylim(bottom=0, top=axis.dataLim.y1 * 1.08 or 1)
    axis.grid(alpha=0.3)


@_styled
def combinations(accuracy: dict[str, dict[str, float | None]], baseline: tuple[float, str], path: Path) -> None:
    """Plot accuracy by channel combination, by model: as bars, or as a heatmap in place of too many bars.

    `baseline` is marked, see `scores.baseline`.
    """
    labels = list(next(iter(accuracy.values())))
    values = np.array([[row[label] for label in labels] for row in accuracy.values()], dtype=float) * 100
    if len(accuracy) <= MOST_BARS and len(labels) <= MOST_BESIDE:
        _combinations_as_bars(list(accuracy), labels, values, baseline, path)
    else:
        _combinations_as_heatmap(list(accuracy), labels, values, baseline, path)


def _combinations_as_bars(
    models: list[str], labels: list[str], values: np.ndarray, baseline: tuple[float, str], path: Path
) -> None:
    width = 0.8 / len(models)
    figure = _figure(max(NARROW, 0.42 * len(labels) * len(models)), 4)
    axis = figure.subplots()
    for number, (colour, model, row) in enumerate(zip(_cycle(len(models)), models, values, strict=True)):
        places = np.arange(len(labels)) + (number - (len(models) - 1) / 2) * width
        bars = axis.bar(places, row, width, color=colour, label=model)
        axis.bar_label(bars, ["" if np.isnan(value) else f"{value:.0f}" for value in row], fontsize=8, padding=1)
    axis.axhline(100 * baseline[0], color="grey", linestyle=":", label=baseline[1])
    _name_columns(axis, labels)
    axis.set(xlabel="channels present", ylabel="test accuracy, %")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    _save(figure, path, vector=True)


def _combinations_as_heatmap(
    models: list[str], labels: list[str], values: np.ndarray, baseline: tuple[float, str], path: Path
) -> None:
    chance, name = 100 * baseline[0], baseline[1]
    rows, columns = models, labels
    if len(labels) > MOST_BESIDE:
        rows, columns, values = labels, models, values.T
    figure = _figure(3.6 + 0.75 * len(columns), 1.3 + 0.36 * len(rows) + 0.05 * max(map(len, columns)))
    axis = figure.subplots()
    greatest = np.nanmax(values) if np.isfinite(values).any() else 1
    image = axis.imshow(values, cmap="Blues", vmin=0, vmax=greatest, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if value > 0.6 * greatest else "#111111"  # on its cell in every colour scheme
        axis.text(column, row, "-" if np.isnan(value) else f"{value:.1f}", ha="center", va="center", color=colour)
    bar = figure.colorbar(
        image,
        label=f"test accuracy, %{' ' if name == scores.CHANCE else chr(10)}({name}: {chance:.1f}, orange)",
        pad=0.02,
    )
    bar.ax.axhline(chance, color=CHANCE_COLOUR, linewidth=2)
    _name_columns(axis, columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.set(**{"xlabel" if columns is labels else "ylabel": "channels present"})
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    _save(figure, path, vector=True)


def _name_columns(axis: Axes, names: list[str]) -> None:
    """Name the places 0, 1, ... of the x axis, aslant where a name is long."""
    aslant = max(map(len, names)) > 8
    turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if aslant else {}
    axis.set_xticks(range(len(names)), names, **turned)


@_styled
def channels_kept(results: dict, path: Path) -> None:
    """Plot accuracy by number of channels kept: mean and range over the combinations of each size.

    Up to four models share the axes; of more models each has its axes, with the other models' means in grey.
    """
    sizes_of = {name: sizes for name, sizes in scores.sizes(results).items() if sizes}
    chance, named = scores.baseline(results)
    together = len(sizes_of) <= MOST_BARS
    columns = 1 if together else min(3, len(sizes_of))
    rows = 1 if together else -(-len(sizes_of) // columns)
    size = (NARROW, 4.2) if together else (3.5 * columns, 2.9 * rows)
    figure = _figure(*size)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis in axes.flat[1 if together else len(sizes_of) :]:
        axis.remove()
    for number, (colour, name) in enumerate(zip(_cycle(len(sizes_of)), sizes_of, strict=True)):
        axis = axes.flat[0 if together else number]
        if not together:
            colour = COLOURS[0]
            for other in sizes_of:
                axis.plot(*_means(sizes_of[other]), color="lightgrey", linewidth=1)
            axis.set_title(name, fontsize=10, fontweight="bold")
        least, greatest = ([100 * bound(values) for values in sizes_of[name].values()] for bound in (min, max))
        axis.fill_between(list(sizes_of[name]), least, greatest, color=colour, alpha=0.18, linewidth=0)
        axis.plot(*_means(sizes_of[name]), color=colour, label=name)
        axis.axhline(100 * chance, color="grey", linestyle=":")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylim(bottom=0)  # of all, and when all is drawn: it fixes the upper end as well
    figure.supxlabel("channels kept", fontsize=10)
    figure.supylabel("test accuracy, %", fontsize=10)
    figure.suptitle(f"mean and range over the combinations of each size\ndotted: {named}", fontsize=10)
    if together:
        axes[0, 0].legend(frameon=False)
    _save(figure, path, vector=True)


def _means(sizes: dict[int, list[float]]) -> tuple[list[int], list[float]]:
    return list(sizes), [100 * scores.mean(values) for values in sizes.values()]


@_styled
def tradeoff(results: dict, path: Path) -> None:
    """Plot test accuracy on the full set against multiply-adds, a labelled dot per model."""
    points = _costs(results)
    size = (NARROW, 4.6) if len(points) <= MOST_BARS else (8.5, 6)
    figure = _figure(*size)
    axis = figure.subplots()
    colours = dict(zip(points, cycle(LABEL_COLOURS), strict=False))
    protocols = {name: results["models"][name].get("protocol", "subset") for name in points}
    for name, point in points.items():
        axis.plot(*point, MARKERS.get(protocols[name], "o"), color=colours[name], markersize=8, markeredgecolor="white")
    for protocol in sorted(set(protocols.values())):
        axis.plot([], [], MARKERS.get(protocol, "o"), color="grey", label=protocol)
    macs, accuracies = zip(*points.values(), strict=True)
    axis.set_xscale("log")
    axis.set_xlim(min(macs) / 2, max(macs) * 2)
    axis.set_ylim(0, max(accuracies) * 1.12 + 1)
    spread = np.log10(max(macs) / min(macs))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if spread < 1.5 else (1, 3) if spread < 3 else (1,)))
    axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(
        xlabel="multiply-adds per image",
        ylabel=f"test accuracy on {shown(scores.in_words(scores.full_set(results)))}, %",
    )
    chance, named = scores.baseline(results)
    axis.axhline(100 * chance, color="grey", linestyle=":", label=named)
    if "resnet34" in points:
        axis.axhline(0.9 * points["resnet34"][1], color=COLOURS[1], linestyle="--", label="90% of resnet34's")
    axis.grid(alpha=0.3)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=3)
    _label(axis, points, colours)
    _save(figure, path, vector=True)


def _costs(results: dict) -> dict[str, tuple[float, float]]:
    """Return multiply-adds and accuracy in % by model, of models with both figures."""
    full = scores.full_set(results)
    found = {
        name: (scores.number(entry.get("macs")), scores.score(entry, full)) for name, entry in results["models"].items()
    }
    return {name: (macs, 100 * accuracy) for name, (macs, accuracy) in found.items() if macs and accuracy is not None}


def _label(axis: Axes, points: dict[str, tuple[float, float]], colours: dict[str, str]) -> None:
    """Write each name beside its point, at the place that covers least of other names and points."""
    axis.figure.draw_without_rendering()
    renderer = axis.figure.canvas.get_renderer()
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in map(axis.transData.transform, points.values())]
    for name, point in sorted(points.items(), key=lambda item: -item[1][1]):
        found = []
        for offset, horizontal, vertical in PLACES:
            text = axis.annotate(
                name,
                point,
                offset,
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=9,
                color=colours[name],
                arrowprops={"arrowstyle": "-", "color": "grey", "linewidth": 0.6} if abs(offset[0]) > 7 else None,
            )
            # A label must not push the axes, as labels are measured by the place of the axes.
            text.set_in_layout(False)
            text.update_positions(renderer)
            # The box of the letters, without the line to the point; letters fill less than the height of a box.
            box = Text.get_window_extent(text, renderer).padded(0, -2)
            outside = box.width * box.height - _overlap(box, axis.bbox)
            cost = sum(_overlap(box, other) for other in taken) + outside + WORTH_A_PLACE * len(found)
            found.append((cost, len(found), text, box))
        best = min(found)
        for candidate in found:
            if candidate is not best:
                candidate[2].remove()
        taken.append(best[3])


def _overlap(one: Bbox, other: Bbox) -> float:
    shared = Bbox.intersection(one, other)
    return shared.width * shared.height if shared else 0.0


@_styled
def confusion(counts: np.ndarray, class_names: tuple[str, ...], title: str, path: Path) -> None:
    """Plot a confusion matrix [true, predicted], each row as shares of its class."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    classes = len(class_names)
    named = classes <= MOST_NAMED
    side = max(3.2, 0.14 * classes) if named else NARROW - 2
    figure = _figure(side + 2.4, side + 1.4)
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    axis.set(xlabel="predicted", ylabel="true")
    axis.set_title(shown(title), fontsize=10)
    if named:
        short = [name if len(name) <= 22 else name[:21] + "…" for name in map(shown, class_names)]
        size = min(9, 72 * side / classes * 0.75)
        axis.set_xticks(range(classes), short, rotation=90, fontsize=size)
        axis.set_yticks(range(classes), short, fontsize=size)
    _save(figure, path)


@_styled
def predictions(found: list[Prediction], title: str, path: Path) -> None:
    """Plot a grid of images with predicted and true names, right predictions green and wrong predictions red."""
    columns, heading, gap = 3, 0.35, 0.1  # heading and gap in inches, as all coordinates below
    cell = NARROW / columns
    side, pitch = cell - gap, cell + heading
    height = heading + pitch * -(-len(found) // columns)
    figure = _figure(NARROW, height, layout=None)
    # One axis for all images: with an axis for each, drawing takes several times as long.
    axis = figure.add_axes((0, 0, 1, 1))
    axis.axis("off")
    axis.text(NARROW / 2, heading / 2, shown(title), fontsize=10, ha="center", va="center")
    for number, item in enumerate(found):
        left, top = number % columns * cell + gap / 2, number // columns * pitch + 2 * heading
        axis.imshow(item.image, extent=(left, left + side, top + side, top), aspect="auto")
        right = item.predicted == item.truth
        label = f"{shown(item.predicted)[:24]} {item.probability:.0%}"
        label = label if right else f"{label}\nis {shown(item.truth)[:24]}"
        colour = "#007a3d" if right else "#c0272d"
        axis.text(left + side / 2, top - 0.03, label, fontsize=8, color=colour, ha="center", va="bottom")
    axis.set(xlim=(0, NARROW), ylim=(height, 0))
    _save(figure, path)


def themed(path: Path) -> str:
    """Return a chart's SVG element for a page: black is the page's text colour, white its background.

    Every other colour of a line or of letters is a variable, `--c-0072b2` for #0072B2, which a page may set.
    """
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub("(fill|stroke): #000000", r"\1: currentColor", text)
    text = re.sub("stroke: #ffffff", "stroke: Canvas", text)
    return re.sub("(fill|stroke): #([0-9a-f]{6})", r"\1: var(--c-\2, #\2)", text)


def _cycle(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _save(figure: Figure, path: Path, vector: bool = False) -> None:
    """Write a figure as PNG and, if `vector`, as SVG with letters as text and without a background."""
    if vector:
        with (
            new_file(path.with_suffix(".svg")) as file,
            matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "0"}),
        ):
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    with new_file(path) as file:
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
