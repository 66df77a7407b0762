"""What tables and plots read from `results.json`: accuracies by channel combination, and which entries belong together.

Results without the newer fields are read too; a figure that is missing, null or not finite is None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from statistics import fmean

from polychrome.engine.channels.names import ALL, SHUFFLED

# With more combinations than this, tables and plots show accuracy by the number of channels kept instead.
MOST_COMBINATIONS = 32


def number(value) -> float | None:
    """Return `value` where it is a finite number, else None."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def labels(results: dict, split: str = "test") -> list[str]:
    """Return the names of the combinations that any entry was tested on, in order."""
    return list(dict.fromkeys(label for entry in results["models"].values() for label in entry[split]))


def is_long(results: dict, split: str = "test") -> bool:
    """Return whether the combinations are too many to show one by one."""
    return len(labels(results, split)) > MOST_COMBINATIONS


def full_set(results: dict) -> str:
    """Return the combination that an entry's single figures are of: the first one tested, by default all channels."""
    tested = labels(results)
    return next((label for label in tested if label != SHUFFLED), tested[0] if tested else "")


def in_words(label: str) -> str:
    """Return a combination's name as it stands in a sentence."""
    return "all channels" if label == ALL else label


def score(entry: dict, label: str, kind: str = "accuracy", split: str = "test") -> float | None:
    """Return an entry's accuracy, or another score, on a combination."""
    return number(entry[split].get(label, {}).get(kind))


def by_combination(entry: dict, split: str = "test") -> dict[str, float]:
    """Return an entry's accuracies by combination, without that on shuffled channels."""
    found = {label: score(entry, label, split=split) for label in entry[split] if label != SHUFFLED}
    return {label: accuracy for label, accuracy in found.items() if accuracy is not None}


def by_size(results: dict, entry: dict, split: str = "test") -> dict[int, list[float]]:
    """Return an entry's accuracies by the number of channels kept, the largest number first."""
    found: dict[int, list[float]] = {}
    for label, accuracy in by_combination(entry, split).items():
        size = len(results.get("combinations", {}).get(label, ()))
        if size:
            found.setdefault(size, []).append(accuracy)
    return dict(sorted(found.items(), reverse=True))


def singles(results: dict, entry: dict) -> list[tuple[str, float]]:
    """Return the single channels and an entry's accuracy on each alone, the best first."""
    combinations = results.get("combinations", {})
    found = {
        combinations[label][0]: accuracy
        for label, accuracy in by_combination(entry).items()
        if len(combinations.get(label, ())) == 1
    }
    return sorted(found.items(), key=lambda item: -item[1])


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of those values that are there."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def base(name: str) -> str:
    """Return the registered model of an entry, or of one of its networks: "x" of "x+drop" and of "x RG"."""
    return re.split("[+ ]", name, maxsplit=1)[0]


def resnet34(found: dict[str, dict]) -> dict:
    """Return of the models' entries that which the others' accuracies are held against, empty where there is none.

    It is plain ResNet34's, or where that was not trained, its only variant's.
    """
    variants = [entry for name, entry in found.items() if base(name) == "resnet34"]
    return found.get("resnet34") or (variants[0] if len(variants) == 1 else {})


def compared_with(results: dict, name: str) -> str | None:
    """Return the entry that a variant is compared with.

    It is the entry without its last variant, else without the last two, and so on; where none was trained, the first
    variant of the same model.
    """
    entries, wanted = results["models"], name.rpartition("+")[0]
    while wanted and wanted not in entries:
        wanted = wanted.rpartition("+")[0]
    if not wanted:
        wanted = next(other for other in entries if base(other) == base(name))
    return None if wanted == name else wanted
