"""Weights from channels first to channels last, as the kernels of the convolution take them, and back."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polychrome.kernels.launch import cdiv, launch, next_power_of_2
from polychrome.kernels.tensors import needs_64_bits

# Numbers of a tile, and at most so many taps: of those beyond, other programs move their share.
TILE, TAPS = 2048, 64


def channels_last(weight: Tensor) -> Tensor:
    """Return [.., out, in/groups, kh, kw] as contiguous [.., out, taps, in/groups], a view where it lies so."""
    flat = weight.flatten(3)
    last = flat.transpose(2, 3)
    if last.is_contiguous():
        return last
    moved = weight.new_empty(last.shape)
    _reorder(flat.contiguous(), moved, *last.shape[2:], to_last=True)
    return moved


def channels_first(gradient: Tensor, like: Tensor) -> Tensor:
    """Return contiguous [.., out, taps, in/groups] in the shape and dtype of `like`, contiguous.

    It is a view where it lies so, in this dtype.
    """
    if 1 in gradient.shape[2:]:
        return gradient.to(like.dtype).view(like.shape)
    moved = torch.empty_like(like, memory_format=torch.contiguous_format)
    _reorder(gradient, moved, *gradient.shape[2:], to_last=False)
    return moved


def _reorder(source: Tensor, moved: Tensor, taps: int, channels: int, to_last: bool) -> None:
    block_t = min(next_power_of_2(taps), TAPS)
    block_c = TILE // block_t
    rows = source.numel() // taps
    launch(
        reorder_kernel,
        (cdiv(rows, block_c), cdiv(taps, block_t)),
        source,
        moved,
        rows,
        TO_LAST=to_last,
        TAPS=taps,
        CHANNELS=channels,
        INDEX64=needs_64_bits(source),
        BLOCK_T=block_t,
        BLOCK_C=block_c,
        num_warps=4,
    )


@triton.jit
def reorder_kernel(
    source_ptr,
    moved_ptr,
    rows,
    TO_LAST: tl.constexpr,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`rows` counts the channels of all outputs, which lie together with their taps where channels are first."""
    begin = tl.cast(tl.program_id(0), tl.int64 if INDEX64 else tl.int32) * BLOCK_C
    row, tap = begin + tl.arange(0, BLOCK_C), tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside = (tap < TAPS)[:, None] & (row < rows)[None, :]
    # [BLOCK_T, BLOCK_C], from the tile's first number on: the compiler adds small offsets for nothing
    first = (tl.arange(0, BLOCK_C) * TAPS)[None, :] + tl.arange(0, BLOCK_T)[:, None]
    first_begin = begin * TAPS + tl.program_id(1) * BLOCK_T
    last = (row // CHANNELS * (TAPS * CHANNELS) + row % CHANNELS)[None, :] + tap[:, None] * CHANNELS
    if TO_LAST:
        given = tl.load(source_ptr + first_begin + first, mask=inside)
        tl.store(moved_ptr + last, given, mask=inside)
    else:
        given = tl.load(source_ptr + last, mask=inside).to(moved_ptr.dtype.element_ty)
        tl.store(moved_ptr + first_begin + first, given, mask=inside)
