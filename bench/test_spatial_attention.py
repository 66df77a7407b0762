"""Benchmark of spatial attention and its baselines: times, shares of the bound, memory; results are checked first.

pytest bench/test_spatial_attention.py --benchmark-only [--save-results]
"""

from collections.abc import Callable, Collection
from functools import partial

import pytest

from bench.measuring import measure
from bench.measuring.measure import DEVICE, Measured
from bench.measuring.replay import clock
from bench.ops import spatial_attention as baselines
from bench.ops.spatial_attention import Shape, shapes_on


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("way", ["ours", *baselines.BASELINES])
@pytest.mark.parametrize("shape", shapes_on(DEVICE), ids=lambda shape: shape.key)
def test_spatial_attention(compare, shape, way):
    compare("spatial_attention", shape.key, way, lambda: measured(shape))


def measured(shape: Shape, ways: Collection[str] | None = None) -> Measured:
    """Check all ways at a shape, or only the named `ways`, and time them in turn."""
    return measure.memory_bound(shape, baselines, ways)


def calls() -> dict[str, Callable[[Collection[str] | None], Measured]]:
    """Return a function that measures a shape by the ways it is given, for each result's name."""
    return {shape.key: partial(measured, shape) for shape in shapes_on(DEVICE)}
