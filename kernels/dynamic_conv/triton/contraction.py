"""The gradients of the experts and of the mixing from every sample's own weight gradient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polychrome.kernels.dynamic_conv.configs import contracted_block
from polychrome.kernels.launch import cdiv, launch, next_power_of_2
from polychrome.kernels.sums import sum_rows

# Experts of a program: twice as many columns are the narrowest matrix product.
EXPERTS = 8
# Samples a step, by the bytes of a number; of FEW samples and fewer no larger step is made.
BLOCK_S, FEW = {2: 64, 4: 16}, 32
# Numbers of a tile where samples are few, and channels that are a multiple of what is loaded at once.
TILE, VECTOR = 1024, 8


def contract(
    own: Tensor, experts: Tensor | None, mixing: Tensor, gradient: Tensor, add: bool, parts: int = 1
) -> Tensor | None:
    """Fill `gradient` with `sum_b mixing[b, k] * own[b]`, or add that; return `<own[b], experts[k]>` where asked.

    All are contiguous, `own`, `experts` and `gradient` [.., out, taps, in/groups].

    Args:
        own: each sample's own weight gradient, in `parts` that follow each other; bfloat16, float16 or float32; read
            once.
        experts: None where no products are asked for.
        mixing: [samples, experts], float32. Where own has 16 bits, each number is multiplied as the sum of two such.
        gradient: one for each expert; the sums are float32, rounded once to its dtype.

    Returns:
        The products [samples, experts], float32, or None.
    """
    samples, count = mixing.shape
    size = own[0].numel()
    block_s, block_w = BLOCK_S[own.dtype.itemsize], contracted_block(own.dtype)
    blocks = -(-size // block_w)
    products = None if experts is None else own.new_empty((blocks, parts, samples, count), dtype=torch.float32)
    launch(
        contract_kernel,
        (blocks, -(-count // EXPERTS)),
        own,
        experts,
        mixing,
        gradient,
        products,
        parts,
        len(own),
        SIZE=size,
        COUNT=count,
        ADD=add,
        HALF=EXPERTS,
        BLOCK_S=block_s if len(own) > FEW else min(block_s, FEW),
        BLOCK_W=block_w,
        num_warps=4,
        num_stages=1,  # mostly there is one step
    )
    return None if products is None else sum_rows(products.flatten(0, 1))


def contract_few(own: Tensor, experts: Tensor, mixing: Tensor, for_mixing: bool) -> tuple[Tensor, Tensor | None]:
    """Return `sum_b mixing[b, k] * own[b]` as experts lie, in their dtype, and `<own[b], experts[k]>` where asked.

    Args:
        own: each sample's own weight gradient in parts that follow each other [samples * parts, out, taps, in/groups],
            contiguous.
        experts: [experts, out, in/groups, kh, kw], contiguous.
        mixing: [samples, experts], float32, of few samples.
        for_mixing: whether the products [samples, experts] are asked for, float32.
    """
    samples, count = mixing.shape
    _, outputs, taps, channels = own.shape
    block = max(TILE, next_power_of_2(taps))
    rows = block // taps
    rows -= rows % VECTOR if rows > VECTOR else 0
    blocks = cdiv(outputs * channels, rows)
    gradient = torch.empty_like(experts, memory_format=torch.contiguous_format)
    products = own.new_empty((blocks, samples, count), dtype=torch.float32) if for_mixing else None
    launch(
        contract_few_kernel,
        (blocks,),
        own,
        experts,
        mixing,
        gradient,
        products,
        len(own) // samples,
        SAMPLES=samples,
        COUNT=count,
        ROWS=outputs * channels,
        TAPS=taps,
        CHANNELS=channels,
        BLOCK_R=rows,
        BLOCK=block,
        num_warps=4,
    )
    return gradient, None if products is None else sum_rows(products)


@triton.jit(do_not_specialize=["parts", "rows"])
def contract_kernel(
    own_ptr,
    experts_ptr,
    mixing_ptr,
    gradient_ptr,
    products_ptr,
    parts,
    rows,
    SIZE: tl.constexpr,
    COUNT: tl.constexpr,
    ADD: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    dtype = own_ptr.dtype.element_ty
    at = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    within = at < SIZE
    first = tl.program_id(1) * HALF
    # Columns: each expert's share rounded to own's dtype, then what that leaves of each.
    column = tl.arange(0, 2 * HALF)
    expert = first + column % HALF
    known = expert < COUNT
    held = known & (column < HALF)
    if products_ptr is not None:
        expert_at = tl.cast(expert, tl.int64)[None, :] * SIZE + at[:, None]
        weight = tl.load(experts_ptr + expert_at, mask=within[:, None] & held[None, :], other=0.0).to(dtype)

    total = tl.zeros((BLOCK_W, 2 * HALF), tl.float32)
    for start in range(0, rows, BLOCK_S):
        row = start + tl.arange(0, BLOCK_S)
        inside = row < rows
        own_at = tl.cast(row, tl.int64)[:, None] * SIZE + at[None, :]
        own = tl.load(own_ptr + own_at, mask=inside[:, None] & within[None, :], other=0.0)  # [BLOCK_S, BLOCK_W]
        sample = row // parts
        share_at = sample[:, None] * COUNT + expert[None, :]
        share = tl.load(mixing_ptr + share_at, mask=inside[:, None] & known[None, :], other=0.0)
        rounded = share.to(dtype)
        share = tl.where(column < HALF, rounded, (share - rounded.to(tl.float32)).to(dtype))
        total = tl.dot(own.T, share, total, input_precision="ieee")
        if products_ptr is not None:
            product = tl.dot(own, weight, input_precision="ieee")  # [BLOCK_S, 2 * HALF]
            product_at = tl.cast(tl.program_id(0), tl.int64) * rows + row % parts * (rows // parts) + sample
            product_at = product_at[:, None] * COUNT + expert[None, :]
            tl.store(products_ptr + product_at, product, mask=inside[:, None] & held[None, :])

    # [HALF, BLOCK_W], so that a warp writes side by side
    total = tl.sum(tl.reshape(total.T, (2, HALF, BLOCK_W)), 0)
    expert = first + tl.arange(0, HALF)
    gradient_at = tl.cast(expert, tl.int64)[:, None] * SIZE + at[None, :]
    mask = (expert < COUNT)[:, None] & within[None, :]
    if ADD:
        total += tl.load(gradient_ptr + gradient_at, mask=mask, other=0.0).to(tl.float32)
    tl.store(gradient_ptr + gradient_at, total.to(gradient_ptr.dtype.element_ty), mask=mask)


@triton.jit
def contract_few_kernel(
    own_ptr,
    experts_ptr,
    mixing_ptr,
    gradient_ptr,
    products_ptr,
    parts,
    SAMPLES: tl.constexpr,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A tile is BLOCK_R channels with all their taps, which lie together in an expert."""
    SIZE: tl.constexpr = ROWS * TAPS
    LENGTH: tl.constexpr = BLOCK_R * TAPS
    size = tl.full((), SIZE, tl.int64)
    begin = tl.program_id(0) * BLOCK_R
    each = tl.arange(0, BLOCK)
    # As own lies: the channels of a tap together. What is beyond the tile is 0.
    tap = each // BLOCK_R
    row = begin + each % BLOCK_R
    known = (tap < TAPS) & (row < ROWS)
    own_at = own_ptr + (row // CHANNELS * TAPS + tap) * CHANNELS + row % CHANNELS
    # As an expert lies: the taps of a channel together.
    place = begin * TAPS + each
    inside = (each < LENGTH) & (place < SIZE)
    source = tl.where(each < LENGTH, each % TAPS * BLOCK_R + each // TAPS, BLOCK - 1)

    weights = ()
    if products_ptr is not None:
        for k in tl.static_range(COUNT):
            weights = weights + (tl.load(experts_ptr + k * size + place, mask=inside, other=0.0),)
    gradients = ()
    for sample in tl.static_range(SAMPLES):
        gradient = tl.zeros((BLOCK,), tl.float32)
        for part in range(parts):
            gradient += tl.load(own_at + (sample * parts + part) * size, mask=known, other=0.0).to(tl.float32)
        gradients = gradients + (tl.gather(gradient, source, 0),)
    for k in tl.static_range(COUNT):
        total = tl.zeros((BLOCK,), tl.float32)
        for sample in tl.static_range(SAMPLES):
            total += tl.load(mixing_ptr + sample * COUNT + k) * gradients[sample]
            if products_ptr is not None:
                product = tl.sum(gradients[sample] * weights[k].to(tl.float32))
                tl.store(products_ptr + (tl.program_id(0) * SAMPLES + sample) * COUNT + k, product)
        tl.store(gradient_ptr + k * size + place, total.to(gradient_ptr.dtype.element_ty), mask=inside)
