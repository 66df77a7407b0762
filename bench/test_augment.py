"""`augment` beside the ways a batch is augmented today: times, images a second, share of the bound, all checked first.

pytest bench/test_augment.py --benchmark-only [--save-results]
"""

from collections.abc import Callable, Collection
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from bench.measuring import measure, timing
from bench.measuring.measure import DEVICE, OURS, THEIRS, Candidate, Measured, Work
from bench.measuring.replay import clock
from bench.ops import augment as baselines
from bench.ops.augment import Call, Shape, shapes_on
from bench.ops.availability import dali_package
from bench.report.metrics import NOT_ASKED

# These round to uint8 between the steps, DALI's filter reaches over the crop's edge, and torchvision normalises in the
# dtype of the output.
ROUNDED = (3e-2, 3e-2)
# In float32 a position is 1e-5 of a pixel off, and random bytes differ from pixel to pixel by as much as they can.
TURNED = (1e-4, 1e-4)
# Samples that the definition is evaluated on at once in float64.
EXACT = 64
# Of consecutive batches of the workers; not fewer than three from each of them.
WORKER_SECONDS = 2 if DEVICE == "cuda" else 0.5


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("way", ["ours", *baselines.BASELINES, "workers"])
@pytest.mark.parametrize("shape", shapes_on(DEVICE), ids=lambda shape: shape.key)
def test_augment(compare, shape, way):
    packages = ("torchvision", *filter(None, [dali_package()]))
    compare("augment", shape.key, way, lambda: measured(shape), packages)


def measured(shape: Shape, ways: Collection[str] | None = None) -> Measured:
    """Check every way at a shape, or those named, and time them in turn, the workers afterwards."""
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
    """Return what measures each shape by the ways it is given, by the names of the results."""
    return {shape.key: partial(measured, shape) for shape in shapes_on(DEVICE)}


def candidates(shape: Shape, call: Call) -> list[Candidate]:
    """Return ours and every baseline that does not go on by itself."""
    # On a CPU ours too resizes up to four channels in uint8 where no jitter follows.
    rounds = DEVICE == "cpu" and shape.recipe == "plain" and shape.channels <= 4
    allowed = ROUNDED if rounds else TURNED if call.dtype == torch.float32 else OURS[call.dtype]
    found = [Candidate("ours", parts_of(baselines.ours, call), allowed)]
    for name, way in baselines.BASELINES.items():
        tolerances = THEIRS[call.dtype] if name == "eager" else ROUNDED
        found.append(Candidate(name, parts_of(way, call), tolerances, baselines.reason_to_skip(name, shape, call)))
    return found


def worker_times(shape: Shape, call: Call, exact: Tensor) -> tuple[list[list[float]], str | None]:
    """Return the milliseconds of a batch from the workers, in windows of one from each; or why there are none.

    They are not run in turn with the others: they would take the CPU from those, and batches would pile up meanwhile.
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
    """Return what the definition gives in float64, a few samples at a time for the memory's sake."""
    wide = call.to(torch.float64)
    starts = range(0, len(call.indices), EXACT)
    return torch.cat([baselines.eager(wide.samples(start, start + EXACT))() for start in starts])


def parts_of(way: Callable[[Call], baselines.Forward], call: Call) -> timing.Parts:
    """Return a way's forward as its only part, as there is no gradient; it is prepared when first run."""
    prepared = cache(partial(way, call))
    return (lambda _: prepared()(),)
