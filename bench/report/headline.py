"""The few figures that sum up a device's results: a row for each op, for `kernels.fuse` and for training."""

from collections.abc import Iterable
from statistics import geometric_mean, median

from bench.report import columns, targets
from bench.report.columns import ratio
from bench.report.targets import Entry
from polychrome.engine.report.tables import Table

# What each section is held against: the definition as it is usually written, or what a user had before.
USUAL = {"dynamic_conv": "naive", "growth": "naive", "fuse": "unfused", "training": "reports"}
HEADS = ("what", "shapes", "usual / ours", "best / ours", "% fwd", "% bwd", "lines met")
LEGEND = (
    "usual / ours: the time of the op's definition in eager PyTorch (naive) over ours, forward + backward, so that "
    "above 1 ours is faster; fuse: of the unfused model; training: of an epoch the reports' way, the shapes being "
    "models. best: the fastest baseline at each shape. Both are geometric means over shapes, all dtypes together. "
    "% fwd, % bwd: the least possible time over ours, medians."
)


def usual(name: str) -> str:
    """Return the way that a section's ops are held against first."""
    return USUAL.get(name, "eager")


def usual_speedup(name: str, entry: Entry) -> float | None:
    """Return the usual way's time over ours; of a training, of an epoch; of a fused model, in the same rounds."""
    if name == "training":
        return targets.to_other(entry, "reports", "epoch")
    return 1 / targets.to_unfused(entry) if name == "fuse" else targets.speedup(entry, usual(name))


def table(sections: dict[str, dict]) -> Table:
    """Return the headline of a device's sections, a row for each of the ops, fuse and training that it has."""
    names = [name for name in (*columns.OPS, "fuse", "training") if name in sections]
    return Table("Headline", HEADS, tuple(_row(name, sections[name]) for name in names))


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
    """Return the day of all sections, or the first and the last."""
    days = sorted({section["date"] for section in sections.values()})
    return " to ".join(dict.fromkeys((days[0], days[-1])))


def verdicts(name: str, section: dict) -> list[targets.Line]:
    """Return the lines that a section is held against."""
    return targets.lines(name, section["shapes"], section["kind"] == "cuda")


def _row(name: str, section: dict) -> tuple[str, ...]:
    entries = section["shapes"].values()
    held = [line.met for line in verdicts(name, section) if line.met is not None]
    over_best = [found[1] for found in map(columns.best, entries) if found] if name in columns.OPS else []
    return (
        name,
        str(len(entries)),
        _mean(usual_speedup(name, entry) for entry in entries),
        _mean(over_best),
        *(_median_share(entries, direction) for direction in ("forward", "backward")),
        f"{sum(held)} of {len(held)}" if held else "-",
    )


def _mean(values: Iterable[float | None]) -> str:
    found = [value for value in values if value is not None]
    return ratio(geometric_mean(found)) if found else "-"


def _median_share(entries: Iterable[Entry], direction: str) -> str:
    found = [targets.share_of_bound(entry, direction) for entry in entries if direction in entry.get("bound_ms", ())]
    return f"{100 * median(found):.0f}" if found else "-"
