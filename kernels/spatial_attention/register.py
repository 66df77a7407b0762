"""`polychrome::channel_stats`, `polychrome::spatial_gate`, `polychrome::spatial_attention` and their backward ops.

`backend` is "auto" or "triton", by `use_backend` when the public function was called: the implementation that
computed the output computes the gradients.
"""

import torch
from torch import Tensor

from polychrome.kernels.backend import runs_triton
from polychrome.kernels.library import (
    asked,
    call,
    needs,
    register_backward,
    register_op,
    register_product,
    register_second,
)
from polychrome.kernels.spatial_attention import eager, reference
from polychrome.kernels.tensors import empty_as, gradients_as, is_channels_last, wide_dtype


def _implementation(x: Tensor, backend: str):
    """Return the module whose functions compute the ops on `x`; Triton is imported when it is first needed."""
    if runs_triton(x, backend):
        from polychrome.kernels.spatial_attention.triton import ops

        return ops
    return eager


def channel_stats(x: Tensor, mask: Tensor | None, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Return (stats [batch, 2, height, width], the channel of each max [batch, 1, height, width])."""
    return _implementation(x, backend).channel_stats(x, mask)


def channel_stats_backward(
    grad: Tensor, mask: Tensor | None, argmax: Tensor, channels: int, channels_last: bool, backend: str = "auto"
) -> Tensor:
    """Return the gradient of x; only x's channel count and layout are kept."""
    return _implementation(grad, backend).channel_stats_backward(grad, mask, argmax, channels, channels_last)


def spatial_gate(x: Tensor, logits: Tensor, backend: str = "auto") -> Tensor:
    """Return x * sigmoid(logits), the product rounded once."""
    return _implementation(x, backend).spatial_gate(x, logits)


def spatial_gate_backward(
    grad: Tensor, x: Tensor, logits: Tensor, needed: list[bool], backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and logits; gradients not needed are empty placeholders."""
    return _implementation(x, backend).spatial_gate_backward(grad, x, logits, needed)


def spatial_attention(
    x: Tensor, weight: Tensor, bias: Tensor | None, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (y, stats, argmax, gate); stats and gate in the wide dtype, for the backward pass."""
    return _implementation(x, backend).spatial_attention(x, weight, bias)


def spatial_attention_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stats: Tensor,
    argmax: Tensor,
    gate: Tensor,
    needed: list[bool],
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias; gradients not needed are empty placeholders."""
    implementation = _implementation(x, backend)
    return implementation.spatial_attention_backward(grad, x, weight, bias, stats, argmax, gate, needed)


def _map(x, channels, dtype):
    batch, _, height, width = x.shape
    return x.new_empty((batch, channels, height, width), dtype=dtype)


def _stats_fake(x, mask, backend="auto"):
    return empty_as(x, (x.shape[0], 2, *x.shape[2:])), _map(x, 1, torch.int32)


def _stats_backward_fake(grad, mask, argmax, channels, channels_last, backend="auto"):
    shape = (grad.shape[0], channels, *grad.shape[2:])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)


def _stats_setup(ctx, inputs, output):
    x, mask, ctx.backend = inputs
    _, argmax = output
    ctx.channels, ctx.channels_last = x.shape[1], is_channels_last(x)
    ctx.save_for_backward(mask, argmax)
    ctx.mark_non_differentiable(argmax)


def _stats_gradient(ctx, grad, _):
    arguments = (grad, *ctx.saved_tensors, ctx.channels, ctx.channels_last, ctx.backend)
    return call("channel_stats_backward", *arguments), None, None


def _stats_backward_setup(ctx, inputs, output):
    _, mask, argmax, *ctx.layout, _ = inputs
    ctx.save_for_backward(mask, argmax)


def _stats_backward_gradient(ctx, cotangent):
    """Return the gradient of grad: the mean of the cotangent over the present channels, and its value at the max's."""
    mask, argmax = ctx.saved_tensors
    wide = cotangent.to(wide_dtype(cotangent.dtype))
    largest = wide.gather(1, argmax.long())
    if mask is None:
        mean = wide.mean(1, keepdim=True)
    else:
        present = mask[:, :, None, None]
        mean = wide.where(present, 0).sum(1, keepdim=True) / present.sum(1, keepdim=True)
        # as in the first derivative: the max's channel may be an absent one
        largest = largest.where(present.expand(-1, -1, *argmax.shape[2:]).gather(1, argmax.long()), 0)
    return torch.cat([mean, largest], 1).to(cotangent.dtype), None, None, None, None, None


def _attention_fake(x, weight, bias, backend="auto"):
    wide = wide_dtype(x.dtype)
    return empty_as(x, x.shape), _map(x, 2, wide), _map(x, 1, torch.int32), _map(x, 1, wide)


def _attention_backward_fake(grad, x, weight, bias, stats, argmax, gate, needed, backend="auto"):
    return gradients_as((x, weight, bias), needed)


def _attention_setup(ctx, inputs, output):
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _attention_gradient(ctx, grad, *_):
    needed = needs(ctx)[:3]
    gradients = call("spatial_attention_backward", grad, *ctx.saved_tensors, needed, ctx.backend)
    return *asked(gradients, needed), None


register_op("channel_stats", channel_stats, _stats_fake)
register_op("channel_stats_backward", channel_stats_backward, _stats_backward_fake)
register_backward("channel_stats", _stats_setup, _stats_gradient)
register_backward("channel_stats_backward", _stats_backward_setup, _stats_backward_gradient)
register_product("spatial_gate", spatial_gate, spatial_gate_backward, reference.spatial_gate)
register_op("spatial_attention", spatial_attention, _attention_fake)
register_op("spatial_attention_backward", spatial_attention_backward, _attention_backward_fake)
register_backward("spatial_attention", _attention_setup, _attention_gradient)
register_second("spatial_attention", reference.spatial_attention)
