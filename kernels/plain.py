"""Whether a layer still computes what its class defines, so that an op may read its parameters in place of a call.

Many changes of a layer keep its parameters: hooks (weight norm and spectral norm as hooks, pruning, FSDP2), another
module in its place (adapters, quantisation), a forward replaced on the object. These functions are called at every
forward, since a model may change after it is made.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook as has_any_global_hook

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")

# The attributes of a swapped module: its plan, with the places of the op's operands, and its remembered state.
PLAN, REMEMBERED = "_fuse_plan", "_fuse_remembered"
TRACES_ATTRIBUTES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)  # before, Dynamo cannot list them
OF_COMPILE = "_compiled_call_impl", "_is_torch_compile"  # which torch.compile and nn.Module.compile set
# What every module has from torch, and what a swapped one gets, is looked at apart or has no say in a forward.
NOT_REMEMBERED = frozenset((*vars(nn.Module()), *OF_COMPILE, PLAN, REMEMBERED))


def is_plain(layer: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Return whether `layer` is a `kind`, with or without parametrisations, and its call does no more than `kind`'s.

    `torch.nn.utils.parametrize` is allowed: `layer.weight` is then computed when it is read.
    """
    if not isinstance(layer, nn.Module) or _class_of(layer) is not kind or _does_more(layer):
        return False
    return _holds_weight(layer) and all(method.__module__ == kind.__module__ for method in computations(kind))


def is_pointwise(layer: nn.Module | None) -> bool:
    """Return whether `layer` is a plain 1x1 convolution."""
    return is_plain(layer, nn.Conv2d) and _geometry(layer) == ((1, 1), (1, 1), (0, 0), (1, 1), 1, "zeros")


def is_along_channels(layer: nn.Module | None) -> bool:
    """Return whether `layer` is a plain convolution of one signal to one, with nothing but its weight and zeros."""
    if not is_plain(layer, nn.Conv1d) or layer.bias is not None or (layer.in_channels, layer.out_channels) != (1, 1):
        return False
    return (layer.stride, layer.dilation, layer.groups, layer.padding_mode) == ((1,), (1,), 1, "zeros")


def is_centred(layer: nn.Module | None) -> bool:
    """Return whether `layer` is a plain convolution that `polychrome.kernels.spatial_attention` supports."""
    if not is_plain(layer, nn.Conv2d) or (layer.in_channels, layer.out_channels) != (2, 1):
        return False
    k = layer.kernel_size[0]
    return k % 2 == 1 and k > 1 and _geometry(layer) == ((k, k), (1, 1), (k // 2, k // 2), (1, 1), 1, "zeros")


class Definition:
    """What a class and its bases but torch's defined, which copies of a module share.

    A pickle has the numbers and strings; other objects are read from the class again, as its functions are.
    """

    def __init__(self, kind: type[nn.Module], known: dict[str, object] | None = None):
        self.kind, self.entries = kind, tuple((of_class(kind) | (known or {})).items())

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return Definition, (self.kind, {n: value for n, value in self.entries if isinstance(value, int | float | str)})

    def holds(self) -> bool:
        """Return whether the class defines the same now."""
        for name, value in self.entries:
            found = getattr(self.kind, name, self)
            if found is not value and not is_same(frozen(found), value):
                return False
        return True


class Remembered(NamedTuple):
    """The state of a module: its class, what it computes by, its attributes, lists and dicts as tuples, its children.

    `names`: of its attributes, parameters and buffers; `absent`: of the parameters and buffers that were None.
    """

    kind: type[nn.Module]
    computations: tuple[Callable, ...]
    definition: Definition
    attributes: tuple[tuple[str, Any], ...]
    names: frozenset[str]
    absent: tuple[str, ...]
    children: tuple[tuple[str, "Remembered | None"], ...]


def remember(module: nn.Module, called: tuple[str, ...] = ()) -> Remembered:
    """Return the state that `is_as_remembered` compares; the submodules at the paths `called` may change."""
    own = ((name, frozen(value)) for name, value in vars(module).items() if name not in NOT_REMEMBERED)
    held = module._parameters | module._buffers
    names = NOT_REMEMBERED | vars(module).keys() | held.keys()
    absent = (name for name, value in held.items() if value is None)
    children = []
    for name, child in module._modules.items():
        if name == "parametrizations":
            continue
        inside = tuple(path[len(name) + 1 :] for path in called if path.startswith(f"{name}."))
        children.append((name, None if child is None or name in called else remember(child, inside)))
    kind, found = _class_of(module), computations(type(module))
    return Remembered(kind, found, Definition(kind), tuple(own), names, tuple(absent), tuple(children))


def is_as_remembered(module: nn.Module, then: Remembered) -> bool:
    """Return whether `module` is as it was remembered, apart from its own hooks and forward.

    Parameters may have any values, and parametrisations; buffers too, which `tensors_beside` tells before. Submodules
    have to be of the same classes, without hooks, and attributes, also of classes, the same objects, or equal where
    they are numbers and strings; no attribute, parameter or buffer may be new.
    """
    if _holds_more(module, then):
        return False
    if not _are_hidden() and then.definition.entries and not then.definition.holds():
        return False
    for name, value in then.attributes:
        if not is_same(frozen(module.__dict__.get(name, then)), value):
            return False
    names = [name for name in module._modules if name != "parametrizations"]
    if len(names) != len(then.children):
        return False
    for name, (expected, child_then) in zip(names, then.children, strict=True):
        if name != expected:
            return False
        if child_then is not None:
            child = module._modules[name]
            if child is None or _class_of(child) is not child_then.kind or _does_more(child):
                return False
            if computations(type(child)) != child_then.computations:
                return False
            if not is_as_remembered(child, child_then):
                return False
    return True


def _holds_more(module: nn.Module, then: Remembered) -> bool:
    """Return whether a module has an attribute, a parameter or a buffer that it had not."""
    for held in (module._parameters, module._buffers, {} if _are_hidden() else module.__dict__):
        for name in held:
            if name not in then.names and name[:2] != "__":  # names with two underscores are torch's, of FSDP
                return True
    for name in then.absent:
        if module._parameters.get(name) is not None or module._buffers.get(name) is not None:
            return True
    return False


def _are_hidden() -> bool:
    """Return whether Dynamo runs and cannot list attributes."""
    return not TRACES_ATTRIBUTES and torch.compiler.is_compiling()


def of_class(kind: type[nn.Module]) -> dict[str, object]:
    """Return the attributes, properties and methods of a class and its bases but torch's, lists and dicts as tuples.

    Without `__...` names, and what is another object at every look, as a class method is.
    """
    own = (base for base in kind.__mro__ if base is not object and not base.__module__.startswith("torch."))
    found = {name: frozen(getattr(kind, name, None)) for base in own for name in vars(base) if name[:2] != "__"}
    return {name: value for name, value in found.items() if is_same(frozen(getattr(kind, name, None)), value)}


def tensors_beside(module: nn.Module, called: tuple[str, ...] = ()) -> list[str]:
    """Return the paths of buffers, and of attributes with tensors, outside the submodules at the paths `called`."""
    found = []
    for path, inner in module.named_modules():
        if not any(path == each or path.startswith(f"{each}.") for each in called):
            own = of_class(type(inner))
            own |= {name: value for name, value in vars(inner).items() if name not in NOT_REMEMBERED}
            held = [name for name, value in (inner._buffers | own).items() if _has_tensor(frozen(value))]
            found += [f"{path}.{name}" if path else name for name in held]
    return found


def _has_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor) or (isinstance(value, tuple) and any(map(_has_tensor, value)))


def _class_of(module: nn.Module) -> type[nn.Module]:
    """Return the class a module had before `torch.nn.utils.parametrize` replaced it."""
    return type(module).__bases__[0] if "parametrizations" in module._modules else type(module)


def _does_more(module: nn.Module) -> bool:
    """Return whether calling `module` runs hooks, or computes by another method than its class's."""
    if module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks:
        return True
    return "forward" in module.__dict__ or "_conv_forward" in module.__dict__ or has_any_global_hook()


def computations(kind: type[nn.Module]) -> tuple[Callable, ...]:
    """Return a class's forward and, of a convolution's class, the method that it calls, which many replace."""
    convolve = getattr(kind, "_conv_forward", None)
    return (kind.forward,) if convolve is None else (kind.forward, convolve)


def replaced_method(module: nn.Module) -> str | None:
    """Return the name of a method replaced on the object, its forward or one that nn.Module has not; None for none."""
    for name in vars(module).keys() - NOT_REMEMBERED:
        is_method = inspect.isfunction(getattr(type(module), name, None))
        if is_method and (name == "forward" or not hasattr(nn.Module, name)):
            return name
    return None


def _holds_weight(layer: nn.Module) -> bool:
    """Return whether the weight is a parameter, perhaps parametrised, or there is none, as in an activation."""
    return "weight" in layer._parameters or "parametrizations" in layer._modules or not hasattr(layer, "weight")


def _geometry(conv: nn.Conv2d) -> tuple:
    return conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode


def frozen(value: object) -> object:
    """Return `value`, lists and dicts as tuples, which nobody can change afterwards."""
    if isinstance(value, list | tuple):
        return tuple(map(frozen, value))
    return tuple((name, frozen(each)) for name, each in value.items()) if isinstance(value, dict) else value


def is_same(one: object, other: object) -> bool:
    """Return whether two values, each `frozen`, are the same objects, equal numbers or equal strings."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    return isinstance(one, int | float | str | bytes | torch.dtype | torch.device) and one == other
