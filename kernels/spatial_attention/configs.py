"""Tiles of the kernels, by rule. No Triton needed."""

from math import ceil
from typing import NamedTuple

from polychrome.kernels.launch import next_power_of_2

# Programs that keep a large GPU busy, about eight for each multiprocessor, and so few that a program needs more warps.
PROGRAMS, FEW = 1024, 256
WARPS, MANY_WARPS = 4, 8
# Elements of a tile: sixteen a thread.
ELEMENTS = 2048
# Rows of a kernel whose products with the maps are summed in one launch.
KERNEL_ROWS = 7
# Elements of a tile of pixels by columns of a kernel, four a thread of its only warp: as many sums are kept for each
# row of the kernel, and twice. Strips of this many rows are not halved: each reads the kernel's rows beyond it too.
STRIP_ELEMENTS, FEW_ROWS = 128, 4
# Along the channels, a pixel's that are read at once: two lines of memory in 16 bits.
CHANNELS_AT_ONCE = 128
# Along the pixels: those of a block, with and without a tile that is kept from one block of channels to the next, the
# fewest, and those of a block that has one channel at a time.
BLOCK, BLOCK_THAT_CARRIES, LEAST_BLOCK, COLUMN = 128, 64, 32, 1024
# Where programs are FEW: a sector of memory, and the channels that are read at once.
NARROW_BLOCK, NARROW_CHANNELS = 16, 512

# Where a program owns a sample: elements of a tile and of each of its warps, eight a thread; the most pixels and bytes
# of a sample, all loaded at once.
SAMPLE_ELEMENTS, SAMPLE_WARP, SAMPLE_PIXELS, SAMPLE_BYTES = 4096, 256, 256, 2**16
MULTIPROCESSORS = 132


class Tile(NamedTuple):
    """The tile of a program: `block_p` pixels by `block_c` channels, and the number of warps."""

    block_p: int
    block_c: int
    warps: int = WARPS


class SampleTile(NamedTuple):
    """The tile of a program that owns a sample, `together` tiles loaded at once, and the number of warps.

    `shares` programs divide the channels of the sample's product.
    """

    shares: int
    block_p: int
    block_c: int
    together: int
    warps: int

    @property
    def registers(self) -> int:
        """Return the registers allowed per thread; by default the assembler takes half for some tiles, and spills."""
        return min(2048 // self.warps, 255)


class Strip(NamedTuple):
    """`rows` by `block_w` pixels of an image, a row of them by `columns` of a kernel at a time; the program's warps."""

    rows: int
    block_w: int
    columns: int
    warps: int


def stream_tile(
    batch: int, channels: int, pixels: int, channels_last: bool, carries: bool = False, widest: int = ELEMENTS
) -> Tile:
    """Return the tile of a kernel that goes over the channels of a block of pixels; from timings on an H200.

    The block has as many pixels as a warp can read in whole lines, up to `widest`, and fewer where the programs would
    not be `PROGRAMS`: more of the channels of a pixel then lie in different threads, and are reduced at the end.
    carries: whether a tile is kept from one block of channels to the next. Along the pixels it then has a single
    channel, if there are programs enough, and nothing is reduced.
    """
    all_channels = next_power_of_2(channels)
    if channels_last:
        least = max(1, (ELEMENTS // 2 if carries else ELEMENTS) // all_channels)
        block_p = ELEMENTS // min(all_channels, CHANNELS_AT_ONCE)
    elif carries and widest >= COLUMN and batch * (pixels // COLUMN) >= PROGRAMS:
        return Tile(COLUMN, 1)
    elif batch * ceil(pixels / LEAST_BLOCK) < FEW:
        block_p, block_c = min(NARROW_BLOCK, next_power_of_2(pixels)), min(all_channels, NARROW_CHANNELS)
        return Tile(block_p, block_c, max(1, min(MANY_WARPS, block_p * block_c // 128)))
    else:
        least, block_p = LEAST_BLOCK, max(BLOCK_THAT_CARRIES if carries else BLOCK, ELEMENTS // all_channels)
    block_p = min(block_p, widest, next_power_of_2(pixels))
    while block_p > least and batch * ceil(pixels / block_p) < PROGRAMS:
        block_p //= 2
    halved = carries and block_p == (least if channels_last else BLOCK_THAT_CARRIES)
    return Tile(block_p, min(all_channels, (ELEMENTS // 2 if halved else ELEMENTS) // block_p))


def sample_tile(batch: int, channels: int, pixels: int, itemsize: int, kernel: int) -> SampleTile | None:
    """Return the tile of the kernel whose programs own whole samples, None where blocks of pixels take less.

    A program takes as long as one multiprocessor needs for a sample, however many programs run beside it. Two launches
    take at least 5 us: on an H200, 11 and 14 for 64 samples of 128 KiB, which took one launch 12 and 22.
    """
    block_p = next_power_of_2(pixels)
    fits = block_p * channels * itemsize <= SAMPLE_BYTES and pixels <= SAMPLE_PIXELS and kernel <= KERNEL_ROWS
    if not fits or batch > 2 * MULTIPROCESSORS:
        return None
    block_c = min(next_power_of_2(channels), SAMPLE_ELEMENTS // block_p)
    blocks = ceil(channels / block_c)
    shares = min(blocks, max(1, MULTIPROCESSORS // batch))
    warps = ceil(block_p * max(block_c, next_power_of_2(kernel)) / SAMPLE_WARP)
    return SampleTile(shares, block_p, block_c, blocks, warps)


def strip_tile(batch: int, height: int, width: int, kernel: int) -> Strip:
    """Return the strip of an image that a program goes over from above, and the columns of a k x k kernel."""
    columns = next_power_of_2(kernel)
    block_w = min(max(1, STRIP_ELEMENTS // columns), next_power_of_2(width))
    rows = height
    while rows > FEW_ROWS and batch * ceil(width / block_w) * ceil(height / rows) < PROGRAMS:
        rows = ceil(rows / 2)
    return Strip(rows, block_w, columns, max(1, block_w * columns // STRIP_ELEMENTS))


def sample_gradient_tiles(
    batch: int, channels: int, height: int, width: int, itemsize: int, kernel: int
) -> tuple[SampleTile, Strip] | None:
    """Return the tiles of the kernel that makes all gradients of a strip itself, None where three launches take less.

    Each of its programs reads the whole sample, twice the bytes of the forward pass, and waits for each row of its
    strip: it has at most two rows, and a multiprocessor of its own.
    """
    tile = sample_tile(batch, channels, height * width, itemsize, kernel)
    if tile is None:
        return None
    strip = strip_tile(batch, height, width, kernel)
    for rows in (1, 2):
        if batch * ceil(width / strip.block_w) * ceil(height / rows) <= MULTIPROCESSORS:
            return tile, strip._replace(rows=rows, warps=tile.warps)
    return None
