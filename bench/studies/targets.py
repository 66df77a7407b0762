"""The targets of the shallow networks for any channels, and how far the tables of the studies meet them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from bench.report.markdown import grid
from bench.studies import study
from bench.studies.study import FULL, PAIRS, SINGLES, System
from polychrome.engine.report.tables import Table

UNKNOWN = "not measured yet"
POINTS = " points"
MOST_PARAMETERS = 500_000  # of the small network
LABELS = (FULL, *PAIRS, *SINGLES)
SAMPLED = ("prism4", "prism4+few")  # trained on subsets of the channels
ALONE = ("naive_cnn", "resnet34+alone")  # a network for each combination


def table(results: Path = study.RESULTS) -> str:
    """Return the table of targets, the figures found on the held-out images, and whether the targets are met.

    Of several schedules of a system, and of the ways to draw channels, the best in validation accuracy counts, on
    average over the combinations of channels.
    """
    deep, whole, small = (_best("shallow", results, name) for name in ("resnet34", "prism4", "prism4_small"))
    sampled, fixed = (_best("channels", results, *names) for names in (SAMPLED, ["prism4+off"]))
    own = sampled["model"] if sampled else SAMPLED[0]
    rgb = _accuracy(sampled)
    time = _percent(whole and whole.seconds, deep and deep.seconds)
    pairs, singles = (_points(_accuracy(sampled, labels), rgb) for labels in (PAIRS, SINGLES))
    rows = [
        _row("`prism4`: accuracy on RGB, of ResNet34's", 105, "%", _percent(_accuracy(whole), _accuracy(deep))),
        _row("`prism4_small`: the same", 100, "%", _percent(_accuracy(small), _accuracy(deep))),
        _row("`prism4_small`: parameters", MOST_PARAMETERS, "", small and float(small["params"]), most=True),
        _row("`prism4`: training time, of ResNet34's", 100, "%", time, most=True),
        _row(f"`{own}`, one for all combinations: mean of pairs less RGB", -1, POINTS, pairs),
        _row("the same: mean of singles less RGB", -3, POINTS, singles),
        _row("the same: RGB less RGB without sampling", 0, POINTS, _points(rgb, _accuracy(fixed))),
    ]
    for name in ALONE:
        other = _best("channels", results, name)
        leads = [_points(_accuracy(sampled, [label]), _accuracy(other, [label])) for label in LABELS]
        missing, least = leads.count(None), min((lead for lead in leads if lead is not None), default=None)
        what = f"the same: less `{name}` for a combination alone, where it leads least"
        rows.append(_row(what, 0, POINTS, least, missing=f"{missing} of {len(LABELS)}" * (missing > 0)))
    return grid(Table("targets", ("what", "asked", "found", "met"), tuple(rows)))


def _best(kind: str, results: Path, *names: str) -> System | None:
    """Return the system with the best validation accuracy among the systems `names` in the studies of a kind."""
    found = [item for item in study.systems(kind, results) if item["model"] in names]
    return max(found, key=_validated, default=None)


def _validated(item: System) -> float:
    """Return the mean validation accuracy over the measured combinations."""
    found = [accuracy[0] for label in LABELS if (accuracy := item.accuracy("val", label))]
    return fmean(found) if found else 0.0


def _accuracy(item: System | None, labels: Sequence[str] = (FULL,)) -> float | None:
    return item and item.mean("holdout", labels)


def _percent(one: float | None, other: float | None) -> float | None:
    return None if None in (one, other) else 100 * one / other


def _points(one: float | None, other: float | None) -> float | None:
    return None if None in (one, other) else 100 * (one - other)


def _row(
    what: str, asked: float, unit: str, found: float | None, most: bool = False, missing: str = ""
) -> tuple[str, ...]:
    """Return a row of the table; `most`: the target is at most `asked`, else at least.

    missing: text with the number of figures not measured yet, which may be worse than the worst so far, `found`.
    """
    bound = f"{'≤' if most else '≥'} {asked:,}{unit}"
    if found is None:
        return what, bound, UNKNOWN, "-"
    difference = round(found - asked, 6)
    figure = f"{found:+.1f}" if unit == POINTS else f"{found:.1f}" if unit else f"{found:,.0f}"
    met = difference <= 0 if most else difference >= 0
    told = f"{figure}{unit}; {missing} {UNKNOWN}" if missing else figure + unit
    return what, bound, told, ("-" if missing else "yes") if met else "no"
