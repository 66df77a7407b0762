"""What a program of these kernels owns: a block of one sample's pixels. Imports Triton."""

import triton
import triton.language as tl


@triton.jit
def pixel_block(block, groups, VECTOR: tl.constexpr, BLOCK_P: tl.constexpr, INDEX64: tl.constexpr):
    """Return the sample of a block, the pixels of an image, and which of them are the block's, [BLOCK_P]."""
    pixels = tl.cast(groups, tl.int64 if INDEX64 else tl.int32) * VECTOR
    blocks = tl.cdiv(pixels, BLOCK_P)
    return block // blocks, pixels, block % blocks * BLOCK_P + tl.arange(0, BLOCK_P)


@triton.jit
def from_the_last():
    """Return the program's number counted from the end.

    A kernel that reads what the one before it read starts with what that one left in the L2 cache.
    """
    return tl.num_programs(0) - 1 - tl.program_id(0)
