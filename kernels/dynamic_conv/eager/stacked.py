"""Dynamic convolution one expert at a time: every sample with every expert, no mixed weights.

It multiplies `experts` times as much as mixing first, and pays where the weights of a sample outweigh its pixels.
"""

import torch
from torch import Tensor

from polychrome.kernels.dynamic_conv.eager.per_sample import convolve_with, convolve_with_backward
from polychrome.kernels.dynamic_conv.problem import Geometry
from polychrome.kernels.tensors import laid_out_as, wide_dtype


def forward(x, experts, mixing, bias, geometry: Geometry) -> Tensor:
    """Return `sum_k mixing[b, k] * (conv(x[b], experts[k]) + bias[k])`, summed in the wide dtype, laid out as x."""
    wide = wide_dtype(x.dtype)
    y = None
    for expert, weights in zip(experts, _columns(mixing, wide), strict=True):
        one = convolve_with(x, expert, geometry).to(wide)
        y = one.mul_(weights) if y is None else y.addcmul_(one, weights)
    if bias is not None:
        y += (mixing.to(wide) @ bias.to(wide))[:, :, None, None]
    return laid_out_as(x, y)


def backward(grad, x, experts, mixing, geometry: Geometry, needed) -> list[Tensor | None]:
    """Return the gradients of x, experts and mixing (wide): `dx = sum_k mixing[b, k] * u_k`, `dmixing = <x, u_k>`.

    `u_k` is the gradient of x through expert k alone; the gradient of expert k is its gradient for x scaled by the
    mixing.
    """
    wide = wide_dtype(x.dtype)
    wide_x = x.to(wide)
    dx, dexperts, dmixing = None, [], []
    for expert, weights in zip(experts, _columns(mixing, wide), strict=True):
        scaled = (wide_x * weights).to(x.dtype) if needed[1] else x
        for_x, for_expert = needed[0] or needed[2], needed[1]
        through, dexpert = convolve_with_backward(grad, scaled, expert, geometry, [for_x, for_expert])
        dexperts.append(dexpert)
        if needed[2]:
            dmixing.append((through.to(wide) * wide_x).sum((1, 2, 3)))
        if needed[0]:
            through = through.to(wide)
            dx = through * weights if dx is None else dx.addcmul_(through, weights)
    return [
        laid_out_as(x, dx) if needed[0] else None,
        torch.stack(dexperts) if needed[1] else None,
        torch.stack(dmixing, 1) if needed[2] else None,
    ]


def _columns(mixing: Tensor, wide: torch.dtype) -> list[Tensor]:
    """Return mixing as one [batch, 1, 1, 1] tensor for each expert."""
    return mixing.to(wide)[:, :, None, None, None].unbind(1)
