"""Launch choices: rows with inspected cubins, a rule that ranks the rows, and tables of measurements on a GPU.

The rows compile for sm_80, sm_90 and sm_100 without spills, with triton 3.6, 3.8 and 3.9 (`python -m
bench.compiled.report`). Nothing here needs Triton or a GPU.
"""

import json
import re
import warnings
from collections.abc import Iterator
from functools import cache
from math import ceil, prod
from pathlib import Path
from typing import NamedTuple

import torch

from polychrome.kernels.dynamic_conv.problem import Problem
from polychrome.kernels.launch import next_power_of_2


class ConvolutionConfig(NamedTuple):
    """Tile of the convolution: block_m pixels, block_n output channels, block_k channels of the product.

    `swap` makes the channels the rows of the matrix instruction: for images of few pixels. `together`, in the stacked
    form, makes every expert's block_n channels the columns of one product; else the experts come one after another. In
    the other forms `splits` programs share a tile's taps and channels, and their sums are added up afterwards.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int = 3
    swap: bool = False
    together: bool = False
    splits: int = 1


class WeightGradientConfig(NamedTuple):
    """Tile of the weight gradient: block_m output channels, block_n input channels and taps, block_k pixels a step.

    A program of it holds a sum for each expert over its share of the samples, one of `splits`; or, `apart`, one
    sample's own gradient, of one of `splits` of its pixels, which is contracted with the mixing afterwards: of `few`
    samples all at once, with experts and gradients as they are given.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int = 3
    splits: int = 1
    apart: bool = False
    few: bool = False


class DepthwiseConfig(NamedTuple):
    """Tile of the depthwise kernels: block_p pixels, block_c channels.

    A program goes down a strip of `rows` rows of an image, block_p wide; or, where rows is 0, takes one block of any
    pixels, for the weight gradient the blocks of one of `splits` parts of an image.
    """

    block_p: int
    block_c: int
    warps: int = 4
    rows: int = 0
    splits: int = 1

    @property
    def strips(self) -> bool:
        """Whether programs go down strips, for which strides and dilations must be 1, and inputs as many as outputs."""
        return self.rows > 0


class Device(NamedTuple):
    """The properties of a GPU that the rules use."""

    name: str
    multiprocessors: int
    l2_bytes: int


# The device without a GPU: the interpreter, allocations on meta tensors.
HOPPER = Device("NVIDIA H200", 132, 60 * 2**20)
# Makers' figures, for `polychrome.kernels.explain` about a GPU that is not at hand.
KNOWN_DEVICES = (
    HOPPER,
    Device("NVIDIA H100 80GB HBM3", 132, 50 * 2**20),
    Device("NVIDIA A100-SXM4-80GB", 108, 40 * 2**20),
    Device("NVIDIA B200", 148, 126 * 2**20),
)

# 16-bit operands. Rows of one stage load through L1, where the taps of a pixel find it.
CONVOLUTION = (
    ConvolutionConfig(256, 128, 64, 8),
    ConvolutionConfig(128, 128, 64, 8),
    ConvolutionConfig(128, 64, 64, 8),
    ConvolutionConfig(64, 128, 64, 4),
    ConvolutionConfig(64, 64, 64, 4),
    ConvolutionConfig(128, 32, 32, 4),
    ConvolutionConfig(64, 16, 32, 4),
    ConvolutionConfig(128, 128, 64, 8, stages=1),
    ConvolutionConfig(128, 64, 64, 8, stages=1),
    ConvolutionConfig(256, 32, 32, 8, stages=1),
    ConvolutionConfig(256, 16, 32, 8, stages=1),
)
# Few pixels a sample: a tile narrower than the 64 rows of the matrix instruction is transposed.
SWAPPED = (
    ConvolutionConfig(32, 64, 64, 4, swap=True),
    ConvolutionConfig(32, 128, 64, 4, swap=True),
    ConvolutionConfig(16, 64, 32, 4, swap=True),
)
# The stacked form with the experts in turn holds two tiles in registers.
STACKED = (
    ConvolutionConfig(128, 64, 64, 8),
    ConvolutionConfig(64, 64, 64, 4),
    ConvolutionConfig(64, 32, 32, 4),
    ConvolutionConfig(64, 16, 32, 4),
)
# Rows and columns of the largest depthwise kernel whose sums fit the registers of a program that goes down a strip;
# programs of one that a multiprocessor holds; rows that take as long as its start.
STRIP_KERNEL, STRIPS_AT_ONCE, STRIP_START = (9, 12), 4, 3
# With all experts together, whose columns share a tile: block_n is for all of them here.
TOGETHER = (
    ConvolutionConfig(256, 128, 32, 8, together=True),
    ConvolutionConfig(128, 256, 64, 8, together=True),
    ConvolutionConfig(128, 128, 64, 8, together=True),
    ConvolutionConfig(64, 128, 64, 4, together=True),
)
# float32: shared memory holds half as many elements, and IEEE products run outside the matrix units.
CONVOLUTION_FLOAT32 = (
    ConvolutionConfig(64, 64, 16, 8),
    ConvolutionConfig(64, 32, 32, 8),
    ConvolutionConfig(32, 32, 32, 4),
    ConvolutionConfig(64, 16, 32, 4),
)
STACKED_FLOAT32 = (ConvolutionConfig(32, 32, 32, 4), ConvolutionConfig(64, 16, 32, 4))
# Multiply-adds, and bytes from the L2 cache and of shared memory, of a Hopper multiprocessor in a clock.
PRODUCTS_A_CLOCK = {torch.float32: 128, torch.float16: 2048, torch.bfloat16: 2048}
L2_BYTES_A_CLOCK, SHARED_BYTES_A_CLOCK = 36, 128
# Instructions of a step, and those of a number whose place is computed for it alone; clocks that a program takes to
# start; warps below which a multiprocessor waits for their results.
STEP, GATHERING, START, ALONE = 140, 22, 500, 13
# How often a block finds a pixel in L1 that it has loaded for another tap; clocks that its loads take, of which a block
# hides none that loads a step when it multiplies it.
REUSED, LATENCY = 3, 700
# Measured on an H200 over predicted, where others come out even: of loads without stages for tiles that are not NARROW,
# and of tiles so large, in numbers a warp, that a multiprocessor holds one program.
UNSTAGED, NARROW, LONE, LARGEST_TILE = 1.3, 16, 1.35, 2048
# Splits of a product at most, and clocks of the launch that adds them up beyond its bytes.
MOST_SPLITS, ADD_UP = 16, 5000
# Fewer pixels do not repay a gradient of the weights for every sample; fewer samples are contracted all at once.
APART_PIXELS, APART_SAMPLES = 128, 4
MOST_PARTS = 512  # of an image, whose gradients are made apart
# Experts the accumulators of one program hold; more are contracted from the samples' own gradients.
EXPERTS_ACCUMULATED = 8
# Of the sample's own, where one tile is held.
SAMPLE_GRADIENT = (
    WeightGradientConfig(128, 256, 64, 8),
    WeightGradientConfig(128, 128, 64, 8),
    WeightGradientConfig(64, 128, 64, 4),
    WeightGradientConfig(64, 64, 64, 4),
    WeightGradientConfig(64, 32, 64, 4),
    WeightGradientConfig(64, 16, 64, 4),
)
SAMPLE_GRADIENT_FLOAT32 = (
    WeightGradientConfig(64, 64, 16, 8),
    WeightGradientConfig(32, 32, 32, 4),
    WeightGradientConfig(32, 16, 32, 4),
)
# Rows by the most accumulators they hold. (experts + 1) tiles of float32 stay under 160 registers a thread.
WEIGHT_GRADIENT = {
    1: (
        WeightGradientConfig(128, 64, 64, 8),
        WeightGradientConfig(64, 64, 64, 4),
        WeightGradientConfig(64, 32, 64, 4),
        WeightGradientConfig(64, 16, 64, 4),
    ),
    4: (
        WeightGradientConfig(64, 64, 64, 8),
        WeightGradientConfig(64, 32, 32, 4, stages=4),  # of 64 pixels a step triton 3.8 spills on sm_100
        WeightGradientConfig(64, 16, 64, 4),
    ),
    8: (WeightGradientConfig(64, 32, 64, 8), WeightGradientConfig(64, 16, 64, 4)),
}
WEIGHT_GRADIENT_FLOAT32 = {
    1: (
        WeightGradientConfig(64, 64, 16, 8),
        WeightGradientConfig(32, 32, 32, 4),
        WeightGradientConfig(32, 16, 32, 4),
    ),
    4: (WeightGradientConfig(32, 32, 32, 4), WeightGradientConfig(32, 16, 32, 4)),
    8: (WeightGradientConfig(32, 32, 32, 8), WeightGradientConfig(32, 16, 32, 4)),
}


def convolution_config(
    problem: Problem, device: Device, chunk: int, transposed: bool, stacked: bool
) -> ConvolutionConfig:
    """Return the row with the least predicted time for the forward pass, or for the gradient of x, `chunk` samples."""
    height, width = (problem.height, problem.width) if transposed else problem.out_size
    channels = (problem.in_channels if transposed else problem.out_channels) // problem.groups
    phases = problem.stride[0] * problem.stride[1] if transposed else 1
    if transposed:
        height, width = ceil(height / problem.stride[0]), ceil(width / problem.stride[1])
    rows, images = height * width, chunk * phases * problem.groups
    if stacked:
        rows, images = problem.batch * rows, phases * problem.groups

    inputs = (problem.out_channels if transposed else problem.in_channels) // problem.groups
    taps = ceil(problem.kernel[0] * problem.kernel[1] / phases)
    numbers = images * rows * channels

    def tiles_of(config: ConvolutionConfig) -> tuple[int, int]:
        return ceil(rows / config.block_m), ceil(channels / config.block_n)

    def split(config: ConvolutionConfig) -> Iterator[ConvolutionConfig]:
        """Yield the row with as many splits as there are idle multiprocessors for, and memory."""
        idle = device.multiprocessors // max(1, images * prod(tiles_of(config)))
        fitting = naive_bytes(problem) // 3 // max(1, 4 * numbers)
        most = 1 if stacked else max(1, min(idle, fitting, MOST_SPLITS))
        return (config._replace(splits=splits) for splits in range(1, most + 1))

    def cost(config: ConvolutionConfig) -> float:
        row_tiles, column_tiles = tiles_of(config)
        gathers = inputs < 16
        steps = ceil(taps * inputs / config.block_k) if gathers else taps * ceil(inputs / config.block_k)
        steps *= problem.experts if stacked and not config.together else 1
        tile = (config.block_n, config.block_m) if config.swap else (config.block_m, config.block_n)
        loaded = rows / row_tiles, channels / column_tiles
        if config.together:
            tile = tile[0], tile[1] * next_power_of_2(problem.experts)
            loaded = loaded[0], loaded[1] * problem.experts
        if config.stages == 1 and taps > 1 and not gathers:
            loaded = loaded[0] / REUSED, loaded[1]  # a pixel's taps find it in L1
        gathered = GATHERING * config.block_k * sum(tile) if gathers else 0
        tiles, steps = images * row_tiles * column_tiles * config.splits, ceil(steps / config.splits)
        clocks = _clocks(tiles, steps, tile, loaded, config, problem, device, gathered)
        if config.splits == 1:
            return clocks
        written_and_read = 2 * 4 * config.splits * numbers
        return clocks + ADD_UP + written_and_read / (L2_BYTES_A_CLOCK * device.multiprocessors)

    # What is gathered for each channel gains nothing from L1; half a line of the channels is a step that waits as long.
    table = [row for row in convolution_rows(problem, stacked) if row.stages > 1 or inputs >= 16]
    table = [row for row in table if not row.together or row.block_k >= min(64, inputs)]
    return min((each for row in table for each in split(row)), key=cost)


def convolution_rows(problem: Problem, stacked: bool) -> tuple[ConvolutionConfig, ...]:
    """Return the rows for the convolution, forward and for the gradient of x."""
    if problem.dtype == torch.float32:
        return STACKED_FLOAT32 if stacked else CONVOLUTION_FLOAT32
    return STACKED + rows_together(problem.experts) if stacked else CONVOLUTION + SWAPPED


def rows_together(experts: int) -> tuple[ConvolutionConfig, ...]:
    """Return the rows with so many experts together, at least 16 columns for each."""
    each = [row._replace(block_n=row.block_n // next_power_of_2(experts)) for row in TOGETHER]
    return tuple(row for row in each if row.block_n >= 16)


def weight_gradient_config(problem: Problem, device: Device) -> WeightGradientConfig:
    """Return the row for the weight gradient; rows of one tile by the least predicted time, of several the first."""
    few = are_few(problem)
    apart = few or goes_apart(problem)
    rows = weight_gradient_rows(problem, apart)
    if few:  # larger tiles are fewer than multiprocessors, and take long to store
        rows = [row._replace(few=True) for row in rows if max(row.block_m, row.block_n) <= 64]
    if apart or not problem.experts:
        found = [filled(row, problem, device) if apart else row for row in rows]
        return min(found, key=lambda row: _sample_gradient_clocks(row, problem, device))
    channels = problem.in_channels // problem.groups
    columns = channels if channels >= 16 else channels * problem.kernel[0] * problem.kernel[1]
    config = next((row for row in rows if row.block_n <= columns), rows[-1])
    return within_memory(filled(config, problem, device), problem)


def filled(config: WeightGradientConfig, problem: Problem, device: Device) -> WeightGradientConfig:
    """Return `config` with splits for two blocks a multiprocessor; if `apart`, the splits of least predicted time.

    The parts of few samples, all in memory at a time, take at most a quarter of the naive form's memory.
    """
    if config.apart:
        split = [config._replace(splits=2**power) for power in range(MOST_PARTS.bit_length())]
        if config.few:
            each = own_dtype(problem.dtype).itemsize * problem.batch * problem.weights
            split = [row for row in split if row.splits <= max(1, naive_bytes(problem) // 4 // each)]
        return min(split, key=lambda each: _sample_gradient_clocks(each, problem, device))
    return config._replace(splits=max(1, 2 * device.multiprocessors // _tiles_of(problem, config)))


def weight_gradient_rows(problem: Problem, apart: bool) -> tuple[WeightGradientConfig, ...]:
    """Return the rows for the weight gradient: with sums held for each expert, or with each sample's own gradient.

    Raises:
        ValueError: no row holds so many experts.
    """
    wide = problem.dtype == torch.float32
    if apart or not problem.experts:
        rows = SAMPLE_GRADIENT_FLOAT32 if wide else SAMPLE_GRADIENT
        return tuple(row._replace(apart=apart) for row in rows)
    if problem.experts > EXPERTS_ACCUMULATED:
        raise ValueError(f"a program holds sums for {EXPERTS_ACCUMULATED} experts at most, not {problem.experts}")
    table = WEIGHT_GRADIENT_FLOAT32 if wide else WEIGHT_GRADIENT
    return table[next(limit for limit in table if problem.experts <= limit)]


def are_few(problem: Problem) -> bool:
    """Return whether the samples' own gradients are contracted all at once.

    Otherwise two more launches change the layouts of experts and gradients, which takes as long as the rest where
    samples are few.
    """
    return problem.batch < APART_SAMPLES and 0 < problem.experts <= EXPERTS_ACCUMULATED and not problem.is_depthwise


def goes_apart(problem: Problem) -> bool:
    """Return whether the weight gradient is contracted from the samples' own gradients.

    The contraction costs 4 bytes through the L2 cache for every weight and sample, written and read in bfloat16; it
    saves the sums for each expert, some 25 instructions, and half of the loads, as tiles are twice as wide. In float16
    it would cost 8 bytes, as one sample's gradient can overflow, and float32 is not bound by the saved work.
    """
    if problem.experts > EXPERTS_ACCUMULATED:
        return True
    return problem.dtype == torch.bfloat16 and problem.experts > 1 and problem.pixels >= APART_PIXELS


def weight_tiles(outputs: int, channels: int, taps: int, config: WeightGradientConfig) -> int:
    """Return how many tiles one group's weight gradient has, with `outputs` and `channels` a group."""
    columns = ceil(taps * channels / config.block_n)
    if not spans_taps(channels, config):
        columns = taps * ceil(channels / config.block_n)
    return ceil(outputs / config.block_m) * columns


def spans_taps(channels: int, config: WeightGradientConfig) -> bool:
    """Return whether a tile's columns run over taps too: where it has more columns than a group has channels."""
    return channels < config.block_n


def _tiles_of(problem: Problem, config: WeightGradientConfig) -> int:
    outputs, channels = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    return problem.groups * weight_tiles(outputs, channels, problem.kernel[0] * problem.kernel[1], config)


def _even_parts(pixels: int, block: int, splits: int) -> int:
    blocks = ceil(pixels / block)
    return ceil(blocks / ceil(blocks / splits))


def _sample_gradient_clocks(config: WeightGradientConfig, problem: Problem, device: Device) -> float:
    """Return the clocks for the samples' own gradients."""
    tile = config.block_m, config.block_n
    parts = own_parts(problem.out_size, config)
    steps = ceil(ceil(problem.pixels / config.block_k) / parts)
    tiles = _tiles_of(problem, config) * problem.batch * parts
    gathered = 0 if (problem.in_channels // problem.groups) % 8 == 0 else GATHERING * config.block_k * config.block_n
    return _clocks(tiles, steps, tile, tile, config, problem, device, gathered)


def _clocks(
    tiles: int,
    steps: int,
    tile: tuple[int, int],
    loaded: tuple[float, float],
    config: ConvolutionConfig | WeightGradientConfig,
    problem: Problem,
    device: Device,
    gathered: int = 0,
) -> float:
    """Return the clocks that a launch of so many tiles of a product takes on a Hopper GPU.

    The multiprocessor with the most tiles decides, by products, by bytes of its shared memory or by instructions; or
    all do together, by bytes through the L2 cache, of `loaded` rows and columns a step; or one tile alone.
    """
    (height, width), size = tile, problem.dtype.itemsize
    products = height * width * config.block_k / PRODUCTS_A_CLOCK[problem.dtype]
    copies, waits = (2, LATENCY) if config.stages == 1 else (1, 0)
    operands = copies * (height + width) + ceil(height / 64) * (64 + width)
    shared = size * config.block_k * operands / SHARED_BYTES_A_CLOCK
    issued = STEP * config.warps / 4 + gathered / 128
    most = ceil(tiles / device.multiprocessors) * (steps * max(products, shared, issued) + START)
    most += steps * waits
    alone = steps * issued * ALONE / config.warps
    through_l2 = size * (steps * config.block_k * sum(loaded) + 2 * height * width) / L2_BYTES_A_CLOCK
    clocks = max(most, alone, tiles * through_l2 / device.multiprocessors)
    if config.stages == 1:
        return UNSTAGED * clocks if width > NARROW else clocks
    lone = not gathered and not getattr(config, "together", False) and height * width / config.warps > LARGEST_TILE
    return LONE * clocks if lone else clocks


def within_memory(config: WeightGradientConfig, problem: Problem) -> WeightGradientConfig:
    """Return `config` with partial gradients of at most a fifth of the naive form's memory.

    A table's choice may be for another batch.
    """
    if not problem.experts or config.apart:
        return config
    fitting = naive_bytes(problem) // 5 // (4 * problem.experts * problem.weights)
    return config._replace(splits=max(1, min(config.splits, problem.batch, fitting)))


def naive_bytes(problem: Problem) -> int:
    """Return the bytes that the naive form allocates in backward: weights in float32, and mixed weights or a copy of x.

    In 16 bits, channels last, the naive form copies x and the gradients of x and y into the layout of a grouped
    convolution: an H200 allocated 0.9 to 1.3 times the returned number, more for few channels.
    """
    x = problem.batch * problem.in_channels * problem.height * problem.width
    y = problem.batch * problem.out_channels * problem.pixels
    weights = problem.batch * problem.weights
    if problem.dtype.itemsize == 2 and not problem.is_depthwise:
        return 4 * weights + 2 * (weights + 2 * x + y)
    return 4 * weights + problem.dtype.itemsize * max(weights, x)


def own_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the samples' own weight gradients: float16 could overflow in one sample."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def contracted_block(dtype: torch.dtype) -> int:
    """Return how many weights a program of the contraction takes of gradients kept in `dtype`."""
    return 128 if dtype.itemsize == 2 else 64


def depthwise_config(problem: Problem, device: Device, gradient: bool) -> DepthwiseConfig:
    """Return the tile of the depthwise kernels: 16-byte loads along the channels."""
    block_c = min(64, max(16, next_power_of_2(problem.out_channels)))
    others = problem.batch * ceil(problem.out_channels / block_c)
    if takes_strips(problem):
        height, width = problem.out_size
        block_w = min(1024 // block_c, next_power_of_2(width))
        others *= ceil(width / block_w)

        def cost(rows: int) -> int:
            # A program also meets the rows that the kernel reaches beyond its own, and has to start.
            waves = ceil(others * ceil(height / rows) / (STRIPS_AT_ONCE * device.multiprocessors))
            return waves * (rows + problem.kernel[0] + STRIP_START)

        halves = {ceil(height / 2**power) for power in range(height.bit_length())}
        return DepthwiseConfig(block_w, block_c, rows=min(halves, key=cost))
    if not gradient:
        return DepthwiseConfig(min(64, max(4, 2048 // block_c)), block_c)
    return DepthwiseConfig(1024 // block_c, block_c, splits=max(1, 4 * device.multiprocessors // others))


def takes_strips(problem: Problem) -> bool:
    """Return whether the registers suffice for depthwise kernels that go down strips of an image."""
    plain = problem.stride == problem.dilation == (1, 1) and problem.in_channels == problem.out_channels
    return plain and problem.kernel[0] <= STRIP_KERNEL[0] and problem.kernel[1] <= STRIP_KERNEL[1]


def own_parts(out_size: tuple[int, int], config: WeightGradientConfig | DepthwiseConfig) -> int:
    """Return in how many parts of an image a sample's own weight gradient is made; no part is empty."""
    height, width = out_size
    if isinstance(config, DepthwiseConfig):
        if config.strips:
            return ceil(height / config.rows) * ceil(width / config.block_p)
        return _even_parts(height * width, config.block_p, config.splits)
    return _even_parts(height * width, config.block_k, config.splits) if config.apart else 1


@cache
def measured(name: str) -> dict[str, dict]:
    """Return the table measured on the GPU of this name, problem key to choice; empty without a table."""
    path = table_path(name)
    try:
        return read_table(path) if path.exists() else {}
    except (ValueError, KeyError, TypeError) as error:
        warnings.warn(
            f"polychrome goes by its rules on {name}: cannot read {path} ({error}); bench.tune writes it anew",
            stacklevel=2,
        )
        return {}


def read_table(path: Path) -> dict[str, dict]:
    """Return the choices of a table that `python -m bench.tune` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))["choices"]


def table_path(name: str) -> Path:
    """Return the path of a GPU's table."""
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return Path(__file__).with_name("configs") / f"{slug}.json"


@cache
def device_of(index: int) -> Device:
    """Return the facts about CUDA device `index`."""
    properties = torch.cuda.get_device_properties(index)
    return Device(properties.name, properties.multi_processor_count, properties.L2_cache_size)
