"""Copy the table of a run to the studies, and draw the pictures: `python -m bench.studies.collect NAME RUN`.

Without arguments the command only draws the pictures again. The pictures can be read on a phone.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import pyplot as plt

from bench.report.pictures import ROW, STYLE, save
from bench.studies import study
from polychrome.engine.report.plots import COLOURS, NARROW
from polychrome.engine.run_folder import RunFolder

FILES = ("table.csv", "environment.json")
HELD_OUT = 2500  # images that an accuracy is measured on
MARKERS = "os^vDPX"
NAMES = f"{', '.join(study.TABLES)}, each also as NAME-ENDING"


def main(arguments: list[str] | None = None, results: Path = study.RESULTS) -> int:
    """Copy the table of a run to the studies and draw the pictures; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.studies.collect", description="copy the table of a run")
    parser.add_argument("name", nargs="?", help=NAMES)
    parser.add_argument("run", nargs="?", type=Path, help="the run's folder")
    asked = parser.parse_args(arguments)
    if asked.name is not None:
        if asked.name.partition("-")[0] not in study.TABLES:
            parser.error(f"no study is named {asked.name}; there are {NAMES}")
        if asked.run is None:
            parser.error("name the run's folder too")
        run = RunFolder.open(asked.run)
        folder = results / "mini50" / asked.name
        folder.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            shutil.copyfile(run.root / file, folder / file)
        print(f"{folder}: now run python -m bench.pages", file=sys.stderr)
    draw(results)
    return 0


def draw(results: Path = study.RESULTS) -> None:
    """Draw the pictures of the studies in `results`."""
    found = study.systems("channels", results)
    if found:
        names = names_apart([(item["model"], item["epochs"]) for item in found])
        shown = dict(zip(names, map(_by_combination, found), strict=True))
        draw_channels(shown, results / "mini50" / "channels.png")
    found = study.systems("parts", results)
    compared = [(item, whole) for item in found if (whole := study.whole_of(item, found))]
    if compared:
        names = names_of_rows([item for item, _ in compared], found[0]["epochs"])
        differences = [_differences(*each) for each in compared]
        draw_parts(dict(zip(names, differences, strict=True)), results / "mini50" / "parts.png")


def _by_combination(item: study.System) -> dict[str, float]:
    found = {label: item.accuracy("holdout", label) for labels in study.KINDS.values() for label in labels}
    return {label: each[0] for label, each in found.items() if each}


def _differences(item: study.System, base: study.System) -> dict[str, tuple[float, float]]:
    """Return by kind of channels the difference of two systems' mean accuracies, and its standard deviation.

    The deviation is for two independent accuracies, each of a random sample of HELD_OUT images.
    """
    found = {}
    for kind, labels in study.KINDS.items():
        own, whole = item.mean("holdout", labels), base.mean("holdout", labels)
        if own is not None and whole is not None:
            variance = (own * (1 - own) + whole * (1 - whole)) / (HELD_OUT * len(item["seeds"].split()))
            found[kind] = own - whole, math.sqrt(variance)
    return found


def draw_channels(accuracies: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw accuracy, 0 to 1, by combination of channels, a line for each system."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(NARROW, 3.6), layout="constrained")
        labels = list(dict.fromkeys(label for found in accuracies.values() for label in found))
        for number, (name, found) in enumerate(accuracies.items()):
            places = [labels.index(label) for label in found]
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            axis.plot(places, [100 * value for value in found.values()], label=name, linewidth=1, **style)
        axis.set_xticks(range(len(labels)), labels)
        axis.set_xlabel("channels present")
        axis.set_ylabel("held-out accuracy, %")
        axis.grid(axis="y", alpha=0.3)
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
        save(figure, path)


def draw_parts(differences: Mapping[str, Mapping[str, tuple[float, float]]], path: Path) -> None:
    """Draw each row's difference from the whole network: for each kind of channels a dot and a bar of one deviation.

    `differences` holds by row and kind the difference and its standard deviation, both as fractions.
    """
    kinds = list(dict.fromkeys(kind for found in differences.values() for kind in found))
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(NARROW, ROW * len(differences) + 1.3), layout="constrained")
        for number, kind in enumerate(kinds):
            rows = [(place, *found[kind]) for place, found in enumerate(differences.values()) if kind in found]
            places, values, spreads = zip(*rows, strict=True)
            axis.errorbar(
                [100 * value for value in values],
                [place + 0.2 * (number - (len(kinds) - 1) / 2) for place in places],
                xerr=[100 * spread for spread in spreads],
                fmt=MARKERS[number],
                markersize=5,
                color=COLOURS[number],
                label=kind,
                linewidth=1,
            )
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set_yticks(range(len(differences)), list(differences))
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
        axis.set_xlabel("held-out accuracy, points above the whole network's")
        figure.legend(loc="outside upper center", ncols=len(kinds), frameon=False)
        save(figure, path)


def names_apart(systems: Sequence[tuple[str, str]]) -> list[str]:
    """Return names for systems given as (model, epochs): with the epochs where a model occurs twice."""
    models = [model for model, _ in systems]
    return [f"{model}, {epochs} epochs" if models.count(model) > 1 else model for model, epochs in systems]


def names_of_rows(parts: Sequence[study.System], epochs: str) -> list[str]:
    """Return names for rows of the ablation: the changes of each, and its seeds where a name occurs twice."""
    names = []
    for item in parts:
        own, others = item["model"].removeprefix(study.BASE), item["epochs"] != epochs
        names.append(", ".join([own] * bool(own) + [f"{item['epochs']} epochs"] * others))
    return [
        f"{name}, seed{'s' * (' ' in item['seeds'])} {item['seeds']}" if names.count(name) > 1 else name
        for name, item in zip(names, parts, strict=True)
    ]


if __name__ == "__main__":
    raise SystemExit(main())
