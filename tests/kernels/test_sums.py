"""The sums of what programs have stored, run by Triton's interpreter on CPU tensors."""

import pytest
import torch

from polychrome.kernels.launch import record_launches
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.oracle import randn

pytest.importorskip("triton")
pytest.importorskip("hypothesis")

import hypothesis
from hypothesis import strategies as st

from polychrome.kernels import sums
from polychrome.kernels.sums import sum_outer_and_inner, sum_rows

pytestmark = [needs_interpreter, pytest.mark.usefixtures("poisoned_memory")]


def assert_is_the_sum(got, partial, dims):
    exact = partial.double().sum(dims)
    assert got.shape == exact.shape
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    assert ((got - exact).abs() <= 1e-6 * partial.double().abs().sum(dims)).all()


@pytest.mark.parametrize("columns", [1, 7, 98, 4096])
@pytest.mark.parametrize("rows", [1, 2, 33, 3000])
def test_rows_are_summed_in_one_launch(rows, columns):
    partial = randn(rows, columns)
    with record_launches() as launches:
        got = sum_rows(partial)
    assert len(launches) == 1
    assert_is_the_sum(got, partial, 0)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 5, 1), (2, 4, 3, 3), (5, 3, 2, 49), (2, 2, 2, 20000)], ids=str)
def test_the_first_and_the_last_dimension_are_summed_in_one_launch(shape):
    partial = randn(*shape)
    with record_launches() as launches:
        got = sum_outer_and_inner(partial)
    assert len(launches) == 1
    assert_is_the_sum(got, partial, (0, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_sums_are_rounded_once(dtype):
    partial = randn(33, 7)
    for total, outer in ((sum_rows, partial), (sum_outer_and_inner, partial[..., None])):
        got = total(outer, dtype)
        assert got.dtype == dtype
        assert torch.equal(got, total(outer).to(dtype))


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(rows=st.integers(1, 70), columns=st.integers(1, 300), inner=st.integers(1, 40))
def test_any_sizes_are_summed(rows, columns, inner):
    assert_is_the_sum(sum_rows(partial := randn(rows, columns)), partial, 0)
    columns = columns % 20 + 1
    assert_is_the_sum(sum_outer_and_inner(partial := randn(rows, columns, inner)), partial, (0, 2))


@pytest.mark.parametrize("shape", [(9, 30), (40, 5)], ids=str)
def test_offsets_of_64_bits_reach_the_same_numbers(shape, monkeypatch):
    partial = randn(*shape)
    plain = sum_rows(partial), sum_outer_and_inner(partial[..., None])
    monkeypatch.setattr(sums, "needs_64_bits", lambda *tensors: True)
    for got, wanted in zip((sum_rows(partial), sum_outer_and_inner(partial[..., None])), plain, strict=True):
        assert torch.equal(got, wanted)


def test_few_columns_are_spread_and_many_are_read_in_whole_lines():
    def launched(*shape, total=sum_rows):
        with record_launches() as launches:
            total(torch.empty(shape, device="meta"))
        return launches[0].grid[0], launches[0].options["BLOCK_R"], launches[0].options["BLOCK_C"]

    assert launched(4608, 32, 4) == (16, 2048, 8)
    assert launched(2, 4 * 256 * 256 * 9) == (2304, 2, 1024)
    assert launched(10000, 1 << 20) == (32768, 512, 32)
    assert launched(2, 4, 32, 1024, total=sum_outer_and_inner) == (128, 2048, 1)
