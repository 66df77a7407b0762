"""The gates that a module multiplies by: whether it may have gates, and the gates of one call."""

import inspect

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.overrides import TorchFunctionMode

from polychrome.kernels.fuse.swapped import PRODUCTS

# What makes a gate of logits, as a module and as a word in a forward.
ACTIVATIONS = (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softmax2d, nn.Tanh, nn.Hardtanh)  # nn.ReLU6 is a Hardtanh
WORDS = {"sigmoid", "sigmoid_", "hardsigmoid", "softmax", "tanh", "relu6", "hardtanh"}
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
IN_PLACE = {torch.Tensor.mul_, torch.Tensor.__imul__}


def may_gate(module: nn.Module) -> bool:
    """Return whether a module's forward, or a child of it without parameters, may make a gate."""
    return bool(WORDS & _words(module)) or any(map(_is_activation, _children(module)))


def is_torchs(module: nn.Module) -> bool:
    """Return whether a module's class is one of torch's own."""
    return type_before_parametrizations(module).__module__.startswith("torch.")


def _children(module: nn.Module):
    """Yield the children; containers are replaced by their children."""
    for child in module.children():
        yield from _children(child) if isinstance(child, CONTAINERS) else (child,)


def _is_activation(module: nn.Module) -> bool:
    if isinstance(module, ACTIVATIONS):
        return True
    if is_torchs(module) or any(True for _ in module.parameters()):
        return False
    return may_gate(module)


def _words(module: nn.Module) -> set[str]:
    """Return the names that the code of a module's forward uses."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return set() if code is None else set(code.co_names)


class Gates(TorchFunctionMode):
    """Collects the factors that `module` itself multiplies x or other tensors by: one per sample, broadcast.

    Products inside submodules with parameters, other than torch's own, are not counted.
    """

    def __init__(self, module: nn.Module, x: Tensor):
        super().__init__()
        self.x, self.depth = x, 0
        self.of_x: list[tuple[int, ...]] = []
        self.of_x_in_place: list[tuple[int, ...]] = []
        self.of_others: list[tuple[int, ...]] = []
        for inner in module.modules():
            if inner is not module and not is_torchs(inner) and any(True for _ in inner.parameters()):
                inner.register_forward_pre_hook(lambda *_: self._enter(1))
                inner.register_forward_hook(lambda *_: self._enter(-1))

    def any(self) -> bool:
        """Return whether there was any."""
        return bool(self.of_x or self.of_x_in_place or self.of_others)

    def _enter(self, step: int) -> None:
        self.depth += step

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if self.depth == 0 and func in PRODUCTS | IN_PLACE and len(args) == 2:
            for one, other in (args, args[::-1]):
                if shape := _gate_shape(one, other):
                    of_x = self.of_x_in_place if func in IN_PLACE else self.of_x
                    (of_x if one is self.x else self.of_others).append(shape)
        return func(*args, **(kwargs or {}))


def _gate_shape(x, factor) -> tuple[int, ...] | None:
    """Return the shape of the gate that `factor` is for maps x, or is expanded from; None if it is not a gate."""
    if not (isinstance(x, Tensor) and isinstance(factor, Tensor)) or factor.dim() != x.dim() or x.dim() < 4:
        return None
    shape = tuple(1 if step == 0 else size for size, step in zip(factor.shape, factor.stride(), strict=True))
    pairs = list(zip(shape, x.shape, strict=True))
    is_broadcast = all(size in (1, full) for size, full in pairs) and any(size < full for size, full in pairs)
    return shape if is_broadcast and shape[0] == x.shape[0] > 1 else None


def in_words(gate: tuple[int, ...], x: tuple[int, ...]) -> str:
    """Return a gate's shape in words, for an input x [batch, channels, height, width]."""
    if len(gate) != 4:
        return str([f"batch={gate[0]}", *gate[1:]]).replace("'", "")
    names = ("batch", "channels", "height", "width")
    dims = [name if size == full else str(size) for name, size, full in zip(names, gate, x, strict=True)]
    return f"[{', '.join(dims)}]"
