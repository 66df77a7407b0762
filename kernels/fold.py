"""Batch normalisation and ReLU folded into the dynamic convolutions before them, for inference."""

import copy
import inspect
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import _assert_is_none

from polychrome.kernels import modules
from polychrome.kernels.fuse.candidates import obstacle
from polychrome.kernels.modules.layers import is_ours
from polychrome.kernels.tensors import wide_dtype

__all__ = ["fold_batch_norm"]

RELU_FUNCTIONS = (F.relu, torch.relu, torch.relu_)
RELU_METHODS = ("relu", "relu_")


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Return an eval copy of `model` whose `DynamicConv2d`s do the batch normalisation and ReLU that follow them.

    A `nn.BatchNorm2d` with running statistics becomes the convolution's `scale` and `shift`, and a ReLU (module,
    function or method) after either becomes part of the same call. A convolution stays unchanged if its output has
    another user, if it is called more than once or has two names in the model, or if a layer has hooks or a
    parametrisation. The copy is for inference: it computes the same as `model.eval()`, up to rounding, and its
    parameters do not require gradients. `model` itself is not changed.

    The copy is a `torch.fx.GraphModule`. Its state dict has the model's names without those of the normalisations that
    were folded, whose `scale` and `shift` the convolutions hold. Of the model's own attributes and methods only
    `forward` is kept. If `forward` asks whether an argument is None, its default, the copy's argument must stay
    None (AssertionError). A single layer of this package is returned unchanged, in evaluation mode. Fold before
    `torch.compile`.

    Raises:
        ValueError: torch.fx cannot trace `model`, the graph would lose a forward hook, or an attribute is a tensor that
            torch does not copy.
    """
    try:
        copied = copy.deepcopy(model)
    except RuntimeError as error:  # torch copies no tensor that a graph has made, such as a weight just pruned
        raise ValueError(
            f"the model cannot be copied: {error}; make pruning permanent by torch.nn.utils.prune.remove, or call the "
            "model once under torch.no_grad"
        ) from error
    copied = copied.eval().requires_grad_(False)  # a call that records gradients is not fused
    if is_ours(copied):
        return copied
    graph = _trace(copied)
    named = dict(copied.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    places = Counter(id(module) for _, module in copied.named_modules(remove_duplicate=False))
    for node in list(graph.nodes):
        conv = _called(node, named)
        once = calls[node.target] == places[id(conv)] == 1  # at another place, a layer that is not traced may call it
        if once and type(conv) is modules.DynamicConv2d and obstacle(conv) is None:
            _take_over_followers(node, conv, named)
    graph.lint()
    return fx.GraphModule(copied, graph, type(model).__name__)


class _Tracer(fx.Tracer):
    """Keeps the modules of `kernels` whole, as its functions are anyway."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return is_ours(module) or super().is_leaf_module(module, name)

    def call_module(self, m: nn.Module, forward, args, kwargs):
        if not self.is_leaf_module(m, name := self.path_of_module(m)):
            _check_hooks(m, name)
        return super().call_module(m, forward, args, kwargs)


def _check_hooks(module: nn.Module, name: str) -> None:
    """Raise ValueError if a module that is traced into has forward hooks."""
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError(f"{name} has a forward hook, which the graph would run once, now")


def _trace(model: nn.Module) -> fx.Graph:
    """Return the graph of the model, without arguments whose absence (None) its forward asks for."""
    parameters = inspect.signature(model.forward).parameters
    none = {name: None for name, parameter in parameters.items() if parameter.default is None}
    try:
        _check_hooks(model, "the model")
        given = _Tracer().trace(model)
    except Exception as error:
        raise ValueError(
            f"torch.fx cannot trace {type(model).__name__} ({error}); fold the parts of it whose forward does not "
            "branch on tensors, as in model.features = fold_batch_norm(model.features)"
        ) from error
    # Tracing hands every argument over as something, so that a forward that asks whether it is None goes the other way.
    try:
        absent = _Tracer().trace(model, none) if none else given
    except Exception:  # the forward needs the arguments
        return given
    for node in absent.nodes:
        if node.op == "placeholder" and node.target not in parameters:
            node.target = node.target.removesuffix("_1")  # fx adds it to the names of fixed arguments
    return given if _calls(given, none) == _calls(absent, none) else absent


def _calls(graph: fx.Graph, none: dict[str, None]) -> list[tuple]:
    """Return the calls of the graph with their arguments, the arguments named in `none` as None."""
    places, found = {}, []
    for node in graph.nodes:
        if node.op == "placeholder" and node.target in none:
            places[node] = None
        elif node.target is not _assert_is_none:
            places[node] = f"%{len(found)}"
            inputs = fx.node.map_arg((node.args, node.kwargs), places.__getitem__)
            found.append((node.op, node.target, repr(inputs)))
    return found


def _take_over_followers(node: fx.Node, conv: modules.DynamicConv2d, named: dict[str, nn.Module]) -> None:
    """Fold the normalisation and the ReLU that alone use the output of `node`, a call of `conv`, into `conv`."""
    follower = _only_user(node)
    norm = _called(follower, named)
    if _is_foldable(norm) and conv.scale is None and not conv.relu:
        conv.scale, conv.shift = _folded(norm)
        _bypass(follower, node)
        follower = _only_user(node)
    if _is_relu(follower, named):
        conv.relu = True
        _bypass(follower, node)


def _is_foldable(norm: nn.Module | None) -> bool:
    return type(norm) is nn.BatchNorm2d and norm.running_mean is not None and obstacle(norm) is None


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
        relu = _called(node, named)
        return type(relu) is nn.ReLU and obstacle(relu) is None
    return node.target in (RELU_FUNCTIONS if node.op == "call_function" else RELU_METHODS)


def _bypass(node: fx.Node, source: fx.Node) -> None:
    """Take `node` out of the graph; its users get `source` instead."""
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)
