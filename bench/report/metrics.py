"""Ratios, rates and shares of one entry of the results; None where the entry lacks a measurement."""

from collections.abc import Callable

from bench.predict.machine import H200

Entry = dict  # the benchmark's record of one shape, model or command
Metric = Callable[[Entry], float | None]

# A call with a bound below SMALL_US microseconds is limited by its launches, whose cost is assumed: an H200 took 1.0 us
# for a launch in a graph and 2.9 us for a launch in a stream.
SMALL_US = 2 * H200.launch_us
# The reason for leaving out a baseline where only others were asked for.
NOT_ASKED = "not asked for"


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

    Where recorded it is the one chosen in half of the runs and compared in the others.
    """
    if chosen := entry.get("chosen"):
        return chosen["way"].replace(" fp32", "32"), chosen["over_ours"]
    ways = [way for way in entry["ms"] if way not in ("ours", "static")]
    if not ways:
        return None
    best = min(ways, key=lambda way: entry["ms"][way]["both"])
    return best.replace(" fp32", "32").removesuffix(" no graphs"), over_ours(best)(entry)


def best_over_ours(entry: Entry) -> float | None:
    """Return the fastest baseline's time over ours."""
    best = best_baseline(entry)
    return best and best[1]


def best_of_all_over_ours(entry: Entry) -> float | None:
    """Return the fastest baseline's time over ours, where every baseline that can run was run."""
    return None if NOT_ASKED in entry.get("skipped", {}).values() else best_over_ours(entry)


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
