"""The overview of a device's results: a row for each op, for `kernels.fuse` and for training."""

from statistics import geometric_mean, median

from bench.report import columns, metrics, targets
from bench.report.columns import ratio
from bench.report.metrics import Metric
from polychrome.engine.report.tables import Table

HEADS = ("what", "shapes", "usual / ours", "best / ours", "% fwd", "% bwd", "targets met")
LEGEND = (
    "usual / ours: the time of the op's definition in eager PyTorch (naive) over ours, forward + backward, so that "
    "above 1 ours is faster; fuse: of the unfused model; training: of an epoch the reports' way, the shapes being "
    "models. best: the fastest baseline at each shape. Both are geometric means over shapes, all dtypes together. "
    "% fwd, % bwd: the least possible time over ours, medians."
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
    judged = [
        verdict.met
        for name, section in sections.items()
        for verdict in targets.verdicts(name, section)
        if verdict.met is not None
    ]
    return (
        f"**{device(sections)}** ({dates(sections)}), forward + backward, over the op's definition in eager PyTorch, "
        f"geometric means over shapes: {', '.join(found.values())}. {sum(judged)} of {len(judged)} speed targets are "
        "met."
    )


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
    judged = [verdict.met for verdict in targets.verdicts(name, section) if verdict.met is not None]

    def over_shapes(average, metric: Metric, text) -> str:
        found = [value for value in map(metric, section["shapes"].values()) if value is not None]
        return text(average(found)) if found else "-"

    return (
        name,
        str(len(section["shapes"])),
        over_shapes(geometric_mean, usual_over_ours(name), ratio),
        over_shapes(geometric_mean, metrics.best_over_ours, ratio) if name in columns.OPS else "-",
        *(
            over_shapes(median, metrics.share_of_bound(direction), lambda share: f"{100 * share:.0f}")
            for direction in ("forward", "backward")
        ),
        f"{sum(judged)} of {len(judged)}" if judged else "-",
    )
