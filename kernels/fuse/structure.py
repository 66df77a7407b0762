"""Modules of anybody's that may compute what an op does, judged by what they hold; a trial has to confirm it."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from kernels.fuse import swapped
from kernels.fuse.candidates import Match, Refusal, obstacle


class Candidate(NamedTuple):
    """The forwards a module may be doing, of which the first that a trial confirms is taken, and a trial's input shape.

    `certain`: what it holds leaves no doubt about what it is meant to be, so that a failed trial is worth telling.
    """

    matches: tuple[Match, ...]
    shape: tuple[int, int, int, int]
    certain: bool = False


def recognise(module: nn.Module) -> Candidate | Refusal | None:
    """Return what a module of an unknown class may compute, None where it is nothing known."""
    if type_before_parametrizations(module).__module__.startswith("torch."):
        return None
    return _dynamic_conv(module) or _spatial_attention(module) or _channel_attention(module) or _block(module)


def _dynamic_conv(module: nn.Module) -> Candidate | Refusal | None:
    """A dynamic convolution: experts [experts, out, in/groups, kh, kw] and a child that mixes them."""
    own = dict(module.named_parameters(recurse=False))
    own |= {name: getattr(module, name) for name in getattr(module, "parametrizations", ())}
    if any(is_lazy(value) for value in own.values()):
        return None
    experts = [name for name, value in own.items() if value.dim() == 5]
    if not experts or not any(True for _ in module.children()):
        return None
    if found := obstacle(module):  # first: a weight norm has parameters of its own
        return Refusal(found)
    if len(experts) > 1:
        return None
    weight = own.pop(experts[0])
    count, out_channels, in_channels, *kernel = weight.shape
    biases = [name for name, value in own.items() if value.shape == (count, out_channels)]
    attentions = [name for name, child in module.named_children() if any(True for _ in child.parameters())]
    if len(attentions) != 1 or len(own) != len(biases) or len(biases) > 1:
        return Refusal("a convolution with experts, and parameters or submodules that dynamic_conv2d has no place for")
    _, _, dilation, groups = swapped.geometry_of(module)
    mode = getattr(module, "padding_mode", "zeros")
    if mode != "zeros":
        return Refusal(f"padding_mode {mode!r}: dynamic_conv2d pads with zeros")
    if not isinstance(groups, int) or groups < 1:
        return Refusal(f"groups {groups!r} is no positive int")
    plan = swapped.ExpertPlan(experts[0], biases[0] if biases else None, attentions[0])
    size = max(_reach(k, d) for k, d in zip(kernel, _both(dilation), strict=True))
    shape = (3, in_channels * groups, size + 5, size + 8)
    return Candidate((Match(swapped.ExpertConv, plan),), shape, certain=True)


def _reach(kernel: int, dilation) -> int:
    return kernel * dilation if isinstance(dilation, int) else kernel


def _both(value) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) and len(value) == 2 else (value, value)


def _spatial_attention(module: nn.Module) -> Candidate | Refusal | None:
    """CBAM's spatial attention: one convolution of two maps to one, perhaps a normalisation, no other parameters."""
    holders = _holders(module)
    convs = [path for path, inner in holders.items() if _channels(inner) == (2, 1)]
    norms = [path for path, inner in holders.items() if isinstance(inner, nn.BatchNorm2d) and inner.num_features == 1]
    if len(convs) != 1 or len(norms) > 1 or len(holders) != 1 + len(norms) or "" in holders:
        return None
    conv = holders[convs[0]]
    k = conv.kernel_size[0]
    plans = [
        swapped.SpatialPlan((*convs, *norms), max_first, multiplies, multiplies and not norms and _is_centred(conv))
        for multiplies in (True, False)
        for max_first in (False, True)
    ]
    return Candidate(tuple(Match(swapped.SpatialAttention, plan) for plan in plans), (3, 6, k + 4, k + 7))


def _channels(inner: nn.Module) -> tuple[int, int] | None:
    return (inner.in_channels, inner.out_channels) if type(inner) is nn.Conv2d else None


def _is_centred(conv: nn.Conv2d) -> bool:
    """Return whether `spatial_attention` does this convolution."""
    k = conv.kernel_size[0]
    geometry = conv.kernel_size, conv.padding, conv.stride, conv.dilation, conv.padding_mode
    return k % 2 == 1 and k > 1 and geometry == ((k, k), (k // 2, k // 2), (1, 1), (1, 1), "zeros")


def _channel_attention(module: nn.Module) -> Candidate | Refusal | None:
    """Squeeze-excitation or CBAM's channel attention: two layers down and up again, no other parameters."""
    holders = _holders(module)
    if len(holders) != 2 or "" in holders:
        return None
    (first, down), (second, up) = holders.items()
    down, up = _features(down), _features(up)
    if down is None or up is None or down != up[::-1] or down[0] <= down[1]:
        return None
    shared_ties = not any(isinstance(inner, nn.AdaptiveMaxPool2d) for inner in module.modules())
    plans = swapped.LayersPlan(first, second), swapped.LayersPlan(first, second, shared_ties)
    kinds = swapped.ChannelGate, swapped.MaxedChannels
    return Candidate(tuple(map(Match, kinds, plans)), (3, down[0], 5, 7 if down[0] != 7 else 8))


def _block(module: nn.Module) -> Candidate | None:
    """CBAM as one module: a child for the channels, then one for the pixels, and no other parameters."""
    children = [name for name, child in module.named_children() if _holders(child)]
    if len(children) != 2 or any(_own(module)):
        return None
    channels, spatial = children
    attention = _spatial_attention(getattr(module, spatial))
    if attention is None:
        return None
    matches = []
    for _, plan in attention.matches:
        if plan.multiplies:
            inside = plan._replace(modules=tuple(f"{spatial}.{path}" for path in plan.modules))
            matches.append(Match(swapped.AttentionBlock, swapped.BlockPlan(channels, inside)))
    features = [shape for inner in getattr(module, channels).modules() if (shape := _features(inner)) is not None]
    return Candidate(tuple(matches), (3, features[0][0], *attention.shape[2:])) if features else None


def _features(layer: nn.Module) -> tuple[int, int] | None:
    """Return in and out features of a linear layer or a plain 1x1 convolution."""
    if type(layer) is nn.Linear:
        return layer.in_features, layer.out_features
    if type(layer) is nn.Conv2d and layer.kernel_size == (1, 1) and layer.groups == 1:
        return layer.in_channels, layer.out_channels
    return None


def _holders(module: nn.Module) -> dict[str, nn.Module]:
    """Return the submodules, `module` itself under "", that hold parameters or buffers of their own, by path."""
    return {path: inner for path, inner in module.named_modules() if any(_own(inner))}


def _own(module: nn.Module):
    yield from (isinstance(t, Tensor) for t in (*module._parameters.values(), *module._buffers.values()))
