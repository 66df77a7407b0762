"""The ways dynamic convolution is done today, each `(x, experts, mixing, stride, padding, dilation, groups) -> y`.

All are differentiable. mixing is float32; those that would promote x by it round it to x's dtype.
"""

import os
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

from bench.baselines import availability
from polychrome import kernels
from polychrome.kernels.dynamic_conv.problem import Problem
from polychrome.kernels.dynamic_conv.reference import mix


def ours(x, experts, mixing, *geometry):
    """Call this project's op."""
    return kernels.dynamic_conv2d(x, experts, mixing, None, *geometry)


def naive(x, experts, mixing, *geometry):
    """Mix the weights, then one grouped convolution: the definition."""
    return kernels.dynamic_conv2d.reference(x, experts, mixing, None, *geometry)


def compiled(x, experts, mixing, *geometry):
    """`naive` under torch.compile."""
    return _compiled_naive()(x, experts, mixing, *geometry)


def stacked(x, experts, mixing, stride, padding, dilation, groups):
    """Convolve with every expert in one call, then add the outputs up by their weights."""
    count = len(experts)
    # The channels of a group lie together: [groups, experts, out/groups] in both weights and outputs.
    weight = experts.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 2)
    y = F.conv2d(x, weight, None, stride, padding, dilation, groups).unflatten(1, (groups, count, -1))
    return torch.einsum("bk,bgkohw->bgohw", mixing.to(x.dtype), y).flatten(1, 2)


def loop(x, experts, mixing, stride, padding, dilation, groups):
    """Convolve sample by sample."""
    samples = zip(x.split(1), mix(mixing, experts), strict=True)
    return torch.cat([F.conv2d(one, weight, None, stride, padding, dilation, groups) for one, weight in samples])


def unfold(x, experts, mixing, stride, padding, dilation, groups):
    """Lay the patches out as columns, then one batched matrix product."""
    weight = mix(mixing, experts)
    kernel = weight.shape[-2:]
    columns = F.unfold(x, kernel, dilation, padding, stride).unflatten(1, (groups, -1))
    y = weight.flatten(2).unflatten(1, (groups, -1)) @ columns
    height, width = (
        (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        for size, taps in zip(x.shape[2:], kernel, strict=True)
    )
    return y.flatten(1, 2).unflatten(2, (height, width))


def vmap(x, experts, mixing, stride, padding, dilation, groups):
    """torch.vmap of F.conv2d over samples and their weights."""

    def one(sample, weight):
        return F.conv2d(sample[None], weight, None, stride, padding, dilation, groups)[0]

    return torch.vmap(one)(x, mix(mixing, experts))


def timm(x, experts, mixing, *geometry):
    """timm's CondConv2d, given the same experts."""
    layer = _condconv(x.shape[1], experts.shape[1], tuple(experts.shape[3:]), *geometry, len(experts))
    return torch.func.functional_call(layer, {"weight": experts.flatten(1)}, (x, mixing.to(x.dtype)))


def static(x, experts, mixing, *geometry):
    """A plain convolution with the one expert given: the price floor, not a baseline to beat."""
    return F.conv2d(x, experts.squeeze(0), None, *geometry)


BASELINES: dict[str, Callable] = {
    "naive": naive,
    "compiled": compiled,
    "stacked": stacked,
    "loop": loop,
    "unfold": unfold,
    "vmap": vmap,
    "timm": timm,
}


def reason_to_skip(name: str, problem: Problem, device: str) -> str | None:
    """Return why a baseline cannot run `problem` on "cuda" or "cpu", or is left out there; None if it can."""
    reason = availability.reason_to_skip(name, device)
    if reason is not None:
        return reason
    # Forward keeps this much, and backward makes its gradient.
    needed = 2 * problem.dtype.itemsize * problem.batch * problem.pixels * _values_per_pixel(name, problem)
    free = _free_bytes(device)
    if needed > free / 2:
        return f"needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    return None


def _values_per_pixel(name: str, problem: Problem) -> int:
    if name == "unfold":
        return problem.in_channels * problem.kernel[0] * problem.kernel[1]
    return problem.out_channels * (problem.experts if name == "stacked" else 1)


def _free_bytes(device: str) -> int:
    if device == "cpu":
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


@cache
def _compiled_naive() -> Callable:
    return torch.compile(naive, fullgraph=True, dynamic=False)


@cache
def _condconv(in_channels, out_channels, kernel, stride, padding, dilation, groups, experts):
    from timm.layers import CondConv2d

    with torch.device("meta"):
        return CondConv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, False, experts)
