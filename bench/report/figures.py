"""The numbers that the pictures show, from sections of results."""

from statistics import geometric_mean
from typing import NamedTuple

from bench.report import columns, metrics, overview, tables
from bench.report.metrics import Entry

DIRECTIONS = ("forward", "backward")


class Speedup(NamedTuple):
    """The time over ours of the usual baseline, and of the fastest with its name; None where none ran."""

    usual: float | None
    best: float | None = None
    which: str = ""


class Point(NamedTuple):
    """One direction of a call: FLOPs per byte, FLOPs a second, and bytes a second over the copy's measured rate."""

    op: str
    shape: str
    direction: str
    dtype: str
    intensity: float
    flops_per_second: float
    share_of_copy: float


class Memory(NamedTuple):
    """A baseline's peak memory over ours at each shape it ran at, and the geometric mean."""

    mean: float
    each: tuple[float, ...]


def speedups(name: str, section: dict) -> dict[str, dict[str, Speedup]]:
    """Return the speed-ups by shape, for each table of a section."""
    return {
        tables.kind(entries): {
            tables.name_in_table(key, entry): _speedup(name, entry) for key, entry in entries.items()
        }
        for entries in tables.entry_groups(section)
    }


def points(sections: dict[str, dict]) -> list[Point]:
    """Return a point for each direction of each call of an op whose bytes are recorded."""
    return [
        _point(op, key, direction, section, entry)
        for op, section in sections.items()
        if op in columns.OPS
        for key, entry in section["shapes"].items()
        for direction in DIRECTIONS
        if direction in (entry.get("bytes") or ())
    ]


def ceilings(sections: dict[str, dict]) -> dict[str, float]:
    """Return the greatest measured ceilings by name, in bytes or FLOPs a second."""
    found: dict[str, float] = {}
    for section in sections.values():
        for name, value in section["ceilings"].items():
            unit, _, measured = name.partition(" ")
            found[measured] = max(found.get(measured, 0), value * {"GB/s": 1e9, "TFLOP/s": 1e12}[unit])
    return found


def growth(section: dict) -> dict[str, dict[str, dict[int, float]]]:
    """Return the milliseconds of every implementation by the growing value, for each series."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for entries in tables.entry_groups(section):
        series = found.setdefault(tables.kind(entries), {})
        for entry in sorted(entries.values(), key=lambda entry: entry["value"]):
            for way, times in entry["ms"].items():
                series.setdefault(way, {})[entry["value"]] = times["both"]
    return found


def memory(section: dict) -> dict[str, dict[str, Memory]]:
    """Return every baseline's peak memory over ours, for each table of a section with measured memory."""
    found = {}
    for entries in tables.entry_groups(section):
        ratios: dict[str, list[float]] = {}
        for used in filter(None, (entry.get("memory_bytes") for entry in entries.values())):
            for way in used.keys() - {"ours"}:
                ratios.setdefault(way, []).append(max(used[way]["peak"], 1) / max(used["ours"]["peak"], 1))
        if ratios:
            means = {way: Memory(geometric_mean(each), tuple(each)) for way, each in ratios.items()}
            found[tables.kind(entries)] = dict(sorted(means.items(), key=lambda item: item[1].mean))
    return found


def rates(section: dict, part: str, titles: dict[str, str]) -> dict[str, dict[str, float]]:
    """Return the images a second of each training or source of batches, by the titles of its implementations."""
    return {
        key: {title: metrics.rate(way, part)(entry) for way, title in titles.items() if way in entry["ms"]}
        for key, entry in section["shapes"].items()
    }


def _speedup(name: str, entry: Entry) -> Speedup:
    which, best = (metrics.best_baseline(entry) if name in columns.OPS else None) or ("", None)
    return Speedup(overview.usual_over_ours(name)(entry), best, which)


def _point(op: str, key: str, direction: str, section: dict, entry: Entry) -> Point:
    seconds = entry["ms"]["ours"][direction] / 1e3
    moved, flops = entry["bytes"][direction], (entry.get("flops") or {}).get(direction, 0)
    copied = moved / seconds / (section["ceilings"]["GB/s copy"] * 1e9)
    return Point(
        op, tables.name_in_table(key, entry), direction, entry["dtype"], flops / moved, flops / seconds, copied
    )
