"""Launch choices: rows whose cubins were read, a rule that ranks them, and tables of what was measured on a GPU.

The rows compile for sm_80, sm_90 and sm_100 without spills, with triton 3.6, 3.8 and 3.9 (`python -m
bench.compile_report`). Nothing here needs Triton or a GPU.
"""

import json
import re
import warnings
from functools import cache
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch

from kernels.dynamic_conv.problem import Problem


class ConvolutionConfig(NamedTuple):
    """Tile of the convolution: block_m pixels, block_n output channels, block_k channels of the product.

    `swap` makes the channels the rows of the matrix instruction: for images of few pixels.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int = 3
    swap: bool = False


class WeightGradientConfig(NamedTuple):
    """Tile of the weight gradient: block_m output channels, block_n input channels, block_k pixels a step."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int = 3
    splits: int = 1


class DepthwiseConfig(NamedTuple):
    """Tile of the depthwise kernels: block_p pixels, block_c channels."""

    block_p: int
    block_c: int
    warps: int = 4
    splits: int = 1


class Device(NamedTuple):
    """What the rules ask of a GPU."""

    name: str
    multiprocessors: int
    l2_bytes: int


# What stands in where no GPU is asked about: the interpreter, allocations on meta tensors.
HOPPER = Device("NVIDIA H200", 132, 60 * 2**20)
# Makers' figures, for `kernels.explain` about a GPU that is not at hand.
KNOWN_DEVICES = (
    HOPPER,
    Device("NVIDIA H100 80GB HBM3", 132, 50 * 2**20),
    Device("NVIDIA A100-SXM4-80GB", 108, 40 * 2**20),
    Device("NVIDIA B200", 148, 126 * 2**20),
)

# 16-bit operands.
CONVOLUTION = (
    ConvolutionConfig(128, 128, 64, 8),
    ConvolutionConfig(128, 64, 64, 8),
    ConvolutionConfig(64, 128, 64, 4),
    ConvolutionConfig(64, 64, 64, 4),
    ConvolutionConfig(128, 32, 32, 4),
    ConvolutionConfig(64, 16, 32, 4),
)
# Few pixels a sample: a tile narrower than the 64 rows of the matrix instruction has to lie across it.
SWAPPED = (
    ConvolutionConfig(32, 64, 64, 4, swap=True),
    ConvolutionConfig(32, 128, 64, 4, swap=True),
    ConvolutionConfig(16, 64, 32, 4, swap=True),
)
# The stacked form holds two tiles in registers.
STACKED = (
    ConvolutionConfig(128, 64, 64, 8),
    ConvolutionConfig(64, 64, 64, 4),
    ConvolutionConfig(64, 32, 32, 4),
    ConvolutionConfig(64, 16, 32, 4),
)
# float32: shared memory holds half as many elements, and IEEE products run outside the matrix units.
CONVOLUTION_FLOAT32 = (
    ConvolutionConfig(64, 64, 16, 8),
    ConvolutionConfig(64, 32, 32, 4),
    ConvolutionConfig(32, 32, 32, 4),
    ConvolutionConfig(64, 16, 32, 4),
)
STACKED_FLOAT32 = (ConvolutionConfig(32, 32, 32, 4), ConvolutionConfig(64, 16, 32, 4))
# Experts the accumulators of one program hold; beyond it the gradient is made in chunks.
EXPERTS_ACCUMULATED = 8
# Rows by the most accumulators they hold. (experts + 1) tiles of float32 stay under 160 registers a thread.
WEIGHT_GRADIENT = {
    1: (
        WeightGradientConfig(128, 128, 64, 8),
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

    def cost(config: ConvolutionConfig) -> float:
        tiles = images * ceil(rows / config.block_m) * ceil(channels / config.block_n)
        # Operand reuse of a tile, against that of 128 x 128, which feeds the matrix units.
        reuse = config.block_m * config.block_n / (config.block_m + config.block_n) / 64
        return ceil(tiles / device.multiprocessors) * config.block_m * config.block_n / min(1.0, reuse)

    if problem.dtype == torch.float32:
        return min(STACKED_FLOAT32 if stacked else CONVOLUTION_FLOAT32, key=cost)
    return min(STACKED if stacked else CONVOLUTION + SWAPPED, key=cost)


def weight_gradient_config(problem: Problem, device: Device, experts: int) -> WeightGradientConfig:
    """Return the row for the weight gradient with `experts` accumulators, 0 for one sample's own."""
    table = WEIGHT_GRADIENT_FLOAT32 if problem.dtype == torch.float32 else WEIGHT_GRADIENT
    rows = table[next(limit for limit in table if max(experts, 1) <= limit)]
    channels = problem.in_channels // problem.groups
    columns = channels if channels >= 16 else channels * problem.kernel[0] * problem.kernel[1]
    config = next((row for row in rows if row.block_n <= columns), rows[-1])
    tiles = problem.groups * ceil(problem.out_channels / problem.groups / config.block_m)
    tiles *= ceil(problem.weights / problem.out_channels / config.block_n)
    if not experts:
        return config
    return within_memory(config._replace(splits=2 * device.multiprocessors // tiles), problem)


def within_memory(config: WeightGradientConfig, problem: Problem) -> WeightGradientConfig:
    """Return `config` with no more partial gradients than fit a fifth of what the naive form allocates.

    That is a copy of x and the mixed weights twice, once in float32. A table's choice may be for another batch.
    """
    if not problem.experts:
        return config
    x = problem.batch * problem.in_channels * problem.height * problem.width
    naive = problem.dtype.itemsize * (x + problem.batch * problem.weights) + 4 * problem.batch * problem.weights
    fitting = naive // 5 // (4 * problem.experts * problem.weights)
    return config._replace(splits=max(1, min(config.splits, problem.batch, fitting)))


def depthwise_config(problem: Problem, device: Device, gradient: bool) -> DepthwiseConfig:
    """Return the tile of the depthwise kernels: 16-byte loads along the channels."""
    block_c = min(64, max(16, 1 << (problem.out_channels - 1).bit_length()))
    if not gradient:
        return DepthwiseConfig(min(64, max(4, 2048 // block_c)), block_c)
    blocks = ceil(problem.out_channels / block_c)
    splits = max(1, min(problem.batch, 4 * device.multiprocessors // blocks))
    return DepthwiseConfig(1024 // block_c, block_c, splits=splits)


@cache
def measured(name: str) -> dict[str, dict]:
    """Return the table measured on the GPU of this name, problem key to choice; empty where there is none."""
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
    """Return where the table of a GPU lies."""
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return Path(__file__).with_name("configs") / f"{slug}.json"


@cache
def device_of(index: int) -> Device:
    """Return the facts about CUDA device `index`."""
    properties = torch.cuda.get_device_properties(index)
    return Device(properties.name, properties.multi_processor_count, properties.L2_cache_size)
