"""Slow runs see integers that overflow in a kernel."""

import pytest
import torch

from tests.kernels.interpreter import needs_interpreter

pytest.importorskip("triton")

import triton
import triton.language as tl


@triton.jit
def scale_kernel(x, factor):
    places = tl.arange(0, 8)
    tl.store(x + places, places * factor)


@needs_interpreter
@pytest.mark.slow
def test_a_product_beyond_32_bits_is_an_error_and_one_within_is_not():
    x = torch.zeros(8, dtype=torch.int32)
    scale_kernel[(1,)](x, 2**28)
    assert x.tolist() == [2**28 * place for place in range(8)]
    with pytest.raises(triton.runtime.errors.InterpreterError, match="int32 overflow detected for operation mul"):
        scale_kernel[(1,)](x, 2**29)
