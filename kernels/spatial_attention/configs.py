"""Tiles of the kernels, by rule. Plain Python, no Triton needed."""

from math import ceil
from typing import NamedTuple

# Programs that keep a large GPU busy: 132 multiprocessors with eight each.
PROGRAMS = 1056
WARPS = 4
# Elements of a tile: sixteen a thread.
ELEMENTS = 2048
# Rows of a kernel whose products with the maps are summed in one launch.
KERNEL_ROWS = 7
# Elements of a tile of pixels by columns of a kernel, two a thread: as many sums are kept for each row of the kernel,
# and twice. Strips of this many rows are not halved: each reads the kernel's rows beyond it too.
STRIP_ELEMENTS, FEW_ROWS = 256, 8
# Along the channels 64 numbers in 16 bits fill a line of memory; along the pixels 16 fill a sector of one.
CHANNELS_IN_A_LINE, PIXELS_IN_A_SECTOR = 64, 16


class Tile(NamedTuple):
    """What a program holds at a time: `block_p` pixels by `block_c` channels."""

    block_p: int
    block_c: int


class Strip(NamedTuple):
    """`rows` by `block_w` pixels of an image, a row of them by `columns` of a kernel at a time; the program's warps."""

    rows: int
    block_w: int
    columns: int
    warps: int


def stream_tile(
    batch: int, channels: int, pixels: int, channels_last: bool, carries: bool = False, widest: int = ELEMENTS
) -> Tile:
    """Return the tile of a kernel that goes over the channels of a block of pixels.

    The block has as many pixels as a warp can read in whole lines, up to `widest`, and fewer where the programs would
    not be `PROGRAMS`: more of the channels of a pixel then lie in different threads, and are reduced at the end.
    carries: whether a tile is kept from one block of channels to the next; it is halved, for its registers.
    """
    all_channels = _power_of_2(channels)
    in_a_line = min(all_channels, CHANNELS_IN_A_LINE if channels_last else WARPS)
    several = all_channels > in_a_line
    elements = ELEMENTS // 2 if carries and several else ELEMENTS
    least = max(1, elements // all_channels) if channels_last else PIXELS_IN_A_SECTOR
    block_p = min(elements // in_a_line, widest, _power_of_2(pixels))
    while block_p > least and batch * ceil(pixels / block_p) < PROGRAMS:
        block_p //= 2
    return Tile(block_p, min(all_channels, elements // block_p))


def strip_tile(batch: int, height: int, width: int, kernel: int) -> Strip:
    """Return the strip of an image that a program goes over from above, and the columns of a k x k kernel.

    Its programs, four of which run on a multiprocessor at once, are two for each or more.
    """
    columns = _power_of_2(kernel)
    block_w = min(max(1, STRIP_ELEMENTS // columns), _power_of_2(width))
    rows = height
    while rows > FEW_ROWS and batch * ceil(width / block_w) * ceil(height / rows) < PROGRAMS // 4:
        rows = ceil(rows / 2)
    return Strip(rows, block_w, columns, max(1, min(WARPS, block_w * columns // 32)))


def _power_of_2(size: int) -> int:
    """Return the least power of two that is not below `size`."""
    return 1 << max(size - 1, 0).bit_length()
