"""What was asked of the shallow networks for any channels, and how far the tables of the studies bear it out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench import study
from bench.markdown import grid
from bench.study import FULL, PAIRS, SINGLES, System
from engine.report.tables import Table

UNKNOWN = "not measured yet"
MOST_PARAMETERS = 500_000  # of the small network


def goals(results: Path = study.RESULTS) -> str:
    """Return the table of goals: what was asked, what was found on the held-out images, and whether that is enough.

    Of a system that was trained with several schedules, that with the best validation accuracy counts.
    """
    deep, whole, small = (_best("shallow", name, results) for name in ("resnet34", "prism4", "prism4_small"))
    names = ("prism4", "prism4+off", "naive_cnn", "resnet34+alone")
    sampled, fixed, *alone = (_best("channels", name, results) for name in names)
    rows = [
        _at_least(105, "%", "`prism4`: accuracy on RGB, of ResNet34's", _share(whole, deep)),
        _at_least(100, "%", "`prism4_small`: the same", _share(small, deep)),
        _at_most(MOST_PARAMETERS, "", "`prism4_small`: parameters", small and float(small["params"])),
        _at_most(100, "%", "`prism4`: training time, of ResNet34's", _time(whole, deep)),
        _at_least(-1, " points", "`prism4` with channel sampling: mean of pairs less RGB", _loss(sampled, PAIRS)),
        _at_least(-3, " points", "the same: mean of singles less RGB", _loss(sampled, SINGLES)),
        _at_least(0, " points", "the same: RGB less RGB without sampling", _lead(sampled, fixed, [FULL])),
    ]
    for name, other in zip(names[2:], alone, strict=True):
        what = f"the same: less `{name}` for a combination alone, where it leads least"
        rows.append(_at_least(0, " points", what, _lead(sampled, other, [FULL, *PAIRS, *SINGLES])))
    return grid(Table("goals", ("what", "asked", "found", "met"), tuple(rows)))


def _best(kind: str, name: str, results: Path) -> System | None:
    """Return a system of the studies of a kind, of several the one with the best validation accuracy."""
    found = [item for item in study.systems(kind, results) if item["model"] == name]
    return max(found, key=lambda item: item.accuracy("val") or (0.0, None), default=None)


def _share(own: System | None, other: System | None) -> float | None:
    if own is None or other is None:
        return None
    return 100 * own.accuracy("holdout")[0] / other.accuracy("holdout")[0]


def _time(own: System | None, other: System | None) -> float | None:
    if own is None or other is None:
        return None
    return 100 * float(own["train_seconds"]) / float(other["train_seconds"])


def _loss(item: System | None, labels: Sequence[str]) -> float | None:
    mean = item and item.mean("holdout", labels)
    return mean and 100 * (mean - item.accuracy("holdout")[0])


def _lead(own: System | None, other: System | None, labels: Sequence[str]) -> float | None:
    """Return the least difference in points, over the combinations that both were tested on."""
    if own is None or other is None:
        return None
    pairs = ((own.accuracy("holdout", label), other.accuracy("holdout", label)) for label in labels)
    return min((100 * (mine[0] - its[0]) for mine, its in pairs if mine and its), default=None)


def _at_least(asked: float, unit: str, what: str, found: float | None) -> tuple[str, ...]:
    return what, f"≥ {asked:,}{unit}", *_judged(found, unit, found is not None and round(found, 6) >= asked)


def _at_most(asked: float, unit: str, what: str, found: float | None) -> tuple[str, ...]:
    return what, f"≤ {asked:,}{unit}", *_judged(found, unit, found is not None and round(found, 6) <= asked)


def _judged(found: float | None, unit: str, met: bool) -> tuple[str, str]:
    if found is None:
        return UNKNOWN, "-"
    figure = f"{found:+.1f}" if unit == " points" else f"{found:.1f}" if unit else f"{found:,.0f}"
    return figure + unit, "yes" if met else "no"
