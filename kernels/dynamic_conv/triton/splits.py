"""What follows a product: its parts added up where several programs made them, then scale, shift and ReLU."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from polychrome.kernels.launch import cdiv, launch, next_power_of_2
from polychrome.kernels.tensors import needs_64_bits

# Numbers of a tile, 4 a thread; channels of it at most, by whether they lie together in what is written.
TILE, CHANNELS = 512, {True: 64, False: 16}


class Epilogue(NamedTuple):
    """What is done with a convolution before it is rounded: plus bias, times scale, plus shift, then ReLU.

    bias: [batch, channels]. scale, shift: [channels].
    """

    bias: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    relu: bool = False

    @property
    def is_affine(self) -> bool:
        """Whether there is more than a bias."""
        return self.scale is not None or self.shift is not None or self.relu

    def of(self, samples: slice) -> "Epilogue":
        """Return the epilogue of some samples of the batch."""
        return self if self.bias is None else self._replace(bias=self.bias[samples])


NOTHING = Epilogue()


def add_up(partial: Tensor, out: Tensor, epilogue: Epilogue) -> None:
    """Fill `out` with the sum over the first dimension of `partial`, with its epilogue.

    Always in the same order, and rounded once.

    Args:
        partial: [splits, batch, height, width, channels], float32, contiguous.
        out: [batch, channels, height, width], dense, channels_last or not.
    """
    splits, batch, height, width, channels = partial.shape
    last = out.is_contiguous(memory_format=torch.channels_last)
    block_c = min(next_power_of_2(channels), CHANNELS[last])
    block_p = TILE // block_c
    launch(
        add_up_kernel,
        (cdiv(channels, block_c), cdiv(batch * height * width, block_p)),
        partial,
        out,
        *epilogue[:3],
        batch,
        height * width,
        SPLITS=splits,
        CHANNELS=channels,
        RELU=epilogue.relu,
        CHANNELS_LAST=last,
        INDEX64=needs_64_bits(partial[0]),
        BLOCK_P=block_p,
        BLOCK_C=block_c,
        num_warps=4,
        maxnreg=128,  # as in kernels/sums.py: loads that do not wait for each other
    )


@triton.jit
def scaled(total, scale_ptr, shift_ptr, channel, inside, RELU: tl.constexpr):
    """Return a tile [rows, channels] times scale, plus shift, and without what is negative, where asked."""
    if scale_ptr is not None:
        total *= tl.load(scale_ptr + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    if shift_ptr is not None:
        total += tl.load(shift_ptr + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    if RELU:
        total = tl.maximum(total, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return total


@triton.jit
def add_up_kernel(
    partial_ptr,
    out_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    batch,
    pixels,
    SPLITS: tl.constexpr,
    CHANNELS: tl.constexpr,
    RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Rows are the pixels of all samples."""
    index: tl.constexpr = tl.int64 if INDEX64 else tl.int32
    row = tl.cast(tl.program_id(1), index) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < CHANNELS
    inside = (row < batch * pixels)[:, None] & known[None, :]
    place = row[:, None] * CHANNELS + channel[None, :]  # [BLOCK_P, BLOCK_C]
    size = tl.cast(batch, tl.int64) * pixels * CHANNELS
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(partial_ptr + split * size + place, mask=inside, other=0.0)
    sample = row // pixels
    if bias_ptr is not None:
        bias_at = bias_ptr + sample[:, None] * CHANNELS + channel[None, :]
        total += tl.load(bias_at, mask=inside, other=0.0).to(tl.float32)
    total = scaled(total, scale_ptr, shift_ptr, channel, known, RELU)
    if not CHANNELS_LAST:
        place = (sample * (pixels * CHANNELS) + row % pixels)[:, None] + channel[None, :] * pixels
    tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=inside)
