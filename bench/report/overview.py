"""The overview of a device's results: a row for each op, for `kernels.fuse` and for training."""

from collections.abc import Sequence
from statistics import geometric_mean, median

from bench.report import columns, metrics, targets
from bench.report.columns import ratio
from bench.report.metrics import Metric
from bench.report.targets import Verdict
from polychrome.engine.report.tables import Table

HEADS = ("what", "shapes", "usual / ours", "best / ours", "% fwd", "% bwd", "targets met")
LEGEND = (
    "usual / ours: the time of the op's definition in eager PyTorch (naive) over ours, forward + backward (augment: "
    "forward), so that above 1 ours is faster; fuse: of the unfused model; training: of an epoch the reports' way, the "
    "shapes being models. On a GPU the times of ops are those of the device, without the host's. best: the fastest "
    "baseline at each shape where all were run, and at how many. Both are geometric means over shapes, all dtypes "
    "together. % fwd, % bwd: the least possible time over ours, medians. targets met: at every shape; a target that is "
    "met where it was measured, but was not measured everywhere, is not."
)


def usual(op: str) -> str:
    """Return the name of an op's definition among its baselines."""
    return "naive" if op == "dynamic_conv" else "eager"


def usual_over_ours(name: str) -> Metric:
    """Return the time over ours of the usual baseline: definition, unfused model or the reports' epoch."""
    if name == "training":
        return metrics.over_ours("reports", "epoch")
    if name == "fuse":
        return lambda entry: 1 / metrics.in_same_round("unfused")(entry)
    return metrics.over_ours(usual(name))


def table(sections: dict[str, dict]) -> Table:
    """Return the table with a row for each op, fuse and training in a device's sections."""
    names = [name for name in (*columns.OPS, "fuse", "training") if name in sections]
    return Table("Overview", HEADS, tuple(_row(name, sections[name]) for name in names))


def headline(sections: dict[str, dict]) -> str:
    """Return a sentence on a device's results: how much faster than their definitions the ops are, and targets met."""
    found = {}
    for name in (name for name in columns.OPS if name in sections):
        ratios = list(filter(None, map(usual_over_ours(name), sections[name]["shapes"].values())))
        if ratios:
            found[name] = f"`{name}` {ratio(geometric_mean(ratios))}x"
    verdicts = [verdict for name, section in sections.items() for verdict in targets.verdicts(name, section)]
    return (
        f"**{device(sections)}** ({dates(sections)}), time on the device of forward + backward (`augment`: forward), "
        f"over the op's definition in eager PyTorch, geometric means over shapes: {', '.join(found.values())}. "
        f"{_waits(sections)}{_met(verdicts)}"
    )


def _waits(sections: dict[str, dict]) -> str:
    """Return a sentence on how often the host takes longer than the device for a call; empty where it never does."""
    entries = [entry for name in columns.OPS if name in sections for entry in sections[name]["shapes"].values()]
    found = [took for took in map(metrics.host_waits, entries) if took is not None]
    if not found:
        return ""
    whole = [each for name in columns.OPS if name in sections for each in _with_the_host(name, sections[name])]
    counted = f"; the longer of the two counted on both sides, {ratio(geometric_mean(whole))}x" if whole else ""
    return (
        f"The host's time is not in these: at {len(found)} of {len(entries)} shapes it took longer for an eager call "
        f"of ours, {min(found):,.0f} to {max(found):,.0f} us, than the device{counted}. "
    )


def _with_the_host(name: str, section: dict) -> list[float]:
    """Return the definition's time over ours, each the host's or the device's, whichever is longer."""
    found = map(metrics.eager_over_ours(usual(name)), section["shapes"].values())
    return [each for each in found if each is not None]


def _met(verdicts: Sequence[Verdict]) -> str:
    """Return how many of the judged targets are met, and how many more are as far as they are measured."""
    judged = [verdict for verdict in verdicts if verdict.met is not None or verdict.partly]
    partly = sum(verdict.partly for verdict in judged)
    met = f"{sum(bool(verdict.met) for verdict in judged)} of {len(judged)} targets are met"
    return met + f", and {partly} more at the few shapes where they were measured." * (partly > 0) + "." * (not partly)


def device(sections: dict[str, dict]) -> str:
    """Return the name of the device that sections were measured on."""
    return next(iter(sections.values()))["device"]


def is_cpu(sections: dict[str, dict]) -> bool:
    """Return whether sections were measured on a CPU."""
    return next(iter(sections.values()))["kind"] == "cpu"


def versions(sections: dict[str, dict]) -> str:
    """Return the versions of all sections."""
    found: dict[str, list[str]] = {}
    for section in sections.values():
        for name, number in section["versions"].items():
            if number and number not in found.setdefault(name, []):
                found[name].append(number)
    return ", ".join(f"{name} {' and '.join(numbers)}" for name, numbers in found.items() if numbers)


def dates(sections: dict[str, dict]) -> str:
    """Return the day of all sections, or the first and last day."""
    days = sorted({section["date"] for section in sections.values()})
    return " to ".join(dict.fromkeys((days[0], days[-1])))


def _row(name: str, section: dict) -> tuple[str, ...]:
    verdicts = targets.verdicts(name, section)
    judged = [verdict for verdict in verdicts if verdict.met is not None or verdict.partly]
    count = len(section["shapes"])

    def over_shapes(average, metric: Metric, text) -> str:
        found = [value for value in map(metric, section["shapes"].values()) if value is not None]
        return text(average(found)) + f" ({len(found)})" * (len(found) < count) if found else "-"

    return (
        name,
        str(count),
        over_shapes(geometric_mean, usual_over_ours(name), ratio),
        over_shapes(geometric_mean, metrics.best_over_ours, ratio) if name in columns.OPS else "-",
        *(
            over_shapes(median, metrics.share_of_bound(direction), lambda share: f"{100 * share:.0f}")
            for direction in ("forward", "backward")
        ),
        f"{sum(bool(verdict.met) for verdict in judged)} of {len(judged)}" if judged else "-",
    )
