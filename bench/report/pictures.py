"""The pictures of a report, as PNG files that can be read on a phone: narrow, with large letters."""

import math
from collections.abc import Iterable
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, NullFormatter, NullLocator

from bench.report import figures
from bench.report.columns import three_digits
from bench.report.figures import Memory, Point, Speedup
from polychrome.engine.report.plots import COLOURS, DOTS_PER_INCH, NARROW

matplotlib.use("Agg")

ROW = 0.3  # inches a row
STYLE = {"font.size": 9, "savefig.dpi": DOTS_PER_INCH, "axes.spines.top": False, "axes.spines.right": False}
BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK = COLOURS
OURS, USUAL, BEST = BLUE, ORANGE, GREEN
# Colour and marker of each implementation in the plots of growth; "fp32" forms are dashed.
WAYS = {
    "ours": (OURS, "o"),
    "naive": (USUAL, "s"),
    "stacked": (GREEN, "^"),
    "loop": (PINK, "v"),
    "unfold": (YELLOW, "D"),
    "vmap": (SKY, "P"),
    "timm": (BLACK, "X"),
    "compiled": ("#7F4F24", "p"),
    "static": ("grey", "."),
}
MARKERS = {"forward": "o", "backward": "s"}


def speedups(sections: dict[str, dict[str, dict[str, Speedup]]], usual: str, path: Path) -> None:
    """Draw bars from 1x: the time of the usual baseline, and of the best, over ours.

    `sections` holds for each op, by dtype and layout, the figures of each shape: an op's kinds stand beside each other.
    `usual` is the name in the key of the first bar of each shape.
    """
    heights = [ROW * len(_names(kinds)) + 0.75 for kinds in sections.values()]
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(NARROW, sum(heights) + 0.3), layout="constrained")
        parts = figure.subfigures(len(sections) + 1, 1, height_ratios=[0.3, *heights], squeeze=False)[:, 0]
        has_best = any(each.best for kinds in sections.values() for bars in kinds.values() for each in bars.values())
        shown = [(usual, USUAL), ("best baseline / ours, with its name", BEST)][: 1 + has_best]
        parts[0].legend(handles=[Patch(color=colour, label=label) for label, colour in shown], **_KEY)
        for part, (name, kinds) in zip(parts[1:], sections.items(), strict=True):
            _speedups_of(part, name if len(sections) > 1 else "", kinds)
        save(figure, path)


def memory(kinds: dict[str, dict[str, Memory]], path: Path) -> None:
    """Draw bars from 1x: every baseline's peak memory over ours, the mean over shapes, with a dot for each shape."""
    names = list(dict.fromkeys(name for ways in kinds.values() for name in ways))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(kinds), figsize=(NARROW, ROW * len(names) + 0.9), layout="constrained", sharey=True, squeeze=False
        )
        for axis, (kind, ways) in zip(axes[0], kinds.items(), strict=True):
            for name, used in ways.items():
                place = names.index(name)
                _bar_from_one(axis, place, used.mean, 0.7, SKY, f"{used.mean:.2f}", max(1, *used.each))
                axis.plot(used.each, [place] * len(used.each), "o", color="black", alpha=0.5, markersize=3)
            axis.set_title(kind, fontsize=9)
        values = [value for ways in kinds.values() for used in ways.values() for value in used.each]
        _from_one(axes[0], values, 0.35)
        _name_rows(axes[0], names)
        figure.supxlabel("peak memory over ours: geometric mean, a dot for each shape", fontsize=9)
        save(figure, path)


def roofline(points: list[Point], ceilings: dict[str, float], path: Path) -> None:
    """Draw FLOPs a second against FLOPs per byte under the measured ceilings; calls without FLOPs below, by bytes."""
    counted = [point for point in points if point.flops_per_second > 0]
    others = [point for point in points if point.flops_per_second == 0]
    colours = dict(zip(dict.fromkeys(point.op for point in points), COLOURS, strict=False))
    rows = list(dict.fromkeys(f"{point.op} {point.shape}" for point in others))
    heights = [4.4] * bool(counted) + [ROW * len(rows) + 0.6] * bool(others) + [0.7]
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(NARROW, sum(heights)), layout="constrained")
        *parts, key = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        if counted:
            axis = parts[0].subplots()
            _roofs(axis, counted, ceilings)
            for point in counted:
                axis.plot(point.intensity, point.flops_per_second, **_look(point, colours))
        if others:
            axis = parts[-1].subplots()
            for point in others:
                axis.plot(100 * point.share_of_copy, rows.index(f"{point.op} {point.shape}"), **_look(point, colours))
            _name_rows([axis], rows)
            axis.set_xlim(0, 1.08 * max(100, *(100 * point.share_of_copy for point in others)))
            axis.axvline(100, color="black", linewidth=0.8)
            axis.grid(axis="x", alpha=0.3)
            axis.set_xlabel("bytes a second, % of the copy's")
        key.legend(handles=_key(points, colours), **_KEY | {"ncols": 3})
        save(figure, path)


def growth(series: dict[str, dict[str, dict[int, float]]], path: Path) -> None:
    """Draw the time of each implementation against the growing value, a panel for each series."""
    ways = sorted({way for each in series.values() for way in each}, key=_rank)
    rows = -(-(len(series) + 1) // 2)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, 2, figsize=(NARROW, 2.7 * rows), layout="constrained")
        for axis, (name, lines_of) in zip(axes.flat, series.items(), strict=False):
            for way in sorted(lines_of, key="ours".__eq__):
                axis.plot(*zip(*lines_of[way].items(), strict=True), **_line(way))
            _log_axes(axis, sorted({value for times in lines_of.values() for value in times}))
            along = name.partition(",")[0].removeprefix("by ")
            axis.set_xlabel({"size": "side of the image, px"}.get(along, along))
        figure.supylabel("ms, forward + backward", fontsize=9)
        spare = axes.flat[len(series)]
        spare.legend(handles=[_way(way) for way in ways], frameon=False, loc="center", title=_dtypes(series))
        for axis in axes.flat[len(series) :]:
            axis.axis("off")
        save(figure, path)


def rates(rows: dict[str, dict[str, float]], unit: str, path: Path) -> None:
    """Draw bars of images a second; `rows`: the rates of ours, and of a baseline if there is one, by name."""
    ways = list(dict.fromkeys(way for each in rows.values() for way in each))
    greatest = max(value for each in rows.values() for value in each.values())
    height = 0.8 / len(ways)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(
            figsize=(NARROW, (ROW if len(ways) > 1 else 0.22) * len(rows) + 0.9), layout="constrained"
        )
        for number, (way, colour) in enumerate(zip(ways, (OURS, USUAL), strict=False)):
            places = [place + (number - (len(ways) - 1) / 2) * height for place in range(len(rows))]
            values = [each.get(way, math.nan) for each in rows.values()]
            bars = axis.barh(places, values, height, color=colour, label=way)
            axis.bar_label(bars, ["" if math.isnan(value) else three_digits(value) for value in values], **_VALUE)
        _name_rows([axis], list(rows))
        axis.set_xlim(0, 1.12 * greatest)
        axis.set_xlabel(unit)
        if len(ways) > 1:
            figure.legend(**_KEY | {"loc": "outside upper center"})
        save(figure, path)


_KEY = {"frameon": False, "loc": "center", "ncols": 2, "fontsize": 9}
_VALUE = {"fontsize": 7.5, "padding": 2}


def _speedups_of(part: SubFigure, name: str, kinds: dict[str, dict[str, Speedup]]) -> None:
    names = _names(kinds)
    axes = part.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axis, (kind, bars) in zip(axes, kinds.items(), strict=True):
        for shape, each in bars.items():
            shown = [(each.usual, USUAL, ""), (each.best, BEST, each.which)]
            shown = [one for one in shown if one[0] is not None]
            height = 0.84 / max(len(shown), 1)
            for number, (value, colour, which) in enumerate(shown):
                place = names.index(shape) + (number - (len(shown) - 1) / 2) * height
                _bar_from_one(axis, place, value, height, colour, f"{value:.2f} {which}".rstrip())
        axis.set_title(kind, fontsize=9)
    values = [value for bars in kinds.values() for each in bars.values() for value in each[:2] if value]
    _from_one(axes, values, 0.6 if len(kinds) > 1 else 0.3)
    _name_rows(axes, names)
    if name:
        part.suptitle(name, fontweight="bold", fontsize=10, x=0.01, ha="left")


def _names(kinds: dict[str, dict[str, Speedup]]) -> list[str]:
    return list(dict.fromkeys(shape for bars in kinds.values() for shape in bars))


def _bar_from_one(
    axis: Axes, place: float, value: float, height: float, colour: str, label: str, end: float = 1
) -> None:
    """Draw a bar from 1 to `value` with a label to its right, and to the right of `end`."""
    axis.barh(place, value - 1, height, left=1, color=colour)
    axis.annotate(label, (max(value, end), place), (4, 0), textcoords="offset points", va="center", fontsize=7.5)


def _from_one(axes: Iterable[Axes], values: list[float], room: float) -> None:
    """Give all axes one logarithmic x axis with a line at 1x; `room`: space for labels, a share of the values' span."""
    least, greatest = min([*values, 0.9]), max([*values, 1.1])
    span = math.log10(greatest / least)
    most = {0.4: (1, 1.25, 1.5, 2, 6, 8), 0.6: (1, 1.5, 2, 5, 7), 0.9: (1, 2, 3, 5, 7), 1.5: (1, 2, 5), 2.2: (1, 3)}
    steps = next((steps for limit, steps in most.items() if span < limit), (1,))
    ticks = [step * 10.0**power for power in range(-3, 5) for step in steps]
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xlim(least / 1.06, greatest * max((greatest / least) ** room, 1.2))
        axis.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if tick <= greatest * 1.3]))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.axvline(1, color="black", linewidth=0.8)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)


def _name_rows(axes: Iterable[Axes], names: list[str]) -> None:
    """Label positions 0, 1, ... of the y axis that all axes share, from the top."""
    for axis in axes:
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.45, -0.55)
        axis.tick_params(axis="y", length=0)


def _roofs(axis: Axes, points: list[Point], ceilings: dict[str, float]) -> None:
    """Draw the ceilings: the copy's up to the highest product's, and the products' to the right of it."""
    copy, flat = ceilings["copy"], {name: rate for name, rate in ceilings.items() if name != "copy"}
    reached = [point.flops_per_second for point in points]
    highest = max(flat.values(), default=max(reached))
    left = min(point.intensity for point in points) / 2
    right = max(2 * max(point.intensity for point in points), 4 * highest / copy)
    axis.plot([left, highest / copy], [left * copy, highest], color="black", linewidth=1.2)
    above = (right / left) ** 0.2  # the rise of the roof along its label
    _name_roof(axis, left * 1.1, left * copy * above, f"copy {EngFormatter('B/s', sep=' ')(copy)}", "left")
    for name, rate in flat.items():
        axis.plot([rate / copy, right], [rate, rate], color="black", linewidth=1.2)
        _name_roof(axis, right, rate, f"{name} {EngFormatter('FLOP/s', sep=' ')(rate)}", "right")
    axis.set(
        xscale="log",
        yscale="log",
        xlim=(left, right),
        ylim=(min(*reached, left * copy) / 2, max(highest, *reached) * 2.5),
    )
    axis.set(xlabel="FLOPs per byte", ylabel="FLOPs a second")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_major_formatter(EngFormatter(sep=" "))
    for each in (axis.xaxis, axis.yaxis):
        each.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3)


def _name_roof(axis: Axes, x: float, y: float, label: str, side: str) -> None:
    paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
    axis.annotate(label, (x, y), (0, 4), textcoords="offset points", ha=side, fontsize=8, bbox=paper, zorder=5)


def _look(point: Point, colours: dict[str, str]) -> dict:
    """Return the style of a point: hollow for float32."""
    colour = colours[point.op]
    inside = "white" if point.dtype == "float32" else colour
    return {"marker": MARKERS[point.direction], "color": colour, "markerfacecolor": inside, "markersize": 6,
            "linestyle": "none", "alpha": 0.85}  # fmt: skip


def _key(points: list[Point], colours: dict[str, str]) -> list[Line2D]:
    """Return the key of the colours, markers and hollow points among `points`."""
    looks = [(op, {"color": colour, "marker": "D"}) for op, colour in colours.items()]
    looks += [
        (direction, {"color": "grey", "marker": MARKERS[direction]})
        for direction in figures.DIRECTIONS
        if any(point.direction == direction for point in points)
    ]
    if any(point.dtype == "float32" for point in points):
        looks.append(("hollow: float32", {"color": "grey", "marker": "o", "markerfacecolor": "white"}))
    return [Line2D([], [], linestyle="none", label=label, **look) for label, look in looks]


def _line(way: str) -> dict:
    """Return the style of `way` in the plots of growth."""
    colour, marker = WAYS.get(way.removesuffix(" fp32"), (BLACK, "*"))
    width, size = (2.4, 6) if way == "ours" else (1.1, 4)
    dashes = ":" if way == "static" else "--" if way.endswith(" fp32") else "-"
    return {"color": colour, "marker": marker, "linestyle": dashes, "linewidth": width, "markersize": size}


def _rank(way: str) -> tuple[int, str]:
    """Return the position of `way` in the key: its position in WAYS."""
    return (list(WAYS).index(way.removesuffix(" fp32")) if way.removesuffix(" fp32") in WAYS else len(WAYS), way)


def _way(name: str) -> Line2D:
    label = "static (a plain convolution)" if name == "static" else name
    return Line2D([], [], label=label, **_line(name))


def _dtypes(series: Iterable[str]) -> str:
    return "\n".join(dict.fromkeys(name.partition(", ")[2] for name in series))


def _log_axes(axis: Axes, values: list[int]) -> None:
    """Make both axes logarithmic; the x axis has a tick at each value."""
    axis.set(xscale="log", yscale="log")
    axis.xaxis.set_major_locator(FixedLocator(values))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    low, high = axis.get_ylim()
    steps = (1, 2, 5) if high / low < 1000 else (1,)
    axis.yaxis.set_major_locator(FixedLocator([step * 10.0**power for power in range(-4, 7) for step in steps]))
    axis.set_ylim(low, high)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=0.3)


def save(figure: Figure, path: Path) -> None:
    """Write a picture as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
