"""The modules of timm and torchvision that an op computes, known by the name of their class: neither is imported."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from polychrome.kernels.fuse import convolutions, swapped
from polychrome.kernels.fuse.candidates import Match, Refusal
from polychrome.kernels.fuse.generators import kept, next_numbers
from polychrome.kernels.plain import is_plain, is_pointwise


def recognise(module: nn.Module) -> Match | Refusal | None:
    """Return the verdict on a module of a known class, None for any other class."""
    for base in type(module).__mro__:
        known = _KNOWN.get(f"{base.__module__}.{base.__qualname__}")
        if known is None:
            continue
        if _overrides_forward(type(module), base):
            return None
        try:
            return known(module)
        except AttributeError as error:
            return Refusal(f"another version of {base.__qualname__} than the known one: {error}")
    return None


def _overrides_forward(cls: type, base: type) -> bool:
    """Return whether `cls`, a subclass of `base`, overrides the computation."""
    between = cls.__mro__[: cls.__mro__.index(base)]
    return any(name in c.__dict__ for c in between for name in ("forward", "_scale", "__call__"))


def _cond_conv(module: nn.Module) -> Match | Refusal:
    if module.weight.dim() != 2:
        return Refusal(f"weight must be [experts, -1], got {list(module.weight.shape)}")
    _ = module.weight_shape, module.num_experts, module.dynamic_padding
    return Match(convolutions.CondConv)


def _squeeze_excite(*names: str):
    """Return the recogniser of a squeeze-excitation whose layers, activation and gate have these names."""

    def recogniser(module: nn.Module) -> Match | Refusal:
        others = [child for name, child in module.named_children() if name not in names]
        if getattr(module, "add_maxpool", False) or not all(map(_is_mean, others)):
            return Match(swapped.GatedChannels)
        inner = [name for name in names if not is_plain(getattr(module, name), nn.Identity)]
        layers = [name for name in inner if is_pointwise(getattr(module, name))]
        others = [name for name in inner if name not in layers]
        acts = [activation_name(getattr(module, name)) for name in others]
        if len(layers) == 2 and acts == ["relu", "sigmoid"] and inner == [layers[0], others[0], layers[1], others[1]]:
            return Match(swapped.ChannelGate, swapped.LayersPlan(*layers))
        if len(layers) == 1 and acts == ["sigmoid"]:
            return Match(swapped.ChannelGate, swapped.LayersPlan(None, *layers))
        return Match(swapped.GatedChannels)

    return recogniser


def _is_mean(layer: nn.Module) -> bool:
    return is_plain(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1))


def _channel_attention(module: nn.Module) -> Match:
    _ = module.fc1, module.act, module.fc2, module.gate
    return Match(swapped.GatedChannels)


ACTIVATIONS = {"relu": F.relu, "sigmoid": torch.sigmoid}


def activation_name(module: nn.Module) -> str | None:
    """Return which of ACTIVATIONS a module without parameters computes in either mode, judged by values and gradients.

    Both are compared at sizes from 1e-7 to 1e7: some activations are clipped. None for those that draw random numbers.
    """
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return None
    with kept():
        without_draws = next_numbers()
    with torch.enable_grad(), kept():
        near = torch.linspace(-7, 7, 61, device="cpu", dtype=torch.float64)
        sizes = 10**near
        grid = torch.cat([near, near.new_zeros(1), sizes, -sizes])
        try:
            got = [each for mode in (True, False) for each in _values(copy.deepcopy(module).train(mode), grid)]
        except Exception:  # a foreign module may raise anything: it is then no known activation
            return None
        if next_numbers() != without_draws:
            return None
        for name, function in ACTIVATIONS.items():
            wanted = 2 * _values(function, grid)
            if all(torch.allclose(a, b, rtol=1e-6, atol=1e-8) for a, b in zip(got, wanted, strict=True)):
                return name
    return None


def _values(function, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the function's values on the grid and its derivatives."""
    x = grid.clone().requires_grad_()
    y = function(x * 1)  # a copy: the function may write in place
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


_KNOWN = {
    "timm.layers.cond_conv2d.CondConv2d": _cond_conv,
    "timm.layers.squeeze_excite.SEModule": _squeeze_excite("fc1", "bn", "act", "fc2", "gate"),
    "timm.layers.squeeze_excite.EffectiveSEModule": _squeeze_excite("fc", "gate"),
    "timm.models._efficientnet_blocks.SqueezeExcite": _squeeze_excite("conv_reduce", "act1", "conv_expand", "gate"),
    "timm.layers.cbam.ChannelAttn": _channel_attention,
    "torchvision.ops.misc.SqueezeExcitation": _squeeze_excite("fc1", "activation", "fc2", "scale_activation"),
}
