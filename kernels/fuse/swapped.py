"""The classes that swapped modules get: their own, with a forward that calls an op.

A swapped module stays the object it was, as with torch's parametrisations: parameters, buffers, attributes, methods,
`isinstance` and the forward's signature are unchanged. It runs its own forward where no op is faster, such as on a CPU,
where the parts whose parameters an op would take have changed since, and for other arguments than a trial gives.
"""

from functools import wraps
from inspect import signature
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from polychrome.kernels.backend import current_backend, runs_triton
from polychrome.kernels.channel_gate import channel_gate
from polychrome.kernels.channel_gate.scale import channel_scale
from polychrome.kernels.plain import PLAN, REMEMBERED, Remembered, computations, is_as_remembered, remember
from polychrome.kernels.spatial_attention import channel_stats, spatial_attention, spatial_gate

_classes: WeakValueDictionary = WeakValueDictionary()


class Form:
    """What a swapped module computes in place of its own forward; the classes have no instances.

    `dims`: the numbers of dimensions of its arguments, x first.
    """

    op = ""
    dims: tuple[int, ...] = (4,)

    @classmethod
    def ops(cls, plan: tuple | None) -> str:
        """Return the names of the ops that it calls."""
        return cls.op

    @classmethod
    def called(cls, plan: tuple | None) -> tuple[str, ...]:
        """Return the paths of the submodules that it calls, which may become anything."""
        return ()

    @classmethod
    def objection(cls, module: nn.Module, plan: tuple | None, x: Tensor) -> str | None:
        """Return why a trial with x would fail, in words for a user; None for no known reason."""
        return None

    @staticmethod
    def gives_way(module: nn.Module, x: Tensor) -> bool:
        """Return whether the module's own forward is as good for x, or something else than when it was swapped."""
        return prefers_its_own(x) or has_changed(module)

    @staticmethod
    def computed(module: nn.Module, x: Tensor, *others: Tensor) -> Tensor:
        """Return the result for arguments of `dims` dimensions."""
        raise NotImplementedError


class Swapped:
    """Mixin before a module's own class; no name of it but dunders and `_fuse...`, which the own class has not."""

    _fuse_form: type[Form]
    _fuse_own: type[nn.Module]

    def __reduce_ex__(self, protocol):
        return _restore, (self._fuse_form, self._fuse_own), self.__getstate__()


def swap(module: nn.Module, form: type[Form], plan: tuple | None) -> None:
    """Let `module` compute by `form`.

    Raises:
        TypeError: Python cannot change the class of `module`.
    """
    then = remember(module, form.called(plan))
    module.__class__ = _class_of(form, type(module))
    module.__dict__.update({PLAN: plan, REMEMBERED: then})


def _class_of(form: type[Form], own: type[nn.Module]) -> type[nn.Module]:
    """Return the class that puts a forward by `form` before `own`, always the same object."""
    made = _classes.get((form, own))
    if made is None:
        names = {"__module__": own.__module__, "forward": _forward(form, own), "_fuse_form": form, "_fuse_own": own}
        made = type(f"Fused{own.__name__}", (Swapped, own), names)
        _classes[form, own] = made
    return made


def _restore(form: type[Form], own: type[nn.Module]) -> nn.Module:
    made = _class_of(form, own)
    return made.__new__(made)


def _forward(form: type[Form], own: type[nn.Module]):
    """Return a forward of the own one's signature, by `form` for arguments as a trial gives them, else the own."""
    parameters = list(signature(own.forward).parameters.values())[1 : len(form.dims) + 1]
    names = [each.name if each.kind is each.POSITIONAL_OR_KEYWORD else None for each in parameters]

    @wraps(own.forward)
    def forward(self, *given, **named):
        operands = _by_place(names, given, named) if named else given
        if _dims(operands) != form.dims or form.gives_way(self, *operands):
            return own.forward(self, *given, **named)
        return form.computed(self, *operands)

    return forward


def _by_place(names: list[str | None], given: tuple, named: dict) -> tuple:
    """Return the arguments of a call by place, with those of the names that come next; none if others are named."""
    found = [named[name] for name in names[len(given) :] if name in named]
    return (*given, *found) if len(found) == len(named) else ()


def _dims(operands: tuple) -> tuple[int | None, ...]:
    return tuple([each.dim() if isinstance(each, Tensor) else None for each in operands])


def prefers_its_own(x: Tensor) -> bool:
    """Return whether no kernel would run on x, so that a module's own forward is not slower."""
    return current_backend() == "auto" and not runs_triton(x, "auto")


def has_changed(module: nn.Module) -> bool:
    """Return whether the parts that a swapped module's forward does not call have changed since the swap."""
    then: Remembered = module.__dict__[REMEMBERED]
    return computations(then.kind) != then.computations or not is_as_remembered(module, then)


class LayersPlan(NamedTuple):
    """Paths of the two layers, the first None where there is one only."""

    first: str | None
    second: str


class ChannelGate(Form):
    """Squeeze-excitation with a ReLU and a sigmoid."""

    op = "channel_gate"

    @staticmethod
    def computed(module: nn.Module, x: Tensor) -> Tensor:
        """x [batch, channels, height, width]."""
        return channel_gate(x, *_layers(module))


class GatedChannels(Form):
    """A module that multiplies its input by a gate of its channels: its own forward, the product by an op."""

    op = "channel_scale"

    @staticmethod
    def gives_way(module: nn.Module, x: Tensor) -> bool:
        """Return whether no kernel would run on x, or the product can fuse with its neighbours, in a compiled graph."""
        return prefers_its_own(x) or torch.compiler.is_compiling()

    @staticmethod
    def computed(module: nn.Module, x: Tensor) -> Tensor:
        """x [batch, channels, height, width]."""
        with _Products(x):
            return module._fuse_own.forward(module, x)


class _Products(TorchFunctionMode):
    """Computes products of x and a gate of its channels by `channel_scale`."""

    def __init__(self, x: Tensor):
        super().__init__()
        self.x = x

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS and len(args) == 2 and (args[0] is self.x or args[1] is self.x):
            gate = self._gate(args[1] if args[0] is self.x else args[0])
            if gate is not None:
                return channel_scale(self.x, gate)
        return func(*args, **(kwargs or {}))

    def _gate(self, factor) -> Tensor | None:
        """Return the gate [batch, channels, 1, 1] that `factor` is, or is expanded from; None for any other factor."""
        if not isinstance(factor, Tensor) or factor is self.x or factor.dim() != 4:
            return None
        gate = factor[tuple(slice(0, 1) if step == 0 else slice(None) for step in factor.stride())]
        if gate.shape[2:] != (1, 1) or factor.shape[:2] != self.x.shape[:2] or gate.device != self.x.device:
            return None
        gate = gate.expand(*self.x.shape[:2], 1, 1)
        return gate if torch.result_type(self.x, gate) == self.x.dtype and gate.is_floating_point() else None


# Each name of the product of two tensors, as a mode sees it.
PRODUCTS = {torch.mul, torch.multiply, Tensor.mul, Tensor.multiply}


class SpatialPlan(NamedTuple):
    """Paths of the modules between the two maps and the sigmoid, and what surrounds them.

    `max_first`: the maximum is the first of the maps. `multiplies`: the result is x times the sigmoid. `whole`: and the
    only module is a convolution that `spatial_attention` does too.
    """

    modules: tuple[str, ...]
    max_first: bool
    multiplies: bool
    whole: bool


class SpatialAttention(Form):
    """CBAM's spatial attention: one op, or the ops around the module's own convolution and normalisation."""

    @classmethod
    def ops(cls, plan: SpatialPlan) -> str:
        """Return the names of the ops that it calls."""
        if plan.whole:
            return "spatial_attention"
        return "channel_stats, spatial_gate" if plan.multiplies else "channel_stats"

    @classmethod
    def called(cls, plan: SpatialPlan) -> tuple[str, ...]:
        """Return the paths of the convolution and the normalisation, unless the op takes the convolution's weight."""
        return () if plan.whole else plan.modules

    @staticmethod
    def computed(module: nn.Module, x: Tensor) -> Tensor:
        """x [batch, channels, height, width]."""
        return _attended(module, x, module.__dict__[PLAN])


class BlockPlan(NamedTuple):
    """The child that makes the channels' gate [batch, channels, 1, 1], and where the spatial attention's parts are."""

    channels: str
    spatial: SpatialPlan


class AttentionBlock(Form):
    """CBAM's two attentions, one after the other, in a module that multiplies by both itself."""

    @classmethod
    def ops(cls, plan: BlockPlan) -> str:
        """Return the names of the ops that it calls."""
        return f"channel_scale, {SpatialAttention.ops(plan.spatial)}"

    @classmethod
    def called(cls, plan: BlockPlan) -> tuple[str, ...]:
        """Return the paths of the child that makes the channels' gate and of the spatial attention's parts."""
        return plan.channels, *SpatialAttention.called(plan.spatial)

    @staticmethod
    def computed(module: nn.Module, x: Tensor) -> Tensor:
        """x [batch, channels, height, width]."""
        plan = module.__dict__[PLAN]
        return _attended(module, channel_scale(x, getattr(module, plan.channels)(x)), plan.spatial)


def _attended(module: nn.Module, x: Tensor, plan: SpatialPlan) -> Tensor:
    """Return the spatial attention of x, or its map alone, with the layers of `module`."""
    if plan.whole:
        conv = at(module, plan.modules[0])
        return spatial_attention(x, conv.weight.flip(1) if plan.max_first else conv.weight, conv.bias)
    logits = channel_stats(x)
    if plan.max_first:
        logits = logits.flip(1)
    for path in plan.modules:
        logits = at(module, path)(logits)
    return spatial_gate(x, logits) if plan.multiplies else logits.sigmoid()


def _layers(module: nn.Module) -> tuple[Tensor | None, ...]:
    """Return the weights and biases of the plan's two layers: w1, b1, w2, b2."""
    plan = module.__dict__[PLAN]
    second = at(module, plan.second)
    if plan.first is None:
        return None, None, second.weight, second.bias
    first = at(module, plan.first)
    return first.weight, first.bias, second.weight, second.bias


def at(module: nn.Module, path: str) -> nn.Module:
    """Return the submodule at `path`."""
    for name in path.split("."):
        module = getattr(module, name)
    return module
