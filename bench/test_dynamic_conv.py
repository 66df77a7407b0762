"""Dynamic convolution beside the ways it is done today: times, shares of the bound, memory, all checked first.

pytest bench/test_dynamic_conv.py --benchmark-only [--save-results]
"""

import statistics
import time
from functools import partial

import pytest
import torch

from bench import baselines, record, timing
from bench.shapes import Data, Shape, data_of, shapes_on
from kernels.tensors import is_channels_last

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.bfloat16,) if DEVICE == "cuda" else (torch.bfloat16, torch.float32)
ROUNDS = (10, 50) if DEVICE == "cuda" else (5, 30)
# For all implementations of one shape together; the fewest rounds are run whatever they take.
SECONDS = 8 if DEVICE == "cuda" else 1.0
# On a CPU, a baseline that takes this many times as long as naive is run once and left out of the rounds.
SLOW = 3
KEPT = ("ours", "naive", "naive fp32")

# The largest RMS error over the RMS of the exact values, forward and of the gradients.
OURS = {torch.bfloat16: (5e-3, 1e-2), torch.float32: (1e-5, 1e-5)}
# Baselines round more than once, and on a GPU torch lets float32 convolutions use TF32.
THEIRS = {torch.bfloat16: (2e-2, 2e-2), torch.float32: (2e-3, 2e-3) if DEVICE == "cuda" else (1e-4, 1e-4)}


@pytest.mark.benchmark(group="dynamic_conv")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("shape", shapes_on(DEVICE), ids=lambda shape: shape.name)
def test_dynamic_conv(benchmark, entries, request, shape, dtype):
    torch._dynamo.reset()
    data = data_of(shape, dtype, DEVICE)
    calls, skipped = checked_calls(shape, dtype, data)
    entry = measure(shape, dtype, data, calls) | {"skipped": skipped}
    section = entries.setdefault("dynamic_conv", record.circumstances(DEVICE) | {"ceilings": {}, "shapes": {}})
    section["ceilings"] |= ceilings(dtype)
    section["shapes"][f"{entry['dtype']} {shape.name}"] = entry | {name: section[name] for name in ("date", "commit")}
    if DEVICE == "cuda" or request.config.getoption("--save-results"):
        record.write(record.results_path(DEVICE), "dynamic_conv", section)
    benchmark.extra_info |= entry
    benchmark.pedantic(finished, (calls["ours"],), rounds=3, warmup_rounds=1)


def checked_calls(shape: Shape, dtype: torch.dtype, data: Data) -> tuple[dict[str, timing.Parts], dict[str, str]]:
    """Return forward and backward of every implementation, its results checked; and why others were left out.

    Raises:
        AssertionError: our results are wrong; baselines that fail are left out.
    """
    exact = exact_results(shape, data)
    calls = {"ours": (baselines.ours, dtype), **{name: (each, dtype) for name, each in baselines.BASELINES.items()}}
    if dtype != torch.float32:
        calls |= {f"{name} fp32": (baselines.BASELINES[name], torch.float32) for name in ("naive", "compiled")}
    made, skipped, took, copies = {}, {}, {}, {dtype: data}
    for name, (function, wanted) in calls.items():
        reason = baselines.reason_to_skip(name.removesuffix(" fp32"), shape.problem(wanted), DEVICE)
        if reason is None:
            copies.setdefault(wanted, data.to(wanted))
            parts = parts_of(function, copies[wanted], shape)
            try:
                took[name] = check(name, parts, exact, OURS[dtype] if name == "ours" else THEIRS[wanted])
            except (RuntimeError, AssertionError) as error:
                if name == "ours":
                    raise
                reason = f"failed: {str(error).strip().partition(chr(10))[0][:100]}"
        if reason is None and DEVICE == "cpu" and name not in KEPT and took[name] > SLOW * took["naive"]:
            reason = f"over {SLOW} times as long as naive"
        if reason is None:
            made[name] = parts
        else:
            skipped[name] = reason
    return made | {"static": static_parts(data, shape)}, skipped


def check(name: str, parts: timing.Parts, exact: list, tolerances: tuple[float, float]) -> float:
    """Assert that output and gradients are near the exact ones; return the seconds they took."""
    start = time.perf_counter()
    y = parts[0](None)
    got = [y, *parts[1](y)]
    taken = time.perf_counter() - start
    for index, (one, other) in enumerate(zip(got, exact, strict=True)):
        assert one.shape == other.shape
        error = ((one.double() - other).norm() / other.norm()).item()
        assert error <= tolerances[min(index, 1)], f"{name}: output {index} is off by {error:.1e}"
    return taken


def exact_results(shape: Shape, data: Data) -> list[torch.Tensor]:
    """Return the definition's output and gradients in float64, sample by sample."""
    wide = data.to(torch.float64)
    samples = zip(wide.x.split(1), wide.mixing.split(1), strict=True)
    y = torch.cat([baselines.naive(x, wide.experts, mixing, *shape.geometry) for x, mixing in samples])
    return [y.detach(), *torch.autograd.grad(y, wide.leaves, wide.grad)]


def parts_of(function, data: Data, shape: Shape) -> timing.Parts:
    """Return forward and backward of an implementation."""

    def forward(_):
        return function(*data.leaves, *shape.geometry)

    return forward, partial(torch.autograd.grad, inputs=data.leaves, grad_outputs=data.grad)


def static_parts(data: Data, shape: Shape) -> timing.Parts:
    """Return forward and backward of a plain convolution with the first expert, laid out as x."""
    layout = torch.channels_last if is_channels_last(data.x) else torch.contiguous_format
    weight = data.experts[0].detach().contiguous(memory_format=layout).clone().requires_grad_()

    def forward(_):
        return baselines.static(data.x, weight[None], None, *shape.geometry)

    return forward, partial(torch.autograd.grad, inputs=(data.x, weight), grad_outputs=data.grad)


def measure(shape: Shape, dtype: torch.dtype, data: Data, calls: dict[str, timing.Parts]) -> dict:
    """Return the figures of one shape: medians in ms, bounds, and on a GPU bytes and the host's microseconds."""
    on_gpu = DEVICE == "cuda"
    memory = {name: dict(zip(("peak", "extra"), used(parts), strict=True)) for name, parts in calls.items() if on_gpu}
    host = dict(zip(("call", "launches"), timing.host_time(calls["ours"][:1]), strict=True)) if on_gpu else None
    times = timing.take_turns(calls, DEVICE, ROUNDS, SECONDS)
    ms = {name: medians(each) for name, each in times.items()}
    ms.setdefault("naive fp32", ms["naive"])
    problem = shape.problem(dtype)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "layout": "channels_last" if is_channels_last(data.x) else "contiguous",
        "batch": shape.batch,
        "pixels": problem.pixels,
        "problem": problem.key,
        "runs": len(times["ours"]),
        "ms": ms,
        "bound_ms": {
            "forward": bound(problem.flops, problem.forward_bytes, dtype),
            "backward": bound(2 * problem.flops, problem.backward_bytes, dtype),
        },
        "memory_bytes": memory or None,
        "host_us": host,
    }


def medians(times: list[list[float]]) -> dict[str, float]:
    """Return the medians of forward, of backward and of their sum."""
    forward, backward = (statistics.median(each) for each in zip(*times, strict=True))
    both = statistics.median(map(sum, times))
    return {"forward": round(forward, 5), "backward": round(backward, 5), "both": round(both, 5)}


def bound(flops: int, moved: int, dtype: torch.dtype) -> float:
    """Return the least milliseconds for so many FLOPs and bytes at the measured ceilings."""
    return 1e3 * max(flops / timing.matmul_rate(DEVICE, dtype), moved / timing.copy_rate(DEVICE))


def ceilings(dtype: torch.dtype) -> dict[str, float]:
    """Return the measured ceilings by name and unit."""
    name = str(dtype).removeprefix("torch.")
    return {
        "GB/s copy": round(timing.copy_rate(DEVICE) / 1e9, 1),
        f"TFLOP/s {name} matmul": round(timing.matmul_rate(DEVICE, dtype) / 1e12, 3),
    }


def used(parts: timing.Parts) -> tuple[int, int]:
    """Return the peak memory above the inputs, and what of it is neither output nor gradient."""
    peak, returned = timing.peak_memory(parts)
    return peak, max(0, peak - returned)


def finished(parts: timing.Parts) -> None:
    """Run forward and backward to their end on the device."""
    timing.run(parts)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
