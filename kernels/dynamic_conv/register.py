"""`polychrome::per_sample_conv2d`, `polychrome::dynamic_conv2d` and their backward ops."""

import torch

from kernels.dynamic_conv import eager
from kernels.dynamic_conv.geometry import output_size
from kernels.library import asked, register_backward, register_op
from kernels.tensors import empty_as, not_asked


def _output_fake(x, weight, stride, padding, dilation):
    height, width = output_size(x, weight.shape[3:], stride, padding, dilation)
    return empty_as(x, (x.shape[0], weight.shape[1], height, width))


def _per_sample_fake(x, weight, bias, stride, padding, dilation, groups):
    return _output_fake(x, weight, stride, padding, dilation)


def _per_sample_backward_fake(grad, x, weight, stride, padding, dilation, groups, needed):
    return (
        empty_as(x, x.shape) if needed[0] else not_asked(x),
        weight.new_empty(weight.shape) if needed[1] else not_asked(x),
        weight.new_empty(weight.shape[:2]) if needed[2] else not_asked(x),
    )


def _per_sample_setup(ctx, inputs, output):
    x, weight, _, *ctx.geometry = inputs
    ctx.save_for_backward(x, weight)


def _per_sample_gradient(ctx, grad):
    needed = list(ctx.needs_input_grad[:3])
    op = torch.ops.polychrome.per_sample_conv2d_backward
    return *asked(op(grad, *ctx.saved_tensors, *ctx.geometry, needed), needed), None, None, None, None


def _dynamic_fake(x, experts, mixing, bias, stride, padding, dilation, groups):
    return _output_fake(x, experts, stride, padding, dilation)


def _dynamic_backward_fake(grad, x, experts, mixing, bias, stride, padding, dilation, groups, needed):
    return (
        empty_as(x, x.shape) if needed[0] else not_asked(x),
        experts.new_empty(experts.shape) if needed[1] else not_asked(x),
        mixing.new_empty(mixing.shape) if needed[2] else not_asked(x),
        bias.new_empty(bias.shape) if needed[3] else not_asked(x),
    )


def _dynamic_setup(ctx, inputs, output):
    x, experts, mixing, bias, *ctx.geometry = inputs
    ctx.save_for_backward(x, experts, mixing, bias)


def _dynamic_gradient(ctx, grad):
    needed = list(ctx.needs_input_grad[:4])
    op = torch.ops.polychrome.dynamic_conv2d_backward
    return *asked(op(grad, *ctx.saved_tensors, *ctx.geometry, needed), needed), None, None, None, None


register_op("per_sample_conv2d", eager.per_sample_conv2d, _per_sample_fake)
register_op("per_sample_conv2d_backward", eager.per_sample_conv2d_backward, _per_sample_backward_fake)
register_backward("per_sample_conv2d", _per_sample_setup, _per_sample_gradient)
register_op("dynamic_conv2d", eager.dynamic_conv2d, _dynamic_fake)
register_op("dynamic_conv2d_backward", eager.dynamic_conv2d_backward, _dynamic_backward_fake)
register_backward("dynamic_conv2d", _dynamic_setup, _dynamic_gradient)
