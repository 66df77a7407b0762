"""Benchmark of `augment` and its baselines: times, images per second, share of the bound; results are checked first.

pytest bench/test_augment.py --benchmark-only [--save-results]
"""

from collections.abc import Callable, Collection
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from bench.measuring import measure, timing
from bench.measuring.measure import DEVICE, OURS, THEIRS, Candidate, Measured, Work
from bench.measuring.record import NOT_ASKED
from bench.measuring.replay import clock
from bench.ops import augment as baselines
from bench.ops.augment import Call, Shape, shapes_on
from polychrome.engine.data.files import dali_check

# Tolerances for steps in uint8: torchvision's and DALI's steps round, DALI's filter reads beyond the crop's edge, and
# torchvision normalises in the output's dtype.
ROUNDED = (3e-2, 3e-2)
# Tolerances in float32: a position is off by 1e-5 of a pixel, and neighbouring random bytes differ by up to 255.
TURNED = (1e-4, 1e-4)
# Samples of one evaluation of the definition in float64.
EXACT = 64
# Seconds of timing batches of the workers, at least three batches per worker.
WORKER_SECONDS = 2 if DEVICE == "cuda" else 0.5


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("way", ["ours", *baselines.BASELINES, "workers"])
@pytest.mark.parametrize("shape", shapes_on(DEVICE), ids=lambda shape: shape.key)
def test_augment(compare, shape, way):
    packages = ("torchvision", *filter(None, [dali_check.package()]))
    compare("augment", shape.key, way, lambda: measured(shape), packages)


def measured(shape: Shape, ways: Collection[str] | None = None) -> Measured:
    """Check all ways at a shape, or only the named `ways`, and time them in turn, the workers last."""
    call = shape.call(DEVICE)
    exact = exact_batch(call)
    calls, skipped = measure.checked_calls(measure.only(candidates(shape, call), ways), [exact])
    entry = measure.described(calls["ours"][0](None))
    entry |= {"images": shape.batch, "channels": shape.channels, "recipe": shape.recipe}
    figures, times = measure.figures(calls, {"forward": Work(call.forward_bytes(), 0, call.dtype)})
    if ways is None or "workers" in ways:
        from_workers, reason = worker_times(shape, call, exact)
    else:
        from_workers, reason = [], NOT_ASKED
    if reason is None:
        figures["ms"]["workers"] = measure.medians(from_workers)
        entry["workers"] = baselines.worker_count()
        times["workers"] = [sum(run) for run in from_workers]
    else:
        skipped["workers"] = reason
    return Measured(entry | figures | {"skipped": skipped}, times, measure.ceilings())


def calls() -> dict[str, Callable[[Collection[str] | None], Measured]]:
    """Return a function that measures a shape by the ways it is given, for each result's name."""
    return {shape.key: partial(measured, shape) for shape in shapes_on(DEVICE)}


def candidates(shape: Shape, call: Call) -> list[Candidate]:
    """Return ours and every baseline except the workers."""
    # On a CPU, ours too resizes up to four channels in uint8 if no jitter follows.
    rounds = DEVICE == "cpu" and shape.recipe == "plain" and shape.channels <= 4
    allowed = ROUNDED if rounds else TURNED if call.dtype == torch.float32 else OURS[call.dtype]
    found = [Candidate("ours", parts_of(baselines.ours, call), allowed)]
    for name, way in baselines.BASELINES.items():
        tolerances = THEIRS[call.dtype] if name == "eager" else ROUNDED
        found.append(Candidate(name, parts_of(way, call), tolerances, baselines.reason_to_skip(name, shape, call)))
    return found


def worker_times(shape: Shape, call: Call, exact: Tensor) -> tuple[list[list[float]], str | None]:
    """Return the milliseconds of a batch of the workers, in windows of one batch per worker; or the reason to skip.

    Workers do not take turns with the other ways, which they would slow down while their own batches pile up.
    """
    reason = baselines.reason_to_skip("workers", shape, call)
    if reason is not None:
        return [], reason
    workers = baselines.worker_count()
    try:
        with baselines.worker_batches(call, workers) as following:
            measure.check("workers", (lambda _: following(),), [exact], ROUNDED)
            return measure.steady_times(following, workers, WORKER_SECONDS), None
    except measure.FAILURES as error:
        return [], measure.failure(error)


def exact_batch(call: Call) -> Tensor:
    """Return the definition's output in float64, made from EXACT samples at a time to save memory."""
    wide = call.to(torch.float64)
    starts = range(0, len(call.indices), EXACT)
    return torch.cat([baselines.eager(wide.samples(start, start + EXACT))() for start in starts])


def parts_of(way: Callable[[Call], baselines.Forward], call: Call) -> timing.Parts:
    """Return a way's forward as its only part, as there is no gradient; the first run also sets the way up."""
    prepared = cache(partial(way, call))
    return (lambda _: prepared()(),)
