"""Launch choices of the kernels, and the rule that leaves wide layers to torch. Nothing here needs Triton or a GPU.

The rules are derived by reasoning; an H200 has timed their choices, not the alternatives.
"""

from math import ceil, gcd
from typing import NamedTuple

# Assumptions of the rules about a GPU, and how many programs of a streaming kernel, four warps each, fill it.
MULTIPROCESSORS = 132
PROGRAMS = 8 * MULTIPROCESSORS
# Elements of a tile of `reduce` and `scale`: two or four 16-byte loads a thread in 16 bits. Where that makes too few
# programs the tiles shrink to one load a thread.
REDUCE_TILE, SCALE_TILE, LEAST_TILE = 2048, 4096, 1024
# Partial sums a channel may have: the next kernel loads them as one tile.
MAX_SPLITS = 32
# Elements of a tile of weights, or of partial sums, in `gate` and its gradient: 16 registers a thread at 8 warps. A
# single layer's sums over inputs live beside the partial sums: its tile is half as large, else some cubins spill.
GATE_TILE, SINGLE_TILE = 4096, 2048
# Hidden units held as a vector: beyond it a row of a tile of w1 is shorter than 16 elements.
MAX_HIDDEN = 256
# Logits the softmax holds as a vector: 16 registers a thread at 8 warps.
MAX_SOFTMAX = 4096
# Bytes of weights the programs may read from the L2 cache whatever the image: a few microseconds, about what the four
# or more launches of torch's form take.
FREE_WEIGHTS = 40 * 2**20
# Bytes of maps that a program reads where one launch does it all: at some 36 bytes a clock 2 us, and twice that
# backward, where two launches less save 5 to 6.
FUSED_MAP = 2**17
# Elements of the largest tile of weights there, and bytes of weights, as float32, and map that are on their way at
# once: of the 256 KiB that the registers are. With more some cubins spill.
FUSED_WEIGHTS, FUSED_REGISTERS = 2**14, 188 * 2**10
# Multiply-adds of a layer's gradients that take no longer outside the matrix units than torch's launches for them.
FREE_PRODUCTS = 2**23


class ReduceConfig(NamedTuple):
    """Tile of the sums over pixels: block_p pixels, block_c channels; `blocks` tiles of pixels for each of `splits`."""

    block_p: int
    block_c: int
    splits: int
    blocks: int


class GateConfig(NamedTuple):
    """Tiles of the layers: block_s partial sums, block_h hidden units, block_c inputs, block_o outputs.

    `shares` programs divide the outputs of a sample.
    """

    shares: int
    block_s: int
    block_h: int
    block_c: int
    block_o: int


class Tiles(NamedTuple):
    """Tiles of pixels, `count` of block_p, without a loop: their loads are on their way at once."""

    count: int
    block_p: int


class FusedConfig(NamedTuple):
    """Tiles of the `shares` programs of a sample: block_c channels, all, block_h hidden units and block_o own outputs.

    `sums` go over the pixels of all channels, `product` over the pixels of the outputs.
    """

    shares: int
    warps: int
    block_c: int
    block_h: int
    block_o: int
    sums: Tiles
    product: Tiles


def reduce_config(batch: int, channels: int, pixels: int, channels_last: bool) -> ReduceConfig:
    """Return the tile of the sums, with as many splits of the pixels as fill a GPU."""
    block_p, block_c = _tile(batch, channels, pixels, channels_last, REDUCE_TILE)
    blocks = ceil(pixels / block_p)
    wanted = PROGRAMS // (batch * ceil(channels / block_c))
    per_split = ceil(blocks / max(1, min(blocks, wanted, MAX_SPLITS)))
    return ReduceConfig(block_p, block_c, ceil(blocks / per_split), per_split)


def scale_tile(batch: int, channels: int, pixels: int, channels_last: bool) -> tuple[int, int]:
    """Return the pixels and channels of a tile of the product."""
    narrow = not channels_last and pixels % 8 != 0  # loads of one element: registers for half as many
    return _tile(batch, channels, pixels, channels_last, SCALE_TILE // 2 if narrow else SCALE_TILE)


def _tile(batch: int, channels: int, pixels: int, channels_last: bool, most: int) -> tuple[int, int]:
    """Return block_p and block_c, longest along the contiguous dimension."""
    size = most
    while size > LEAST_TILE and batch * channels * pixels < PROGRAMS * size:
        size //= 2
    if channels_last:
        block_c = min(_power(channels), 64)
        return min(_power(pixels), size // block_c), block_c
    block_p = min(_power(pixels), 1024)
    return block_p, min(_power(channels), size // block_p)


def gate_config(batch: int, channels: int, hidden: int | None, splits: int, whole: bool) -> GateConfig:
    """Return the tiles of the layers, hidden None for a single one; `whole`: one program has all outputs of a sample.

    Programs that share a sample all compute its hidden units, so there are at most as many as multiprocessors. A single
    layer repeats only the sum of the partial sums.
    """
    block_s = _power(splits)
    if hidden is None:
        block_c = min(_power(channels), 64)
        block_o = min(_power(channels), SINGLE_TILE // block_c)
        return GateConfig(1 if whole else ceil(channels / block_o), block_s, 1, block_c, block_o)
    block_h = _power(hidden)
    most = max(1, GATE_TILE // block_h)
    shares = 1 if whole else max(1, min(MULTIPROCESSORS // batch, ceil(channels / 16)))
    block_c = min(_power(channels), most, GATE_TILE // block_s)
    block_o = min(most, _power(ceil(channels / shares)))
    return GateConfig(min(shares, ceil(channels / block_o)), block_s, block_h, block_c, block_o)


def layers_fit(batch: int, channels: int, hidden: int | None, image_bytes: int, softmax: bool) -> bool:
    """Return whether the layers run in the kernels, where every sample reads all weights, or as torch's products.

    The programs' reads are compared with the three passes over x, image_bytes each. A multiprocessor has a share of 1 /
    MULTIPROCESSORS of the cache's bandwidth, so fewer programs take as long as MULTIPROCESSORS programs. Weights count
    as float32.
    """
    if (hidden or 1) > MAX_HIDDEN or (softmax and channels > MAX_SOFTMAX) or channels**2 >= 2**31:
        return False
    shares = gate_config(batch, channels, hidden, 1, whole=softmax).shares
    own = 4 * channels * (channels if hidden is None else hidden) / shares  # of the layer whose outputs are shared
    repeated = 0 if hidden is None else 4 * channels * hidden
    return max(batch * shares, MULTIPROCESSORS) * (own + repeated) <= max(FREE_WEIGHTS, 3 * image_bytes)


def fused_config(
    batch: int, channels: int, hidden: int | None, pixels: int, itemsize: int, channels_last: bool, whole: bool
) -> FusedConfig | None:
    """Return the tiles of one launch that replaces three, or None where the map or the layers are too large.

    `whole` as in `gate_config`. The programs that share a sample all read its map and its first layer, so there are at
    most as many as multiprocessors; for a single layer as many as hold it, if they read no more.
    """
    block_c, block_h = _power(channels), _power(hidden or 1)
    shares = 1 if whole else max(1, min(MULTIPROCESSORS // batch, ceil(channels / 16)))
    block_o = _power(ceil(channels / shares))
    if hidden is None and not whole:
        block_o = min(block_o, max(1, FUSED_WEIGHTS // block_c))
    shares = ceil(channels / block_o)
    tile, weights = (block_c * block_o,) * 2 if hidden is None else (block_c * block_h, (block_c + block_o) * block_h)
    warps = min(max(max(block_c * _power(pixels), tile) // 1024, 4), 16)
    vector = gcd(channels if channels_last else pixels, 16 // itemsize)
    # Of pixels in a row, eight lanes of a warp: few are left to add up between lanes, and lines of memory are shared.
    least = 1 if channels_last else 8 * vector
    sums, product = (_fused_tiles(pixels, max(256 * warps // block, least)) for block in (block_c, block_o))
    loaded = block_c * sums.count * sums.block_p
    element = itemsize if vector * itemsize == 16 else 4  # of a load of less than 16 bytes each may fill a register
    turns = 1 if shares == 1 else ceil(batch * shares / MULTIPROCESSORS)
    if (
        tile > FUSED_WEIGHTS
        or loaded * itemsize + 4 * weights > FUSED_REGISTERS
        or loaded * element * turns > FUSED_MAP
    ):
        return None
    return FusedConfig(shares, warps, block_c, block_h, block_o, sums, product)


def _fused_tiles(pixels: int, most: int) -> Tiles:
    block_p = min(_power(pixels), most)
    return Tiles(ceil(pixels / block_p), block_p)


def gradient_block(channels: int, features: int) -> int:
    """Return the side of a tile of a layer's gradient [channels, features]: the smallest that products take."""
    return 32 if min(channels, features) >= 256 else 16


def gradients_fit(batch: int, channels: int, features: int) -> bool:
    """Return whether the layers' gradients are one launch of ours, or torch's products and sums."""
    return batch * channels * features <= FREE_PRODUCTS and channels * features < 2**31


def _power(number: int) -> int:
    """Return the least power of two that is not smaller."""
    return 1 << (number - 1).bit_length()
