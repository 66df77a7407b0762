"""The op in eager PyTorch with explicit gradients: autograd is off inside an opaque op."""

from torch import Tensor

from kernels.channel_gate.reference import linear
from kernels.tensors import laid_out_as, not_asked, wide_dtype


def channel_gate(
    x: Tensor, w1: Tensor | None, b1: Tensor | None, w2: Tensor, b2: Tensor | None, gate: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (y, pooled, hidden, scale), the last three wide [batch, features]; hidden is empty without w1."""
    pooled = x.mean((2, 3), dtype=wide_dtype(x.dtype))
    hidden = pooled.new_empty(0) if w1 is None else linear(pooled, w1, b1).relu()
    logits = linear(pooled if w1 is None else hidden, w2, b2)
    scale = logits.sigmoid() if gate == "sigmoid" else logits.softmax(1)
    return laid_out_as(x, x * scale[:, :, None, None]), pooled, hidden, scale


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, w1, b1, w2 and b2; one not needed is an empty placeholder."""
    grad = grad.to(scale.dtype)
    dlogits = _through_gate((grad * x).sum((2, 3)), scale, gate)
    dw2, db2 = _layer_gradients(dlogits, pooled if w1 is None else hidden, w2, b2, needed[3:])
    dx, dw1, db1 = (not_asked(scale) for _ in range(3))
    if needed[0] or needed[1] or needed[2]:
        dfeatures = dlogits @ w2.flatten(1).to(dlogits.dtype)
        if w1 is not None:
            dfeatures = dfeatures * (hidden > 0)
            dw1, db1 = _layer_gradients(dfeatures, pooled, w1, b1, needed[1:3])
        if needed[0]:
            dpooled = dfeatures if w1 is None else dfeatures @ w1.flatten(1).to(dfeatures.dtype)
            share = dpooled / (x.shape[2] * x.shape[3])
            dx = laid_out_as(x, grad * scale[:, :, None, None] + share[:, :, None, None])
    return dx, dw1, db1, dw2, db2


def _through_gate(dscale: Tensor, scale: Tensor, gate: str) -> Tensor:
    """Return the gradient of the logits from that of the gate."""
    if gate == "sigmoid":
        return dscale * scale * (1 - scale)
    return scale * (dscale - (dscale * scale).sum(1, keepdim=True))


def _layer_gradients(
    doutput: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor | None, needed: list[bool]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of a linear layer's weight and bias; one not needed is an empty placeholder."""
    return (
        (doutput.T @ inputs).to(weight.dtype).reshape(weight.shape) if needed[0] else not_asked(doutput),
        doutput.sum(0).to(bias.dtype) if needed[1] else not_asked(doutput),
    )
