"""What kernels ask of Triton's interpreter, in every version."""

import pytest
import torch

from polychrome.kernels.launch import launch
from tests.kernels.interpreter import needs_interpreter

pytest.importorskip("triton")

import triton
import triton.language as tl

pytestmark = needs_interpreter


@triton.jit
def rows_kernel(x_ptr, out_ptr, first, height, width, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    for row in range(first, first + height):
        present = (row < height) & (columns < width) & (row >= first)
        x = tl.load(x_ptr + row * width + columns, mask=present, other=-1.0)
        tl.store(out_ptr + (row - first) * BLOCK + columns, x, mask=(row - first < 2) & (columns < BLOCK))


def test_a_scalar_bounds_a_loop_and_masks_a_block():
    x, out = torch.arange(6.0).view(2, 3), torch.full((2, 4), 9.0)
    launch(rows_kernel, (1,), x, out, 1, 2, 3, BLOCK=4)
    assert out.tolist() == [[3, 4, 5, -1], [-1, -1, -1, -1]]
