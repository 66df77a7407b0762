"""Dynamic convolution one expert at a time: every sample with every expert, no mixed weights.

It multiplies `experts` times as much as mixing first, and pays where the weights of a sample outweigh its pixels.
"""

import torch
from torch import Tensor

from polychrome.kernels.dynamic_conv.eager.per_sample import convolve_with, convolve_with_backward
from polychrome.kernels.dynamic_conv.problem import Geometry
from polychrome.kernels.tensors import laid_out_as, wide_dtype

LARGE = 1 << 14  # elements of a sample that hide a call for it, which makes no tensor of the wide dtype


def forward(x, experts, mixing, bias, geometry: Geometry) -> Tensor:
    """Return `sum_k mixing[b, k] * (conv(x[b], experts[k]) + bias[k])`, summed in the wide dtype, laid out as x."""
    wide = mixing.to(wide_dtype(x.dtype))
    if len(experts) == 1 and bias is None:
        return laid_out_as(x, _scale(convolve_with(x, experts[0], geometry), wide[:, 0]))
    y = None
    for expert, weights in zip(experts, _columns(wide), strict=True):
        one = convolve_with(x, expert, geometry).to(wide.dtype)
        y = one.mul_(weights) if y is None else y.addcmul_(one, weights)
    if bias is not None:
        y += (wide @ bias.to(wide.dtype))[:, :, None, None]
    return laid_out_as(x, y)


def backward(grad, x, experts, mixing, geometry: Geometry, needed) -> list[Tensor | None]:
    """Return the gradients of x, experts and mixing (wide): `dx = sum_k mixing[b, k] * u_k`, `dmixing = <x, u_k>`.

    `u_k` is the gradient of x through expert k alone; the gradient of expert k is its gradient for x scaled by the
    mixing.
    """
    wide = mixing.to(wide_dtype(x.dtype))
    dx, dmixing = None, []
    dexperts = torch.empty_like(experts, memory_format=torch.contiguous_format) if needed[1] else None
    for k, (expert, own, weights) in enumerate(zip(experts, wide.unbind(1), _columns(wide), strict=True)):
        scaled = _scale(x.clone(), own) if needed[1] else x
        for_x, for_expert = needed[0] or needed[2], needed[1]
        through, dexpert = convolve_with_backward(grad, scaled, expert, geometry, [for_x, for_expert])
        if needed[1]:
            dexperts[k] = dexpert
        if needed[2]:
            dmixing.append((through * x).sum((1, 2, 3), dtype=wide.dtype))
        if needed[0] and len(experts) == 1:
            dx = _scale(through, own)
        elif needed[0]:
            through = through.to(wide.dtype)
            dx = through * weights if dx is None else dx.addcmul_(through, weights)
    return [
        laid_out_as(x, dx) if needed[0] else None,
        dexperts,
        torch.stack(dmixing, 1) if needed[2] else None,
    ]


def _scale(x: Tensor, weights: Tensor) -> Tensor:
    """Multiply each sample by its own weight in place, computed in the wide dtype, and return x."""
    if x[0].numel() < LARGE:
        return x.copy_(x * weights[:, None, None, None])
    for sample, weight in zip(x.unbind(), weights.tolist(), strict=True):
        sample.mul_(weight)
    return x


def _columns(mixing: Tensor) -> list[Tensor]:
    """Return mixing as one [batch, 1, 1, 1] tensor for each expert."""
    return mixing[:, :, None, None, None].unbind(1)
