"""Initial weights that replace the models' own."""

import math

from torch import Tensor, nn

from polychrome.kernels.modules import ChannelGate, DynamicConv2d, ExpertAttention, OmniDimensionalAttention
from polychrome.models.prism import Prism, bring_experts_together

NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
GATES = (ChannelGate, ExpertAttention, OmniDimensionalAttention)


def he_(model: nn.Module) -> None:
    """Reinitialise the weights of `model` in place, as He et al. 2015 for ReLU networks.

    Convolutions: normal with variance 2 / fan-out, the fan-out being the values of the output that one value of the
    input reaches (out_channels / groups times the kernel's pixels), and biases of zero. Each expert of a
    `DynamicConv2d` is drawn as a convolution; those of a `Prism` start nearly equal, as in its own initialisation.
    Layers on one vector per sample, whether linear layers or 1x1 convolutions, have variance 2 / fan-in: the last
    layer's fan-out is the number of classes, which is small and would give initial losses of 5 to 20. These are all
    linear layers, the 1x1 convolutions in gates and attentions, and a 1x1 convolution that is the last layer. Norms:
    weights of one and biases of zero; running statistics do not change. Other parameters do not change.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    on_vectors = {layer for gate in model.modules() if isinstance(gate, GATES) for layer in gate.modules()}
    on_vectors |= {layer for layer in layers[-1:] if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)}
    for module in model.modules():
        if isinstance(module, DynamicConv2d):
            _draw(module, _fan_out(module.weight[0], module.groups))
        elif isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module in on_vectors):
            _draw(module, module.weight[0].numel())
        elif isinstance(module, nn.Conv2d):
            _draw(module, _fan_out(module.weight, module.groups))
        elif isinstance(module, NORMS) and module.weight is not None:
            nn.init.ones_(module.weight)
            _zero_bias(module)
    for module in model.modules():
        if isinstance(module, Prism):
            bring_experts_together(module)


def _fan_out(kernel: Tensor, groups: int) -> float:
    """Return the fan-out of a kernel [out_channels, in_channels / groups, height, width]."""
    return kernel[:, 0].numel() / groups


def _draw(module: nn.Module, fan: float) -> None:
    nn.init.normal_(module.weight, std=math.sqrt(2 / fan))
    _zero_bias(module)


def _zero_bias(module: nn.Module) -> None:
    if module.bias is not None:
        nn.init.zeros_(module.bias)
