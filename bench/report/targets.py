"""Ratios drawn from one shape's entry, and the lines that a whole run is held against."""

from collections.abc import Callable, Iterable
from statistics import geometric_mean
from typing import NamedTuple

from bench.predict.machine import H200

# Entries as the benchmarks record them.
Entry = dict
# Microseconds of the host beyond the launches, for a call that records gradients, and for that and its gradients.
HOST_LINES = {"forward": 30, "both": 100}
# A call that memory or products could end within so many microseconds is bound by its launches, whose cost is assumed:
# an H200 took 1.0 us of a launch in a graph and 2.9 of one in a stream.
SMALL_US = 2 * H200.launch_us
# Why a way is left out of an entry that was measured by some ways only.
NOT_ASKED = "not asked for"


class Line(NamedTuple):
    """A demand, what was measured, and whether it is met; None where nothing was measured."""

    demand: str
    measured: str
    met: bool | None


def speedup(entry: Entry, name: str) -> float | None:
    """Return how many times as long `name` takes as ours, forward and backward."""
    times = entry["ms"].get(name)
    return times["both"] / entry["ms"]["ours"]["both"] if times else None


def compiled_speedup(entry: Entry) -> float | None:
    """Return `speedup` over torch.compile in the faster of its modes; None where neither ran."""
    return min((speedup(entry, name) for name in entry["ms"] if name.startswith("compiled")), default=None)


def best_baseline(entry: Entry) -> tuple[str, float]:
    """Return the fastest baseline, the static convolution apart, and `speedup` over it."""
    names = [name for name in entry["ms"] if name not in ("ours", "static")]
    best = min(names, key=lambda name: entry["ms"][name]["both"])
    return best, speedup(entry, best)


def share_of_bound(entry: Entry, direction: str) -> float:
    """Return the least time any implementation needs over ours, for "forward" or "backward"."""
    return entry["bound_ms"][direction] / entry["ms"]["ours"][direction]


def is_small(entry: Entry) -> bool:
    """Return whether the launches of a call's forward pass cost more than its bytes and FLOPs."""
    return 1e3 * entry["bound_ms"]["forward"] < SMALL_US


def beyond_bound(entry: Entry, direction: str, share: float) -> float:
    """Return the microseconds of ours beyond those of `share` of the bound."""
    return 1e3 * (entry["ms"]["ours"][direction] - entry["bound_ms"][direction] / share)


def to_static(entry: Entry) -> float:
    """Return our time over that of a plain convolution, forward and backward."""
    return 1 / speedup(entry, "static")


def extra_memory(entry: Entry, usual: str = "naive") -> float | None:
    """Return ours over the usual way's memory beyond inputs, output and gradients; None where it was not measured."""
    used = entry["memory_bytes"]
    return used["ours"]["extra"] / max(used[usual]["extra"], 1) if used and usual in used else None


def overhead(entry: Entry, way: str) -> float | None:
    """Return the microseconds the host spends on "forward" or on "both" beyond its bare launches."""
    spent = (entry["host_us"] or {}).get(way)
    return spent["call"] - spent["launches"] if spent else None


def images_per_second(entry: Entry) -> float:
    """Return the images that ours makes a second."""
    return 1e3 * entry["images"] / entry["ms"]["ours"]["forward"]


def rate(entry: Entry, way: str, part: str) -> float:
    """Return the images a second of a part of a training: "ours", "reports" or "timm"."""
    return 1e3 * entry["batch" if part == "step" else "images"] / entry["ms"][way][part]


def to_other(entry: Entry, way: str, part: str) -> float | None:
    """Return how many times as long "reports" or "timm" takes as ours; None where it was not measured."""
    return entry["ms"][way][part] / entry["ms"]["ours"][part] if way in entry["ms"] else None


def input_share(entry: Entry) -> float:
    """Return the time that input from kept images takes alone over that of a training step."""
    return entry["ms"]["ours"]["input"] / entry["ms"]["ours"]["step"]


def extrapolated(entry: Entry, epochs: int = 25, images: int = 63_325) -> float:
    """Return the minutes that the training part of so many epochs of task 1 would take at the measured rate."""
    return epochs * images / rate(entry, "ours", "epoch") / 60


def seconds(entry: Entry) -> float:
    """Return the seconds that ours takes."""
    return entry["ms"]["ours"]["both"] / 1e3


def to_unfused(entry: Entry) -> float:
    """Return the time of a model fused by `kernels.fuse` over that before: the paired ratio, where there is one."""
    return entry.get("ratio") or 1 / speedup(entry, "unfused")


def lines(op: str, entries: dict[str, Entry], on_gpu: bool) -> list[Line]:
    """Return the lines for the entries of a run of an op, by the names they are recorded under."""
    return LINES[op]["gpu" if on_gpu else "cpu"](entries)


def _convolution_on_gpu(entries: dict[str, Entry]) -> list[Line]:
    def at(least: int, below: float = float("inf")):
        return lambda entry: least <= entry["pixels"] < below

    def large(*limits: int):
        return lambda entry: at(*limits)(entry) and not is_small(entry)

    return [
        _mean(entries, "float32 naive / ours, forward + backward", lambda e: speedup(e, "naive fp32"), 10),
        _mean(entries, "same-dtype naive / ours, forward + backward", lambda e: speedup(e, "naive"), 5),
        _every(entries, "best baseline / ours on every shape", _best, 1.3),
        _every(entries, "slower than no baseline on any shape", _best, 1),
        # At 14x14 every weight is made and read for 196 pixels only, and at 7x7 each product is made for all experts.
        _every(entries, "share of the bound forward, 28x28 and above", _bound("forward"), 0.6, large(784)),
        _every(entries, "share of the bound backward, 28x28 and above", _bound("backward"), 0.5, large(784)),
        _every(entries, "share of the bound forward, 14x14", _bound("forward"), 0.35, large(196, 784)),
        _every(entries, "share of the bound backward, 14x14", _bound("backward"), 0.3, large(196, 784)),
        _every(entries, "share of the bound forward, 7x7", _bound("forward"), 0.15, large(0, 196)),
        _every(entries, "share of the bound backward, 7x7", _bound("backward"), 0.15, large(0, 196)),
        _launches(entries, "forward", 2, 0.6),
        _launches(entries, "backward", 5, 0.5),
        _every(entries, "ours / static convolution, 28x28 and above", to_static, 1.25, at(784), most=True),
        _every(entries, "ours / static convolution, 14x14", to_static, 2, at(196, 784), most=True),
        _every(entries, "ours / static convolution, 7x7", to_static, 4, at(0, 196), most=True),
        _every(entries, "memory beyond inputs and results / naive's", extra_memory, 0.25, most=True),
        *(_host(entries, way, most) for way, most in HOST_LINES.items()),
    ]


def _host(entries: dict[str, Entry], way: str, most: float) -> Line:
    said = "forward + backward" if way == "both" else way
    return _every(entries, f"host time of {said} beyond the launches, us", lambda e: overhead(e, way), most, most=True)


def _convolution_on_cpu(entries: dict[str, Entry]) -> list[Line]:
    def small_bf16(entry: Entry) -> bool:
        return entry["pixels"] <= 196 and entry["dtype"] == "bfloat16"

    return [
        _every(entries, "ours / same-dtype naive on every shape", lambda e: 1 / speedup(e, "naive"), 1.03, most=True),
        _mean(entries, "bfloat16 naive / ours, 14x14 and below", lambda e: speedup(e, "naive"), 2, small_bf16),
    ]


def _memory_bound_on_gpu(entries: dict[str, Entry]) -> list[Line]:
    def large(entry: Entry) -> bool:
        return not is_small(entry)

    return [
        _every(entries, "eager / ours on every shape", lambda e: speedup(e, "eager"), 3),
        _every(entries, "compiled / ours on every shape", compiled_speedup, 1.3),
        _every(entries, "slower than no baseline on any shape", _best, 1),
        _every(entries, "share of the bound forward, large maps", _bound("forward"), 0.8, large),
        _every(entries, "share of the bound backward, large maps", _bound("backward"), 0.7, large),
        _launches(entries, "forward", 3, 0.8),
        _launches(entries, "backward", 4, 0.7),
    ]


def _memory_bound_on_cpu(entries: dict[str, Entry]) -> list[Line]:
    return [_every(entries, "ours / eager on every shape", lambda e: 1 / speedup(e, "eager"), 1.03, most=True)]


def _augment_on_gpu(entries: dict[str, Entry]) -> list[Line]:
    def thousands(entry: Entry) -> float:
        return images_per_second(entry) / 1e3

    rate = "thousand images a second at 224 px, 3 channels"
    return [
        _every(entries, "share of the bound forward, plain recipe", _bound("forward"), 0.6, _has("recipe", "plain")),
        _every(entries, rate, thousands, 200, _has("channels", 3)),
    ]


def _augment_on_cpu(entries: dict[str, Entry]) -> list[Line]:
    def to_torchvision(entry: Entry) -> float | None:
        ratio = speedup(entry, "torchvision")
        return 1 / ratio if ratio else None

    return [_every(entries, "ours / torchvision on every shape", to_torchvision, 1.03, most=True)]


def _training_on_gpu(entries: dict[str, Entry]) -> list[Line]:
    at_256 = "25 epochs of 63,325 images at 256 px, extrapolated from measured epochs, minutes"
    return [
        _every(entries, "epoch, reports' way / ours, each model", lambda e: to_other(e, "reports", "epoch"), 8),
        _every(entries, "input from kept images alone / step", input_share, 0.05, most=True),
        _every(entries, "idle share of a step in the second epoch", lambda e: e.get("gpu_idle"), 0.1, most=True),
        _every(entries, at_256, extrapolated, 3, most=True),
    ]


def _training_on_cpu(entries: dict[str, Entry]) -> list[Line]:
    def on_resnet34(entry: Entry) -> float | None:
        return to_other(entry, "reports", "epoch") if entry["dtype"] == "bfloat16" else None

    chosen = _only(entries, "resnet34 84 px")
    return [_every(chosen, "bfloat16 epoch of resnet34 at 84 px, reports' way / ours", on_resnet34, 2)]


def _input_on_gpu(entries: dict[str, Entry]) -> list[Line]:
    chosen = _only(entries, "dali gpu")
    return [_every(chosen, "DALI on the GPU / torch with 16 workers", lambda e: speedup(e, "torch"), 3)]


def _start(entries: dict[str, Entry]) -> list[Line]:
    chosen = _only(entries, "second start")
    return [_every(chosen, "seconds before the first step", seconds, 5, most=True)]


def _processes(entries: dict[str, Entry]) -> list[Line]:
    return [_every(entries, "two processes / one with two threads, images/s", lambda e: speedup(e, "one"), 0.85)]


def _fuse_on_gpu(entries: dict[str, Entry]) -> list[Line]:
    def unfused_over_ours(entry: Entry) -> float:
        return speedup(entry, "unfused")

    training = _only(entries, "bfloat16 training")
    inference = _only(entries, "float32 inference", "bfloat16 inference")
    return [
        _every(training, "training in bfloat16, unfused / fused", unfused_over_ours, 2),
        _every(inference, "inference, unfused / fused", unfused_over_ours, 1),
    ]


def _fuse_on_cpu(entries: dict[str, Entry]) -> list[Line]:
    text = "fused / unfused, training and inference in each dtype, in the same round"
    return [_every(entries, text, to_unfused, 1.03, most=True)]


def _commands(entries: dict[str, Entry]) -> list[Line]:
    start_up, task1 = _only(entries, "import train.run", "--help"), _only(entries, "task1 from nothing")
    return [
        _every(start_up, "seconds to start", seconds, 2, most=True),
        _every(task1, "seconds of task1 from nothing", seconds, 180, most=True),
        _every(task1, "its peak memory, GB", lambda e: e["peak_bytes"] / 1e9, 3, most=True),
        _every(task1, "the least of its accuracies", lambda e: min(e["accuracy"].values()), 0.5),
    ]


def _no_lines(entries: dict[str, Entry]) -> list[Line]:
    return []


def _only(entries: dict[str, Entry], *names: str) -> dict[str, Entry]:
    return {name: entries[name] for name in names if name in entries}


def _has(name: str, value) -> Callable[[Entry], bool]:
    return lambda entry: entry[name] == value


def _best(entry: Entry) -> float | None:
    """Return the fastest baseline's time over ours; None where not all that can be run were."""
    return None if NOT_ASKED in entry.get("skipped", {}).values() else best_baseline(entry)[1]


def _bound(direction: str) -> Callable[[Entry], float]:
    return lambda entry: share_of_bound(entry, direction)


def _launches(entries: dict[str, Entry], direction: str, launches: int, share: float) -> Line:
    """Return the line that a small call takes no longer than so many launches, and the bound at `share` of it."""
    text = f"bound under {SMALL_US:g} us: us beyond the bound at {share:.0%} {direction}, against {launches} launches"
    return _every(
        entries, text, lambda e: beyond_bound(e, direction, share), launches * H200.launch_us, is_small, most=True
    )


def _values(entries, figure, where) -> dict[str, float]:
    chosen = {key: figure(entry) for key, entry in entries.items() if where is None or where(entry)}
    return {key: value for key, value in chosen.items() if value is not None}


def _mean(entries: dict[str, Entry], text: str, figure: Callable, least: float, where=None) -> Line:
    """Return the line that the geometric mean of a figure is at least `least`."""
    values = _values(entries, figure, where)
    mean = geometric_mean(values.values()) if values else None
    demand = f"{text}: geometric mean >= {least:g}"
    return Line(demand, "-" if mean is None else f"{mean:.2f}", None if mean is None else mean >= least)


def _every(entries: dict[str, Entry], text: str, figure: Callable, limit: float, where=None, most=False) -> Line:
    """Return the line that a figure is at least (at most) `limit` for every entry."""
    values = _values(entries, figure, where)
    demand = f"{text}: {'<=' if most else '>='} {limit:g}"
    if not values:
        return Line(demand, "-", None)
    worst = (max if most else min)(values, key=values.get)
    missed = _count(value > limit if most else value < limit for value in values.values())
    return Line(demand, f"{values[worst]:.2f} at {worst}; {missed} of {len(values)} miss", missed == 0)


def _count(conditions: Iterable[bool]) -> int:
    return sum(map(bool, conditions))


_MEMORY_BOUND = {"gpu": _memory_bound_on_gpu, "cpu": _memory_bound_on_cpu}
LINES = {
    "dynamic_conv": {"gpu": _convolution_on_gpu, "cpu": _convolution_on_cpu},
    "spatial_attention": _MEMORY_BOUND,
    "channel_gate": _MEMORY_BOUND,
    "augment": {"gpu": _augment_on_gpu, "cpu": _augment_on_cpu},
    "growth": {"gpu": _no_lines, "cpu": _no_lines},
    "fuse": {"gpu": _fuse_on_gpu, "cpu": _fuse_on_cpu},
    "training": {"gpu": _training_on_gpu, "cpu": _training_on_cpu},
    "input": {"gpu": _input_on_gpu, "cpu": _no_lines},
    "start": {"gpu": _start, "cpu": _start},
    "processes": {"gpu": _processes, "cpu": _processes},
    "commands": {"gpu": _commands, "cpu": _commands},
}
