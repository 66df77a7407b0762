"""Benchmark of the channel gate: the timed calls and the baselines.

A way (implementation) is `(x, w1, b1, w2, b2) -> y`, or `(x, w2) -> y` with a single layer.
"""

from collections.abc import Callable
from functools import cache
from math import prod
from typing import NamedTuple

import torch

from bench.ops import availability
from bench.ops.feature_maps import BACKWARD_PASSES, Data, FeatureMap, data_of, feature_maps_on
from polychrome import kernels

REDUCTION = 16


class Shape(NamedTuple):
    """A sigmoid gate on `x`: through `hidden` features with biases or, if None, by one layer without bias."""

    x: FeatureMap
    hidden: int | None

    @property
    def name(self) -> str:
        """The name of this call among calls of its dtype and layout."""
        return f"{self.x.name} {'single' if self.hidden is None else f'hidden {self.hidden}'}"

    @property
    def weights(self) -> list[tuple[int, ...]]:
        """The shapes of w1, b1, w2 and b2, or of w2 alone."""
        channels, hidden = self.x.channels, self.hidden
        if hidden is None:
            return [(channels, channels)]
        return [(hidden, channels), (hidden,), (channels, hidden), (channels,)]

    @property
    def key(self) -> str:
        """The name of this call among all calls: dtype, layout and `name`."""
        return f"{self.x.kind} {self.name}"

    def data(self, device: str) -> Data:
        """Return random data for the call: x and the weights, and the gradient of y."""
        return data_of(self.x, self.weights, device)

    def forward_bytes(self, l2_bytes: int) -> int:
        """Return the least bytes that forward moves on a GPU with an L2 cache of `l2_bytes`, or a CPU (0).

        Besides the passes over x: means, hidden features and gate, all float32, are written and read, because the
        layers need all channels and the product needs the whole gate; the weights are read.
        """
        features = self.x.batch * (2 * self.x.channels + (self.hidden or 0))
        return self.x.forward_passes(l2_bytes) * self.x.nbytes + 2 * 4 * features + self._weight_bytes

    def backward_bytes(self) -> int:
        """Return the least bytes that backward moves.

        Besides the passes over maps: the gradients of gate and means are float32, written and read; gate, means and
        hidden features are read; the weights are read and their gradients written.
        """
        features = self.x.batch * (6 * self.x.channels + (self.hidden or 0))
        return BACKWARD_PASSES * self.x.nbytes + 4 * features + 2 * self._weight_bytes

    @property
    def _weight_bytes(self) -> int:
        return sum(map(prod, self.weights)) * self.x.dtype.itemsize


def shapes_on(device: str) -> list[Shape]:
    """Return the shapes to time on "cuda" or "cpu": every map with two layers, then every map with one layer."""
    maps = feature_maps_on(device)
    return [*(Shape(x, x.channels // REDUCTION) for x in maps), *(Shape(x, None) for x in maps)]


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
    """torchvision's SqueezeExcitation, which rounds as timm's module does."""
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
    """Return the parameters of either module, whose layers are 1x1 convolutions."""
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
