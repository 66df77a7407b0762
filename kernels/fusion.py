"""Batch normalisation and ReLU folded into the dynamic convolutions before them, for inference."""

import copy
import math
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import kernels
from kernels import modules
from kernels.tensors import wide_dtype

__all__ = ["fuse"]

RELU_FUNCTIONS = (F.relu, torch.relu, torch.relu_)
RELU_METHODS = ("relu", "relu_")


def fuse(model: nn.Module) -> nn.Module:
    """Return an eval copy of `model` whose `DynamicConv2d`s do the batch normalisation and ReLU that follow them.

    A `nn.BatchNorm2d` with running statistics becomes the convolution's `scale` and `shift`, and a ReLU (module,
    function or method) after either becomes part of the same call. What has another user stays as it is, and so does a
    convolution called more than once. The copy is for inference: it computes what `model.eval()` does, up to rounding,
    and its parameters ask for no gradient. `model` itself is not touched.

    The copy is a `torch.fx.GraphModule`: names in the state dict stay, but of the model's own attributes and methods
    only `forward` is kept. Fuse before `torch.compile`.

    Raises:
        ValueError: torch.fx cannot trace `model`.
    """
    copied = copy.deepcopy(model).eval().requires_grad_(False)  # a call that records gradients is not fused
    graph = _trace(copied)
    named = dict(copied.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in list(graph.nodes):
        conv = _called(node, named)
        if type(conv) is modules.DynamicConv2d and calls[node.target] == 1:
            _take_over_followers(node, conv, named)
    graph.lint()
    return fx.GraphModule(copied, graph, type(model).__name__)


class _Tracer(fx.Tracer):
    """Keeps the modules and functions of `kernels` whole."""

    def __init__(self):
        super().__init__(autowrap_modules=(math, kernels))

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        ours = any(base.__module__ == modules.__name__ for base in type(module).__mro__)
        return ours or super().is_leaf_module(module, name)


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(model)
    except Exception as error:
        raise ValueError(
            f"torch.fx cannot trace {type(model).__name__} ({error}); fuse the parts of it whose forward does not "
            "branch on tensors, as in model.features = fuse(model.features)"
        ) from error


def _take_over_followers(node: fx.Node, conv: modules.DynamicConv2d, named: dict[str, nn.Module]) -> None:
    """Fold the normalisation and the ReLU that alone use the output of `node`, a call of `conv`, into `conv`."""
    follower = _only_user(node)
    norm = _called(follower, named)
    if type(norm) is nn.BatchNorm2d and norm.running_mean is not None and conv.scale is None and not conv.relu:
        conv.scale, conv.shift = _folded(norm)
        _bypass(follower, node)
        follower = _only_user(node)
    if _is_relu(follower, named):
        conv.relu = True
        _bypass(follower, node)


def _folded(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return scale and shift, [channels], with `norm(y) = y * scale + shift` in evaluation."""
    wide = wide_dtype(norm.running_var.dtype)
    scale = (norm.running_var.to(wide) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach()
    return scale, shift


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _called(node: fx.Node | None, named: dict[str, nn.Module]) -> nn.Module | None:
    """Return the module that `node` calls, if it calls one."""
    return named[node.target] if node is not None and node.op == "call_module" else None


def _is_relu(node: fx.Node | None, named: dict[str, nn.Module]) -> bool:
    if node is None or node.op == "call_module":
        return type(_called(node, named)) is nn.ReLU
    return node.target in (RELU_FUNCTIONS if node.op == "call_function" else RELU_METHODS)


def _bypass(node: fx.Node, source: fx.Node) -> None:
    """Take `node` out of the graph; its users get `source` instead."""
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)
