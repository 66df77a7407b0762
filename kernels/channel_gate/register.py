"""`polychrome::channel_gate` and its backward op.

`backend` is "auto" or "triton", by `use_backend` when the public function was called: the implementation that
computed the output computes the gradients.
"""

import torch
from torch import Tensor

from polychrome.kernels.backend import runs_triton
from polychrome.kernels.channel_gate import eager, reference
from polychrome.kernels.library import asked, call, needs, register_backward, register_op, register_second
from polychrome.kernels.tensors import empty_as, not_asked, wide_dtype


def _implementation(x: Tensor, backend: str):
    """Return the module whose functions compute the ops on `x`; Triton is imported when it is first needed."""
    if runs_triton(x, backend):
        from polychrome.kernels.channel_gate.triton import ops

        return ops
    return eager


def channel_gate(
    x: Tensor,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gate: str,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (y, pooled, hidden, scale), the last three wide [batch, features]; hidden is empty without w1."""
    return _implementation(x, backend).channel_gate(x, w1, b1, w2, b2, gate)


def channel_gate_backward(
    grad: Tensor,
    x: Tensor,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    pooled: Tensor,
    hidden: Tensor,
    scale: Tensor,
    gate: str,
    needed: list[bool],
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, w1, b1, w2 and b2; gradients not needed are empty placeholders."""
    implementation = _implementation(x, backend)
    return implementation.channel_gate_backward(grad, x, w1, b1, w2, b2, pooled, hidden, scale, gate, needed)


def _fake(x, w1, b1, w2, b2, gate, backend="auto"):
    wide = wide_dtype(x.dtype)
    pooled = x.new_empty(x.shape[:2], dtype=wide)
    hidden = x.new_empty(0 if w1 is None else (x.shape[0], w1.shape[0]), dtype=wide)
    return empty_as(x, x.shape), pooled, hidden, torch.empty_like(pooled)


def _backward_fake(grad, x, w1, b1, w2, b2, pooled, hidden, scale, gate, needed, backend="auto"):
    weights = (w1, b1, w2, b2)
    return (
        empty_as(x, x.shape) if needed[0] else not_asked(scale),
        *(w.new_empty(w.shape) if need else not_asked(scale) for w, need in zip(weights, needed[1:], strict=True)),
    )


def _setup(ctx, inputs, output):
    *tensors, ctx.gate, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradient(ctx, grad, *_):
    needed = needs(ctx)[:5]
    gradients = call("channel_gate_backward", grad, *ctx.saved_tensors, ctx.gate, needed, ctx.backend)
    return *asked(gradients, needed), None, None


register_op("channel_gate", channel_gate, _fake)
register_op("channel_gate_backward", channel_gate_backward, _backward_fake)
register_backward("channel_gate", _setup, _gradient)
register_second("channel_gate", reference.channel_gate)
