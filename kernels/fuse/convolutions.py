"""The convolutions that swapped modules get: with experts, ODConv's attentions, or one modulated kernel."""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from polychrome.kernels.dynamic_conv import dynamic_conv2d, trust
from polychrome.kernels.dynamic_conv.eager.forms import cpu_forms
from polychrome.kernels.dynamic_conv.problem import Problem, resolve_geometry
from polychrome.kernels.fuse.swapped import PLAN, Form, has_changed, prefers_its_own
from polychrome.kernels.modulated import modulated_conv2d
from polychrome.kernels.omni_dimensional import Attentions, omni_dimensional_conv2d
from polychrome.kernels.tensors import autocasts, is_channels_last


def prefers_its_own_convolution(x: Tensor, experts: tuple[int, ...], stride, padding, dilation, groups: int) -> bool:
    """Return whether dynamic_conv2d knows no faster form for experts of this shape on a CPU; padding may be `SAME`.

    Not in compiled calls: the answer depends on the batch size.
    """
    if not prefers_its_own(x):
        return False
    if x.device.type != "cpu":
        return True
    if torch.compiler.is_compiling():
        return False
    dtype = torch.get_autocast_dtype("cpu") if autocasts(x) and x.dtype != torch.float64 else x.dtype
    if dtype in trust.EMULATED:
        return False
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


class CondConv(Form):
    """timm's CondConv2d: the experts flattened, the mixing weights given at the call."""

    op = "dynamic_conv2d"
    dims = 4, 2

    @staticmethod
    def gives_way(module: nn.Module, x: Tensor, routing_weights: Tensor) -> bool:
        """Return whether the module's own forward is as fast for x, or changed."""
        shape, padding = (module.num_experts, *module.weight_shape), SAME if module.dynamic_padding else module.padding
        geometry = module.stride, padding, module.dilation, module.groups
        return prefers_its_own_convolution(x, shape, *geometry) or has_changed(module)

    @staticmethod
    def computed(module: nn.Module, x: Tensor, routing_weights: Tensor) -> Tensor:
        """x [batch, in_channels, height, width], routing_weights [batch, experts]."""
        stride, padding, dilation = module.stride, module.padding, module.dilation
        if module.dynamic_padding:
            top, bottom, left, right = same_sides(x.shape[2:], module.kernel_size, stride, dilation)
            padding = left, right, top, bottom
        experts = module.weight.view(module.num_experts, *module.weight_shape)
        return dynamic_conv2d(x, experts, routing_weights, module.bias, stride, padding, dilation, module.groups)


class ExpertPlan(NamedTuple):
    """Names of the parameters [experts, out, in/groups, kh, kw] and [experts, out], and of the submodule of the mix.

    No submodule in `RoutedConv`: its mix is the forward's second argument.
    """

    weight: str
    bias: str | None
    mixing: str | None


class ExpertConv(Form):
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
        wanted = [x.shape[0], getattr(module, plan.weight).shape[0]]
        got = list(mixing.shape) if isinstance(mixing, Tensor) else f"a {type(mixing).__name__}"
        return None if got == wanted else f"its {plan.mixing} gives {got}, not a mix [batch, experts]"

    @staticmethod
    def gives_way(module: nn.Module, x: Tensor) -> bool:
        """Return whether the module's own forward is as fast for x, or changed."""
        return _gives_way(module, x)

    @staticmethod
    def computed(module: nn.Module, x: Tensor) -> Tensor:
        """x [batch, in_channels, height, width]."""
        return _mixed_experts(module, x, getattr(module, module.__dict__[PLAN].mixing)(x))


class RoutedConv(Form):
    """A dynamic convolution of user code that is given its mix [batch, experts]."""

    op = "dynamic_conv2d"
    dims = 4, 2

    @staticmethod
    def gives_way(module: nn.Module, x: Tensor, mixing: Tensor) -> bool:
        """Return whether the module's own forward is as fast for x, or changed."""
        return _gives_way(module, x)

    @staticmethod
    def computed(module: nn.Module, x: Tensor, mixing: Tensor) -> Tensor:
        """x [batch, in_channels, height, width], mixing [batch, experts]."""
        return _mixed_experts(module, x, mixing)


def _gives_way(module: nn.Module, x: Tensor) -> bool:
    name = module.__dict__[PLAN].weight
    if name not in module._parameters:  # a parametrisation computes it whenever it is read, which is to be once
        return has_changed(module)
    experts = getattr(module, name)
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


class AttentionsPlan(NamedTuple):
    """Names of the parameter [experts, out, in/groups, kh, kw] and of the submodule that makes four attentions."""

    weight: str
    attention: str


class OmniDimensionalConv(Form):
    """ODConv: four attentions weigh the experts; the kernels of all samples and experts are not made."""

    op = "dynamic_conv2d"

    @classmethod
    def called(cls, plan: AttentionsPlan) -> tuple[str, ...]:
        """Return the path of the attention."""
        return (plan.attention,)

    @classmethod
    def objection(cls, module: nn.Module, plan: AttentionsPlan, x: Tensor) -> str | None:
        """Return that the attention gives no four attentions; None where it does."""
        experts = getattr(module, plan.weight)
        if _attentions(getattr(module, plan.attention)(x), x, experts) is None:
            return f"its {plan.attention} does not give a mix [batch, experts], nor ODConv's four attentions"
        return None

    @staticmethod
    def gives_way(module: nn.Module, x: Tensor) -> bool:
        """Return whether the module changed."""
        return has_changed(module)

    @staticmethod
    def computed(module: nn.Module, x: Tensor) -> Tensor:
        """x [batch, in_channels, height, width]."""
        plan = module.__dict__[PLAN]
        experts = getattr(module, plan.weight)
        attentions = _attentions(getattr(module, plan.attention)(x), x, experts)
        if attentions is None:
            raise TypeError(f"{plan.attention} gave ODConv's four attentions when it was fused, and gives others now")
        mode = getattr(module, "padding_mode", "zeros")
        return omni_dimensional_conv2d(x, experts, *attentions, *geometry_of(module), padding_mode=mode)


def _attentions(found, x: Tensor, experts: Tensor) -> Attentions | None:
    """Return ODConv's attentions of what a submodule gives, tensors [batch, size, 1...] or ones; None for others."""
    count, out_channels, _, *taps = experts.shape
    sizes = x.shape[1], out_channels, math.prod(taps), count
    if not isinstance(found, tuple | list) or len(found) != len(sizes):
        return None
    flat = [each.flatten(1) if isinstance(each, Tensor) and each.dim() > 1 else each for each in found]
    for each, size in zip(flat, sizes, strict=True):
        is_one = isinstance(each, float) and each == 1
        if not is_one and not (isinstance(each, Tensor) and each.shape == (x.shape[0], size)):
            return None
    channel, *others = (each if isinstance(each, Tensor) else None for each in flat)
    return None if channel is None else Attentions(channel, *others)


class ModulationPlan(NamedTuple):
    """Where the operands of a modulated convolution are, and which of its forms the module has.

    `weight`: the parameter [1, out, in, kh, kw]; `scale`: an attribute that multiplies it; `modulation`: the submodule
    that makes the scales of the channels; `eps`: an attribute, None for 1e-8; `blur`: the submodule called after a
    transposed convolution of stride 2 where `up`, else before one of stride 2; None without either.
    """

    weight: str
    scale: str | None
    modulation: str
    demodulate: bool
    eps: str | None
    blur: str | None
    up: bool


class ModulatedConv(Form):
    """StyleGAN2's convolution: a style scales the input channels of one kernel, which may be normalised."""

    op = "modulated_conv2d"
    dims = 4, 2

    @classmethod
    def called(cls, plan: ModulationPlan) -> tuple[str, ...]:
        """Return the paths of the modulation and the blur."""
        return (plan.modulation,) if plan.blur is None else (plan.modulation, plan.blur)

    @staticmethod
    def gives_way(module: nn.Module, x: Tensor, style: Tensor) -> bool:
        """Return whether the module changed."""
        return has_changed(module)

    @staticmethod
    def computed(module: nn.Module, x: Tensor, style: Tensor) -> Tensor:
        """x [batch, in_channels, height, width] and style [batch, features]."""
        plan: ModulationPlan = module.__dict__[PLAN]
        weight = getattr(module, plan.weight).squeeze(0)
        if plan.scale is not None:
            weight = weight * getattr(module, plan.scale)
        scales = getattr(module, plan.modulation)(style).flatten(1)
        options = {"demodulate": plan.demodulate, "eps": 1e-8 if plan.eps is None else getattr(module, plan.eps)}
        if plan.blur is None:
            return modulated_conv2d(x, weight, scales, 1, getattr(module, "padding", 0), **options)
        blur = getattr(module, plan.blur)
        if plan.up:
            return blur(modulated_conv2d(x, weight, scales, 2, transposed=True, **options))
        return modulated_conv2d(blur(x), weight, scales, 2, **options)
