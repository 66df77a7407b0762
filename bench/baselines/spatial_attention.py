"""The ways spatial attention is done today, each `(x, weight) -> y` with a [1, 2, k, k] weight and no bias."""

from collections.abc import Callable
from functools import cache

import torch

from bench.baselines import availability
from bench.shapes.spatial_attention import Shape
from polychrome import kernels


def ours(x, weight):
    """Call this project's op."""
    return kernels.spatial_attention(x, weight)


def eager(x, weight):
    """The definition."""
    return kernels.spatial_attention.reference(x, weight)


def timm(x, weight):
    """timm's SpatialAttn, part of its CBAM, in evaluation, with a normalisation that changes nothing.

    It differs from the definition in that BatchNorm, one more pass over the map of logits; in `amax`, which shares the
    gradient of tied channels; and in rounding mean, max, logits and gate to x's dtype.
    """
    layer = _attention(weight.shape[-1], x.dtype, x.device)
    return torch.func.functional_call(layer, {"conv.conv.weight": weight}, (x,))


BASELINES: dict[str, Callable] = {"eager": eager, **availability.compiled_forms(eager), "timm": timm}


def reason_to_skip(name: str, shape: Shape, device: str) -> str | None:
    """Return why a baseline does not run `shape` on "cuda" or "cpu"; None if it does."""
    return availability.reason_to_skip(name, device)


@cache
def _attention(kernel, dtype, device):
    from timm.layers.cbam import SpatialAttn

    layer = SpatialAttn(kernel).to(device, dtype).eval().requires_grad_(False)
    norm = layer.conv.bn
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    return layer
