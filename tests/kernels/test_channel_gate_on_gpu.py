"""The channel gate's Triton kernels on a CUDA device: `pytest -m gpu`."""

import pytest
import torch

from polychrome.kernels import channel_gate
from polychrome.kernels.launch import record_launches
from polychrome.kernels.modules import ChannelGate
from tests.kernels.gpu import (
    assert_compiled_trains,
    assert_graph_replays,
    assert_near_exact,
    dtypes,
    layouts,
    on_gpu,
)
from tests.kernels.oracle import outcome
from tests.kernels.test_channel_gate import FORMS, arguments_of

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory", "without_tf32")]
gates = pytest.mark.parametrize("gate", ["sigmoid", "softmax"])


def in_layout(arguments, layout):
    return [arguments[0].to(memory_format=layout), *arguments[1:]]


def assert_gate_near_exact(arguments, layout, gate):
    with record_launches() as launches:
        assert_near_exact(channel_gate, in_layout(arguments, layout), gate=gate)
    assert launches


@dtypes
@layouts
@pytest.mark.parametrize("form", FORMS)
@gates
def test_output_and_gradients_are_near_the_exact_ones(gate, form, layout, dtype):
    assert_gate_near_exact(arguments_of(**FORMS[form], dtype=dtype), layout, gate)


@dtypes
@layouts
@pytest.mark.parametrize("single", [False, True], ids=["two_layers", "single"])
@pytest.mark.parametrize(
    "shape",
    [(8, 64, 56, 56), (3, 256, 14, 14), (8, 512, 7, 7), (2, 40, 33, 31), (5, 3, 64, 48), (1, 16, 128, 128)],
    ids=str,
)
def test_shapes_of_networks_are_near_the_exact_result(shape, single, layout, dtype):
    """Many splits of the pixels, several programs a sample, layers in the kernels and in torch."""
    x, w1, b1, w2, b2 = arguments_of(shape, max(1, shape[1] // 4), single=single, dtype=dtype)
    scaled = [None if w is None else w / w.shape[1] ** 0.5 for w in (w1, w2)]
    assert_gate_near_exact([x, scaled[0], b1, scaled[1], b2], layout, "sigmoid")
    assert_gate_near_exact([x, scaled[0], b1, scaled[1], b2], layout, "softmax")


@gates
@layouts
@pytest.mark.parametrize("shape", [(4, 64, 56, 56), (8, 512, 7, 7)], ids=str)
def test_two_runs_agree_bit_for_bit(shape, layout, gate):
    arguments = on_gpu(in_layout(arguments_of(shape, 4, dtype=torch.bfloat16), layout))
    first, second = (outcome(channel_gate, arguments, gate=gate) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_a_cuda_graph_replays_with_new_numbers():
    assert_graph_replays(channel_gate, arguments_of((8, 32, 14, 14), 8), gate="softmax")


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_module_trains_like_the_eager_one(mode):
    assert_compiled_trains(ChannelGate(16, 4), mode)


def test_float64_runs_the_eager_form():
    arguments = on_gpu([argument.double() for argument in arguments_of()])
    with record_launches() as launches:
        got = channel_gate(*arguments)
    assert not launches
    torch.testing.assert_close(got, channel_gate.reference(*arguments))
