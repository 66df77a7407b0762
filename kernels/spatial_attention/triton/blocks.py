"""What a program of these kernels owns: a block of one sample's pixels. Imports Triton."""

import triton
import triton.language as tl

from polychrome.kernels.streaming import pixels_of


@triton.jit
def pixel_block(block, groups, VECTOR: tl.constexpr, BLOCK_P: tl.constexpr, INDEX64: tl.constexpr):
    """Return the sample of a block, the pixels of an image, and which of them are the block's, [BLOCK_P]."""
    pixels = pixels_of(groups, VECTOR, INDEX64)
    blocks = tl.cdiv(pixels, BLOCK_P)
    return block // blocks, pixels, block % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
