"""48 bands of one scene, any of them present: `python -m bench.studies.bands SCENE OUT`.

The scene is divided by place five times, and the networks of `bench/bands.toml` are trained on each division, one
division on each core, and tested on all, some and single bands, and on those of the pretend sensors of
`bench.studies.sensors`. A run that was interrupted goes on when the command is given again, and networks that a
division's tables lack are trained in a run of their own. The tables of finished runs are copied to
`bench/results/houston48/bands`, from which a table and a picture are drawn.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from scipy import stats

from bench.report.markdown import grid, wrapped
from bench.report.pictures import STYLE, save
from bench.studies import runs, sensors, study
from bench.studies.collect import FILES, MARKERS
from polychrome.engine.data.sets import patches
from polychrome.engine.report.plots import COLOURS, NARROW
from polychrome.engine.report.tables import Table
from polychrome.train.settings.config import read_toml

SPLITS, SIZE = 5, 9
# Of the same network, of which the best on validation patches is pictured.
ESTIMATED = ("prism4_small+estimated", "prism4_small+estimated+runs")
FORMS = ("prism4_small", "prism4_small+places", "prism4_small+dynamic", "prism4_small+runs", *ESTIMATED)
# Names for the picture, of systems whose own name does not say it.
LABELS = dict.fromkeys(FORMS, "Prism, 0.4 M parameters, trained on random bands") | {
    "prism4_small+off": "Prism, trained on all bands alone",
    "dynamic_cnn_v2": "CNN with generated kernels",
    "pool_attention_cnn": "CNN on mean and maximum of the bands",
    "resnet18+small_stem+sampling": "ResNet18, zeros for absent bands",
    "resnet18+small_stem+any_channels": "ResNet18, the nearest band for an absent one",
    "baseline_cnn+sampling": "plain CNN, zeros for absent bands",
    "baseline_cnn+any_channels": "plain CNN, the nearest band for an absent one",
    "baseline_cnn+estimated+runs": "plain CNN, absent bands estimated",
    **dict.fromkeys(ESTIMATED, "Prism, 0.4 M parameters, absent bands estimated"),
}
# Of the picture's seven colours none is left for two that are far behind and one that is as accurate as with "+runs".
UNPICTURED = ("pool_attention_cnn", "dynamic_cnn_v2", "baseline_cnn+estimated")
SHOWN = (48, 32, 16, 8, 4, 2, 1)
COMMAND = "python -m bench.studies.bands SCENE OUT"
CONFIG = Path(__file__).resolve().parents[1] / "bands.toml"

# The combination of each pretend sensor's bands.
SENSORS = {"+".join(map(str, bands)): name for name, bands in sensors.SENSORS.items()}

# Accuracy, 0 to 1, by system, number of bands or sensor, and division: of several choices of as many bands their mean.
Found = dict[str, dict[int | str, list[float]]]


def read(results: Path = study.RESULTS, split: str = "test") -> tuple[Found, dict[str, list[dict[str, str]]]]:
    """Return the accuracies of all divisions, and by system a row of each with its costs.

    Both are empty without files; systems that were not trained on all divisions are left out.
    """
    found: Found = defaultdict(lambda: defaultdict(list))
    about: dict[str, list[dict[str, str]]] = defaultdict(list)
    lacking = unfinished(results)
    for division in range(SPLITS):
        each: dict[tuple[str, int | str], list[float]] = defaultdict(list)
        costs: dict[str, dict[str, str]] = {}
        for row in _rows(division, results):
            if row["model"] not in lacking and row["split"] == split and row["flip_averaging"] == "no":
                each[row["model"], _choice(row["combination"])].append(float(row["accuracy"]))
                costs.setdefault(row["model"], row)
        for model, row in costs.items():
            about[model].append(row)
        for (model, choice), accuracies in each.items():
            found[model][choice].append(fmean(accuracies))
    return found, about


def unfinished(results: Path = study.RESULTS) -> dict[str, int]:
    """Return the systems that were not trained on all divisions, and on how many they were."""
    counts = Counter(
        model for division in range(SPLITS) for model in {row["model"] for row in _rows(division, results)}
    )
    return {model: count for model, count in sorted(counts.items()) if count != SPLITS}


def _folder(results: Path) -> Path:
    return results / "houston48" / "bands"


def _rows(division: int, results: Path) -> list[dict[str, str]]:
    """Return the rows of the tables of a division, in the order in which they were made."""
    rows = []
    for file in sorted(_folder(results).glob(f"split{division}*/table.csv")):
        with file.open(encoding="utf-8", newline="") as stream:
            rows += csv.DictReader(stream)
    return rows


def _choice(combination: str) -> int | str:
    """Return the number of bands of a combination by its name, "all", "12 of 48 #1" or a band's; or the sensor."""
    if combination == "all":
        return SHOWN[0]
    number, _, rest = combination.partition(" of ")
    return int(number) if rest else SENSORS.get(combination, 1)


def table(results: Path = study.RESULTS) -> str:
    """Return the table of test accuracies by bands kept and sensor, that of the leads, the command and the machine.

    The last accuracy is of validation patches, the mean over the columns before.
    """
    found, about = read(results)
    waiting = [
        f"`{model}` is not shown: {count} of {SPLITS} divisions." for model, count in unfinished(results).items()
    ]
    if not found:
        return " ".join(["Not measured yet.", *waiting])
    validated, _ = read(results, "val")
    heads = ("system", "protocol", *(f"{bands} band" + "s" * (bands > 1) for bands in SHOWN), *SENSORS.values())
    heads += ("validation", "parameters", "minutes")
    rows = tuple(
        (
            f"`{model}`",
            about[model][0]["protocol"],
            *(
                f"{100 * fmean(by[choice]):.1f} ± {100 * stdev(by[choice]):.1f}"
                for choice in (*SHOWN, *SENSORS.values())
            ),
            f"{100 * _mean(validated[model]):.1f}",
            f"{int(about[model][0]['params']):,}",
            f"{fmean(float(row['train_seconds']) for row in about[model]) / 60:.1f}",
        )
        for model, by in found.items()
    )
    first, columns = chosen(results), (*SHOWN, *SENSORS.values())
    leads = tuple(
        (f"`{model}`", *(_lead(found[first][choice], by[choice]) for choice in columns))
        for model, by in found.items()
        if model != first
    )
    words = f"`{first}` less the others, in points; 95% intervals, corrected for patches that the divisions share:"
    files = sorted(_folder(results).glob("*/environment.json"))
    facts = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    commits = ", ".join(sorted({study.commit(each) for each in facts}))
    machines = "; ".join(sorted({study.machine(each) for each in facts}))
    stamp = f"`{COMMAND}`: `bench/results/houston48/bands/*/table.csv` (commit {commits}); {machines}."
    apart = grid(Table("", ("less", *heads[2 : 2 + len(columns)]), leads))
    return "\n\n".join([grid(Table("", heads, rows, 2)), words, apart, wrapped(" ".join([stamp, *waiting]))])


def _lead(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return how far ours are ahead on the same divisions, in points, and half the width of the 95% interval."""
    found = [100 * (one - other) for one, other in zip(ours, theirs, strict=True)]
    return f"{fmean(found):+.1f} ± {_reach(found):.1f}"


def _reach(found: Sequence[float]) -> float:
    """Return half the width of the 95% interval of a mean over divisions, whose trainings and tests share patches.

    By Student's t, corrected for what the divisions share (Nadeau and Bengio 2003): what training on other patches
    changes shows in the differences between divisions by a part only.
    """
    shared = patches.SHARES["test"] / patches.SHARES["train"]
    return float(stats.t.ppf(0.975, len(found) - 1)) * stdev(found) * (1 / len(found) + shared) ** 0.5


def chosen(results: Path = study.RESULTS) -> str:
    """Return which of `FORMS` is the best on validation patches, on average over the columns of the table."""
    validated, _ = read(results, "val")
    return max((name for name in FORMS if name in validated), key=lambda name: _mean(validated[name]))


def _mean(by: Mapping[int | str, list[float]]) -> float:
    return fmean(fmean(by[choice]) for choice in (*SHOWN, *SENSORS.values()))


def draw(results: Path = study.RESULTS) -> None:
    """Draw test accuracy by bands kept, a line for each system, and how far the chosen form of prism4_small is ahead.

    Bars are a standard deviation over the divisions beside accuracies, as in the table, and the 95% interval of the
    mean beside leads, each a difference on the same division.
    """
    found, _ = read(results)
    first = chosen(results)
    names = [first, *(name for name in found if name not in (*FORMS, *UNPICTURED))]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(2 * NARROW, 4.2), layout="constrained")
        for number, name in enumerate(names):
            by, style = found[name], {"color": COLOURS[number % len(COLOURS)]}
            bands = sorted(choice for choice in by if isinstance(choice, int))
            _line(left, bands, [by[count] for count in bands], number, stdev, label=LABELS.get(name, name), **style)
            if number:
                pairs = (zip(found[first][count], by[count], strict=True) for count in bands)
                leads = [[ours - theirs for ours, theirs in each] for each in pairs]
                _line(right, bands, leads, number, _reach, **style)
        for axis in (left, right):
            axis.set_xscale("log", base=2)
            axis.set_xticks(SHOWN, map(str, SHOWN))
            axis.minorticks_off()
            axis.set_xlabel("bands present, of 48")
            axis.grid(alpha=0.3)
        left.set_ylabel("test accuracy, %")
        left.set_ylim(0, 100)
        right.axhline(0, color="0.4", linewidth=1)
        right.set_ylabel("lead of Prism over the others, points")
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        save(figure, results / "houston48" / "bands.png")


def _line(
    axis: Axes,
    bands: Sequence[int],
    found: Sequence[Sequence[float]],
    number: int,
    bar: Callable[[Sequence[float]], float],
    **style,
) -> None:
    """Draw the means of values by division in percent, and at each of `SHOWN` a bar, beside other lines'."""
    middle = {count: 100 * fmean(each) for count, each in zip(bands, found, strict=True)}
    reach = {count: 100 * bar(each) for count, each in zip(bands, found, strict=True)}
    axis.plot(bands, middle.values(), linewidth=1.2, color=style["color"])
    at = [count * 1.03 ** (number - 2.5) for count in SHOWN]
    bars = [middle[count] for count in SHOWN], [reach[count] for count in SHOWN]
    axis.errorbar(at, *bars, fmt=MARKERS[number], markersize=4, elinewidth=0.8, capsize=2, **style)


def train(core: int | None, split: int, scene: Path, out: Path, results: Path) -> None:
    """Train the networks that a division of the scene lacks, or go on with them, and keep the run's table."""
    known = {row["model"] for row in _rows(split, results)}
    lacking = [entry for entry in read_toml(CONFIG)["models"] if entry not in known]
    if not lacking:
        return
    data, before = out / f"split{split}", len([*_folder(results).glob(f"split{split}*")])
    if not data.exists():
        patches.cut(scene, data, SIZE, split)
    name = f"split{split}" + f"-{before + 1}" * bool(before)
    flags = {"models": ",".join(lacking), "data": data, "channels": ",".join(("all", *SENSORS))}
    run = runs.train(f"bands-{name}", "task1", out, core, {"config": CONFIG} | flags)
    folder = _folder(results) / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        shutil.copyfile(run.root / file, folder / file)
    print(f"{folder}: division {split} is done", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None, results: Path = study.RESULTS) -> int:
    """Train what the study lacks and draw its picture; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.studies.bands", description="48 bands, any of them present")
    parser.add_argument("scene", type=runs.whole, help="houston48.npz")
    parser.add_argument("out", type=runs.whole, help="folder for patches and runs")
    asked = parser.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    with runs.stoppable():
        runs.on_cores(train, [(split, asked.scene, asked.out, results) for split in range(SPLITS)])
    draw(results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
