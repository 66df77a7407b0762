"""FLOP formulas of the ops, so that `torch.utils.flop_counter.FlopCounterMode` counts them; imported for that effect.

The conventions are torch's: 2 per multiply-add, convolutions and matrix products only, padding counted as if it were
data. A backward op counts the products for the gradients that are needed. `channel_stats`, `spatial_gate` and `augment`
have no products, so they count nothing. The mix of experts is a product of mixing [batch, experts] and experts
[experts, numel / experts].
"""

from math import prod

import torch
from torch.utils.flop_counter import register_flop_formula

import polychrome.kernels.channel_gate.register
import polychrome.kernels.dynamic_conv.register
import polychrome.kernels.spatial_attention.register  # noqa: F401

ops = torch.ops.polychrome


def _conv(out_shape, kernel_shape) -> int:
    """FLOPs of a convolution to [batch, out, oh, ow] with kernels [..., out, in/groups, kh, kw]."""
    return 2 * prod(out_shape) * prod(kernel_shape[-3:])


@register_flop_formula(ops.per_sample_conv2d)
def per_sample_conv2d_flops(x, weight, *_, out_shape=None, **__) -> int:
    return _conv(out_shape, weight)


@register_flop_formula(ops.per_sample_conv2d_backward)
def per_sample_conv2d_backward_flops(grad, x, weight, stride, padding, dilation, groups, needed, *_, **__) -> int:
    return (needed[0] + needed[1]) * _conv(grad, weight)


@register_flop_formula([ops.dynamic_conv2d, ops.dynamic_conv2d_affine])
def dynamic_conv2d_flops(x, experts, mixing, bias, *_, out_shape=None, **__) -> int:
    return _conv(out_shape, experts) + _mix(mixing, experts) + _mix(mixing, bias)


@register_flop_formula(ops.per_sample_conv_transpose2d)
def per_sample_conv_transpose2d_flops(x, weight, *_, **__) -> int:
    return _conv(x, weight)


@register_flop_formula(ops.dynamic_conv_transpose2d)
def dynamic_conv_transpose2d_flops(x, experts, mixing, bias, *_, **__) -> int:
    return _conv(x, experts) + _mix(mixing, experts) + _mix(mixing, bias)


@register_flop_formula(ops.dynamic_conv2d_backward)
def dynamic_conv2d_backward_flops(
    grad, x, experts, mixing, bias, stride, padding, dilation, groups, needed, *_, **__
) -> int:
    """x: the mix again and a convolution; experts, mixing: the per-sample weight gradient and a mix-sized product."""
    for_x, for_experts, for_mixing, for_bias = needed
    convolutions = (for_x + (for_experts or for_mixing)) * _conv(grad, experts)
    mixes = (for_x + for_experts + for_mixing) * _mix(mixing, experts)
    return convolutions + mixes + (for_bias + for_mixing) * _mix(mixing, bias)


@register_flop_formula(ops.spatial_attention)
def spatial_attention_flops(x, weight, *_, **__) -> int:
    return _conv((x[0], 1, *x[2:]), weight)


@register_flop_formula(ops.spatial_attention_backward)
def spatial_attention_backward_flops(grad, x, weight, bias, stats, argmax, gate, needed, *_, **__) -> int:
    return (needed[0] + needed[1]) * _conv((x[0], 1, *x[2:]), weight)


@register_flop_formula(ops.channel_gate)
def channel_gate_flops(x, w1, b1, w2, *_, **__) -> int:
    return 2 * x[0] * (_size(w1) + _size(w2))


@register_flop_formula(ops.channel_gate_backward)
def channel_gate_backward_flops(grad, x, w1, b1, w2, b2, pooled, hidden, scale, gate, needed, *_, **__) -> int:
    """Each layer: the gradient of its weight, and of its input where something below it is asked for."""
    first = (needed[1] + needed[0]) * _size(w1)
    second = (needed[3] + (needed[0] or needed[1] or needed[2])) * _size(w2)
    return 2 * x[0] * (first + second)


def _mix(mixing, experts) -> int:
    return 0 if experts is None else 2 * mixing[0] * prod(experts)


def _size(weight) -> int:
    return 0 if weight is None else prod(weight)
