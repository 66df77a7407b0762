"""Timing of calls in turn, by device events on a GPU; peak memory of calls; ceilings of the machine."""

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch

from polychrome.kernels.launch import Launch, current_stream, record_launches

# Before each run the GPU waits for AHEAD times the host's time to issue the run, and at least LEAST_WAIT microseconds:
# the host gets ahead, so that device times have no launch overhead.
AHEAD, LEAST_WAIT = 3.0, 250.0
HOST_RUNS = 100
# Sizes for measuring the ceilings: bytes of a copy, and the side of a matrix.
COPIED, SIDE = {"cuda": 2**30, "cpu": 2**27}, {"cuda": 8192, "cpu": 2048}
CYCLES_PER_MICROSECOND = 2000  # at 2 GHz, the fastest clock of the target GPUs

Parts = tuple[Callable[[Any], Any], ...]


def run(parts: Parts) -> Any:
    """Call the parts one after another, each with the result of the part before."""
    value = None
    for part in parts:
        value = part(value)
    return value


def time_once(parts: Parts, device: str, wait: float = LEAST_WAIT) -> list[float]:
    """Return the milliseconds of each part; a GPU first waits `wait` microseconds."""
    return _device_times(parts, wait) if device == "cuda" else _host_times(parts)


def wait_for(parts: Parts) -> float:
    """Return the microseconds for a GPU to wait before these parts, which run twice, first as a warm-up."""
    run(parts)
    torch.cuda.synchronize()
    return max(LEAST_WAIT, AHEAD * 1e3 * sum(_host_times(parts)))


def take_turns(calls: dict[str, Parts], device: str, rounds: tuple[int, int], seconds: float) -> dict[str, list]:
    """Return the times of every run of every call, in rounds of shuffled order; on a GPU after two warm-up runs.

    There are `rounds[0]` to `rounds[1]` rounds, none beyond `rounds[0]` begun after `seconds`.
    """
    order, times = list(calls), {name: [] for name in calls}
    waits = {name: wait_for(calls[name]) if device == "cuda" else 0.0 for name in order}
    shuffle = random.Random(0).shuffle
    start = time.perf_counter()
    for count in range(rounds[1]):
        if count >= rounds[0] and time.perf_counter() - start > seconds:
            break
        shuffle(order)
        for name in order:
            times[name].append(time_once(calls[name], device, waits[name]))
    return times


def peak_memory(parts: Parts, device: str) -> tuple[int, int]:
    """Return torch's peak bytes above the bytes in use before, and the bytes of the tensors that the parts return.

    On a CPU, libraries' own buffers are not counted.
    """
    return _peak_on_gpu(parts) if device == "cuda" else _peak_on_cpu(parts)


def host_times(parts: Parts) -> dict[str, dict[str, float]]:
    """Return the host's median microseconds to issue forward, and forward and backward (if any).

    Each has the time of the whole `call` and of its bare `launches`.
    """
    return {way: _host_time(some) for way, some in {"forward": parts[:1], "both": parts}.items()}


def _host_time(parts: Parts) -> dict[str, float]:
    with record_launches() as launches:
        run(parts)

    ways = {"call": parts, "launches": (bare(launches),)}
    taken = {name: [] for name in ways}
    for _ in range(HOST_RUNS):
        for name, each in ways.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            run(each)
            taken[name].append((time.perf_counter() - start) * 1e6)
    return {name: statistics.median(each) for name, each in taken.items()}


def bare(launches: list[Launch]) -> Callable:
    """Return a function that makes these launches, and does nothing else."""
    started = []
    for launch in launches:
        compiled = launch.kernel[launch.grid](*launch.arguments, **launch.options)
        started.append((compiled.run, current_stream(), launch.device.index, *launch.passed(compiled)))

    def start(_=None) -> None:
        for run, stream, device, before, after in started:
            run(*before, stream(device), *after)

    return start


@cache
def copy_rate(device: str) -> float:
    """Return the bytes a second, read plus written, of a large copy on the device."""
    size = COPIED[device]
    source = torch.randint(100, (size,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _seconds((lambda _: target.copy_(source),), device)


@cache
def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Return the FLOPs a second of a large matrix product, on a CPU of a large convolution where that is faster.

    On an AMD processor MKL's product reaches half the rate of oneDNN's convolution.
    """
    size = SIDE[device]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = 2 * size**3 / _seconds((lambda _: left @ right,), device)
    return product if device == "cuda" else max(product, _convolution_rate(dtype))


def _convolution_rate(dtype: torch.dtype) -> float:
    batch, channels, side = 16, 256, 28
    x, weight = (torch.randn(shape).to(dtype) for shape in ((batch, channels, side, side), (channels, channels, 3, 3)))
    x, weight = (each.to(memory_format=torch.channels_last) for each in (x, weight))
    flops = 2 * batch * side**2 * channels**2 * 9
    return flops / _seconds((lambda _: torch.nn.functional.conv2d(x, weight, padding=1),), "cpu")


def _seconds(parts: Parts, device: str) -> float:
    times = take_turns({"only": parts}, device, (5, 20), 1.0)["only"]
    return statistics.median(sum(each) for each in times) / 1e3


def _peak_on_gpu(parts: Parts) -> tuple[int, int]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    returned = _returned_bytes(parts)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, returned


def _peak_on_cpu(parts: Parts) -> tuple[int, int]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        returned = _returned_bytes(parts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    found = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    return max(accumulate(event["args"]["Bytes"] for event in found), default=0), returned


def _returned_bytes(parts: Parts) -> int:
    """Return the bytes of the output and the gradients, which are all there when the last part returns."""
    returned, value = [], None
    for part in parts:
        value = part(value)
        returned.extend(value if isinstance(value, tuple) else [value])
    return sum(tensor.nbytes for tensor in returned)


def _host_times(parts: Parts) -> list[float]:
    stamps, value = [time.perf_counter()], None
    for part in parts:
        value = part(value)
        stamps.append(time.perf_counter())
    return [(after - before) * 1e3 for before, after in pairwise(stamps)]


def _device_times(parts: Parts, wait: float) -> list[float]:
    events, value = [torch.cuda.Event(enable_timing=True) for _ in range(len(parts) + 1)], None
    empty_cache()
    torch.cuda._sleep(int(wait * CYCLES_PER_MICROSECOND))
    events[0].record()
    for part, event in zip(parts, events[1:], strict=True):
        value = part(value)
        event.record()
    events[-1].synchronize()
    return [before.elapsed_time(after) for before, after in pairwise(events)]


def empty_cache() -> None:
    """Overwrite the GPU's L2 cache, by one launch."""
    _scratch().zero_()


@cache
def _scratch() -> torch.Tensor:
    """Return a buffer that, once written, has evicted all else from the L2 cache."""
    size = 4 * torch.cuda.get_device_properties().L2_cache_size
    return torch.empty(size, dtype=torch.int8, device="cuda")
