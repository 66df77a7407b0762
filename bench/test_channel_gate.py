"""The channel gate beside the ways it is done today: times, shares of the bound, memory, all checked first.

pytest bench/test_channel_gate.py --benchmark-only [--save-results]
"""

import pytest
import torch

from bench import measure, timing
from bench.baselines import channel_gate as baselines
from bench.measure import DEVICE, parts_of
from bench.shapes.channel_gate import shapes_on


@pytest.mark.benchmark(group="channel_gate")
@pytest.mark.parametrize("shape", shapes_on(DEVICE), ids=lambda shape: shape.key)
def test_channel_gate(keep, shape):
    torch._dynamo.reset()
    entry, calls = measure.memory_bound(shape, baselines)
    keep("channel_gate", shape.key, entry, calls, measure.ceilings(), ("timm", "torchvision"))


def profiled() -> dict[str, timing.Parts]:
    """Return forward and backward of ours at the shape worth a trace, the largest."""
    shape = max(shapes_on(DEVICE), key=lambda shape: shape.x.nbytes)
    return {shape.key: parts_of(baselines.ours, *shape.data(DEVICE))}
