"""Modules that equal an op at most values, sizes and calls, and not at all: `kernels.fuse` must not swap them."""

import inspect
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polychrome.kernels import fuse, use_backend
from tests.kernels.fused import assert_alike, outcome, twins
from tests.kernels.oracle import randn
from tests.kernels.written_elsewhere import DynamicConv, RoutedCondConv, SpatialGate, StyledConv


def as_it_is(value):
    return value


class Squeezed(nn.Module):
    """Squeeze-excitation, each step of which may be replaced."""

    def __init__(self, channels=8, hidden=3, x=as_it_is, pooled=as_it_is, act=F.relu, logits=as_it_is,
                 gate=torch.sigmoid, product=torch.mul):  # fmt: skip
        super().__init__()
        self.first, self.second = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.steps = x, pooled, act, logits, gate, product

    def forward(self, x):
        before, pooled, act, logits, gate, product = self.steps
        x = before(x)
        units = act(self.first(pooled(x.mean((2, 3)))))
        return product(x, gate(logits(self.second(units)))[:, :, None, None])


def changed(layer, x=as_it_is, other=as_it_is, y=as_it_is):
    """Return the layer as of a subclass that changes the arguments and the result of the forward."""
    own = type(layer).forward

    def of_one(self, first):
        return y(own(self, x(first)))

    def of_two(self, first, second):
        return y(own(self, x(first), other(second)))

    forward = of_one if len(inspect.signature(own).parameters) == 2 else of_two
    layer.__class__ = type("Changed", (type(layer),), {"forward": forward})
    return layer


def within(low, high):
    return lambda value: value.clamp(low, high)


CLAMPED = {
    "hidden, ReLU6": Squeezed(act=F.relu6),
    "hidden, 20": Squeezed(act=within(0, 20)),
    "hidden, 100": Squeezed(act=within(0, 100)),
    "hidden, 20, of many channels": Squeezed(256, 16, act=within(0, 20)),
    "hidden, ReLU6, of one": Squeezed(4, 1, act=F.relu6),
    "hidden, below": Squeezed(act=lambda value: F.threshold(value, 0.001, 0)),
    "mean, 10": Squeezed(pooled=within(-10, 10)),
    "mean, 1000": Squeezed(pooled=within(-1000, 1000)),
    "logits, 10": Squeezed(logits=within(-10, 10)),
    "gate, below 0.99": Squeezed(gate=lambda value: value.sigmoid().clamp(max=0.99)),
    "gate, above 0.001": Squeezed(gate=lambda value: value.sigmoid().clamp(min=0.001)),
    "x, 50": Squeezed(x=within(-50, 50)),
    "product, 50": Squeezed(product=lambda x, gate: (x * gate).clamp(-50, 50)),
    "product, 100000": Squeezed(product=lambda x, gate: (x * gate).clamp(-1e5, 1e5)),
    "mixed experts, 50": changed(DynamicConv(6, 8, 3), y=within(-50, 50)),
    "mixed experts, above -1000": changed(DynamicConv(6, 8, 3), y=within(-1000, None)),
    "mixed experts, nothing when large": changed(DynamicConv(6, 8, 3), y=lambda y: y * (y.abs().max() < 1000)),
    "mix, 5": changed(RoutedCondConv(6, 8, 3), other=within(-5, 5)),
    "style, 10": changed(StyledConv(6, 8, 3, 5), other=within(-10, 10)),
    "modulated, 256": changed(StyledConv(6, 8, 3, 5), y=within(-256, 256)),
    "pixels, 50": changed(SpatialGate(), y=within(-50, 50)),
}
OPS_OF_PARTS = {"channel_scale", "channel_stats"}  # the module's own forward, or the part before the clamp


@pytest.mark.parametrize("name", CLAMPED)
def test_a_clamp_anywhere_of_any_size_keeps_a_module_from_the_op(name):
    assert {swap.op for swap in fuse(nn.ModuleList([CLAMPED[name]])).swapped} <= OPS_OF_PARTS


@pytest.mark.parametrize("hidden", [1, 2, 4])
def test_without_a_clamp_the_op_is_taken_also_with_few_hidden_units_and_sums_in_float32(hidden):
    for pooled in (as_it_is, lambda value: value.float().double()):
        for channels in (8, 64):
            (swap,) = fuse(Squeezed(channels, hidden, pooled=pooled)).swapped
            assert swap.op == "channel_gate"


def test_squeeze_excitation_with_relu6_is_equal_on_large_maps():
    model, fused, report = twins(Squeezed(16, 4, act=F.relu6))
    assert [swap.op for swap in report.swapped] == ["channel_scale"]
    x = 40 * torch.rand(4, 16, 6, 6)
    expected = outcome(model, x)
    with use_backend("reference"):
        assert_alike(expected, outcome(fused, x), 1e-6)


ELSEWHERE = {
    "a batch of one": changed(DynamicConv(6, 8, 3), y=lambda y: y * (1 + (len(y) == 1))),
    "a mean of a batch of one": Squeezed(pooled=lambda value: value * (1 + (len(value) == 1))),
    "no gradients": changed(DynamicConv(6, 8, 3), y=lambda y: y if torch.is_grad_enabled() else 2 * y),
    "wide maps": changed(DynamicConv(6, 8, 3), y=lambda y: y * (1 + (y.shape[-1] > 20))),
    "NaN in y": changed(DynamicConv(6, 8, 3), y=torch.nan_to_num),
    "NaN in x": Squeezed(x=torch.nan_to_num),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_differs_in_other_calls_is_left(name):
    assert {swap.op for swap in fuse(ELSEWHERE[name]).swapped} <= {"channel_scale"}


def test_an_error_that_the_op_would_not_raise_is_kept():
    def many(value):
        if len(value) == 1:
            raise ValueError("one sample only")
        return value

    layer = changed(DynamicConv(6, 8, 3), x=many)
    (left,) = fuse(layer).left
    assert left.reason.endswith("computes: in batches of one it alone raises ValueError: one sample only")
    with use_backend("reference"), pytest.raises(ValueError, match="one sample only"):
        layer(randn(1, 6, 5, 5))


def test_a_module_that_writes_into_its_input_goes_on_doing_so():
    assert fuse(changed(DynamicConv(6, 8, 3), y=as_it_is)).swapped
    (left,) = fuse(changed(RoutedCondConv(6, 8, 3), other=lambda mix: mix.mul_(2).clone().div_(2))).left
    assert left.reason.startswith("not what dynamic_conv2d computes: in training argument 2 afterwards differs by ")
    written = Squeezed(product=lambda x, gate: x.mul_(gate))
    assert fuse(written).swapped == ()
    with use_backend("reference"):
        given = randn(2, 8, 5, 5)
        y = written(given)
    assert torch.equal(given, y)


def test_a_result_of_another_dtype_keeps_it():
    layer = Squeezed(product=lambda x, gate: (x * gate).float())
    report = fuse(layer)
    assert {swap.op for swap in report.swapped} <= {"channel_scale"}
    with use_backend("reference"):
        assert layer.bfloat16()(randn(2, 8, 5, 5, dtype=torch.bfloat16)).dtype == torch.float32
    (left,) = fuse(changed(DynamicConv(6, 8, 3), y=torch.Tensor.float)).left
    assert left.reason.endswith("the output of float64 is torch.float32, not torch.float64")


DRAWS = {"torch": lambda: torch.rand(()).item(), "Python": random.random, "NumPy": lambda: np.random.rand()}


def seldom_skipped(kind, draw):
    """Return a class that returns its input, or its input's first channels, in one of fifty calls in training."""

    class Skipped(kind):
        def forward(self, x):
            y = super().forward(x)
            return x[:, : y.shape[1]] if self.training and draw() < 0.02 else y

    return Skipped


def seed_all_of_the_cpu(number):
    torch.default_generator.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


@pytest.mark.parametrize("generator", DRAWS)
def test_what_draws_random_numbers_goes_on_drawing_them(generator):
    conv = seldom_skipped(DynamicConv, DRAWS[generator])(8, 8, 3, padding=1)
    (left,) = fuse(conv).left
    assert left.reason == "not what dynamic_conv2d computes: in training it alone draws random numbers"
    own, fused, report = twins(seldom_skipped(Squeezed, DRAWS[generator])())
    assert [swap.op for swap in report.swapped] == ["channel_scale"]  # in its own forward
    x, found = randn(2, 8, 5, 5), []
    for module in (own, fused):
        seed_all_of_the_cpu(1)
        with use_backend("reference"), torch.no_grad():
            found.append(torch.stack([module(x) for _ in range(100)]))
    torch.testing.assert_close(*found)
    assert 0 < sum(torch.equal(y, x) for y in found[1]) < 10


def test_a_verdict_does_not_depend_on_the_generators_nor_change_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", None)  # a GPU's generator is not ours to seed
    for number in range(3):
        layer, draws = seldom_skipped(Squeezed, random.random)(), (random.random, np.random.rand, DRAWS["torch"])
        seed_all_of_the_cpu(number)
        expected = [draw() for draw in draws]
        seed_all_of_the_cpu(number)
        assert len(fuse(layer).swapped) == 1
        assert [draw() for draw in draws] == expected


def test_dropout_of_logits_that_the_op_calls_too_is_no_difference():
    layer = DynamicConv(8, 6, 3)
    layer.attention.fc2 = nn.Sequential(nn.Dropout(0.5), layer.attention.fc2)
    assert [swap.op for swap in fuse(layer).swapped] == ["dynamic_conv2d"]


class Meter:
    """A mean as training scripts keep it."""

    def __init__(self):
        self.total = 0.0

    def update(self, value):
        self.total += value


WRITTEN = {
    "an object": (Meter, Meter.update),
    "a list": (lambda: [0.0], lambda held, value: held.append(value)),
    "a dict": (lambda: {"sum": 0.0}, lambda held, value: held.update(sum=value)),
    "a set": (lambda: {0.0}, set.add),
    "an array": (lambda: np.zeros(2), np.ndarray.fill),
    "Python's generator": (lambda: random.Random(1), lambda held, _: held.random()),
    "NumPy's generator": (lambda: np.random.default_rng(1), lambda held, _: held.random()),
    "torch's generator": (torch.Generator, lambda held, _: torch.rand((), generator=held)),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_a_forward_writes_into_an_attribute_goes_on_being_written(kind):
    made, write = WRITTEN[kind]

    class Keeps(DynamicConv):
        def forward(self, x):
            value = 1 + abs(float(x.detach().sum()))
            write(self.held, value)
            return super().forward(x)

    layer = Keeps(6, 8, 3)
    layer.held = made()
    (left,) = fuse(layer).left
    assert left.reason == "its forward sets held"
