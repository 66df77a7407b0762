"""Figures of `results.json` for tables and plots: accuracies by channel combination, and entries that belong together.

Results without the newer fields are read too; a figure that is missing, null or not finite is None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from math import sqrt
from statistics import fmean

from polychrome.engine.channels.names import ALL, SHUFFLED
from polychrome.engine.errors import shown

# With more combinations than this, tables and plots show accuracy by the number of channels kept instead.
MOST_COMBINATIONS = 32
EQUAL = 1e-9
CHANCE = "chance"


def number(value) -> float | None:
    """Return `value` where it is a finite number, else None."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def percent(value: float | None, spread: float | None = None) -> str:
    """Return a share in percent, with its spread if there is one; "-" where it is not a finite number."""
    if number(value) is None:
        return "-"
    return f"{100 * value:.1f}" + ("" if number(spread) is None else f" ± {100 * spread:.1f}")


def of_split(entry: dict, split: str = "test") -> dict[str, dict]:
    """Return an entry's scores on a split by channel combination; empty where the entry was not tested on the split."""
    return entry.get("scores", {}).get(split, {})


def labels(results: dict, split: str = "test") -> list[str]:
    """Return the names of the combinations that some entry was tested on, in the run's order."""
    found = dict.fromkeys(label for entry in results["models"].values() for label in of_split(entry, split))
    return list({label: None for label in results.get("combinations", ()) if label in found} | found)


def is_long(results: dict, split: str = "test") -> bool:
    """Return whether the combinations are too many to show one by one."""
    return len(labels(results, split)) > MOST_COMBINATIONS


def choices(results: dict, split: str = "test") -> list[str]:
    """Return the combinations tested, in order, without shuffled channels where there are others."""
    every = labels(results, split)
    return [label for label in every if label != SHUFFLED] or every


def full_set(results: dict) -> str:
    """Return the combination of the entries' single figures: the first that all were tested on; "" where none is.

    By default it is all channels. Entries that were not tested at all do not count.
    """
    every = [found for entry in results["models"].values() if (found := of_split(entry))]
    return next((label for label in choices(results) if all(label in found for found in every)), "")


def shared(results: dict, split: str = "test", kind: str = "accuracy") -> list[str]:
    """Return the combinations that all entries have a score for, in order; entries without any score do not count."""
    every = [found for entry in results["models"].values() if (found := _figures(entry, split, kind))]
    return [label for label in choices(results, split) if every and all(label in found for found in every)]


def compared(results: dict, split: str = "test", kind: str = "accuracy") -> dict[str, dict[str, float]]:
    """Return each entry's accuracies, or other scores, by combination, on the combinations of `shared`.

    Whatever is said of several entries, means, ranks and differences, is of these: means over different combinations
    say nothing of the entries. Those of an entry without any score are empty.
    """
    common = shared(results, split, kind)
    every = {name: _figures(entry, split, kind) for name, entry in results["models"].items()}
    return {name: {label: found[label] for label in common if found} for name, found in every.items()}


def ranked(results: dict) -> dict[str, float]:
    """Return mean test accuracies on the combinations that all entries have, by entry, the best first."""
    means = {name: fmean(found.values()) for name, found in compared(results).items() if found}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def how_many(results: dict, kind: str = "accuracy") -> str:
    """Return " of N" for the head of a column where the N combinations of `shared` are not all that were tested."""
    count = len(shared(results, kind=kind))
    return "" if count == len(choices(results)) else f" of {count}"


def validation(entry: dict, label: str) -> dict:
    """Return an entry's loss and accuracy on the validation images on a combination; empty where it has none.

    Results of earlier versions have those of the training alone, which are on the first combination.
    """
    if "val" in entry.get("scores", {}):
        return of_split(entry, "val").get(label, {})
    return entry.get("val", {}) if label == next(iter(by_combination(entry)), label) else {}


def in_words(label: str) -> str:
    """Return a combination's name for a sentence."""
    return {ALL: "all channels", "": "no channels in common"}.get(label, label)


def score(entry: dict, label: str, kind: str = "accuracy", split: str = "test") -> float | None:
    """Return an entry's accuracy, or another score, on a combination."""
    return number(of_split(entry, split).get(label, {}).get(kind))


def by_combination(entry: dict, split: str = "test", kind: str = "accuracy") -> dict[str, float]:
    """Return an entry's accuracies, or other scores, by combination, without that on shuffled channels."""
    return {label: value for label, value in _figures(entry, split, kind).items() if label != SHUFFLED}


def _figures(entry: dict, split: str, kind: str) -> dict[str, float]:
    found = {label: score(entry, label, kind, split) for label in of_split(entry, split)}
    return {label: value for label, value in found.items() if value is not None}


def by_size(results: dict, accuracies: Mapping[str, float]) -> dict[int, list[float]]:
    """Return accuracies by the number of channels kept, given those by combination; the largest number first."""
    found: dict[int, list[float]] = {}
    for label, accuracy in accuracies.items():
        size = len(results.get("combinations", {}).get(label, ()))
        if size:
            found.setdefault(size, []).append(accuracy)
    return dict(sorted(found.items(), reverse=True))


def sizes(results: dict, split: str = "test", kind: str = "accuracy") -> dict[str, dict[int, list[float]]]:
    """Return each entry's accuracies by the number of channels kept, on the combinations that all entries have."""
    return {name: by_size(results, found) for name, found in compared(results, split, kind).items()}


def singles(results: dict, entry: dict) -> list[tuple[str, float]]:
    """Return single channels, each with an entry's accuracy on the channel alone, the best first."""
    combinations = results.get("combinations", {})
    found = {
        combinations[label][0]: accuracy
        for label, accuracy in by_combination(entry).items()
        if len(combinations.get(label, ())) == 1
    }
    return sorted(found.items(), key=lambda item: -item[1])


def images(results: dict, split: str = "test") -> dict[str, int]:
    """Return how many images each combination was tested on; empty where all combinations had the same number."""
    found = {
        label: int(count)
        for entry in results["models"].values()
        for label, row in of_split(entry, split).items()
        if (count := number(row.get("images"))) is not None
    }
    return found if len(set(found.values())) > 1 else {}


def no_class(entry: dict, split: str = "test") -> float:
    """Return how many images of a split got no class, as logits were not finite: the most over the combinations."""
    return max((number(row.get("no_class")) or 0 for row in of_split(entry, split).values()), default=0)


def tested_on(results: dict, entry: dict, label: str) -> int:
    """Return how many test images an entry's score on a combination is of; 0 where that is not known."""
    return int(of_split(entry).get(label, {}).get("images") or results["data"].get("test") or 0)


def interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95% interval of a share of `count` images, by Wilson (1927).

    For the mean of several shares of the same images the interval is at least as wide as it has to be.
    """
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def is_at_chance(results: dict, entry: dict, label: str) -> bool:
    """Return whether an entry's balanced accuracy on a combination is within what guessing reaches.

    It is held against `engine.metrics.Scores.guessed`. Results of earlier versions do not have that: there the interval
    of all images is taken, which is too narrow where classes have different numbers of images.
    """
    balanced, guessed = (score(entry, label, kind) for kind in ("balanced_accuracy", "guessed"))
    if balanced is not None and guessed is not None:
        return balanced <= guessed + EQUAL
    classes, count = results["data"]["classes"], tested_on(results, entry, label)
    share = score(entry, label, "balanced_accuracy")
    share = score(entry, label) if share is None else share
    return share is not None and count > 0 and classes > 1 and interval(share, count)[0] <= 1 / classes


def baseline(results: dict) -> tuple[float, str]:
    """Return the accuracy to be had without a look at an image, and its name.

    It is chance, or of classes of different sizes the share of the largest among the images of the full set.
    """
    classes, full = results["data"]["classes"], full_set(results)
    chance = 1 / classes if classes else 0.0
    shares = (score(entry, full, "largest_class") for entry in results["models"].values())
    largest = next((share for share in shares if share is not None), chance)
    if largest <= chance + EQUAL:
        return chance, CHANCE
    return largest, "the most frequent class"


def always(results: dict) -> str:
    """Return in words what is right without a look at an image; empty where that is chance."""
    share, name = baseline(results)
    where = f" on {shown(in_words(full_set(results)))}" if images(results) else ""
    return "" if name == CHANCE else f"always answering {name}{where} is right on {share:.1%}"


def is_unequal(results: dict, split: str = "test") -> bool:
    """Return whether balanced accuracy differs from accuracy: where classes have different numbers of images."""
    found = (row for entry in results["models"].values() for row in of_split(entry, split).values())
    pairs = ((number(row.get("accuracy")), number(row.get("balanced_accuracy"))) for row in found)
    return any(differ(*pair) for pair in pairs)


def differ(one: float | None, other: float | None) -> bool:
    """Return whether two shares that are there differ by more than rounding."""
    return None not in (one, other) and abs(one - other) > EQUAL


def lacking_seeds(results: dict) -> dict[str, list[int]]:
    """Return the seeds of each entry that lacks some of a run of several seeds, as where it failed with these."""
    every, entries = results.get("seeds", []), results["models"]
    return {name: entry["seeds"] for name, entry in entries.items() if entry.get("seeds", every) != every}


def kinds(results: dict, split: str = "test") -> tuple[str, ...]:
    """Return the scores that tables of a split show: accuracy and, where it differs, balanced accuracy."""
    return ("accuracy", "balanced_accuracy") if is_unequal(results, split) else ("accuracy",)


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None; None without such a value."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def base(name: str) -> str:
    """Return the registered model of an entry, or of a network of an entry: "x" of "x+drop" and of "x RG"."""
    return re.split("[+ ]", name, maxsplit=1)[0]


def resnet34(found: dict[str, dict]) -> dict:
    """Return the entry that others' accuracies are compared with: plain ResNet34's, or else that of its only variant.

    The entry is empty where ResNet34 was not trained, or only as several variants.
    """
    variants = [entry for name, entry in found.items() if base(name) == "resnet34"]
    return found.get("resnet34") or (variants[0] if len(variants) == 1 else {})


def compared_with(results: dict, name: str) -> str | None:
    """Return the name of the entry that a variant is compared with; None of a plain model, or where it is the variant.

    Compared is the entry without the last variant in the name, else without the last two, and so on; where no such
    entry was trained, the first entry of the same model.
    """
    entries, wanted = results["models"], name.rpartition("+")[0]
    while wanted and wanted not in entries:
        wanted = wanted.rpartition("+")[0]
    if "+" in name and not wanted:
        wanted = next(other for other in entries if base(other) == base(name))
    return None if wanted == name else wanted or None
