"""Benchmark of the channel gate and its baselines: times, shares of the bound, memory; results are checked first.

pytest bench/test_channel_gate.py --benchmark-only [--save-results]
"""

from collections.abc import Callable, Collection
from functools import partial

import pytest

from bench.measuring import measure
from bench.measuring.measure import DEVICE, Measured
from bench.measuring.replay import clock
from bench.ops import channel_gate as baselines
from bench.ops.channel_gate import Shape, shapes_on


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("way", ["ours", *baselines.BASELINES])
@pytest.mark.parametrize("shape", shapes_on(DEVICE), ids=lambda shape: shape.key)
def test_channel_gate(compare, shape, way):
    compare("channel_gate", shape.key, way, lambda: measured(shape), ("timm", "torchvision"))


def measured(shape: Shape, ways: Collection[str] | None = None) -> Measured:
    """Check all ways at a shape, or only the named `ways`, and time them in turn."""
    return measure.memory_bound(shape, baselines, ways)


def calls() -> dict[str, Callable[[Collection[str] | None], Measured]]:
    """Return a function that measures a shape by the ways it is given, for each result's name."""
    return {shape.key: partial(measured, shape) for shape in shapes_on(DEVICE)}
