"""Benchmark of spatial attention: the timed calls and the baselines.

A way (implementation) is `(x, weight) -> y` with a [1, 2, k, k] weight and no bias.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch

from bench.ops import availability
from bench.ops.feature_maps import BACKWARD_PASSES, Data, FeatureMap, data_of, feature_maps_on
from polychrome import kernels

KERNEL = 7


class Shape(NamedTuple):
    """Spatial attention on `x` with a KERNEL x KERNEL convolution without bias."""

    x: FeatureMap

    @property
    def name(self) -> str:
        """The name of this call among calls of its dtype and layout."""
        return self.x.name

    @property
    def key(self) -> str:
        """The name of this call among all calls: dtype, layout and `name`."""
        return f"{self.x.kind} {self.name}"

    def data(self, device: str) -> Data:
        """Return random data for the call: x and weight, and the gradient of y."""
        return data_of(self.x, [(1, 2, KERNEL, KERNEL)], device)

    def forward_bytes(self, l2_bytes: int) -> int:
        """Return the least bytes that forward moves on a GPU with an L2 cache of `l2_bytes`, or a CPU (0).

        Besides the passes over x: the convolution needs neighbours, so mean and max are written and read, float32;
        gate and the channel of the max, 4 bytes each, are written for backward; the weight is read. 24 bytes a pixel.
        """
        return self.x.forward_passes(l2_bytes) * self.x.nbytes + 24 * self._pixels + self._weight

    def backward_bytes(self) -> int:
        """Return the least bytes that backward moves.

        Besides the passes over maps: gate, mean, max and the channel of the max are read, and the gradient of the
        logits is written and, for the convolution's neighbours, read. 24 bytes a pixel. The weight is read and its
        gradient written.
        """
        return BACKWARD_PASSES * self.x.nbytes + 24 * self._pixels + 2 * self._weight

    @property
    def _pixels(self) -> int:
        return self.x.batch * self.x.height * self.x.width

    @property
    def _weight(self) -> int:
        return 2 * KERNEL**2 * self.x.dtype.itemsize


def shapes_on(device: str) -> list[Shape]:
    """Return the shapes to time on "cuda" or "cpu"."""
    return [Shape(x) for x in feature_maps_on(device)]


def ours(x, weight):
    """Call this project's op."""
    return kernels.spatial_attention(x, weight)


def eager(x, weight):
    """The definition."""
    return kernels.spatial_attention.reference(x, weight)


def timm(x, weight):
    """timm's SpatialAttn, part of its CBAM, in evaluation, with an identity BatchNorm.

    It differs from the definition by this BatchNorm, one more pass over the map of logits; by `amax`, which splits the
    gradient among tied channels; and by rounding mean, max, logits and gate to x's dtype.
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
