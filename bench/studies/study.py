"""The tables of studies of trained models, which `bench.pages` puts into the pages.

A study is a folder of `bench/results/mini50` with the `table.csv` and `environment.json` of a run of the recipe
`strong`, copied there by `bench.studies.collect`. Studies of one kind share a table: `shallow`, `shallow-100` with
more epochs, and `shallow-seed1` with another seed, which joins the row of `shallow`.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.report.markdown import grid, wrapped
from polychrome.engine.report import scores
from polychrome.engine.report.tables import Table
from polychrome.train import recipes
from polychrome.train.networks import ONE_PER_COMBINATION

RESULTS = Path(__file__).resolve().parents[1] / "results"
FULL = "RGB"
PAIRS, SINGLES = ("RG", "GB", "RB"), ("R", "G", "B")
KINDS = {FULL: (FULL,), "pairs": PAIRS, "singles": SINGLES}
COMMANDS = {
    "shallow": "python -m train.run task2 --recipe strong --data mini50",
    "channels": "python -m train.run task1 --recipe strong --data mini50",
    "parts": "python -m train.run task1 --recipe strong --config bench/parts.toml --data mini50",
}
ALONE = "+alone"  # ends the name of a system with a network for each combination
BASE = "prism4_small"  # the whole network of the ablation

Cell = Callable[["System"], str]


@dataclass(frozen=True)
class System:
    """A trained system of a study.

    Attributes:
        studies: the names of its studies' folders.
        rows: its rows of `table.csv`, as text; for several runs with other seeds, means and spreads over all runs.
        seconds: its time to train, mean over its seeds.
    """

    studies: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    seconds: float

    def __getitem__(self, column: str) -> str:
        """Return the text of a column about the whole system, such as "params"."""
        return self.rows[0][column]

    def accuracy(self, split: str, combination: str = FULL, flipped: bool = False) -> tuple[float, float | None] | None:
        """Return the mean and the spread of an accuracy, both 0 to 1; None if not measured."""
        for row in self.rows:
            asked = (split, combination, "yes" if flipped else "no")
            if (row["split"], row["combination"], row["flip_averaging"]) == asked and row["accuracy"]:
                return float(row["accuracy"]), float(row["spread"]) if row["spread"] else None
        return None

    def mean(self, split: str, labels: Iterable[str]) -> float | None:
        """Return the mean accuracy over combinations of channels; None where a combination is missing."""
        found = [self.accuracy(split, label) for label in labels]
        return None if None in found else fmean(accuracy for accuracy, _ in found)

    @property
    def seeds(self) -> set[int]:
        """The seeds that its accuracies are the means over."""
        return set(map(int, self["seeds"].split()))


def systems(kind: str, results: Path = RESULTS) -> list[System]:
    """Return the systems of all studies of a kind, in the order of their tables; "channels" in the recipe's order.

    "shallow": trainings that differ in their seeds are one system, with means and spreads over seeds.
    "channels": the networks for a combination each are one system, also from separate studies. The network for all
    channels is the plain network of a study "shallow" with the same seeds and epochs, which has the same training.
    """
    every = _trained(kind, results)
    if kind == "shallow":
        return _over_seeds(every)
    if kind == "channels":
        plain = _trained("shallow", results)
        every = [_with_all_channels(item, plain) for item in every]
        order = recipes.load("strong", "task1")["models"]
        every.sort(key=lambda item: order.index(item["model"]) if item["model"] in order else len(order))
    return every


def _trained(kind: str, results: Path) -> list[System]:
    """Return the systems of the studies of a kind, not yet joined."""
    found: dict[tuple[str, ...], dict[str, list[dict[str, str]]]] = {}
    for folder in _folders(kind, results):
        for row in csv.DictReader((folder / "table.csv").open(encoding="utf-8", newline="")):
            own = "" if row["protocol"].startswith(ONE_PER_COMBINATION) else folder.name
            key = own, row["model"], row["epochs"], row["seeds"]
            found.setdefault(key, defaultdict(list))[folder.name].append(row)
    return [
        System(tuple(tables), tuple(row for rows in tables.values() for row in rows), _seconds(tables.values()))
        for tables in found.values()
    ]


def _with_all_channels(item: System, plain: Iterable[System]) -> System:
    """Return networks for one combination, with the network for all channels added from `plain` where missing."""
    name = item["model"].removesuffix(ALONE)
    if name == item["model"] or item.accuracy("holdout"):
        return item
    wanted = name, item["epochs"], item["seeds"]
    same = next((each for each in plain if (each["model"], each["epochs"], each["seeds"]) == wanted), None)
    if same is None:
        return item
    return System(item.studies + same.studies, item.rows + same.rows, item.seconds + same.seconds)


def _over_seeds(every: Iterable[System]) -> list[System]:
    """Return the systems, joined where they differ only in their seeds: with means and spreads over all."""
    groups: list[list[System]] = []
    for item in every:
        for group in groups:
            alike = all(item[column] == group[0][column] for column in ("model", "epochs"))
            if alike and not any(item.seeds & other.seeds for other in group):
                group.append(item)
                break
        else:
            groups.append([item])
    return [group[0] if len(group) == 1 else _joined(group) for group in groups]


def _joined(group: list[System]) -> System:
    """Return systems that differ in their seeds as one system, with the accuracies that all of them have."""
    sizes = [len(item.seeds) for item in group]
    seconds = sum(size * item.seconds for size, item in zip(sizes, group, strict=True)) / sum(sizes)
    seeds = sorted(set.union(*(item.seeds for item in group)))
    # The ratio of a single run to ResNet34 does not hold for a joined row.
    whole = {"seeds": " ".join(map(str, seeds)), "train_seconds": str(seconds), "ratio_to_resnet34": ""}
    rows = []
    for row in group[0].rows:
        which = row["split"], row["combination"], row["flip_averaging"] == "yes"
        found = [item.accuracy(*which) for item in group]
        if None not in found:
            mean, spread = _over_all(sizes, found)
            rows.append(row | whole | {"accuracy": str(mean), "spread": str(spread)})
    return System(tuple(name for item in group for name in item.studies), tuple(rows), seconds)


def _over_all(sizes: list[int], found: list[tuple[float, float | None]]) -> tuple[float, float]:
    """Return the mean and standard deviation of all values in groups, from the groups' sizes, means and deviations."""
    mean = sum(size * own for size, (own, _) in zip(sizes, found, strict=True)) / sum(sizes)
    squares = sum(
        (size - 1) * (spread or 0.0) ** 2 + size * (own - mean) ** 2
        for size, (own, spread) in zip(sizes, found, strict=True)
    )
    return mean, sqrt(squares / (sum(sizes) - 1))


def shallow(results: Path = RESULTS) -> str:
    """Return the table of shallow networks beside ResNet34 on all channels."""
    every = systems("shallow", results)
    # A row's reference has the same epochs; of several references the first counts.
    references = {(item["model"], item["epochs"]): item for item in reversed(every)}
    cells = {
        "system": _model,
        "epochs": _column("epochs"),
        "held-out": _accuracy("holdout"),
        "flip avg.": _accuracy("holdout", FULL, True),
        "/ ResNet34": lambda item: _ratio(item, references.get(("resnet34", item["epochs"]))),
        "val": _accuracy("val"),
        "test": _accuracy("test"),
        **_COSTS,
        "depth": _depth,
        **_TRAINING,
    }
    return _page("shallow", results, every, cells)


def channels(results: Path = RESULTS) -> str:
    """Return the table of held-out accuracy on every combination of channels."""
    cells = {"system": _model, "protocol": _column("protocol"), "epochs": _column("epochs")}
    cells |= {label: _accuracy("holdout", label) for label in (FULL, *PAIRS)} | {"mean of pairs": _mean(PAIRS)}
    cells |= {label: _accuracy("holdout", label) for label in SINGLES} | {"mean of singles": _mean(SINGLES)}
    return _page("channels", results, systems("channels", results), cells | _TRAINING, left=2)


def parts(results: Path = RESULTS) -> str:
    """Return the ablation table: each part's held-out accuracy, and its difference from the whole network's."""
    every = systems("parts", results)
    cells = {"row": lambda item: f"`--models {item['model']}{_flags(item, every[0])}`"}
    for kind, labels in KINDS.items():
        cells |= {kind: _mean(labels), f"{kind} ±": partial(_difference, labels, every)}
    cells |= {"epochs": _column("epochs"), **_COSTS, **_TRAINING}
    return _page("parts", results, every, cells)


def _flags(item: System, first: System) -> str:
    """Return the flags of a row's training that differ from the first row's, each with a space before it."""
    flags = "" if item["epochs"] == first["epochs"] else f" --epochs {item['epochs']}"
    if item["seeds"] != first["seeds"]:
        least, *others = item["seeds"].split()
        flags += f" --seed {least}" + f" --seeds {1 + len(others)}" * bool(others)
    return flags


def whole_of(part: System, every: Iterable[System]) -> System | None:
    """Return the whole network that a row of the ablation is compared with: of the same seeds and epochs.

    A whole network is compared with the first of its seeds. None where no network is found but the row itself.
    """
    epochs = None if part["model"] == BASE else part["epochs"]
    alike = (item for item in every if item["model"] == BASE and item["seeds"] == part["seeds"])
    found = next((item for item in alike if epochs in (None, item["epochs"])), None)
    return None if found is part else found


TABLES: dict[str, Callable[[Path], str]] = {"shallow": shallow, "channels": channels, "parts": parts}


def _seconds(tables: Iterable[list[dict[str, str]]]) -> float:
    return sum(float(rows[0]["train_seconds"]) for rows in tables)


def _folders(kind: str, results: Path) -> list[Path]:
    every = (results / "mini50").glob("*/table.csv")
    return sorted(table.parent for table in every if table.parent.name.partition("-")[0] == kind)


def _page(
    title: str,
    results: Path,
    every: Iterable[System],
    cells: dict[str, Cell],
    left: int = 1,
) -> str:
    """Return a Markdown table of all systems, a column for each function, and below it its commands and files."""
    rows = tuple(tuple(cell(item) for cell in cells.values()) for item in every)
    if not rows:
        return "Not measured yet."
    heads = tuple("±" if head.endswith("±") else head for head in cells)
    places = defaultdict(list)
    for name in sorted({name for item in every for name in item.studies}):
        facts = json.loads((results / "mini50" / name / "environment.json").read_text(encoding="utf-8"))
        place = f"`bench/results/mini50/{name}/table.csv`"
        made = COMMANDS[name.partition("-")[0]], machine(facts)
        places[made].append(f"{place} (commit {commit(facts)})")
    stamps = (wrapped(f"`{command}`: {', '.join(each)}; {machine}.") for (command, machine), each in places.items())
    return "\n\n".join([grid(Table(title, heads, rows, left)), *stamps])


def commit(facts: dict) -> str:
    """Return the commit of a run's code, shortened, by its `environment.json`; of a run that went on by others, all."""
    codes = (code or "none" for code in _each(facts, "commit", facts.get("commit")))
    return ", ".join(dict.fromkeys(code[:12] + code[40:] for code in codes))  # 40 digits, and " with changes"


def machine(facts: dict) -> str:
    """Return the device and the versions of a run, by its `environment.json`; of one that went on elsewhere, all."""
    every = _each(facts, "device", facts["gpu"] or facts["cpu"]), _each(facts, "torch", facts["versions"]["torch"])
    device, torch = (" and ".join(dict.fromkeys(each)) for each in every)
    cores = "" if facts["gpu"] else f"{facts['cores']} core{'s' if facts['cores'] != 1 else ''} of "
    versions = f"python {facts['python']}", f"torch {torch}", f"torchvision {facts['versions']['torchvision']}"
    return ", ".join([f"{cores}{device}", *versions])


def _each(facts: dict, name: str, last: Any) -> list:
    """Return what a run's `environment.json` has of each time that it was begun or gone on with, `last` of the last."""
    return [*(began[name] for began in facts.get("began", [])[:-1] if name in began), last]


def stamps(made: Iterable[tuple[str, str]]) -> str:
    """Return the commits of runs and the machines of each, from pairs of both."""
    by_machine: dict[str, set[str]] = {}
    for commit, machine in made:
        by_machine.setdefault(machine, set()).update(commit.split(", "))
    return "; ".join(f"commit {', '.join(sorted(by_machine[each]))}, {each}" for each in sorted(by_machine))


def percent(found: tuple[float, float | None] | float | None) -> str:
    """Return an accuracy, with its spread if there is one, in percent."""
    return scores.percent(*(found if isinstance(found, tuple) else (found,)))


def _difference(labels: Iterable[str], every: Iterable[System], item: System) -> str:
    mean, whole = item.mean("holdout", labels), whole_of(item, every)
    base = whole and whole.mean("holdout", labels)
    return "-" if None in (mean, base) else f"{100 * (mean - base):+z.1f}"


def _ratio(item: System, reference: System | None) -> str:
    own, other = (which and which.accuracy("holdout") for which in (item, reference))
    return f"{100 * own[0] / other[0]:.1f}%" if own and other else "-"


def _depth(item: System) -> str:
    depth, distinct = item["depth"], item["distinct_layers"]
    return depth if depth == distinct else f"{depth} ({distinct} distinct)"


def _column(name: str) -> Cell:
    return lambda item: item[name]


def _accuracy(split: str, *which: str | bool) -> Cell:
    return lambda item: percent(item.accuracy(split, *which))


def _mean(labels: Iterable[str]) -> Cell:
    return lambda item: percent(item.mean("holdout", labels))


def _model(item: System) -> str:
    return f"`{item['model']}`"


_COSTS: dict[str, Cell] = {
    "parameters": lambda item: f"{int(item['params']):,}",
    "mult-adds": lambda item: f"{int(item['macs']) / 1e6:,.0f} M",
}
_TRAINING: dict[str, Cell] = {"minutes": lambda item: f"{item.seconds / 60:,.0f}", "seeds": _column("seeds")}
