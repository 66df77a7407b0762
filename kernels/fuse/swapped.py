"""The classes that swapped modules get: their own, with a forward that calls an op.

A swapped module stays the object it was, as with torch's parametrisations: parameters, buffers, attributes, methods and
`isinstance` are unchanged. It runs its own forward where no op is faster, such as on a CPU, and where the parts whose
parameters an op would take have changed since.
"""

from functools import lru_cache
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from polychrome.kernels.backend import current_backend, runs_triton
from polychrome.kernels.channel_gate import channel_gate
from polychrome.kernels.dynamic_conv import dynamic_conv2d
from polychrome.kernels.dynamic_conv.eager.forms import cpu_forms
from polychrome.kernels.dynamic_conv.problem import Problem, resolve_geometry
from polychrome.kernels.fuse.channel_scale import channel_scale
from polychrome.kernels.plain import Remembered, is_as_remembered, remember
from polychrome.kernels.spatial_attention import channel_stats, spatial_attention, spatial_gate
from polychrome.kernels.tensors import autocasts, is_channels_last

# The attributes of a swapped module: its plan, with the places of the op's operands, and its remembered state.
PLAN, REMEMBERED = "_fuse_plan", "_fuse_remembered"

_classes: WeakValueDictionary = WeakValueDictionary()


class Swapped:
    """Mixin before a module's own class."""

    op = ""

    @classmethod
    def ops(cls, plan: tuple | None) -> str:
        """Return the names of the ops that the forward calls."""
        return cls.op

    @classmethod
    def called(cls, plan: tuple | None) -> tuple[str, ...]:
        """Return the paths of the submodules that the forward calls, which may become anything."""
        return ()

    @classmethod
    def objection(cls, module: nn.Module, plan: tuple | None, x: Tensor) -> str | None:
        """Return why a trial with x would fail, in words for a user; None for no known reason."""
        return None

    def __reduce_ex__(self, protocol):
        return _restore, type(self).__bases__, self.__getstate__()


def swap(module: nn.Module, kind: type[Swapped], plan: tuple | None) -> None:
    """Give `module` the forward of `kind`.

    Raises:
        TypeError: Python cannot change the class of `module`.
    """
    then = remember(module, kind.called(plan))
    module.__class__ = _class_of(kind, type(module))
    module.__dict__.update({PLAN: plan, REMEMBERED: then})


def _class_of(kind: type[Swapped], own: type[nn.Module]) -> type[nn.Module]:
    """Return the class that puts `kind` before `own`, always the same object."""
    made = _classes.get((kind, own))
    if made is None:
        made = type(f"Fused{own.__name__}", (kind, own), {"__module__": own.__module__})
        _classes[kind, own] = made
    return made


def _restore(kind: type[Swapped], own: type[nn.Module]) -> nn.Module:
    made = _class_of(kind, own)
    return made.__new__(made)


def prefers_its_own(x: Tensor) -> bool:
    """Return whether no kernel would run on x, so that a module's own forward is not slower; also for fx's proxies."""
    if not isinstance(x, Tensor):
        return True
    return current_backend() == "auto" and not runs_triton(x, "auto")


def has_changed(module: nn.Module) -> bool:
    """Return whether the parts that a swapped module's forward does not call have changed since the swap."""
    then: Remembered = module.__dict__[REMEMBERED]
    return then.kind.forward is not then.forward or not is_as_remembered(module, then)


def prefers_its_own_convolution(x: Tensor, experts: tuple[int, ...], stride, padding, dilation, groups: int) -> bool:
    """Return whether dynamic_conv2d knows no faster form for experts of this shape on a CPU; padding may be `SAME`.

    Not in compiled calls: the answer depends on the batch size.
    """
    if not prefers_its_own(x):
        return False
    if not isinstance(x, Tensor) or x.device.type != "cpu":
        return True
    if torch.compiler.is_compiling():
        return False
    dtype = torch.get_autocast_dtype("cpu") if autocasts(x) and x.dtype != torch.float64 else x.dtype
    return _has_no_faster_form(tuple(x.shape), dtype, is_channels_last(x), experts, stride, padding, dilation, groups)


@lru_cache(maxsize=4096)
def _has_no_faster_form(shape, dtype, channels_last: bool, experts, stride, padding, dilation, groups) -> bool:
    count, out_channels, _, *kernel = experts
    geometry = resolve_geometry(kernel, stride, 0 if padding == SAME else padding, dilation, groups)
    if padding == SAME:
        geometry = geometry._replace(padding=same_sides(shape[2:], kernel, geometry.stride, geometry.dilation))
    pairs = map(tuple, (kernel, *geometry[:3]))
    problem = Problem(*shape[:2], out_channels, *shape[2:], *pairs, groups, count, dtype)
    return problem.batch == 0 or min(problem.out_size) < 1 or cpu_forms(problem, channels_last).are_naive


# TensorFlow's padding: outputs are ceil(size / stride), the odd pixel comes last.
SAME = "tensorflow's same"


def same_sides(size, kernel, stride, dilation) -> list[int]:
    """Return the padding called SAME as [top, bottom, left, right]."""
    sides = []
    for pixels, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        total = max((pixels - 1) // s * s + (k - 1) * d + 1 - pixels, 0)
        sides += [total // 2, total - total // 2]
    return sides


class CondConv(Swapped):
    """timm's CondConv2d: the experts flattened, the mixing weights given at the call."""

    op = "dynamic_conv2d"

    def forward(self, x: Tensor, routing_weights: Tensor) -> Tensor:
        """x [batch, in_channels, height, width], routing_weights [batch, experts]."""
        shape = (self.num_experts, *self.weight_shape)
        padding = SAME if self.dynamic_padding else self.padding
        geometry = self.stride, padding, self.dilation, self.groups
        if prefers_its_own_convolution(x, shape, *geometry) or has_changed(self):
            return super().forward(x, routing_weights)
        if padding == SAME:
            top, bottom, left, right = same_sides(x.shape[2:], self.kernel_size, self.stride, self.dilation)
            padding = left, right, top, bottom
        experts = self.weight.view(shape)
        return dynamic_conv2d(x, experts, routing_weights, self.bias, self.stride, padding, self.dilation, self.groups)


class ExpertPlan(NamedTuple):
    """Names of the parameters [experts, out, in/groups, kh, kw] and [experts, out], and of what gives the mix.

    The mix comes from the attention, a submodule, or in `RoutedConv` from the forward's second argument.
    """

    weight: str
    bias: str | None
    mixing: str


class ExpertConv(Swapped):
    """A dynamic convolution of user code: its attention gives [batch, experts], the rest is attributes."""

    op = "dynamic_conv2d"

    @classmethod
    def called(cls, plan: ExpertPlan) -> tuple[str, ...]:
        """Return the path of the attention."""
        return (plan.mixing,)

    @classmethod
    def objection(cls, module: nn.Module, plan: ExpertPlan, x: Tensor) -> str | None:
        """Return what the attention gives in place of a mix; None where it gives a mix."""
        try:
            mixing = getattr(module, plan.mixing)(x)
        except Exception as error:  # a foreign module may raise anything
            return f"its {plan.mixing} does not take a batch of maps: {type(error).__name__}"
        wanted = [len(x), len(getattr(module, plan.weight))]
        got = list(mixing.shape) if isinstance(mixing, Tensor) else f"a {type(mixing).__name__}"
        return None if got == wanted else f"its {plan.mixing} gives {got}, not a mix [batch, experts]"

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, in_channels, height, width]."""
        if _keeps_its_own_convolution(self, x):
            return super().forward(x)
        return _mixed_experts(self, x, getattr(self, self.__dict__[PLAN].mixing)(x))


class RoutedConv(Swapped):
    """A dynamic convolution of user code that is given its mix [batch, experts]."""

    op = "dynamic_conv2d"

    def forward(self, x: Tensor, *mixing: Tensor, **named: Tensor) -> Tensor:
        """x [batch, in_channels, height, width]; the mixing by place or name."""
        given = [*mixing, *(value for name, value in named.items() if name == self.__dict__[PLAN].mixing)]
        if len(given) != 1 or len(mixing) + len(named) != 1 or _keeps_its_own_convolution(self, x):
            return super().forward(x, *mixing, **named)
        return _mixed_experts(self, x, *given)


def _keeps_its_own_convolution(module: nn.Module, x: Tensor) -> bool:
    experts = getattr(module, module.__dict__[PLAN].weight)
    return prefers_its_own_convolution(x, tuple(experts.shape), *geometry_of(module)) or has_changed(module)


def _mixed_experts(module: nn.Module, x: Tensor, mixing: Tensor) -> Tensor:
    plan: ExpertPlan = module.__dict__[PLAN]
    bias = None if plan.bias is None else getattr(module, plan.bias)
    mode = getattr(module, "padding_mode", "zeros")
    return dynamic_conv2d(x, getattr(module, plan.weight), mixing, bias, *geometry_of(module), padding_mode=mode)


def geometry_of(module: nn.Module) -> tuple:
    """Return stride, padding, dilation and groups from the attributes of these names, or their defaults."""
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    values = (getattr(module, name, default) for name, default in defaults.items())
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


class LayersPlan(NamedTuple):
    """Paths of the two layers, the first None where there is one only."""

    first: str | None
    second: str


class ChannelGate(Swapped):
    """Squeeze-excitation with a ReLU and a sigmoid."""

    op = "channel_gate"

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, channels, height, width]."""
        if prefers_its_own(x) or has_changed(self):
            return super().forward(x)
        return channel_gate(x, *_layers(self))


class GatedChannels(Swapped):
    """A module that multiplies its input by a gate of its channels: its own forward, the product by an op."""

    op = "channel_scale"

    def forward(self, x: Tensor, *others, **named) -> Tensor:
        """x [batch, channels, height, width]."""
        if prefers_its_own(x) or torch.compiler.is_compiling():  # in a graph the product can fuse with its neighbours
            return super().forward(x, *others, **named)
        with _Products(x):
            return super().forward(x, *others, **named)


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


class SpatialAttention(Swapped):
    """CBAM's spatial attention: one op, or the ops around the module's own convolution and normalisation."""

    @classmethod
    def ops(cls, plan: SpatialPlan) -> str:
        """Return the names of the ops that the forward calls."""
        if plan.whole:
            return "spatial_attention"
        return "channel_stats, spatial_gate" if plan.multiplies else "channel_stats"

    @classmethod
    def called(cls, plan: SpatialPlan) -> tuple[str, ...]:
        """Return the paths of the convolution and the normalisation, unless the op takes the convolution's weight."""
        return () if plan.whole else plan.modules

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, channels, height, width]."""
        if prefers_its_own(x) or has_changed(self):
            return super().forward(x)
        return _attended(self, x, self.__dict__[PLAN])


class BlockPlan(NamedTuple):
    """The child that makes the channels' gate [batch, channels, 1, 1], and where the spatial attention's parts are."""

    channels: str
    spatial: SpatialPlan


class AttentionBlock(Swapped):
    """CBAM's two attentions, one after the other, in a module that multiplies by both itself."""

    @classmethod
    def ops(cls, plan: BlockPlan) -> str:
        """Return the names of the ops that the forward calls."""
        return f"channel_scale, {SpatialAttention.ops(plan.spatial)}"

    @classmethod
    def called(cls, plan: BlockPlan) -> tuple[str, ...]:
        """Return the paths of the child that makes the channels' gate and of the spatial attention's parts."""
        return plan.channels, *SpatialAttention.called(plan.spatial)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, channels, height, width]."""
        if prefers_its_own(x) or has_changed(self):
            return super().forward(x)
        plan = self.__dict__[PLAN]
        gate = getattr(self, plan.channels)(x)
        leaves_product = torch.compiler.is_compiling() and current_backend() == "auto"
        return _attended(self, x * gate if leaves_product else channel_scale(x, gate), plan.spatial)


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
