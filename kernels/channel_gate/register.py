"""`polychrome::channel_gate` and its backward op."""

import torch

from kernels.channel_gate import eager
from kernels.library import asked, register_backward, register_op
from kernels.tensors import empty_as, not_asked, wide_dtype


def _fake(x, w1, b1, w2, b2, gate):
    wide = wide_dtype(x.dtype)
    pooled = x.new_empty(x.shape[:2], dtype=wide)
    hidden = x.new_empty(0 if w1 is None else (x.shape[0], w1.shape[0]), dtype=wide)
    return empty_as(x, x.shape), pooled, hidden, torch.empty_like(pooled)


def _backward_fake(grad, x, w1, b1, w2, b2, pooled, hidden, scale, gate, needed):
    weights = (w1, b1, w2, b2)
    return (
        empty_as(x, x.shape) if needed[0] else not_asked(scale),
        *(w.new_empty(w.shape) if need else not_asked(scale) for w, need in zip(weights, needed[1:], strict=True)),
    )


def _setup(ctx, inputs, output):
    *tensors, ctx.gate = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradient(ctx, grad, *_):
    needed = list(ctx.needs_input_grad[:5])
    gradients = torch.ops.polychrome.channel_gate_backward(grad, *ctx.saved_tensors, ctx.gate, needed)
    return *asked(gradients, needed), None


register_op("channel_gate", eager.channel_gate, _fake)
register_op("channel_gate_backward", eager.channel_gate_backward, _backward_fake)
register_backward("channel_gate", _setup, _gradient)
