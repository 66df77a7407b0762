"""The cost of a model: parameters, multiply-adds, FLOPs, activation memory and depth, for one image."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from polychrome.kernels import use_backend
from polychrome.kernels.modules.layers import is_ours


@dataclass(frozen=True)
class Complexity:
    """Costs of one image of the measured size: half of those of two images in a batch, without a mask.

    What a network computes once for a batch counts half, such as the kernels that a `prism4` makes for the channels of
    all images.

    `macs` is half of `flops`, which torch's flop counter gives (convolutions, matrix products and this project's
    ops). `activation_mb` is torchinfo's "forward/backward pass size": twice the outputs of all layers that have
    parameters, in float32, in units of 10^6 bytes. `depth` is the number of weight layers on the longest path between
    the input and the classifier head; see `depth`. `distinct_layers` counts a layer of the path once even if it is
    applied several times.
    """

    params: int
    macs: int
    flops: int
    activation_mb: float
    depth: int
    distinct_layers: int


def measure(model: nn.Module, channels: int, size: int) -> Complexity:
    """Return the costs of `model` for an image [channels, size, size]; the model itself is not touched."""
    # Two images on the meta device: nothing is computed, and the batch axis differs from a single channel.
    model = copy.deepcopy(model).to("meta").eval()
    images = torch.empty(2, channels, size, size, device="meta")
    layers = path(model, images)
    outputs: list[int] = []
    for module in dict.fromkeys(_layers(model)):
        module.register_forward_hook(partial(_count_output, outputs))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(images)
    flops = counter.get_total_flops() // len(images)
    activations = sum(outputs) / len(images)
    return Complexity(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=flops // 2,
        flops=flops,
        activation_mb=2 * 4 * activations / 1e6,
        depth=len(layers),
        distinct_layers=len(set(layers)),
    )


def depth(model: nn.Module, images: Tensor, gates: bool = False) -> int:
    """Return the number of weight layers on the longest path from images [batch, channels, height, width] to the head.

    Weight layers are convolutions and linear layers on feature maps or tokens. A layer on one vector per sample
    (after global pooling) belongs to the head or to a gate and does not count; nor does the path that makes a dynamic
    convolution's kernels, nor a gate inside one of this project's ops. With `gates` the ops are written out: the
    convolution of a spatial gate counts as part of the path that it multiplies. A layer that is applied several times
    counts each time.
    """
    with use_backend("reference") if gates else nullcontext():
        return len(path(model, images))


def path(model: nn.Module, images: Tensor) -> tuple[frozenset[str], ...]:
    """Return the weight layers on the longest path, see `depth`, each as the names of the parameters of its kernels.

    images: [batch, channels, height, width]. Of paths of one length the one with the most distinct layers is returned.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    with torch.no_grad(), _PathMode(images, names) as mode:
        logits = model(images)
    return mode.of(logits)


# Operators that apply a linear layer, and which arguments hold the features and the weights.
_LINEAR = {"aten::addmm": (1, 2), "aten::mm": (0, 1), "aten::bmm": (0, 1), "aten::linear": (0, 1)}
_CONVOLUTIONS = re.compile(r"aten::_?convolution|polychrome::(dynamic|per_sample)_conv\w*")


# Operators that pool a whole map if their output has one value per channel.
_POOLS = {
    "aten::mean",
    "aten::adaptive_avg_pool2d",
    "aten::_adaptive_avg_pool2d",
    "aten::adaptive_max_pool2d",
    "aten::amax",
}


@dataclass(frozen=True)
class _Trace:
    """How a tensor was computed.

    Attributes:
        layers: the weight layers on the longest path from the images to the tensor; None if it does not depend on the
            images.
        pooled: whether the map has been pooled away.
        weights: the names of the parameters used since the last weight layer or pooling.
    """

    layers: tuple[frozenset[str], ...] | None
    pooled: bool = False
    weights: frozenset[str] = frozenset()


class _PathMode(TorchDispatchMode):
    """Traces every tensor that depends on the images or on parameters."""

    def __init__(self, images: Tensor, names: dict[int, str]) -> None:
        super().__init__()
        self._batch = len(images)
        self._names = names
        # Ids are unique only among living tensors, so each one is kept to the end.
        self._alive = [images]
        self._traces = {id(images): _Trace(())}

    def of(self, tensor: Tensor) -> tuple[frozenset[str], ...]:
        return self._traces[id(tensor)].layers

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        convolves = bool(_CONVOLUTIONS.fullmatch(name))
        features, weights = (0, 1) if convolves else _LINEAR.get(name, (None, None))
        made_of = [trace for leaf in tree_leaves((args, kwargs)) if (trace := self._trace(leaf))]
        seen = made_of if features is None else filter(None, [self._trace(args[features])])
        paths = [trace for trace in seen if trace.layers is not None]
        pooled = bool(paths) and all(trace.pooled for trace in paths)
        layers = max((trace.layers for trace in paths), key=_length, default=None)
        kernels_of = None if features is None else self._trace(args[weights])
        if paths and not pooled and (kernels_of or convolves):  # a product with constants is no layer
            kernels_of = kernels_of or _Trace(None)
            layers, found = (*layers, kernels_of.weights), frozenset()
        else:
            found = frozenset().union(*(trace.weights for trace in made_of))
        for output in tree_leaves(result):
            if isinstance(output, Tensor) and (layers is not None or found):
                self._alive.append(output)
                now_pooled = not pooled and self._pools(name, output)
                self._traces[id(output)] = _Trace(layers, pooled or now_pooled, frozenset() if now_pooled else found)
        return result

    def _trace(self, leaf: object) -> _Trace | None:
        if id(leaf) in self._names:
            return _Trace(None, weights=frozenset([self._names[id(leaf)]]))
        return self._traces.get(id(leaf)) if isinstance(leaf, Tensor) else None

    def _pools(self, name: str, output: Tensor) -> bool:
        """Return whether the operator leaves one vector per sample: by global pooling, or by flattening the map."""
        if output.ndim == 2:
            return output.shape[0] == self._batch
        return name in _POOLS and output.ndim == 4 and output.shape[2:] == (1, 1)


def _length(layers: tuple[frozenset[str], ...]) -> tuple[int, int]:
    return len(layers), len(set(layers))


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules with parameters that compute their output themselves, rather than by calling their children.

    Layers inside a module of `polychrome.kernels` are left out: a hook would have them called.
    """
    children = list(module.children())
    if not children or is_ours(type(module)):
        if any(True for _ in module.parameters()):
            yield module
        return
    for child in children:
        yield from _layers(child)


def _count_output(outputs: list[int], _module: nn.Module, _inputs: tuple, output) -> None:
    outputs.extend(leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
