"""What a model costs: parameters, multiply-adds, FLOPs, activation memory and depth, for one image."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import kernels.modules


@dataclass(frozen=True)
class Complexity:
    """Costs of one image of the measured size.

    `macs` is half of `flops`, which torch's flop counter gives (convolutions, matrix products and this project's
    ops). `activation_mb` is torchinfo's "forward/backward pass size": twice the outputs of all layers that have
    parameters, in float32, in units of 10^6 bytes. `depth` is the number of weight layers on the longest path
    between the input and the classifier head; see `depth`.
    """

    params: int
    macs: int
    flops: int
    activation_mb: float
    depth: int


def measure(model: nn.Module, channels: int, size: int) -> Complexity:
    """Return the costs of `model` for an image [channels, size, size]; the model itself is not touched."""
    # Two images on the meta device: nothing is computed, and the batch axis cannot be mistaken for a channel.
    model = copy.deepcopy(model).to("meta").eval()
    images = torch.empty(2, channels, size, size, device="meta")
    outputs: list[int] = []
    for module in model.modules():
        if _is_layer(module):
            module.register_forward_hook(partial(_count_output, outputs))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(images)
    flops = counter.get_total_flops() // len(images)
    return Complexity(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=flops // 2,
        flops=flops,
        activation_mb=2 * 4 * sum(outputs) / len(images) / 1e6,
        depth=depth(model, images),
    )


def depth(model: nn.Module, images: Tensor) -> int:
    """Return the number of weight layers on the longest path between input and classifier head.

    Weight layers are convolutions and linear layers on feature maps or tokens. A layer on one vector per sample
    (after global pooling) belongs to the head or to a gate and does not count; nor does a gate inside one of this
    project's ops, nor the path that makes a dynamic convolution's kernels.
    """
    with torch.no_grad(), _DepthMode(images) as mode:
        logits = model(images)
    return mode.of(logits)


# Operators that apply a linear layer, and which argument holds the features.
_LINEAR = {"aten::addmm": 1, "aten::mm": 0, "aten::bmm": 0, "aten::linear": 0}
_CONVOLUTIONS = {
    "aten::convolution",
    "aten::_convolution",
    "polychrome::dynamic_conv2d",
    "polychrome::per_sample_conv2d",
}


# Operators that pool a whole map when what they leave is one value per channel.
_POOLS = {
    "aten::mean",
    "aten::adaptive_avg_pool2d",
    "aten::_adaptive_avg_pool2d",
    "aten::adaptive_max_pool2d",
    "aten::amax",
}


@dataclass(frozen=True)
class _Trace:
    """The largest number of weight layers between the input and a tensor, and whether the map has been pooled away."""

    depth: int
    pooled: bool


class _DepthMode(TorchDispatchMode):
    """Traces every tensor that depends on the images; parameters and what is made of them alone have no trace."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self._batch = len(images)
        # Ids are unique only among living tensors, so each one is kept to the end.
        self._alive = [images]
        self._traces = {id(images): _Trace(0, pooled=False)}

    def of(self, tensor: Tensor) -> int:
        return self._traces[id(tensor)].depth

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        leaves = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        weighted = name in _CONVOLUTIONS or name in _LINEAR
        if name in _CONVOLUTIONS:
            leaves = [args[0]]
        elif name in _LINEAR:
            leaves = [args[_LINEAR[name]]]
        traces = [self._traces[id(leaf)] for leaf in leaves if id(leaf) in self._traces]
        if not traces:
            return result
        pooled = all(trace.pooled for trace in traces)
        depth = max(trace.depth for trace in traces) + (weighted and not pooled)
        for output in tree_leaves(result):
            if isinstance(output, Tensor):
                self._alive.append(output)
                self._traces[id(output)] = _Trace(depth, pooled or self._pools(name, output))
        return result

    def _pools(self, name: str, output: Tensor) -> bool:
        """Return whether the operator leaves one vector per sample: by global pooling, or by flattening the map."""
        if output.ndim == 2:
            return output.shape[0] == self._batch
        return name in _POOLS and output.ndim == 4 and output.shape[2:] == (1, 1)


def _is_layer(module: nn.Module) -> bool:
    """Return whether a module with parameters computes its output itself, rather than by calling its children."""
    calls_children = any(True for _ in module.children()) and type(module).__module__ != kernels.modules.__name__
    return not calls_children and any(True for _ in module.parameters())


def _count_output(outputs: list[int], _module: nn.Module, _inputs: tuple, output) -> None:
    outputs.extend(leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
