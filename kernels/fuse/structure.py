"""Modules that may compute the same as an op, recognised by their structure; a trial has to confirm it."""

import inspect

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from polychrome.kernels.fuse import convolutions, swapped
from polychrome.kernels.fuse.candidates import Candidate, Match, Refusal, obstacle
from polychrome.kernels.fuse.gates import is_torchs, may_gate
from polychrome.kernels.plain import is_centred

LARGEST_EPS = 1e-4  # a larger number of a module is a scale of its weights
BIGGEST = 5_000_000  # parameters of a module that is tried for a gate: a trial copies it in float64


def recognise(module: nn.Module) -> Candidate | Refusal | None:
    """Return the candidates for a module of an unknown class, None if there are none."""
    if is_torchs(module):
        return None
    rules = _experts, _spatial_attention, _channel_attention, _block, _gated
    return next((verdict for rule in rules if (verdict := rule(module)) is not None), None)


def _experts(module: nn.Module) -> Candidate | Refusal | None:
    """A dynamic convolution: experts [experts, out, in/groups, kh, kw], and a child that mixes them or a mix given."""
    own = dict(module.named_parameters(recurse=False))
    own |= {name: getattr(module, name) for name in getattr(module, "parametrizations", ())}
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d) or any(is_lazy(value) for value in own.values()):
        return None
    experts = [name for name, value in own.items() if value.dim() == 5]
    if not experts:
        return None
    if found := obstacle(module):  # first: a weight norm has parameters of its own
        return Refusal(found)
    if len(experts) > 1:
        return Refusal(f"it has {len(experts)} parameters of five dimensions: {', '.join(experts)}")
    weight = own.pop(experts[0])
    count, out_channels, in_channels, *kernel = weight.shape
    biases = [name for name, value in own.items() if value.shape == (count, out_channels)]
    attentions = [name for name, child in module.named_children() if any(True for _ in child.parameters())]
    arguments = _arguments(module)
    if count == 1 and not own and len(attentions) in (1, 2) and len(arguments) == 2:
        found = _modulated(module, experts[0], attentions)
        if found is not None:
            return found
    words = f"{experts[0]} {list(weight.shape)}"
    if len(own) != len(biases) or len(biases) > 1:
        others = ", ".join(name for name in own if name not in biases[:1])
        return Refusal(f"beside {words} it has {others}, which dynamic_conv2d has no place for")
    if len(arguments) != (1 if attentions else 2) or len(attentions) > 1:
        has = ", ".join(attentions) or "no layers"
        return Refusal(
            f"it is called with {', '.join(arguments)} and has {has} beside {words}: dynamic_conv2d takes one layer "
            "that makes a mix [batch, experts], or the mix as second argument"
        )
    _, _, dilation, groups = convolutions.geometry_of(module)
    if not isinstance(groups, int) or groups < 1:
        return Refusal(f"groups {groups!r} is no positive int")
    size = max(_reach(k, d) for k, d in zip(kernel, _both(dilation), strict=True))
    shape = (3, in_channels * groups, size + 5, size + 8)
    form, mixing = (convolutions.ExpertConv, attentions[0]) if attentions else (convolutions.RoutedConv, None)
    plan = convolutions.ExpertPlan(experts[0], biases[0] if biases else None, mixing)
    matches = [Match(form, plan)]
    if attentions and not biases:
        matches.append(Match(convolutions.OmniDimensionalConv, convolutions.AttentionsPlan(experts[0], mixing)))
    return Candidate(tuple(matches), ((shape,) if attentions else (shape, (3, count)),), certain=True)


def _modulated(module: nn.Module, weight: str, children: list[str]) -> Candidate | None:
    """A modulated convolution: one kernel [1, out, in, kh, kw], a child that scales its channels, perhaps a blur."""
    features = [_style_features(getattr(module, name)) for name in children]
    if features.count(None) != len(features) - 1:
        return None
    (modulation,) = (name for name, size in zip(children, features, strict=True) if size is not None)
    numbers = [name for name, value in vars(module).items() if type(value) is float]
    small = [name for name in numbers if getattr(module, name) <= LARGEST_EPS]
    plans = [
        convolutions.ModulationPlan(weight, scale, modulation, demodulate, eps, blur, up)
        for blur, up in _resampling(module, modulation)
        for scale in (*(name for name in numbers if name not in small), None)
        for eps in (*small, None)
        for demodulate in (True, False)
    ]
    size = next(size for size in features if size is not None)
    _, _, in_channels, *kernel = getattr(module, weight).shape
    shape = 3, in_channels, max(kernel) + 5, max(kernel) + 8
    matches = tuple(Match(convolutions.ModulatedConv, plan) for plan in plans)
    return Candidate(matches, ((shape, (3, size)),), certain=True)


def _style_features(child: nn.Module) -> int | None:
    """Return the input features of a child with one matrix, [channels, features], beside vectors only."""
    shapes = [parameter.shape for parameter in child.parameters()]
    matrices = [shape for shape in shapes if len(shape) == 2]
    return matrices[0][1] if len(matrices) == 1 and all(len(shape) <= 2 for shape in shapes) else None


def _resampling(module: nn.Module, modulation: str):
    """Yield each child that may blur, after a transposed convolution and before a convolution; first, none."""
    yield None, False
    for name, _ in module.named_children():
        if name != modulation:
            yield from ((name, True), (name, False))


def _arguments(module: nn.Module) -> list[str]:
    """Return the names of the arguments that a module has to be called with."""
    given = inspect.signature(module.forward).parameters.values()
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [p.name for p in given if p.default is inspect.Parameter.empty and p.kind in kinds]


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
        swapped.SpatialPlan((*convs, *norms), max_first, multiplies, multiplies and not norms and is_centred(conv))
        for multiplies in (True, False)
        for max_first in (False, True)
    ]
    return Candidate(tuple(Match(swapped.SpatialAttention, plan) for plan in plans), (((3, 6, k + 4, k + 7),),))


def _channels(inner: nn.Module) -> tuple[int, int] | None:
    return (inner.in_channels, inner.out_channels) if type(inner) is nn.Conv2d else None


def _channel_attention(module: nn.Module) -> Candidate | Refusal | None:
    """Squeeze-excitation or CBAM's channel attention: one layer, or two down and up again, no other parameters."""
    holders = _holders(module)
    if len(holders) not in (1, 2) or "" in holders:
        return None
    sizes = [_features(layer) for layer in holders.values()]
    if None in sizes or sizes[0] != sizes[-1][::-1] or (len(sizes) == 2 and sizes[0][0] <= sizes[0][1]):
        return None
    if len(holders) == 1 and _gated(module) is None:
        return None
    paths = (None, *holders) if len(holders) == 1 else tuple(holders)
    matches = Match(swapped.ChannelGate, swapped.LayersPlan(*paths)), Match(swapped.GatedChannels)
    return Candidate(matches, ((_maps(sizes[0][0]),),))


def _maps(channels: int) -> tuple[int, int, int, int]:
    """Return the shape of an input whose height and width differ from its channels."""
    return 3, channels, 5, 7 if channels != 7 else 8


def _gated(module: nn.Module) -> Candidate | None:
    """Any module that may make a gate and multiply its input by it, even by a gate without an op."""
    parameters = list(module.parameters())
    if not parameters or any(map(is_lazy, parameters)) or sum(p.numel() for p in parameters) > BIGGEST:
        return None
    if len(_arguments(module)) != 1 or not may_gate(module):
        return None
    channels = [c for c in map(_in_channels, module.modules()) if c is not None][:1]
    counts = dict.fromkeys((*(c for c in channels if c > 1), 8, 1))  # a gate of one channel is not a channel gate
    inputs = [((3, c, *size),) for c in counts for size in ((5, 7), (34, 37))]
    # an image network that ends in a sigmoid is not a gate only because it rejects small images
    inner = [m for m in module.modules() if m is not module and not is_torchs(m)]
    foreign = any(True for m in inner for _ in m.parameters())
    flat = any(isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.AdaptiveAvgPool2d) for m in module.modules())
    return Candidate((Match(swapped.GatedChannels),), tuple(inputs), told=flat and not foreign)


def _in_channels(layer: nn.Module) -> int | None:
    """Return the input channels of a layer, None without channels."""
    for kinds, name in _CHANNELS:
        if isinstance(layer, kinds):
            return getattr(layer, name)
    return None


_CHANNELS = ((nn.Conv2d, "in_channels"), (nn.Linear, "in_features"), (nn.BatchNorm2d, "num_features"))


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
    size = attention.inputs[0][0][2:]
    return Candidate(tuple(matches), (((3, features[0][0], *size),),)) if features else None


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
