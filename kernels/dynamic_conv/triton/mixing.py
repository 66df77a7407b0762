"""Mix the experts of a chunk of samples, channels last: the weights the convolution kernels read."""

from math import gcd

import triton
import triton.language as tl
from torch import Tensor

from polychrome.kernels.launch import cdiv, launch, next_power_of_2

# As many programs as a large GPU runs at once; a program mixes several samples with what it holds, all if need be.
PROGRAMS = 660
# Numbers of all experts that a program holds in float32, 64 a thread; of few experts, the most of a tile.
HELD, TILE, LEAST_TILE = 8192, 2048, 256
# Numbers that are stored at once.
VECTOR = 8


def mix_into(mixed: Tensor, experts: Tensor, mixing: Tensor) -> Tensor:
    """Fill `mixed` [samples, out, taps, in/groups] with `sum_k mixing[b, k] * experts[k]`; return it.

    experts [experts, out, in/groups, kh, kw] and mixing [samples, experts] are contiguous. The sum is float32, rounded
    once.
    """
    samples, rows, taps, channels = mixed.shape
    count = experts.shape[0]
    few = samples * experts[0].numel() < TILE * PROGRAMS
    tile = max(LEAST_TILE, min(TILE // 2 if few else TILE, HELD // next_power_of_2(count)))
    vector = gcd(channels, VECTOR)
    while vector > 1 and taps * vector > tile:
        vector //= 2
    tile = max(tile, next_power_of_2(taps))  # one channel's taps at the least
    groups = tile // (taps * vector)
    tiles = cdiv(rows * channels // vector, groups)
    samples_per_program = cdiv(samples, max(1, PROGRAMS // tiles))
    launch(
        mix_kernel,
        (tiles, cdiv(samples, samples_per_program)),
        experts,
        mixing,
        mixed,
        samples,
        samples_per_program,
        EXPERTS=count,
        HOLDS=count * tile <= HELD,
        ROWS=rows,
        TAPS=taps,
        CHANNELS=channels,
        VECTOR=vector,
        GROUPS=groups,
        BLOCK=tile,
        num_warps=4,
    )
    return mixed


@triton.jit
def taken(expert_at, places, inside, source):
    """Return an expert's numbers of a tile in the order in which they are stored."""
    return tl.gather(tl.load(expert_at + places, mask=inside, other=0.0), source, 0).to(tl.float32)


@triton.jit(do_not_specialize=["samples", "samples_per_program"])
def mix_kernel(
    experts_ptr,
    mixing_ptr,
    mixed_ptr,
    samples,
    samples_per_program,
    EXPERTS: tl.constexpr,
    HOLDS: tl.constexpr,
    ROWS: tl.constexpr,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A tile is `GROUPS` times `VECTOR` channels with all their taps: these lie together in an expert."""
    IN_A_ROW: tl.constexpr = CHANNELS // VECTOR
    SIZE: tl.constexpr = ROWS * TAPS * CHANNELS
    LENGTH: tl.constexpr = GROUPS * VECTOR * TAPS
    each = tl.arange(0, BLOCK)
    # Stored are the channels of all groups through one tap after another.
    channel = each % VECTOR
    group = each // VECTOR % GROUPS
    tap = each // (VECTOR * GROUPS)
    of_all = tl.program_id(0) * GROUPS + group
    stored = (tap < TAPS) & (of_all < ROWS * IN_A_ROW)
    write = (of_all // IN_A_ROW * TAPS + tap) * CHANNELS + of_all % IN_A_ROW * VECTOR + channel
    source = tl.where(tap < TAPS, (group * VECTOR + channel) * TAPS + tap, 0)
    places = tl.program_id(0) * LENGTH + each
    inside = (each < LENGTH) & (places < SIZE)
    size = tl.full((), SIZE, tl.int64)

    held = ()
    if HOLDS:
        for k in tl.static_range(EXPERTS):
            held = held + (taken(experts_ptr + k * size, places, inside, source),)

    first = tl.program_id(1) * samples_per_program
    for sample in range(first, tl.minimum(first + samples_per_program, samples)):
        total = tl.zeros((BLOCK,), tl.float32)
        if HOLDS:
            for k in tl.static_range(EXPERTS):
                total += tl.load(mixing_ptr + sample * EXPERTS + k).to(tl.float32) * held[k]
        else:
            for k in range(EXPERTS):
                share = tl.load(mixing_ptr + sample * EXPERTS + k).to(tl.float32)
                total += share * taken(experts_ptr + k * size, places, inside, source)
        tl.store(mixed_ptr + sample * size + write, total.to(mixed_ptr.dtype.element_ty), mask=stored)
