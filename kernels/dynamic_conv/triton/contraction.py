"""The gradients of the experts and of the mixing from every sample's own weight gradient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import launch

# Experts of a program: twice as many columns are the narrowest matrix product.
EXPERTS = 8
# Samples a step and weights of a program, by the bytes of a number.
BLOCKS = {2: (64, 128), 4: (32, 64)}
FEW = 32  # of this many samples and fewer no larger step is made


def new_products(own: Tensor, mixing: Tensor, parts: int) -> Tensor:
    """Return memory for what `contract` sums over blocks of weights: [blocks, batch, parts, experts], float32."""
    blocks = -(-own[0].numel() // BLOCKS[own.dtype.itemsize][1])
    return own.new_empty((blocks, len(mixing), parts, mixing.shape[1]), dtype=torch.float32)


def contract(
    own: Tensor,
    experts: Tensor | None,
    mixing: Tensor,
    begin: int,
    gradient: Tensor,
    products: Tensor | None,
    parts: int = 1,
) -> None:
    """Take in the gradients of a chunk of samples, which starts at `begin`, or start anew where that is 0.

    All are contiguous, the first two and `gradient` [.., out, taps, in/groups].

    Args:
        own: each sample's own weight gradient, in `parts` that follow each other; bfloat16, float16 or float32; read
            once.
        experts: read where there are `products`.
        mixing: [batch, experts], float32. Where own has 16 bits, each number is multiplied as the sum of two such.
        gradient: one for each expert, of `sum_b mixing[b, k] * own[b]`, a float32 sum rounded to its dtype.
        products: to hold `<own[b], experts[k]>` in parts, as `new_products` makes it.
    """
    batch, count = mixing.shape
    size = own[0].numel()
    block_s, block_w = BLOCKS[own.dtype.itemsize]
    launch(
        contract_kernel,
        (-(-size // block_w), -(-count // EXPERTS)),
        own,
        experts,
        mixing,
        gradient,
        products,
        batch,
        begin,
        parts,
        own.shape[0],
        SIZE=size,
        COUNT=count,
        ADD=begin > 0,
        HALF=EXPERTS,
        BLOCK_S=block_s if len(own) > FEW else FEW,
        BLOCK_W=block_w,
        num_warps=4,
        num_stages=1,  # mostly there is one step
    )


@triton.jit(do_not_specialize=["batch", "begin", "parts", "rows"])
def contract_kernel(
    own_ptr,
    experts_ptr,
    mixing_ptr,
    gradient_ptr,
    products_ptr,
    batch,
    begin,
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
        share_at = (begin + row // parts)[:, None] * COUNT + expert[None, :]
        share = tl.load(mixing_ptr + share_at, mask=inside[:, None] & known[None, :], other=0.0)
        rounded = share.to(dtype)
        share = tl.where(column < HALF, rounded, (share - rounded.to(tl.float32)).to(dtype))
        total = tl.dot(own.T, share, total, input_precision="ieee")
        if products_ptr is not None:
            product = tl.dot(own, weight, input_precision="ieee")  # [BLOCK_S, 2 * HALF]
            product_at = tl.cast(tl.program_id(0), tl.int64) * batch * parts + begin * parts + row
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
