"""Dynamic convolution as torch's own functions, whose mixed weights autograd keeps for the gradients.

The fastest way where they fit into memory that is used again: nothing is mixed twice, and autograd runs no Python.
"""

import torch
from torch import Tensor

from polychrome.kernels.dynamic_conv.eager.mixing import Gradients, Mixer, by_halves
from polychrome.kernels.dynamic_conv.eager.per_sample import convolve_for_autograd, convolve_with
from polychrome.kernels.dynamic_conv.problem import Geometry
from polychrome.kernels.dynamic_conv.reference import mix
from polychrome.kernels.dynamic_conv.trust import is_trusted_otherwise
from polychrome.kernels.library import call
from polychrome.kernels.tensors import autocasts, is_channels_last, laid_out_as, wide_dtype, without_autocast

LARGE = 1 << 22  # elements of experts whose copy in the wide dtype is new memory of the system each time


def dynamic_conv2d(form: str, x, experts, mixing, bias, geometry: Geometry) -> Tensor:
    """Convolve each sample with its mix of the experts, mixing [batch, experts].

    form is "groups", "loop", or for a single expert "stacked".
    """
    if autocasts(x):
        with without_autocast(x):
            return dynamic_conv2d(form, x, experts, mixing, bias, geometry)
    if form == "stacked":
        return laid_out_as(x, _scaled(convolve_with(x, experts[0], geometry), mixing, bias))
    weight = mixed(experts, mixing, form == "loop" and is_channels_last(x))
    bias = mix(mixing, bias)
    if not is_trusted_otherwise(x):  # torch's second derivatives are convolutions of other kinds
        return call("per_sample_conv2d", x, weight, bias, *geometry, "auto")
    return laid_out_as(x, convolve_for_autograd(form, x, weight, bias, geometry))


def _scaled(y: Tensor, mixing: Tensor, bias: Tensor | None) -> Tensor:
    wide = mixing.to(wide_dtype(y.dtype))
    y = y * wide[:, :, None, None]
    return y if bias is None else y + (wide @ bias.to(wide.dtype))[:, :, None, None]


def mixed(experts: Tensor, mixing: Tensor, channels_last: bool = False) -> Tensor:
    """Return `reference.mix(mixing, experts)`, faster in bfloat16; the layout is open."""
    faster = experts.dtype == torch.bfloat16 and (by_halves(mixing, experts) or experts.numel() >= LARGE)
    if not faster or torch._C._are_functorch_transforms_active():
        return mix(mixing, experts)
    return _Mix.apply(experts, mixing, channels_last)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, experts: Tensor, mixing: Tensor, channels_last: bool) -> Tensor:
        ctx.save_for_backward(experts, mixing)
        ctx.channels_last = channels_last
        return Mixer(experts, mixing, channels_last)[:]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (experts, mixing), (for_experts, for_mixing, _) = ctx.saved_tensors, ctx.needs_input_grad
        wide = mixing.to(wide_dtype(experts.dtype))
        with without_autocast(grad):
            if torch.is_grad_enabled():  # the gradients are to be differentiated
                rows = grad.flatten(1).to(wide.dtype)
                dmixing = rows @ experts.flatten(1).to(wide.dtype).T if for_mixing else None
                dexperts = (wide.T @ rows).to(experts.dtype).view(experts.shape) if for_experts else None
            else:
                dmixing = torch.zeros_like(wide) if for_mixing else None
                gradients = Gradients(experts, wide, dmixing, for_experts, 1, ctx.channels_last)
                gradients.add(slice(0, len(grad)), grad)
                dexperts = gradients.experts
        return dexperts, None if dmixing is None else dmixing.to(mixing.dtype), None
