"""The table of a run, a row for each accuracy: by model, split and channels, with and without flip averaging."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from polychrome.engine.errors import spreadsheet_cell
from polychrome.engine.machine.files import csv_text
from polychrome.engine.report import scores
from polychrome.engine.report.tables import Table

SPLITS = ("val", "holdout", "test")
COLUMNS = (
    *("model", "protocol", "split", "combination", "flip_averaging", "accuracy", "spread", "ratio_to_resnet34"),
    *(
        "balanced_accuracy",
        "images",
        "seeds",
        "epochs",
        "params",
        "macs",
        "depth",
        "distinct_layers",
        "device",
        "train_seconds",
    ),
)
COSTS = ("protocol", "epochs", "params", "macs", "depth", "distinct_layers", "train_seconds")
# The columns that tell figures of the table apart.
KEY = ("model", "protocol", "split", "combination", "flip_averaging")
FIGURES = ("accuracy", "spread", "ratio_to_resnet34", "balanced_accuracy")
TITLES = {"val": "Validation", "holdout": "Held-out", "test": "Test"}


@dataclass(frozen=True)
class Accuracies:
    """A model's accuracies on a split, by combination, their standard deviations over several seeds, and the images.

    They are balanced accuracies where these are asked for.
    """

    split: str
    flipped: bool
    accuracy: dict[str, float | None]
    spread: dict[str, float | None]
    images: dict[str, float | None]


def of_entry(entry: dict, kind: str = "accuracy") -> Iterator[Accuracies]:
    """Yield the accuracies in a model's entry of `results.json`: validation, held-out and test, each also flipped.

    `kind` may be "balanced_accuracy".
    """
    every = {False: entry.get("scores", {}), True: entry.get("flipped", {})}
    spreads = entry.get("spread", {})
    for split in SPLITS:
        for flipped, found in every.items():
            if found.get(split):
                spread = spreads.get("flipped" if flipped else "plain", {}).get(split, {})
                images = {label: scores.number(row.get("images")) for label, row in found[split].items()}
                yield Accuracies(split, flipped, _of_kind(found[split], kind), _of_kind(spread, kind), images)


def rows(results: dict) -> list[dict]:
    """Return the table's rows, by the names of `COLUMNS`; a missing figure is None."""
    reference = scores.resnet34(results["models"])
    references = {(item.split, item.flipped): item.accuracy for item in of_entry(reference)}
    found = []
    for name, entry in results["models"].items():
        costs = {key: entry.get(key) for key in COSTS}
        seeds = " ".join(map(str, entry.get("seeds", [results.get("seed", 0)])))
        common = {"model": name, "seeds": seeds, "device": results.get("device")} | costs
        balanced = {(item.split, item.flipped): item.accuracy for item in of_entry(entry, "balanced_accuracy")}
        for item in of_entry(entry):
            others = references.get((item.split, item.flipped), {})
            for combination, accuracy in item.accuracy.items():
                other = others.get(combination)
                figures = {
                    "split": item.split,
                    "combination": combination,
                    "flip_averaging": "yes" if item.flipped else "no",
                    "accuracy": accuracy,
                    "spread": item.spread.get(combination),
                    "ratio_to_resnet34": accuracy / other if accuracy is not None and other else None,
                    "balanced_accuracy": balanced[item.split, item.flipped][combination],
                    "images": None if (count := item.images[combination]) is None else round(count),
                }
                found.append(common | figures)
    return found


def as_csv(results: dict) -> str:
    """Return the table as CSV text; figures are written in full, so that equal figures are equal to the last digit."""
    return csv_text(COLUMNS, ([_text(row[name]) for name in COLUMNS] for row in rows(results)))


def _text(value: object) -> object:
    return spreadsheet_cell(value) if isinstance(value, str) else value


def agreement(table: str, again: str) -> tuple[int, int]:
    """Return how many figures two tables, as text, share, and how many of these agree to the last digit."""
    before, after = (
        {
            (*(row[key] for key in KEY), name): row[name]
            for row in csv.DictReader(io.StringIO(text))
            for name in FIGURES
            if name in row  # tables of earlier versions have fewer
        }
        for text in (table, again)
    )
    # A ratio needs ResNet34's figure too, a spread all seeds: a figure that neither table has is not compared.
    common = [key for key in before.keys() & after.keys() if before[key] or after[key]]
    return len(common), sum(before[key] == after[key] for key in common)


def says_more(results: dict) -> bool:
    """Return whether a run has more than one seed's test accuracies: several seeds, flip averaging, held-out images."""
    return any(
        entry.get("spread") or entry.get("flipped") or "holdout" in entry.get("scores", {})
        for entry in results["models"].values()
    )


def tables(results: dict) -> tuple[Table, ...]:
    """Return a table of accuracies for each split, with several seeds of means and standard deviations.

    A table of balanced accuracies follows where they differ.
    """
    return tuple(
        _table(results, split, kind)
        for split in SPLITS
        if any(scores.of_split(entry, split) for entry in results["models"].values())
        for kind in scores.kinds(results, split)
    )


def _table(results: dict, split: str, kind: str) -> Table:
    found: list[tuple[str, Accuracies]] = []
    labels: dict[str, None] = {}
    for name, entry in results["models"].items():
        for item in of_entry(entry, kind):
            labels |= dict.fromkeys(item.accuracy)
            if item.split == split:
                found.append((name, item))
    if len(labels) > scores.MOST_COMBINATIONS:
        labels = dict.fromkeys([scores.full_set(results)])
    several = any("spread" in entry for entry in results["models"].values())
    title = f"{TITLES[split]} {kind.replace('_', ' ')}, %" + (", mean ± std" if several else "")
    rows = []
    for name, item in found:
        shares = (scores.percent(item.accuracy.get(label), item.spread.get(label)) for label in labels)
        rows.append((name, "yes" if item.flipped else "no", *shares))
    return Table(title, ("system", "flip avg.", *labels), tuple(rows), left=2)


def _of_kind(found: dict[str, dict], kind: str) -> dict[str, float | None]:
    return {label: scores.number(row.get(kind)) for label, row in found.items()}
