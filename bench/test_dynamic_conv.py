"""Benchmark of dynamic convolution and its baselines: times, shares of the bound, memory; results are checked first.

pytest bench/test_dynamic_conv.py --benchmark-only [--save-results]
"""

from collections.abc import Callable, Collection
from functools import partial

import pytest
import torch
from torch.backends import cudnn

from bench.measuring import measure, timing
from bench.measuring.measure import DEVICE, THEIRS, Candidate, Measured, Work, parts_of
from bench.measuring.replay import clock
from bench.ops import dynamic_conv as baselines
from bench.ops.dynamic_conv import Data, Shape, data_of, shapes_on
from polychrome.kernels.tensors import allows_tf32, memory_layout

DTYPES = (torch.bfloat16,) if DEVICE == "cuda" else (torch.bfloat16, torch.float32)
WIDE = ("naive", "compiled")  # run in float32 as well as bfloat16
WAYS = ("ours", *baselines.BASELINES, *(f"{name} fp32" for name in WIDE), "static")
ALWAYS = ("naive", "naive fp32")  # timed however slow


def named(dtype: torch.dtype) -> str:
    """Return a dtype's name without "torch."."""
    return str(dtype).removeprefix("torch.")


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize("shape", shapes_on(DEVICE), ids=lambda shape: shape.name)
def test_dynamic_conv(compare, shape, dtype, way):
    compare("dynamic_conv", f"{named(dtype)} {shape.name}", way, lambda: measured(shape, dtype))


def measured(shape: Shape, dtype: torch.dtype, ways: Collection[str] | None = None) -> Measured:
    """Check all ways at a shape, or only the named `ways`, and time them in turn.

    The static and the grouped convolutions run in cuDNN's benchmark mode, as in training scripts.
    """
    with cudnn.flags(enabled=True, benchmark=True, allow_tf32=allows_tf32()):
        return _measured(shape, dtype, ways)


def calls() -> dict[str, Callable[[Collection[str] | None], Measured]]:
    """Return a function that measures a shape by the ways it is given, for each result's name."""
    return {
        f"{named(dtype)} {shape.name}": partial(measured, shape, dtype)
        for dtype in DTYPES
        for shape in shapes_on(DEVICE)
    }


def _measured(shape: Shape, dtype: torch.dtype, ways: Collection[str] | None) -> Measured:
    measure.forget_compiled()
    data = data_of(shape, dtype, DEVICE)
    chosen = measure.only(candidates_of(shape, dtype, data), ways)
    calls, skipped = measure.checked_calls(chosen, exact_results(shape, data), "naive", ALWAYS)
    calls["static"] = static_parts(data, shape)
    problem = shape.problem(dtype)
    work = {
        "forward": Work(problem.forward_bytes, problem.flops, dtype),
        "backward": Work(problem.backward_bytes, 2 * problem.flops, dtype),
    }
    sizes = {"batch": shape.batch, "pixels": problem.pixels, "problem": problem.key}
    entry, times = measure.figures(calls, work)
    if dtype == torch.float32:
        entry["ms"]["naive fp32"] = entry["ms"]["naive"]
    entry = measure.described(data.x) | sizes | entry | {"skipped": skipped}
    return Measured(entry, times, measure.ceilings(dtype))


def candidates_of(shape: Shape, dtype: torch.dtype, data: Data) -> list[Candidate]:
    """Return ours and every baseline in `dtype`, then naive and compiled in float32."""
    found = measure.candidates_of(baselines, shape.problem(dtype), data.leaves, data.grad, *shape.geometry)
    if dtype == torch.float32:
        return found
    wide, problem = data.to(torch.float32), shape.problem(torch.float32)
    for name in WIDE:
        parts = parts_of(baselines.BASELINES[name], wide.leaves, wide.grad, *shape.geometry)
        reason = baselines.reason_to_skip(name, problem, DEVICE)
        found.append(Candidate(f"{name} fp32", parts, THEIRS[torch.float32], reason))
    return found


def exact_results(shape: Shape, data: Data) -> list[torch.Tensor]:
    """Return the definition's output and gradients in float64, sample by sample."""
    wide = data.to(torch.float64)

    def by_sample(x, experts, mixing):
        samples = zip(x.split(1), mixing.split(1), strict=True)
        return torch.cat([baselines.naive(one, experts, own, *shape.geometry) for one, own in samples])

    return measure.exact_results(parts_of(by_sample, wide.leaves, wide.grad))


def static_parts(data: Data, shape: Shape) -> timing.Parts:
    """Return forward and backward of a plain convolution with the first expert, laid out as x."""
    weight = data.experts[0].detach().contiguous(memory_format=memory_layout(data.x)).clone().requires_grad_()

    def static(x, weight):
        return baselines.static(x, weight[None], None, *shape.geometry)

    return parts_of(static, (data.x, weight), data.grad)
