"""The ways a channel gate is done today, each `(x, w1, b1, w2, b2) -> y`, or `(x, w2) -> y` with a single layer."""

from collections.abc import Callable
from functools import cache

import torch

from bench.baselines import availability
from bench.shapes.channel_gate import Shape
from polychrome import kernels


def ours(x, *weights):
    """Call this project's op."""
    return kernels.channel_gate(x, *_layers(weights))


def eager(x, *weights):
    """The definition."""
    return kernels.channel_gate.reference(x, *_layers(weights))


def timm(x, *weights):
    """timm's SEModule, which rounds means, hidden features and gate to x's dtype."""
    return torch.func.functional_call(_timm_module(x.shape[1], len(weights[0])), _parameters(weights), (x,))


def torchvision(x, *weights):
    """torchvision's SqueezeExcitation, which rounds as timm's."""
    return torch.func.functional_call(_torchvision_module(x.shape[1], len(weights[0])), _parameters(weights), (x,))


BASELINES: dict[str, Callable] = {
    "eager": eager,
    **availability.compiled_forms(eager),
    "timm": timm,
    "torchvision": torchvision,
}


def reason_to_skip(name: str, shape: Shape, device: str) -> str | None:
    """Return why a baseline does not run `shape` on "cuda" or "cpu"; None if it does."""
    reason = availability.reason_to_skip(name, device)
    if reason is None and name in ("timm", "torchvision") and shape.hidden is None:
        return "two layers only"
    return reason


def _layers(weights):
    """Return w1, b1, w2 and b2."""
    return weights if len(weights) == 4 else (None, None, *weights, None)


def _parameters(weights) -> dict:
    """Return the parameters of either module: its layers are 1x1 convolutions."""
    w1, b1, w2, b2 = weights
    return {
        "fc1.weight": w1[:, :, None, None],
        "fc1.bias": b1,
        "fc2.weight": w2[:, :, None, None],
        "fc2.bias": b2,
    }


@cache
def _timm_module(channels, hidden):
    from timm.layers.squeeze_excite import SEModule

    with torch.device("meta"):
        return SEModule(channels, rd_channels=hidden)


@cache
def _torchvision_module(channels, hidden):
    from torchvision.ops import SqueezeExcitation

    with torch.device("meta"):
        return SqueezeExcitation(channels, hidden)
