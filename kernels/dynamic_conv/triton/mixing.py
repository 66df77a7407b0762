"""Mix the experts of a chunk of samples, channels last: the weights the convolution kernels read."""

import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import launch

# As many programs as fill a GPU; where there are more tiles, a program mixes several samples with what it holds.
PROGRAMS = 1024
# Up to this many experts stay in registers while the samples pass by; more are read again for each sample.
EXPERTS_HELD = tl.constexpr(8)


def mix_into(mixed: Tensor, experts: Tensor, mixing: Tensor) -> Tensor:
    """Fill `mixed` [samples, out, taps, in/groups] with `sum_k mixing[b, k] * experts[k]`; return it.

    experts [experts, out, in/groups, kh, kw] and mixing [samples, experts] are contiguous. The sum is float32, rounded
    once.
    """
    samples, rows, taps, channels = mixed.shape
    block_c = min(triton.next_power_of_2(channels), 128)
    block_t = min(triton.next_power_of_2(taps), 16)
    tile = 2048 if experts.shape[0] <= 4 else 1024
    block_c = min(block_c, tile // block_t)
    block_r = max(1, min(triton.next_power_of_2(rows), tile // (block_c * block_t)))
    tiles = triton.cdiv(rows, block_r) * triton.cdiv(channels, block_c) * triton.cdiv(taps, block_t)
    samples_per_program = max(1, min(16, samples * tiles // PROGRAMS))
    grid = (tiles, triton.cdiv(samples, samples_per_program))
    launch(
        mix_kernel,
        grid,
        experts,
        mixing,
        mixed,
        samples,
        samples_per_program,
        EXPERTS=experts.shape[0],
        ROWS=rows,
        TAPS=taps,
        CHANNELS=channels,
        BLOCK_R=block_r,
        BLOCK_T=block_t,
        BLOCK_C=block_c,
        num_warps=4,
    )
    return mixed


@triton.jit(do_not_specialize=["samples", "samples_per_program"])
def mix_kernel(
    experts_ptr,
    mixing_ptr,
    mixed_ptr,
    samples,
    samples_per_program,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    tap_block = tl.program_id(0) % tl.cdiv(TAPS, BLOCK_T)
    channel_block = tl.program_id(0) // tl.cdiv(TAPS, BLOCK_T) % tl.cdiv(CHANNELS, BLOCK_C)
    row_block = tl.program_id(0) // (tl.cdiv(TAPS, BLOCK_T) * tl.cdiv(CHANNELS, BLOCK_C))
    rows = row_block * BLOCK_R + tl.arange(0, BLOCK_R)[:, None, None]
    channels = channel_block * BLOCK_C + tl.arange(0, BLOCK_C)[None, :, None]
    taps = tap_block * BLOCK_T + tl.arange(0, BLOCK_T)[None, None, :]
    inside = (rows < ROWS) & (channels < CHANNELS) & (taps < TAPS)
    read = (rows * CHANNELS + channels) * TAPS + taps  # [BLOCK_R, BLOCK_C, BLOCK_T]
    write = (rows * TAPS + taps) * CHANNELS + channels
    size = tl.full((), ROWS * TAPS * CHANNELS, tl.int64)

    held = ()
    if EXPERTS <= EXPERTS_HELD:
        for k in tl.static_range(EXPERTS):
            held = held + (tl.load(experts_ptr + k * size + read, mask=inside, other=0.0),)

    first = tl.program_id(1) * samples_per_program
    for sample in range(first, tl.minimum(first + samples_per_program, samples)):
        total = tl.zeros((BLOCK_R, BLOCK_C, BLOCK_T), tl.float32)
        if EXPERTS <= EXPERTS_HELD:
            for k in tl.static_range(EXPERTS):
                total += tl.load(mixing_ptr + sample * EXPERTS + k).to(tl.float32) * held[k].to(tl.float32)
        else:
            for k in range(EXPERTS):
                expert = tl.load(experts_ptr + k * size + read, mask=inside, other=0.0).to(tl.float32)
                total += tl.load(mixing_ptr + sample * EXPERTS + k).to(tl.float32) * expert
        tl.store(mixed_ptr + sample * size + write, total.to(mixed_ptr.dtype.element_ty), mask=inside)
