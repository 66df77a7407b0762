"""The op bodies on a GPU: each a few launches. They take and return what their namesakes in `eager` do."""

import torch
from torch import Tensor

from polychrome.kernels.spatial_attention import configs
from polychrome.kernels.spatial_attention.eager import check_present
from polychrome.kernels.spatial_attention.triton.attention import attend, attend_sample
from polychrome.kernels.spatial_attention.triton.backward import logit_gradient, spread
from polychrome.kernels.spatial_attention.triton.gate import scale_pixels, scale_pixels_backward
from polychrome.kernels.spatial_attention.triton.maps import map_gradients, sample_gradients
from polychrome.kernels.spatial_attention.triton.statistics import write_stats
from polychrome.kernels.sums import sum_outer_and_inner
from polychrome.kernels.tensors import empty_as, memory_layout, not_asked

# Logits that one program sums in two rounds of loads; torch's reduction of more has many programs.
ALONE = 2**15


def channel_stats(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (stats [batch, 2, height, width], the channel of each max [batch, 1, height, width])."""
    if mask is not None:
        mask = mask.contiguous()
        if mask.device.type == "cpu":
            check_present(mask)
    stats, argmax = empty_as(x, (x.shape[0], 2, *x.shape[2:])), _map(x, 1, torch.int32)
    if x.numel():
        write_stats(_dense(x, x), mask, stats, argmax)
    return stats, argmax


def channel_stats_backward(
    grad: Tensor, mask: Tensor | None, argmax: Tensor, channels: int, channels_last: bool
) -> Tensor:
    """Return the gradient of x; its channel count and layout are all that is kept of x."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (grad.shape[0], channels, *grad.shape[2:])
    dx = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)
    if dx.numel():
        spread(_dense(grad, grad), argmax.contiguous(), None if mask is None else mask.contiguous(), dx)
    return dx


def spatial_gate(x: Tensor, logits: Tensor) -> Tensor:
    """Return x * sigmoid(logits), the product rounded once."""
    y = empty_as(x, x.shape)
    if x.numel():
        scale_pixels(_dense(x, x), logits.contiguous(), y)
    return y


def spatial_gate_backward(grad: Tensor, x: Tensor, logits: Tensor, needed: list[bool]) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and logits; one not needed is an empty placeholder."""
    for_x, for_logits = needed
    dx = empty_as(x, x.shape) if for_x else None
    dlogits = logits.new_empty(logits.shape) if for_logits else None
    if x.numel() and any(needed):
        scale_pixels_backward(_dense(grad, x), _dense(x, x) if for_logits else None, logits.contiguous(), dx, dlogits)
    return dx if for_x else not_asked(x), dlogits if for_logits else not_asked(x)


def spatial_attention(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (y, stats, argmax, gate); stats and gate in float32, for the backward pass."""
    stats, argmax, gate = _map(x, 2, torch.float32), _map(x, 1, torch.int32), _map(x, 1, torch.float32)
    y = empty_as(x, x.shape)
    if x.numel():
        source, weight = _dense(x, x), weight.contiguous()
        batch, channels, height, width = x.shape
        tile = configs.sample_tile(batch, channels, height * width, x.element_size(), weight.shape[-1])
        if tile is not None:
            attend_sample(source, weight, bias, stats, argmax, gate, y, tile)
        else:
            write_stats(source, None, stats, argmax)
            attend(source, stats, weight, bias, gate, y)
    return y, stats, argmax, gate


def spatial_attention_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stats: Tensor,
    argmax: Tensor,
    gate: Tensor,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias; one not needed is an empty placeholder."""
    for_x, for_weight, for_bias = needed
    dx, dweight, dbias = (not_asked(x) for _ in needed)  # outputs of an op must not share memory
    if x.numel() == 0:
        return (
            empty_as(x, x.shape) if for_x else dx,
            weight.new_zeros(weight.shape) if for_weight else dweight,
            bias.new_zeros(bias.shape) if for_bias else dbias,
        )
    grad = _dense(grad, x)
    stats, argmax, gate = stats.contiguous(), argmax.contiguous(), gate.contiguous()
    source, weight = _dense(x, x), weight.contiguous()
    tiles = configs.sample_gradient_tiles(*x.shape, x.element_size(), weight.shape[-1]) if for_x else None
    if for_x:
        dx = empty_as(x, x.shape)
    if tiles is not None:
        arguments = (grad, source, gate, argmax, stats, weight, for_weight, dx)
        dlogits, weight_gradient = sample_gradients(*arguments, *tiles)
    else:
        dlogits = logit_gradient(grad, source, gate)
        if for_x or for_weight:
            dmaps, weight_gradient = map_gradients(dlogits, stats, weight, for_x, for_weight)
        if for_x:
            spread(dmaps, argmax, None, dx, grad, gate)
    if for_weight:
        dweight = weight_gradient
    if for_bias:
        dbias = _bias_gradient(dlogits, bias.dtype)
    return dx, dweight, dbias


def _bias_gradient(dlogits: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum [1] of the logits' gradients, in one launch where they are few."""
    if dlogits.numel() <= ALONE:
        return sum_outer_and_inner(dlogits.view(1, 1, -1), dtype)
    return dlogits.sum().reshape(1).to(dtype)


def _dense(tensor: Tensor, x: Tensor) -> Tensor:
    """Return `tensor` in x's memory format, without gaps."""
    return tensor.contiguous(memory_format=memory_layout(x))


def _map(x: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Return an uninitialised contiguous [batch, channels, height, width]."""
    batch, _, height, width = x.shape
    return x.new_empty((batch, channels, height, width), dtype=dtype)
