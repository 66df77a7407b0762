"""The classes that swapped modules get: their own, with a forward that calls an op.

A swapped module stays the object it was, as with torch's parametrisations: parameters, buffers, attributes, methods and
`isinstance` are those of its own class. Where no op is faster, such as on a CPU, it runs its own forward.
"""

from functools import lru_cache
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.backend import current_backend, runs_triton
from kernels.channel_gate import channel_gate
from kernels.channel_gate.reference import linear
from kernels.dynamic_conv import dynamic_conv2d
from kernels.dynamic_conv.eager.forms import cpu_forms
from kernels.dynamic_conv.geometry import resolve_padding, resolve_pair
from kernels.dynamic_conv.problem import Problem
from kernels.fuse.channel_scale import channel_scale
from kernels.spatial_attention import channel_stats, spatial_attention, spatial_gate
from kernels.tensors import autocasts, is_channels_last, wide_dtype

# The attribute of a swapped module that holds its plan: where in it the op's operands are.
PLAN = "_fuse_plan"

_classes: WeakValueDictionary = WeakValueDictionary()


class Swapped:
    """Mixin before a module's own class."""

    op = ""

    @classmethod
    def ops(cls, plan: tuple | None) -> str:
        """Return the names of the ops that the forward calls."""
        return cls.op

    def __reduce_ex__(self, protocol):
        return _restore, type(self).__bases__, self.__getstate__()


def swap(module: nn.Module, kind: type[Swapped], plan: tuple | None) -> None:
    """Give `module` the forward of `kind`.

    Raises:
        TypeError: Python cannot change the class of `module`.
    """
    module.__class__ = _class_of(kind, type(module))
    module.__dict__[PLAN] = plan


def _class_of(kind: type[Swapped], own: type[nn.Module]) -> type[nn.Module]:
    """Return the one class that puts `kind` before `own`."""
    made = _classes.get((kind, own))
    if made is None:
        made = type(f"Fused{own.__name__}", (kind, own), {"__module__": own.__module__})
        _classes[kind, own] = made
    return made


def _restore(kind: type[Swapped], own: type[nn.Module]) -> nn.Module:
    made = _class_of(kind, own)
    return made.__new__(made)


def prefers_its_own(x: Tensor) -> bool:
    """Return whether no kernel would run on x, so that a module's own forward is no slower; so too on fx's proxies."""
    if not isinstance(x, Tensor):
        return True
    return current_backend() == "auto" and not runs_triton(x, "auto")


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
    strides, dilations = resolve_pair("stride", stride), resolve_pair("dilation", dilation)
    if padding == SAME:
        sides = same_sides(shape[2:], kernel, strides, dilations)
    else:
        sides = resolve_padding(padding, kernel, strides, dilations)
    tuples = tuple(kernel), tuple(strides), tuple(sides), tuple(dilations)
    problem = Problem(*shape[:2], out_channels, *shape[2:], *tuples, groups, count, dtype)
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
        if prefers_its_own_convolution(x, shape, self.stride, padding, self.dilation, self.groups):
            return super().forward(x, routing_weights)
        if padding == SAME:
            top, bottom, left, right = same_sides(x.shape[2:], self.kernel_size, self.stride, self.dilation)
            x, padding = F.pad(x, (left, right, top, bottom)), 0
        experts = self.weight.view(shape)
        return dynamic_conv2d(x, experts, routing_weights, self.bias, self.stride, padding, self.dilation, self.groups)


class ExpertPlan(NamedTuple):
    """Names of the parameters [experts, out, in/groups, kh, kw] and [experts, out], and of the attention."""

    weight: str
    bias: str | None
    attention: str


class ExpertConv(Swapped):
    """A dynamic convolution of user code: its attention gives [batch, experts], the rest is attributes."""

    op = "dynamic_conv2d"

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, in_channels, height, width]."""
        plan = self.__dict__[PLAN]
        experts = getattr(self, plan.weight)
        geometry = geometry_of(self)
        if prefers_its_own_convolution(x, tuple(experts.shape), *geometry):
            return super().forward(x)
        bias = None if plan.bias is None else getattr(self, plan.bias)
        return dynamic_conv2d(x, experts, getattr(self, plan.attention)(x), bias, *geometry)


def geometry_of(module: nn.Module) -> tuple:
    """Return stride, padding, dilation and groups from the attributes of these names, or their defaults."""
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    values = (getattr(module, name, default) for name, default in defaults.items())
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


class LayersPlan(NamedTuple):
    """Paths of the two layers, the first None where there is one only, and whether ties share the max's gradient."""

    first: str | None
    second: str
    shared_ties: bool = False


class ChannelGate(Swapped):
    """Squeeze-excitation with a ReLU and a sigmoid."""

    op = "channel_gate"

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, channels, height, width]."""
        if prefers_its_own(x):
            return super().forward(x)
        return channel_gate(x, *_layers(self))


class GatePlan(NamedTuple):
    """Paths of the modules that make the gate [batch, channels, 1, 1] of the channel means, in order."""

    modules: tuple[str, ...]


class ScaledChannels(Swapped):
    """Squeeze-excitation with other activations: its own modules make the gate."""

    op = "channel_scale"

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, channels, height, width]."""
        if prefers_its_own(x) or _leaves_to_inductor():
            return super().forward(x)
        gate = x.mean((2, 3), keepdim=True)
        for path in self.__dict__[PLAN].modules:
            gate = at(self, path)(gate)
        return channel_scale(x, gate)


class MaxedChannels(Swapped):
    """CBAM's channel attention: the means and the maxima go through the same two layers."""

    op = "channel_scale"

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, channels, height, width]."""
        if prefers_its_own(x) or _leaves_to_inductor():
            return super().forward(x)
        return channel_scale(x, gate_with_max(x, *_layers(self), self.__dict__[PLAN].shared_ties))


def gate_with_max(x: Tensor, w1: Tensor, b1, w2: Tensor, b2, shared_ties: bool) -> Tensor:
    """Return CBAM's gate of the channels, [batch, channels], at least float32."""
    wide = wide_dtype(x.dtype)
    largest = x.amax((2, 3)) if shared_ties else F.adaptive_max_pool2d(x, 1).flatten(1)
    pooled = x.mean((2, 3), dtype=wide), largest.to(wide)
    with torch.autocast(x.device.type, enabled=False):
        return sum(linear(linear(means, w1, b1).relu(), w2, b2) for means in pooled).sigmoid()


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

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, channels, height, width]."""
        return super().forward(x) if prefers_its_own(x) else _attended(self, x, self.__dict__[PLAN])


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

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, channels, height, width]."""
        if prefers_its_own(x):
            return super().forward(x)
        plan = self.__dict__[PLAN]
        gate = getattr(self, plan.channels)(x)
        return _attended(self, x * gate if _leaves_to_inductor() else channel_scale(x, gate), plan.spatial)


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


def _leaves_to_inductor() -> bool:
    """Return whether the product with a gate is better left in the graph, where its neighbours can fuse with it."""
    return torch.compiler.is_compiling() and current_backend() == "auto"


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
