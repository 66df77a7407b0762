"""The results of runs that differ in the seed alone, joined: means, and how far the seeds spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev

from polychrome.engine.report import scores

MEANS = ("val", "scores", "flipped", "train_seconds", "images_per_second")
OWN = ("best_epoch", "epochs", "train_seconds", "val")  # figures that are also kept by seed


def combined(runs: Sequence[dict]) -> dict:
    """Return the content of `results.json` for several seeds, given the content for each seed's run.

    Scores, training time and images a second are means. Each model also has "seeds", the seeds of its trainings;
    "spread", the standard deviation (of a sample, n - 1) of each test figure, as "plain" and "flipped" by split and
    combination, and of the "mean" accuracy over the combinations, with two seeds or more; and "per_seed". A failure
    names its seed.
    """
    names = dict.fromkeys(name for run in runs for name in run["models"])
    failed = {f"{name} (seed {run['seed']})": why for run in runs for name, why in run.get("failed", {}).items()}
    models = {
        name: _entry({run["seed"]: run["models"][name] for run in runs if name in run["models"]}) for name in names
    }
    changes = [f"Seed {run['seed']}, {line}" for run in runs for line in run["data"].get("changes", ())]
    data = runs[0]["data"] | {"changes": changes}
    return dict(runs[0]) | {"data": data, "seeds": [run["seed"] for run in runs], "models": models, "failed": failed}


def _entry(of_seed: dict[int, dict]) -> dict:
    every = list(of_seed.values())
    means = {key: _merged(fmean, [entry[key] for entry in every]) for key in MEANS if key in every[0]}
    own = [{"seed": seed} | {key: entry[key] for key in OWN if key in entry} for seed, entry in of_seed.items()]
    found = every[0] | means | {"seeds": list(of_seed), "per_seed": own}
    found.pop("confused", None)  # of a single seed
    told = dict.fromkeys(tuple(row) for entry in every for row in entry.get("differs", ()))
    found["differs"] = list(map(list, told))
    found |= {key: max(entry[key] for entry in every) for key in ("epochs", "peak_memory_mb") if key in every[0]}
    if len(every) > 1:
        found["spread"] = {
            "plain": _merged(stdev, [entry["scores"] for entry in every]),
            "flipped": _merged(stdev, [entry.get("flipped", {}) for entry in every]),
        }
        means = [scores.mean(scores.by_combination(entry).values()) for entry in every]
        found["spread"]["mean"] = None if None in means else stdev(means)
    return found


def _merged(merge: Callable[[list[float]], float], values: list):
    """Return several values, or dicts of values, merged; None where a value is missing."""
    if isinstance(values[0], dict):
        return {key: _merged(merge, [value.get(key) for value in values]) for key in values[0]}
    return None if None in values else merge(values)
