"""One model for images from three pretend sensors, against a model for each sensor.

`python -m bench.studies.sensors make PATCHES OUT` gives each patch of a data folder of 48 bands to one of three
sensors, which share bands, and keeps that sensor's bands alone. After a run on them, and `python -m train.run evaluate
RUN`, `python -m bench.studies.sensors collect RUN` copies the evaluation's table to `bench/results` and draws the
picture of docs/data.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib import pyplot as plt

from bench.report.markdown import grid, wrapped
from bench.report.pictures import STYLE, save
from bench.studies import study
from polychrome.engine.data.sets import listing
from polychrome.engine.data.sets.sensors.descriptions import FILE
from polychrome.engine.report.plots import COLOURS, NARROW
from polychrome.engine.report.tables import Table
from polychrome.engine.run_folder import RunFolder

SENSORS: Mapping[str, range] = {f"bands {first}-{first + 19}": range(first, first + 20) for first in (0, 14, 28)}
FILES = {"evaluation.csv": "table.csv", "environment.json": "environment.json"}
LABELS = [f"sensor {number}" for number in range(1, len(SENSORS) + 1)]  # of the combinations in a table
KINDS = {"": "one network for all", "+off": "one, always all bands of an image", "+alone": "a network for each sensor"}
KINDS |= {"+alone+long": "a network for each, three times the epochs"}
COMMAND = "python -m train.run task1 --config bench/sensors.toml --data DIR"


def divide(
    patches: Path, out: Path, sensors: Mapping[str, range] = SENSORS, seed: int = 0
) -> dict[str, dict[str, int]]:
    """Write a data folder in which each patch has one sensor's bands; return the patches by sensor and split.

    The sensors get equal shares of each class in each split, drawn by `seed`. `out` must not exist.
    """
    images = listing.read(patches)
    counts = {name: dict.fromkeys(images.splits, 0) for name in sensors}
    for name in sensors:
        (out / _folder(name)).mkdir(parents=True)
    for number, (split, rows) in enumerate(images.splits.items()):
        labels, generator, lines = np.array(rows.labels), np.random.default_rng([seed, number]), []
        chosen = np.empty(len(labels), int)
        for label in np.unique(labels):
            own = np.flatnonzero(labels == label)
            chosen[generator.permutation(own)] = np.arange(len(own)) % len(sensors)
        for path, label, place in zip(rows.paths, rows.labels, chosen, strict=True):
            sensor = list(sensors)[place]
            file = f"{_folder(sensor)}/{Path(path).name}"
            np.save(out / file, np.load(patches / path)[..., list(sensors[sensor])])
            lines.append(f"{file} {label}\n")
            counts[sensor][split] += 1
        (out / f"{split}.txt").write_text("".join(lines))
    described = (f"{_folder(name)},{'+'.join(f'b{band:02d}' for band in bands)}\n" for name, bands in sensors.items())
    (out / FILE).write_text("".join(["file or folder,channels\n", *described]))
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in images.class_names))
    return counts


def _folder(sensor: str) -> str:
    return sensor.replace(" ", "_")


def systems(results: Path = study.RESULTS) -> list[study.System]:
    """Return the systems of the study, in the order of its table; none where there is no table."""
    file = results / "houston48" / "sensors" / "table.csv"
    if not file.is_file():
        return []
    rows: dict[str, list[dict[str, str]]] = {}
    with file.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            rows.setdefault(row["model"], []).append(row)
    return [study.System(("sensors",), tuple(own), float(own[0]["train_seconds"])) for own in rows.values()]


def table(results: Path = study.RESULTS) -> str:
    """Return the table of test accuracies by sensor, and below it its command, file and machine."""
    every = systems(results)
    if not every:
        return "Not measured yet."
    heads = ("model", "networks", "parameters", "epochs", *SENSORS, "mean", "balanced", "seeds")
    rows = tuple(
        (
            f"`{model}`",
            KINDS[kind],
            f"{int(item['params']) * (len(SENSORS) if 'alone' in kind else 1):,}",
            item["epochs"],
            *(study.percent(item.accuracy("test", label)) for label in LABELS),
            study.percent(item.mean("test", LABELS)),
            study.percent(fmean(_balanced(item))),
            item["seeds"],
        )
        for item in every
        for model, kind in [_parts(item)]
    )
    folder = results / "houston48" / "sensors"
    facts = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    stamp = f"`{COMMAND}`: `bench/results/houston48/sensors/table.csv` (commit {study.commit(facts)})"
    return "\n\n".join([grid(Table("", heads, rows, 2)), wrapped(f"{stamp}; {study.machine(facts)}.")])


def _balanced(item: study.System) -> list[float]:
    """Return a system's balanced test accuracy for each sensor."""
    rows = (row for row in item.rows if row["split"] == "test" and row["combination"] in LABELS)
    return [float(row["balanced_accuracy"]) for row in rows]


def _parts(item: study.System) -> tuple[str, str]:
    """Return a system's model and what is special to its training, a key of `KINDS`."""
    model, mark, variants = item["model"].partition("+")
    return model, mark + variants


def draw(results: Path = study.RESULTS) -> None:
    """Draw the accuracies of the study: a group for each model, a bar for each kind of networks."""
    every = systems(results)
    models = list(dict.fromkeys(_parts(item)[0] for item in every))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(LABELS), figsize=(NARROW, 3.4), sharey=True, layout="constrained")
        for axis, label, sensor in zip(axes, LABELS, SENSORS, strict=True):
            for number, (kind, words) in enumerate(KINDS.items()):
                own = [(models.index(model), item) for item in every for model, its in [_parts(item)] if its == kind]
                found = [(place, *item.accuracy("test", label)) for place, item in own]
                axis.errorbar(
                    [place + 0.17 * (number - 1.5) for place, *_ in found],
                    [100 * mean for _, mean, _ in found],
                    yerr=[100 * (spread or 0.0) for *_, spread in found],
                    fmt="os^v"[number],
                    markersize=4,
                    linewidth=1,
                    color=COLOURS[number],
                    label=words,
                )
            axis.set_title(sensor)
            axis.set_xticks(range(len(models)), [model.replace("_", "\n") for model in models], fontsize=7)
            axis.grid(axis="y", alpha=0.3)
        axes[0].set_ylabel("test accuracy, %")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
        save(figure, results / "houston48" / "sensors.png")


def collect(run: Path, results: Path = study.RESULTS) -> Path:
    """Copy the table of a run's evaluation to the results, draw the picture, and return the folder."""
    folder = results / "houston48" / "sensors"
    folder.mkdir(parents=True, exist_ok=True)
    for file, name in FILES.items():
        shutil.copyfile(RunFolder.open(run).root / file, folder / name)
    draw(results)
    return folder


def main(arguments: list[str] | None = None, results: Path = study.RESULTS) -> int:
    """Divide patches, or keep the table of a run; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.studies.sensors", description="three pretend sensors")
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="give each patch to a sensor")
    make.add_argument("patches", type=Path, help="data folder of 48 bands")
    make.add_argument("out", type=Path, help="data folder to write")
    commands.add_parser("collect", help="keep the table of a run").add_argument("run", type=Path)
    asked = parser.parse_args(arguments)
    if asked.command == "collect":
        print(f"{collect(asked.run, results)}: now run python -m bench.pages", file=sys.stderr)
        return 0
    if asked.out.exists():
        parser.error(f"{asked.out} exists already")
    for name, counts in divide(asked.patches, asked.out).items():
        shown = ", ".join(f"{count} {split}" for split, count in counts.items())
        print(f"{name}: {shown} patches")
    return 0


if __name__ == "__main__":
    sys.exit(main())
