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


@dataclass(frozen=True)
class Complexity:
    """Costs of one image of the measured size.

    `macs` is half of `flops`, which torch's flop counter gives (convolutions, matrix products and this project's
    ops). `activation_mb` is the "forward/backward pass size" of the reports' summaries: twice the outputs of all
    leaf modules in float32, in units of 10^6 bytes. `depth` is the number of weight layers on the longest path
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
        if not any(True for _ in module.children()):
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


class _DepthMode(TorchDispatchMode):
    """Gives every tensor the largest number of weight layers between the input and it."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self._batch = len(images)
        self._depths: dict[int, int] = {}
        self._alive: list[Tensor] = []

    def of(self, tensor: Tensor) -> int:
        return self._depths.get(id(tensor), 0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        name = func._schema.name
        if name in _CONVOLUTIONS:
            value = self.of(args[0]) + (not self._is_vector(args[0]))
        elif name in _LINEAR:
            value = max(map(self.of, inputs)) + (not self._is_vector(args[_LINEAR[name]]))
        else:
            value = max(map(self.of, inputs), default=0)
        for output in tree_leaves(result):
            if isinstance(output, Tensor):
                # Ids are unique only among living tensors, so each one is kept to the end.
                self._alive.append(output)
                self._depths[id(output)] = max(value, self.of(output))
        return result

    def _is_vector(self, features: Tensor) -> bool:
        """Return whether `features` has one vector per sample, [batch, channels] or [batch, channels, 1, 1]."""
        return features.shape[0] == self._batch and features[0].numel() == features.shape[1]


def _count_output(outputs: list[int], _module: nn.Module, _inputs: tuple, output) -> None:
    outputs.extend(leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
