"""Ratios, rates and shares of one entry of the results; None where the entry lacks a measurement."""

from collections.abc import Callable

from bench.machine import H200
from bench.measuring.record import NOT_ASKED

Entry = dict  # the benchmark's record of one shape, model or command
Metric = Callable[[Entry], float | None]

# A call with a bound below SMALL_US microseconds is limited by its launches, whose cost is assumed: an H200 took 1.0 us
# for a launch in a graph and 2.9 us for a launch in a stream.
SMALL_US = 2 * H200.launch_us


def time(way: str = "ours", part: str = "both") -> Metric:
    """Return the milliseconds of the implementation `way`: of "forward", "backward", "both", "step" or "epoch"."""
    return lambda entry: entry["ms"].get(way, {}).get(part)


def over_ours(way: str, part: str = "both") -> Metric:
    """Return the time of `way` over ours: above 1 ours is faster."""
    return lambda entry: entry["ms"][way][part] / entry["ms"]["ours"][part] if way in entry["ms"] else None


def ours_over(way: str) -> Metric:
    """Return our time over the time of `way`, forward + backward."""
    return lambda entry: 1 / over_ours(way)(entry) if way in entry["ms"] else None


def rate(way: str = "ours", part: str = "both") -> Metric:
    """Return the images a second of `way`."""
    count = "batch" if part == "step" else "images"
    return lambda entry: 1e3 * entry[count] / entry["ms"][way][part] if way in entry["ms"] else None


def compiled_over_ours(entry: Entry) -> float | None:
    """Return the time of torch.compile, in the faster of its modes, over ours."""
    return min((over_ours(way)(entry) for way in entry["ms"] if way.startswith("compiled")), default=None)


def best_baseline(entry: Entry) -> tuple[str, float] | None:
    """Return the fastest baseline's name in tables, and its time over ours; "static" is not a baseline.

    None where some baselines were not asked for: the fastest of the others would be the slowest of all. Where recorded
    the baseline is the one chosen in half of the runs and compared in the others.
    """
    if NOT_ASKED in entry.get("skipped", {}).values():
        return None
    if chosen := entry.get("chosen"):
        return chosen["way"].replace(" fp32", "32"), chosen["over_ours"]
    ways = [way for way in entry["ms"] if way not in ("ours", "static")]
    if not ways:
        return None
    best = min(ways, key=lambda way: entry["ms"][way]["both"])
    return best.replace(" fp32", "32").removesuffix(" no graphs"), over_ours(best)(entry)


def best_over_ours(entry: Entry) -> float | None:
    """Return the fastest baseline's time over ours, where every baseline that can run was run."""
    best = best_baseline(entry)
    return best and best[1]


def share_of_bound(direction: str) -> Metric:
    """Return the least possible time over ours, for "forward" or "backward"."""

    def share(entry: Entry) -> float | None:
        bound = entry.get("bound_ms", {})
        return bound[direction] / entry["ms"]["ours"][direction] if direction in bound else None

    return share


def beyond_bound(direction: str, share: float) -> Metric:
    """Return our time beyond the bound divided by `share`, in microseconds."""
    return lambda entry: 1e3 * (entry["ms"]["ours"][direction] - entry["bound_ms"][direction] / share)


def is_small(entry: Entry) -> bool:
    """Return whether the launches of a call's forward pass cost more than its bytes and FLOPs."""
    return 1e3 * entry["bound_ms"]["forward"] < SMALL_US


def extra_memory(usual: str) -> Metric:
    """Return our memory beyond inputs, output and gradients over that of `usual`."""

    def extra(entry: Entry) -> float | None:
        used = entry.get("memory_bytes") or {}
        return used["ours"]["extra"] / max(used[usual]["extra"], 1) if usual in used else None

    return extra


def peak_memory(usual: str) -> Metric:
    """Return our peak memory above the inputs over that of `usual`."""
    return lambda entry: entry["memory_bytes"]["ours"]["peak"] / max(entry["memory_bytes"][usual]["peak"], 1)


def host_overhead(part: str) -> Metric:
    """Return the microseconds that the host spends on "forward" or on "both" beyond the bare launches."""

    def overhead(entry: Entry) -> float | None:
        spent = (entry["host_us"] or {}).get(part)
        return spent["call"] - spent["launches"] if spent else None

    return overhead


def host_waits(entry: Entry) -> float | None:
    """Return the microseconds that the host takes for a call of ours, where the device takes less."""
    spent = (entry.get("host_us") or {}).get("both")
    return spent["call"] if spent and spent["call"] > 1e3 * entry["ms"]["ours"]["both"] else None


def eager_over_ours(usual: str) -> Metric:
    """Return the time of `usual` over ours, each the host's or the device's time, whichever is longer."""

    def whole(entry: Entry) -> float | None:
        ours, theirs = ((entry.get(name) or {}).get("both") for name in ("host_us", "usual_host_us"))
        if not (ours and theirs and usual in entry["ms"]):
            return None
        theirs_ms, ours_ms = entry["ms"][usual]["both"], entry["ms"]["ours"]["both"]
        return max(theirs["call"] / 1e3, theirs_ms) / max(ours["call"] / 1e3, ours_ms)

    return whole


def input_share(entry: Entry) -> float:
    """Return the time in which cached images alone become a training's input, over the time of a step."""
    return entry["ms"]["ours"]["input"] / entry["ms"]["ours"]["step"]


def gpu_idle(entry: Entry) -> float | None:
    """Return the share of a training step in which the GPU runs nothing."""
    return entry.get("gpu_idle")


def seconds(entry: Entry) -> float:
    """Return the seconds that our implementation takes."""
    return entry["ms"]["ours"]["both"] / 1e3


def in_same_round(way: str) -> Metric:
    """Return our time over the time of `way`, in the same rounds if recorded."""
    return lambda entry: entry.get("ratio") or ours_over(way)(entry)
