"""The results of runs that differ in the seed alone, joined: means, and how far the seeds spread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, stdev

from polychrome.engine.report import scores

MEANS = ("val", "scores", "flipped", "train_seconds", "images_per_second", "gpu_idle", "input_wait")
OWN = ("best_epoch", "epochs", "train_seconds", "val")  # figures that are also kept by seed


def combined(runs: Sequence[dict]) -> dict:
    """Return the content of `results.json` for several seeds, given the content for each seed's run.

    Scores, training time, images a second and shares of waiting are means. Each model also has "seeds", the seeds of
    its trainings; "spread", the standard deviation (of a sample, n - 1) of each test figure, as "plain" and "flipped"
    by split and combination, and of the "mean" accuracy over the combinations that all models were tested on, with two
    seeds or more; and "per_seed". A figure that some seed lacks is None, and whatever is neither joined nor the same
    for every seed is left out. A failure names its seed.
    """
    names = dict.fromkeys(name for run in runs for name in run["models"])
    failed = {f"{name} (seed {run['seed']})": why for run in runs for name, why in run.get("failed", {}).items()}
    models = {
        name: _entry({run["seed"]: run["models"][name] for run in runs if name in run["models"]}) for name in names
    }
    _add_spreads_of_means(models, runs)
    changes = [f"Seed {run['seed']}, {line}" for run in runs for line in run["data"].get("changes", ())]
    data = runs[0]["data"] | {"changes": changes}
    tested = {label: chosen for run in runs for label, chosen in run.get("combinations", {}).items()}
    joined = {"data": data, "combinations": tested, "models": models, "failed": failed}
    return dict(runs[0]) | joined | {"seeds": [run["seed"] for run in runs]}


def _entry(of_seed: dict[int, dict]) -> dict:
    every = list(of_seed.values())
    means = _joined(fmean, every, MEANS)
    own = [{"seed": seed} | {key: entry[key] for key in OWN if key in entry} for seed, entry in of_seed.items()]
    same = {key: value for key, value in every[0].items() if all(entry.get(key) == value for entry in every)}
    found = same | means | {"seeds": list(of_seed), "per_seed": own}
    told = dict.fromkeys(tuple(row) for entry in every for row in entry.get("differs", ()))
    found["differs"] = list(map(list, told))
    found |= _joined(max, every, ("epochs", "peak_memory_mb"))
    if len(every) > 1:
        found["spread"] = {
            "plain": _merged(stdev, [entry["scores"] for entry in every]),
            "flipped": _merged(stdev, [entry.get("flipped", {}) for entry in every]),
        }
    return found


def _add_spreads_of_means(models: dict[str, dict], runs: Sequence[dict]) -> None:
    """Add the standard deviation over the seeds of each model's mean accuracy, as the report has the mean."""
    labels = scores.shared({"models": models})
    for name, entry in models.items():
        if "spread" in entry:
            every = [run["models"][name] for run in runs if name in run["models"]]
            means = [scores.mean(scores.score(each, label) for label in labels) for each in every]
            entry["spread"]["mean"] = None if None in means else stdev(means)


def _joined(merge: Callable[[list[float]], float], entries: Sequence[dict], keys: Iterable[str]) -> dict:
    """Return those figures of entries that some of them have, merged."""
    there = [key for key in keys if any(key in entry for entry in entries)]
    return {key: _merged(merge, [entry.get(key) for entry in entries]) for key in there}


def _merged(merge: Callable[[list[float]], float], values: Sequence):
    """Return several values, or dicts of values by any of their keys, merged; None where a value is missing."""
    parts = [value for value in values if isinstance(value, dict)]
    if parts:
        keys = dict.fromkeys(key for part in parts for key in part)
        each = [value if isinstance(value, dict) else {} for value in values]
        return {key: _merged(merge, [value.get(key) for value in each]) for key in keys}
    return None if None in values else merge(values)
