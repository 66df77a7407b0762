"""Weights moved between channels first and channels last, run by Triton's interpreter on CPU tensors."""

import pytest
import torch

from polychrome.kernels.launch import record_launches
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.oracle import randn

pytest.importorskip("triton")
pytest.importorskip("hypothesis")

import hypothesis
from hypothesis import strategies as st

from polychrome.kernels.dynamic_conv.triton import reorder
from polychrome.kernels.dynamic_conv.triton.reorder import channels_first, channels_last

pytestmark = [needs_interpreter, pytest.mark.usefixtures("poisoned_memory")]

KERNELS = [(1, 1), (3, 3), (7, 7), (31, 31), (1, 5)]


def moved(weight):
    return weight.flatten(3).transpose(2, 3).contiguous()


def assert_goes_there_and_back(weight, other):
    """`other`: the dtype in which the numbers come back."""
    wanted = moved(weight)
    last = channels_last(weight)
    assert last.is_contiguous()
    assert last.dtype == weight.dtype
    assert torch.equal(last, wanted)
    like = torch.empty_like(weight, dtype=other)
    first = channels_first(wanted, like)
    assert first.is_contiguous()
    assert first.dtype == other
    assert torch.equal(first, weight.to(other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("channels", [1, 3, 8, 20, 64])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_weights_go_there_and_back(kernel, channels, dtype):
    weight = randn(2, 3, channels, *kernel, dtype=dtype)
    assert_goes_there_and_back(weight, dtype)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    rows=st.integers(1, 40),
    channels=st.integers(1, 70),
    kernel=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    given=st.sampled_from([torch.float32, torch.float16]),
    other=st.sampled_from([torch.float32, torch.float16]),
)
def test_weights_of_any_size_go_there_and_back(rows, channels, kernel, given, other):
    assert_goes_there_and_back(randn(2, rows, channels, *kernel, dtype=given), other)


@pytest.mark.parametrize("side", [3, 48])
def test_depthwise_weights_go_there_and_back_as_those_of_one_output(side):
    weight = randn(3, 24, 1, side, side)
    assert_goes_there_and_back(weight.transpose(1, 2), torch.float16)


def test_numbers_are_rounded_once_to_the_dtype_asked_for():
    gradient = randn(2, 5, 9, 16)
    first = channels_first(gradient, torch.empty(2, 5, 16, 3, 3, dtype=torch.float16))
    assert torch.equal(first, gradient.half().transpose(2, 3).reshape(2, 5, 16, 3, 3))


def test_one_launch_moves_weights_and_none_what_lies_right():
    weight, point, single = randn(2, 8, 16, 3, 3), randn(2, 8, 16, 1, 1), randn(2, 8, 1, 3, 3)
    generated = weight.movedim(2, -1).contiguous().movedim(-1, 2)
    with record_launches() as launches:
        last = channels_last(weight)
        channels_first(last, weight)
    assert len(launches) == 2
    with record_launches() as launches:
        for each in (point, single, generated):
            last = channels_last(each)
            assert last.data_ptr() == each.data_ptr()
            assert torch.equal(last, moved(each))
        for each in (point, single):
            assert torch.equal(channels_first(moved(each), each), each)
    assert not launches


def test_weights_that_do_not_lie_together_are_moved_too():
    weight = randn(2, 8, 16, 3, 6)
    for each in (
        weight[..., ::2],
        weight[:, 1:],
        weight.transpose(1, 2),
        weight[..., :1, :1],
        weight.expand(4, 2, 8, 16, 3, 6)[1],
    ):
        assert torch.equal(channels_last(each), moved(each))


def test_offsets_of_64_bits_reach_the_same_numbers(monkeypatch):
    monkeypatch.setattr(reorder, "needs_64_bits", lambda *tensors: True)
    assert_goes_there_and_back(randn(2, 30, 20, 3, 3), torch.float16)
