"""The baselines compute what the definition does, forward and backward."""

import pytest
import torch

from bench.baselines import BASELINES, reason_to_skip, static
from bench.shapes import Shape, data_of

SHAPES = [
    Shape("grouped", 3, 8, 12, 9, kernel=3, stride=2, padding=1, groups=4),
    Shape("depthwise", 3, 8, 8, 7, groups=8),
    Shape("pointwise", 3, 8, 6, 5, kernel=1, padding=0),
]


def outcome(function, shape, data):
    y = function(*data.leaves, *shape.geometry)
    return [y, *torch.autograd.grad(y, data.leaves, data.grad)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_computes_the_definition(name, shape):
    reason = reason_to_skip(name, shape.problem(torch.float32), "cpu")
    if reason is not None:
        pytest.skip(reason)
    data = data_of(shape, torch.float32, "cpu")
    exact = outcome(BASELINES["naive"], shape, data.to(torch.float64))
    for one, other in zip(outcome(BASELINES[name], shape, data), exact, strict=True):
        assert (one.double() - other).norm() <= 1e-5 * other.norm()


def test_the_static_convolution_is_that_of_the_one_expert():
    shape = SHAPES[0]
    data = data_of(shape, torch.float32, "cpu")
    alone = data.experts[:1]
    expected = BASELINES["naive"](data.x, alone, torch.ones(shape.batch, 1), *shape.geometry)
    torch.testing.assert_close(static(data.x, alone, None, *shape.geometry), expected)
