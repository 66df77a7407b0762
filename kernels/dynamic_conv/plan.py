"""The form of a call on a GPU, with the reason: a rule over sizes, overruled by measurements on the GPU."""

from functools import lru_cache
from math import ceil
from typing import NamedTuple

import torch

from polychrome.kernels import replay
from polychrome.kernels.dynamic_conv.configs import (
    EXPERTS_ACCUMULATED,
    ConvolutionConfig,
    DepthwiseConfig,
    Device,
    WeightGradientConfig,
    contracted_block,
    convolution_config,
    depthwise_config,
    device_of,
    measured,
    naive_bytes,
    own_dtype,
    own_parts,
    weight_gradient_config,
    within_memory,
)
from polychrome.kernels.dynamic_conv.problem import Problem

# What a table of measured choices has rows for: the fields of a pass's launch config that differ from the rules', and
# the `share` of the L2 cache that the weights mixed at a time, or the samples' own gradients, fill.
PASSES = ("forward", "input_gradient", "weight_gradient")
MIXED_SHARE = 0.65

# A choice holds for batches up to NEAR times smaller or larger than the measured batch; tables without
# that were measured at TUNED_BATCH.
NEAR, TUNED_BATCH = 4, 64

# FLOPs the matrix units do while one byte comes from device memory, on the GPUs this was planned for.
RIDGE = {torch.float32: 10, torch.float16: 146, torch.bfloat16: 146}


class Plan(NamedTuple):
    """The form of a call: its regime, a launch config per kernel, and the reason.

    chunk, backward_chunk: samples mixed at a time, forward and for the gradient of x. own_chunk: samples whose own
    weight gradients are in memory at a time.
    """

    regime: str
    chunk: int
    backward_chunk: int
    own_chunk: int
    forward: ConvolutionConfig | DepthwiseConfig | None
    input_gradient: ConvolutionConfig | DepthwiseConfig | None
    weight_gradient: WeightGradientConfig | DepthwiseConfig | None
    reason: str


@lru_cache(maxsize=4096)
def plan(problem: Problem, device: Device) -> Plan:
    """Return the form of `problem` on `device`.

    Raises:
        ValueError: a sample's weight has 2^31 elements or more, which the kernels do not address.
    """
    if problem.weights >= 2**31:
        raise ValueError(f"a sample's weight must have fewer than 2^31 elements, got {problem.weights}")
    choice = measured_choice(problem, device)
    regime, reason = rule(problem)
    if "regime" in choice:
        regime, reason = choice["regime"], f"measured on {device.name}"
    stacked = regime == "stacked"
    rows = {name: dict(choice.get(name, {})) for name in PASSES}
    shares = {name: row.pop("share", MIXED_SHARE) for name, row in rows.items()}
    chunk = chunk_of(problem, device, shares["forward"])
    in_backward = backward_chunk(problem, device, shares["input_gradient"])
    if regime == "depthwise":
        forward = input_gradient = depthwise_config(problem, device, gradient=False)
        weight_gradient = depthwise_config(problem, device, gradient=True)
    else:
        forward = convolution_config(problem, device, chunk, transposed=False, stacked=stacked)
        input_gradient = convolution_config(problem, device, in_backward, transposed=True, stacked=stacked)
        weight_gradient = weight_gradient_config(problem, device)
    configs = {"forward": forward, "input_gradient": input_gradient, "weight_gradient": weight_gradient}
    for name, config in configs.items():
        configs[name] = config._replace(**rows[name])
    if regime != "depthwise":
        configs["weight_gradient"] = within_memory(configs["weight_gradient"], problem)
    return Plan(
        regime,
        chunk,
        in_backward,
        own_chunk(problem, device, configs["weight_gradient"], shares["weight_gradient"]),
        **configs,
        reason=reason,
    )


def measured_choice(problem: Problem, device: Device) -> dict:
    """Return the choice measured for a problem at a similar batch; empty without a measurement."""
    choice = dict(measured(device.name).get(problem.key, {}))
    batch = choice.pop("batch", TUNED_BATCH)
    return choice if batch <= NEAR * problem.batch and problem.batch <= NEAR * batch else {}


def forget() -> None:
    """Have devices and tables of measured choices read again, and forget everything derived from them."""
    device_of.cache_clear()
    measured.cache_clear()
    plan.cache_clear()
    replay.forget()


def rule(problem: Problem) -> tuple[str, str]:
    """Return the regime and why."""
    if problem.is_depthwise:
        return "depthwise", "one input channel per group: no matrix product"
    if problem.is_pointwise:
        return "pointwise", "a 1x1 kernel with stride 1 is a batched matrix product"
    if not problem.experts:
        return "aggregate", "weights are given per sample"
    if problem.batch <= problem.experts:
        return "aggregate", "no more samples than experts: mixing moves fewer weights than a layout for every expert"
    limit = stacked_pixels(problem)
    if problem.experts * problem.weights >= 2**31:
        return "aggregate", "all experts together have 2^31 weights and more: they are mixed before"
    if 1 < problem.experts <= EXPERTS_ACCUMULATED and problem.pixels < limit:
        return "stacked", (
            f"{problem.pixels} output pixels a sample, fewer than {limit:.0f}: {problem.experts} convolutions with "
            "shared weights cost less than moving a weight per sample"
        )
    return "aggregate", (
        f"{problem.pixels} output pixels a sample, at least {limit:.0f}: a weight mixed once is used often enough"
    )


def stacked_pixels(problem: Problem) -> float:
    """Return the pixels at which multiplying with every expert takes as long as moving one sample's weight.

    A weight of `itemsize` bytes, written and read, against 2 * experts FLOPs a pixel, and the sample's share of the
    experts, written and read in another layout.
    """
    return RIDGE[problem.dtype] * problem.dtype.itemsize * (1 / problem.experts - 1 / problem.batch)


def chunk_of(problem: Problem, device: Device, share: float) -> int:
    """Return how many samples are mixed at a time: chunks of one size, whose weights stay in the L2 cache.

    They are written, read once and overwritten, and x and y pass through the cache beside them.
    """
    size = problem.weights * mixed_dtype(problem).itemsize
    return _equal_chunk(problem.batch, share * device.l2_bytes // size)


def backward_chunk(problem: Problem, device: Device, share: float) -> int:
    """Return how many samples are mixed at a time for the gradient of x: at most a fifth of the naive form's memory."""
    most = min(share * device.l2_bytes, naive_bytes(problem) / 5)
    return _equal_chunk(problem.batch, most // (problem.weights * mixed_dtype(problem).itemsize))


def own_chunk(problem: Problem, device: Device, config: WeightGradientConfig | DepthwiseConfig, share: float) -> int:
    """Return how many samples' weight gradients are made at a time, which stay in the L2 cache.

    With the experts, their sums in float32 and the products in parts they take at most a quarter of the naive form's
    memory.
    """
    if isinstance(config, WeightGradientConfig) and config.few:
        return problem.batch
    parts, dtype = own_parts(problem.out_size, config), own_dtype(problem.dtype)
    beside = problem.experts * problem.weights * (4 + problem.dtype.itemsize)
    most = min(share * device.l2_bytes, naive_bytes(problem) / 4 - beside)
    size = dtype.itemsize + 4 * problem.experts / contracted_block(dtype)
    return _equal_chunk(problem.batch, most // (parts * problem.weights * size))


def mixed_dtype(problem: Problem) -> torch.dtype:
    """Return the dtype of mixed weights: depthwise ones are few, and multiplied in float32 as they are."""
    return torch.float32 if problem.is_depthwise else problem.dtype


def _equal_chunk(batch: int, most: float) -> int:
    """Return the size of the fewest chunks of at most `most` samples, equal except for the last."""
    return ceil(batch / max(1, ceil(batch / max(1, most))))
