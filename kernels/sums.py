"""Sums of what programs have stored side by side: few numbers, each of many parts.

Imports Triton.
"""

from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from polychrome.kernels.launch import cdiv, launch, next_power_of_2
from polychrome.kernels.tensors import needs_64_bits

# As many programs as run at once, one on each multiprocessor: no column is shared, and few are a program's.
PROGRAMS = 132
# Numbers that lie side by side: what memory moves at the least, and what it moves well.
SECTOR, LINE = 8, 32
# Numbers of a tile: enough for a program, and as many as the threads have in flight at most, 32 each.
ENOUGH, MOST = 2048, 16384


def sum_rows(partial: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the sum [*columns] of contiguous float32 `partial` [rows, *columns] over its rows, always the same.

    It is rounded once, to `dtype`.
    """
    return _sum(partial, partial.shape[1:], 1, dtype)


def sum_outer_and_inner(partial: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the sum [*columns] of contiguous float32 `partial` [outer, *columns, inner], as `sum_rows` does."""
    return _sum(partial, partial.shape[1:-1], partial.shape[-1], dtype)


def _sum(partial: Tensor, shape: torch.Size, inner: int, dtype: torch.dtype) -> Tensor:
    total = partial.new_empty(shape, dtype=dtype)
    columns, rows = prod(shape), partial.shape[0] * inner
    enough = max(ENOUGH // next_power_of_2(rows), LINE // inner)
    block_c = next_power_of_2(max(SECTOR // inner, min(enough, cdiv(columns, PROGRAMS))))
    block_r = min(next_power_of_2(rows), MOST // block_c)
    launch(
        sum_kernel,
        (cdiv(columns, block_c),),
        partial,
        total,
        partial.shape[0],
        columns,
        inner,
        INDEX64=needs_64_bits(partial),
        BLOCK_R=block_r,
        BLOCK_C=block_c,
        num_warps=min(max(block_r * block_c // 512, 4), 16),
        maxnreg=128,  # given fewer of its own accord, the assembler has each load wait for the one before
    )
    return total


@triton.jit(do_not_specialize=["outer"])
def sum_kernel(
    partial_ptr,
    total_ptr,
    outer,
    columns,
    inner,
    INDEX64: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A row is a place among the outer and the inner ones."""
    index: tl.constexpr = tl.int64 if INDEX64 else tl.int32
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = column < columns
    step = tl.cast(columns, index) * inner
    partial_at = partial_ptr + column.to(index)[None, :] * inner
    rows = outer * inner
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(0, rows, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        row_at = (row // inner) * step + row % inner
        total += tl.load(partial_at + row_at[:, None], mask=(row < rows)[:, None] & known[None, :], other=0.0)
    tl.store(total_ptr + column, tl.sum(total, 0).to(total_ptr.dtype.element_ty), mask=known)
