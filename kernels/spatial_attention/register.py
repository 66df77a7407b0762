"""`polychrome::channel_stats`, `polychrome::spatial_attention` and their backward ops."""

import torch

from kernels.library import asked, register_backward, register_op
from kernels.spatial_attention import eager
from kernels.tensors import empty_as, is_channels_last, not_asked, wide_dtype


def _map(x, channels, dtype):
    batch, _, height, width = x.shape
    return x.new_empty((batch, channels, height, width), dtype=dtype)


def _stats_fake(x, mask):
    return empty_as(x, (x.shape[0], 2, *x.shape[2:])), _map(x, 1, torch.int32)


def _stats_backward_fake(grad, mask, argmax, channels, channels_last):
    shape = (grad.shape[0], channels, *grad.shape[2:])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)


def _stats_setup(ctx, inputs, output):
    x, mask = inputs
    _, argmax = output
    ctx.channels, ctx.channels_last = x.shape[1], is_channels_last(x)
    ctx.save_for_backward(mask, argmax)
    ctx.mark_non_differentiable(argmax)


def _stats_gradient(ctx, grad, _):
    op = torch.ops.polychrome.channel_stats_backward
    return op(grad, *ctx.saved_tensors, ctx.channels, ctx.channels_last), None


def _attention_fake(x, weight, bias):
    wide = wide_dtype(x.dtype)
    return empty_as(x, x.shape), _map(x, 2, wide), _map(x, 1, torch.int32), _map(x, 1, wide)


def _attention_backward_fake(grad, x, weight, bias, stats, argmax, gate, needed):
    return (
        empty_as(x, x.shape) if needed[0] else not_asked(x),
        weight.new_empty(weight.shape) if needed[1] else not_asked(x),
        bias.new_empty(bias.shape) if needed[2] else not_asked(x),
    )


def _attention_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _attention_gradient(ctx, grad, *_):
    needed = list(ctx.needs_input_grad)
    return asked(torch.ops.polychrome.spatial_attention_backward(grad, *ctx.saved_tensors, needed), needed)


register_op("channel_stats", eager.channel_stats, _stats_fake)
register_op("channel_stats_backward", eager.channel_stats_backward, _stats_backward_fake)
register_backward("channel_stats", _stats_setup, _stats_gradient)
register_op("spatial_attention", eager.spatial_attention, _attention_fake)
register_op("spatial_attention_backward", eager.spatial_attention_backward, _attention_backward_fake)
register_backward("spatial_attention", _attention_setup, _attention_gradient)
