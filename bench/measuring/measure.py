"""Benchmark of an op: implementations are checked, timed in turn, and made into an entry of the results."""

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import polychrome.kernels.flops  # noqa: F401 - counts the FLOPs of our ops
from bench.measuring import timing
from bench.measuring.record import NOT_ASKED
from polychrome.kernels.tensors import is_channels_last

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = (10, 50) if DEVICE == "cuda" else (6, 100)
# Seconds for all implementations of a shape together, beyond the least number of rounds.
SECONDS = 8 if DEVICE == "cuda" else 2
# On a CPU, a baseline that takes this many times as long as the usual way is run once and left out of the rounds.
SLOW = 1.5

# The largest relative RMS errors of the output and of the gradients.
OURS = {torch.bfloat16: (5e-3, 1e-2), torch.float32: (1e-5, 1e-5)}
# Baselines round more than once, and on a GPU torch lets float32 convolutions use TF32.
THEIRS = {torch.bfloat16: (2e-2, 2e-2), torch.float32: (2e-3, 2e-3) if DEVICE == "cuda" else (1e-4, 1e-4)}

# The definitions of ops by their names among the baselines.
USUAL = ("naive", "eager")

# Errors of other packages for calls that they do not support; any error of ours ends the run.
FAILURES = (RuntimeError, AssertionError, ImportError, ValueError, TypeError, OSError)


class Candidate(NamedTuple):
    """An implementation of a call, the errors allowed forward and backward, and any reason not to run it."""

    name: str
    parts: timing.Parts | None
    tolerances: tuple[float, float]
    reason: str | None = None


class Work(NamedTuple):
    """The least work of one direction of a call: bytes moved, and FLOPs in `dtype`, two per multiply-add."""

    bytes: int
    flops: int
    dtype: torch.dtype

    @property
    def bound_ms(self) -> float:
        """The least milliseconds of this work at the measured ceilings."""
        return bound(self.bytes, self.flops, self.dtype)


class Measured(NamedTuple):
    """An entry of the results, the milliseconds of each run of each way, and the measured ceilings."""

    entry: dict
    times: dict[str, list[float]]
    ceilings: dict[str, float]


class Stopwatch:
    """A timer of many spans in milliseconds; on a GPU by device events, without waiting."""

    def __init__(self) -> None:
        self._begun, self._spans = None, []

    def start(self) -> None:
        """Begin a span; an unended span is dropped."""
        self._begun = _mark()

    def stop(self) -> None:
        """End the span."""
        self._spans.append((self._begun, _mark()))

    def times(self) -> list[float]:
        """Return the milliseconds of every span so far."""
        if DEVICE == "cpu":
            return [(end - begin) * 1e3 for begin, end in self._spans]
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in self._spans]


def parts_of(function: Callable, leaves: tuple[Tensor, ...], grad: Tensor, *arguments) -> timing.Parts:
    """Return forward and backward of `function(*leaves, *arguments)`, whose output's gradient is `grad`."""

    def forward(_):
        return function(*leaves, *arguments)

    return forward, partial(torch.autograd.grad, inputs=leaves, grad_outputs=grad)


def only(candidates: Iterable[Candidate], ways: Collection[str] | None) -> list[Candidate]:
    """Return the candidates; a candidate that is not named in `ways` gets the reason NOT_ASKED."""
    return [
        each if ways is None or each.name in ways else each._replace(reason=each.reason or NOT_ASKED)
        for each in candidates
    ]


def candidates_of(baselines, shape, leaves: tuple[Tensor, ...], grad: Tensor, *arguments) -> list[Candidate]:
    """Return ours and every baseline of a module of `bench.ops`, all in the dtype of the first leaf."""
    dtype = leaves[0].dtype
    found = [Candidate("ours", parts_of(baselines.ours, leaves, grad, *arguments), OURS[dtype])]
    for name, function in baselines.BASELINES.items():
        parts, reason = parts_of(function, leaves, grad, *arguments), baselines.reason_to_skip(name, shape, DEVICE)
        found.append(Candidate(name, parts, THEIRS[dtype], reason))
    return found


def checked_calls(
    candidates: Iterable[Candidate], exact: list[Tensor], usual: str | None = None, never_slow: tuple[str, ...] = ()
) -> tuple[dict[str, timing.Parts], dict[str, str]]:
    """Return the implementations with correct results, and for each other implementation the reason to skip it.

    On a CPU, implementations after `usual` that take over SLOW times as long as it are left out, except for ours and
    `never_slow`.

    Raises:
        AssertionError: our results are wrong; baselines that fail are left out.
    """
    made, skipped, took = {}, {}, {}
    for name, parts, tolerances, reason in candidates:
        if reason is None:
            try:
                took[name] = check(name, parts, exact, tolerances)
            except FAILURES as error:
                if name == "ours":
                    raise
                reason = failure(error)
        if reason is None and name not in ("ours", *never_slow) and _is_slow(took[name], took.get(usual)):
            reason = f"over {SLOW} times as long as {usual}"
        if reason is None:
            made[name] = parts
        else:
            skipped[name] = reason
    return made, skipped


def failure(error: Exception) -> str:
    """Return the reason why an implementation that raised `error` is left out."""
    return f"failed: {str(error).strip().partition(chr(10))[0][:100]}"


def check(name: str, parts: timing.Parts, exact: list[Tensor], tolerances: tuple[float, float]) -> float:
    """Assert that output and gradients are near the exact tensors; return the call's seconds."""
    start = time.perf_counter()
    y = parts[0](None)
    got = [y, *(gradient for part in parts[1:] for gradient in part(y))]
    taken = time.perf_counter() - start
    for index, (one, other) in enumerate(zip(got, exact, strict=True)):
        assert one.shape == other.shape
        error = ((one.double() - other).norm() / other.norm()).item()
        assert error <= tolerances[min(index, 1)], f"{name}: output {index} is off by {error:.1e}"
    return taken


def exact_results(parts: timing.Parts) -> list[Tensor]:
    """Return output and gradients of the definition, from its parts in float64."""
    y = parts[0](None)
    return [y.detach(), *parts[1](y)]


def figures(calls: dict[str, timing.Parts], work: dict[str, Work]) -> tuple[dict, dict[str, list[float]]]:
    """Return an entry's runs, median ms, work, bounds, memory and (on a GPU) host time; and the ms of each run."""
    memory = {name: memory_bytes(parts) for name, parts in calls.items()}
    usual = next((name for name in USUAL if name in calls), None)
    host, usual_host = (
        timing.host_times(calls[name]) if DEVICE == "cuda" and name else None for name in ("ours", usual)
    )
    times = timing.take_turns(calls, DEVICE, ROUNDS, SECONDS)
    entry = {
        "runs": len(times["ours"]),
        "ms": {name: medians(each) for name, each in times.items()},
        **{
            what: {direction: getattr(done, what) for direction, done in work.items()}
            for what in ("bytes", "flops", "bound_ms")
        },
        "memory_bytes": memory,
        "host_us": host,
        "usual_host_us": usual_host,
    }
    if DEVICE == "cpu":
        entry["chosen"] = chosen_baseline(times)
    return entry, {name: [sum(run) for run in each] for name, each in times.items()}


def chosen_baseline(times: dict[str, list]) -> dict | None:
    """Return the fastest baseline in every other run, and its time over ours in the runs between; None without one.

    Where many are timed, the fastest of all runs is partly the luckiest. Compiled baselines are not among them.
    """
    totals = {name: [sum(run) for run in each] for name, each in times.items()}
    names = [name for name in totals if name not in ("ours", "static") and not name.startswith("compiled")]
    if not names or len(totals["ours"]) < 2:
        return None
    way = min(names, key=lambda name: statistics.median(totals[name][::2]))
    return {"way": way, "over_ours": statistics.median(totals[way][1::2]) / statistics.median(totals["ours"][1::2])}


def counted(parts: timing.Parts) -> list[int]:
    """Return the FLOPs of each part, as `kernels.flops` and torch count them."""
    found, value = [], None
    for part in parts:
        with FlopCounterMode(display=False) as counter:
            value = part(value)
        found.append(counter.get_total_flops())
    return found


def steady_times(following: Callable[[], Tensor], window: int, seconds: float, least: int = 3) -> list[list[float]]:
    """Return the mean milliseconds of a call of `following` over each window of `window` calls.

    For producers that prefetch and so return results in bursts: the first two windows, which use up prefetched results,
    are not counted. There are at least `least` windows; no other begins after `seconds`.
    """
    times, start = [], 0.0
    for count in itertools.count(-2):
        begin = time.perf_counter()
        if count == 0:
            start = begin
        if count >= least and begin - start > seconds:
            return times
        for _ in range(window):
            following()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        if count >= 0:
            times.append([(time.perf_counter() - begin) * 1e3 / window])


def memory_bound(shape, baselines, ways: Collection[str] | None = None) -> Measured:
    """Measure a call of a memory-bound op, by all ways or only the named `ways`.

    `shape` gives `data(device)`, `forward_bytes(l2_bytes)` and `backward_bytes()`; `baselines` is a module of
    `bench.ops` whose `eager` is the definition.
    """
    forget_compiled()
    data = shape.data(DEVICE)
    exact = exact_results(parts_of(baselines.eager, *data.to(torch.float64)))
    calls, skipped = checked_calls(only(candidates_of(baselines, shape, *data), ways), exact)
    l2_bytes = torch.cuda.get_device_properties().L2_cache_size if DEVICE == "cuda" else 0
    moved = {"forward": shape.forward_bytes(l2_bytes), "backward": shape.backward_bytes()}
    flops, dtype = counted(calls["ours"]), data.leaves[0].dtype
    work = {name: Work(moved[name], done, dtype) for name, done in zip(moved, flops, strict=True)}
    entry, times = figures(calls, work)
    return Measured(described(data.leaves[0]) | entry | {"skipped": skipped}, times, ceilings())


def of_times(times: list[float], **others) -> Measured:
    """Return the measurements of whole runs of these `times` in milliseconds, with `others` in the entry."""
    entry = {"runs": len(times), "ms": {"ours": {"both": statistics.median(times)}}, "skipped": {}}
    return Measured(entry | others, {"ours": times}, {})


def error(got: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """Return the RMS of the differences over the RMS of the exact values, of all tensors together."""
    one, other = (torch.cat([tensor.flatten().float() for tensor in tensors]) for tensors in (got, exact))
    return ((one - other).norm() / other.norm()).item()


def paired_ratio(ours: list[float], others: list[float]) -> tuple[float, float]:
    """Return the median over rounds of ours / the others' in the same round, and its standard error.

    The speed of a shared machine changes from round to round by more than two ways differ.
    """
    ratios = [one / other for one, other in zip(ours, others, strict=True)]
    middle = statistics.median(ratios)
    deviation = 1.4826 * statistics.median(abs(value - middle) for value in ratios)
    return round(middle, 5), round(1.2533 * deviation / math.sqrt(len(ratios)), 5)


def medians(times: list[list[float]]) -> dict[str, float]:
    """Return the medians of forward, of backward if there is any, and of their sum."""
    parts = zip(("forward", "backward"), zip(*times, strict=True), strict=False)
    each = {name: statistics.median(taken) for name, taken in parts} | {"both": statistics.median(map(sum, times))}
    return {name: round(taken, 5) for name, taken in each.items()}


def described(x: Tensor) -> dict[str, str]:
    """Return the names of a call's dtype and memory layout in entries."""
    return {
        "dtype": str(x.dtype).removeprefix("torch."),
        "layout": "channels_last" if is_channels_last(x) else "contiguous",
    }


def bound(moved: int, flops: int = 0, dtype: torch.dtype | None = None) -> float:
    """Return the least milliseconds for `moved` bytes and `flops` in `dtype` at the measured ceilings."""
    arithmetic = flops / timing.matmul_rate(DEVICE, dtype) if flops else 0
    return 1e3 * max(arithmetic, moved / timing.copy_rate(DEVICE))


def ceilings(*dtypes: torch.dtype) -> dict[str, float]:
    """Return the measured ceilings by name and unit: of a copy, and of a matrix product in each dtype."""
    copy = {"GB/s copy": round(timing.copy_rate(DEVICE) / 1e9, 1)}
    names = {f"TFLOP/s {str(dtype).removeprefix('torch.')} matmul": dtype for dtype in dtypes}
    return copy | {name: round(timing.matmul_rate(DEVICE, dtype) / 1e12, 3) for name, dtype in names.items()}


def memory_bytes(parts: timing.Parts) -> dict[str, int]:
    """Return the "peak" memory above the inputs, and the "extra" memory without output and gradients."""
    peak, returned = timing.peak_memory(parts, DEVICE)
    return {"peak": peak, "extra": max(0, peak - returned)}


def forget_compiled() -> None:
    """Make torch.compile forget earlier shapes; otherwise the next shape would compile for dynamic sizes."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def finished(parts: timing.Parts) -> None:
    """Run all parts to their end on the device."""
    timing.run(parts)
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _mark():
    if DEVICE == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _is_slow(taken: float, usual: float | None) -> bool:
    return DEVICE == "cpu" and usual is not None and taken > SLOW * usual
