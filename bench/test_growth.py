"""Benchmark of dynamic convolution over growing batches, numbers of experts and resolutions.

pytest bench/test_growth.py --benchmark-only [--save-results]
"""

from functools import cache

import pytest
import torch

from bench import test_dynamic_conv
from bench.measuring.measure import DEVICE, Measured
from bench.measuring.replay import clock
from bench.ops import dynamic_conv as baselines
from bench.ops.dynamic_conv import Growth, Shape, growths_on

# torch.compile would take most of the time, and adds nothing about the growth.
WAYS = [name for name in ("ours", *baselines.BASELINES, "static") if not name.startswith("compiled")]


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("growth", growths_on(DEVICE), ids=lambda growth: growth.key)
def test_growth(compare, growth, way):
    compare("growth", growth.key, way, lambda: measured(growth))


def measured(growth: Growth) -> Measured:
    """Check the ways at a size and time them in turn, in bfloat16."""
    entry, times, ceilings = once(growth.shape._replace(name=""))
    return Measured(entry | {"along": growth.along, "value": growth.value}, times, ceilings)


@cache
def once(shape: Shape) -> Measured:
    """Measure a call once, also if several series have it."""
    return test_dynamic_conv.measured(shape, torch.bfloat16, WAYS)
