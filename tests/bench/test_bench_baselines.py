"""The baselines compute what the definition does, forward and backward."""

import multiprocessing
from types import SimpleNamespace

import pytest
import torch

from bench.measuring.measure import parts_of
from bench.ops import augment, channel_gate, dynamic_conv, spatial_attention
from bench.ops import augment as augmentations
from bench.ops import channel_gate as gates
from bench.ops import spatial_attention as attentions
from bench.ops.dynamic_conv import Shape, data_of
from bench.ops.feature_maps import FeatureMap

CONVOLUTIONS = [
    Shape("grouped", 3, 8, 12, 9, kernel=3, stride=2, padding=1, groups=4),
    Shape("depthwise", 3, 8, 8, 7, groups=8),
    Shape("pointwise", 3, 8, 6, 5, kernel=1, padding=0),
]
# Batches of three, in a dtype each.
AUGMENTATIONS = {
    torch.float32: augmentations.Shape(3, 3, torch.float32),
    torch.bfloat16: augmentations.Shape(3, 5, torch.bfloat16),
}
MAP = FeatureMap(3, 8, 9, 10, torch.float32, torch.channels_last)
GATES = {"two layers": gates.Shape(MAP, 4), "one layer": gates.Shape(MAP, None)}


def outcome(function, data, *arguments):
    forward, backward = parts_of(function, data.leaves, data.grad, *arguments)
    y = forward(None)
    return [y, *backward(y)]


def assert_close(got, exact):
    for one, other in zip(got, exact, strict=True):
        assert (one.double() - other).norm() <= 1e-5 * other.norm()


def skip_if(reason):
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=lambda shape: shape.name)
@pytest.mark.parametrize("name", dynamic_conv.BASELINES)
def test_a_convolution_computes_the_definition(name, shape):
    skip_if(dynamic_conv.reason_to_skip(name, shape.problem(torch.float32), "cpu"))
    data = data_of(shape, torch.float32, "cpu")
    exact = outcome(dynamic_conv.naive, data.to(torch.float64), *shape.geometry)
    assert_close(outcome(dynamic_conv.BASELINES[name], data, *shape.geometry), exact)


@pytest.mark.parametrize("name", spatial_attention.BASELINES)
def test_a_spatial_attention_computes_the_definition(name):
    shape = attentions.Shape(MAP)
    skip_if(spatial_attention.reason_to_skip(name, shape, "cpu"))
    data = shape.data("cpu")
    exact = outcome(spatial_attention.eager, data.to(torch.float64))
    assert_close(outcome(spatial_attention.BASELINES[name], data), exact)


@pytest.mark.parametrize("layers", GATES)
@pytest.mark.parametrize("name", channel_gate.BASELINES)
def test_a_channel_gate_computes_the_definition(name, layers):
    skip_if(channel_gate.reason_to_skip(name, GATES[layers], "cpu"))
    data = GATES[layers].data("cpu")
    exact = outcome(channel_gate.eager, data.to(torch.float64))
    assert_close(outcome(channel_gate.BASELINES[name], data), exact)


def assert_augments(y, call, tolerance):
    exact = augment.eager(call.to(torch.float64))()
    assert y.dtype == call.dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert (y.double() - exact).norm() <= tolerance * exact.norm()


@pytest.mark.parametrize("dtype", AUGMENTATIONS)
@pytest.mark.parametrize("name", augment.BASELINES)
def test_an_augmentation_computes_the_definition_but_for_rounding_to_uint8(name, dtype):
    shape = AUGMENTATIONS[dtype]
    call = shape.call("cpu")
    skip_if(augment.reason_to_skip(name, shape, call))
    forward = augment.BASELINES[name](call)
    exactly = 1e-5 if dtype == torch.float32 else 5e-3
    for _ in range(2):
        assert_augments(forward(), call, exactly if name == "eager" else 3e-2)


def test_workers_make_the_same_batch_again_and_again_and_end():
    shape = AUGMENTATIONS[torch.float32]
    call = shape.call("cpu")
    skip_if(augment.reason_to_skip("workers", shape, call))
    with augment.worker_batches(call, workers=1) as following:
        first, second = following(), following()
        assert len(multiprocessing.active_children()) == 1
    assert not multiprocessing.active_children()
    assert_augments(first, call, 3e-2)
    assert torch.equal(first, second)


def test_the_whole_recipe_is_compared_with_the_definition_only():
    shape = augmentations.Shape(2, 3, torch.float32, "whole")
    reasons = {name: augment.reason_to_skip(name, shape, shape.call("cpu")) for name in (*augment.BASELINES, "workers")}
    assert reasons == {"eager": None} | dict.fromkeys(("torchvision", "dali", "workers"), "plain recipe only")


@pytest.mark.parametrize(("free", "reason"), [(7_225_344, None), (7_225_343, "needs 0 GB of memory")])
def test_the_definition_is_left_out_where_a_gpu_lacks_memory(monkeypatch, free, reason):
    shape = augmentations.Shape(2, 3, torch.bfloat16)
    call = shape.call("cpu")
    on_gpu = call._replace(images=SimpleNamespace(is_cuda=True, shape=call.images.shape))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 0))
    # 6 float32 values for each of 2 * 3 * 224 * 224
    assert augment.reason_to_skip("eager", shape, on_gpu) == reason


def test_the_static_convolution_is_that_of_the_one_expert():
    shape = CONVOLUTIONS[0]
    data = data_of(shape, torch.float32, "cpu")
    alone = data.experts[:1]
    expected = dynamic_conv.naive(data.x, alone, torch.ones(shape.batch, 1), *shape.geometry)
    torch.testing.assert_close(dynamic_conv.static(data.x, alone, None, *shape.geometry), expected)
