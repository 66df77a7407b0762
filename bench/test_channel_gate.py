"""The channel gate beside the ways it is done today: times, shares of the bound, memory, all checked first.

pytest bench/test_channel_gate.py --benchmark-only [--save-results]
"""

import pytest
import torch

from bench import measure, timing
from bench.baselines import channel_gate as baselines
from bench.measure import DEVICE, Measured, parts_of
from bench.replay import clock
from bench.shapes.channel_gate import Shape, shapes_on


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("way", ["ours", *baselines.BASELINES])
@pytest.mark.parametrize("shape", shapes_on(DEVICE), ids=lambda shape: shape.key)
def test_channel_gate(compare, shape, way):
    compare("channel_gate", shape.key, way, lambda: measured(shape), ("timm", "torchvision"))


def measured(shape: Shape) -> Measured:
    """Check every way at a shape and time them in turn."""
    torch._dynamo.reset()
    return measure.memory_bound(shape, baselines)


def profiled() -> dict[str, timing.Parts]:
    """Return forward and backward of ours at the shape worth a trace, the largest."""
    shape = max(shapes_on(DEVICE), key=lambda shape: shape.x.nbytes)
    return {shape.key: parts_of(baselines.ours, *shape.data(DEVICE))}
