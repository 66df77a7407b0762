"""The op in eager PyTorch with explicit gradients: autograd is off inside an opaque op."""

from torch import Tensor

from polychrome.kernels.channel_gate.reference import gate_of_logits, linear
from polychrome.kernels.tensors import laid_out_as, not_asked, wide_dtype


def channel_gate(
    x: Tensor, w1: Tensor | None, b1: Tensor | None, w2: Tensor, b2: Tensor | None, gate: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (y, pooled, hidden, scale), the last three wide [batch, features]; hidden is empty without w1."""
    pooled = x.mean((2, 3), dtype=wide_dtype(x.dtype))
    hidden, scale = gate_of(pooled, w1, b1, w2, b2, gate)
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
    """Return the gradients of x, w1, b1, w2 and b2; gradients not needed are empty placeholders."""
    grad = grad.to(scale.dtype)
    pixels = x.shape[2] * x.shape[3]
    dlogits, dhidden, share = gate_gradient((grad * x).sum((2, 3)), pixels, w1, w2, hidden, scale, gate, needed)
    dx = not_asked(scale)
    if needed[0]:
        # two passes: torch.addcmul is slower than both where two of its operands are repeated over the pixels
        dx = laid_out_as(x, (grad * scale[:, :, None, None]).add_(share[:, :, None, None]))
    return dx, *layer_gradients(dlogits, dhidden, pooled, hidden, (w1, b1, w2, b2), needed[1:])


def gate_of(
    pooled: Tensor, w1: Tensor | None, b1: Tensor | None, w2: Tensor, b2: Tensor | None, gate: str
) -> tuple[Tensor, Tensor]:
    """Return hidden, empty without w1, and scale from the means [batch, channels]."""
    hidden = pooled.new_empty(0) if w1 is None else linear(pooled, w1, b1).relu()
    logits = linear(pooled if w1 is None else hidden, w2, b2)
    return hidden, gate_of_logits(logits, gate)


def gate_gradient(
    dscale: Tensor,
    pixels: int,
    w1: Tensor | None,
    w2: Tensor,
    hidden: Tensor,
    scale: Tensor,
    gate: str,
    needed: list[bool],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return dlogits, dhidden and the gradient of x through its mean, per pixel; the last two None where not needed."""
    dlogits = _through_gate(dscale, scale, gate)
    if not any(needed[:3]):
        return dlogits, None, None
    dfeatures = dlogits @ w2.flatten(1).to(dlogits.dtype)
    if w1 is None:
        return dlogits, None, dfeatures / pixels
    dhidden = dfeatures.masked_fill(hidden <= 0, 0)  # NaN is not below zero, and passes as in relu's own gradient
    share = (dhidden @ w1.flatten(1).to(dhidden.dtype)) / pixels if needed[0] else None
    return dlogits, dhidden, share


def layer_gradients(
    dlogits: Tensor, dhidden: Tensor | None, pooled: Tensor, hidden: Tensor, layers: tuple, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `layers`, w1, b1, w2 and b2; gradients not needed are empty placeholders."""
    w1, b1, w2, b2 = layers
    return (
        *_layer_gradients(dhidden, pooled, w1, b1, needed[:2]),
        *_layer_gradients(dlogits, pooled if w1 is None else hidden, w2, b2, needed[2:]),
    )


def _through_gate(dscale: Tensor, scale: Tensor, gate: str) -> Tensor:
    """Return the gradient of the logits from the gradient of the gate."""
    if gate == "sigmoid":
        return dscale * scale * (1 - scale)
    return scale * (dscale - (dscale * scale).sum(1, keepdim=True))


def _layer_gradients(
    doutput: Tensor | None, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, needed: list[bool]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of a linear layer's weight and bias; gradients not needed are empty placeholders."""
    return (
        (doutput.T @ inputs).to(weight.dtype).reshape(weight.shape) if needed[0] else not_asked(inputs),
        doutput.sum(0).to(bias.dtype) if needed[1] else not_asked(inputs),
    )
