"""The op bodies on a GPU: three launches forward and four backward, one and two on small maps.

They take and return what their namesakes in `eager` do.
"""

from torch import Tensor

from polychrome.kernels.channel_gate import eager
from polychrome.kernels.channel_gate.configs import FusedConfig, fused_config, gradients_fit, layers_fit
from polychrome.kernels.channel_gate.triton.fused import fused_gate, fused_gate_gradient
from polychrome.kernels.channel_gate.triton.layers import gate_gradient, gate_of, layer_gradients
from polychrome.kernels.channel_gate.triton.pixels import scale_channels, sum_over_pixels
from polychrome.kernels.tensors import is_channels_last, memory_layout, not_asked


def channel_gate(
    x: Tensor, w1: Tensor | None, b1: Tensor | None, w2: Tensor, b2: Tensor | None, gate: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (y, pooled, hidden, scale), the last three float32 [batch, features]; hidden is empty without w1."""
    if x.numel() == 0:
        return eager.channel_gate(x, w1, b1, w2, b2, gate)
    source = _dense(x, x)
    if config := _fused_config(source, w1, gate, whole=gate == "softmax"):
        return fused_gate(source, _matrix(w1), _vector(b1), _matrix(w2), _vector(b2), gate, config)
    partial, pixels = sum_over_pixels(source), x.shape[2] * x.shape[3]
    if _layers_fit(x, w1, gate):
        pooled, hidden, scale = gate_of(partial, pixels, _matrix(w1), _vector(b1), _matrix(w2), _vector(b2), gate)
    else:
        pooled = _whole(partial) / pixels
        hidden, scale = eager.gate_of(pooled, w1, b1, w2, b2, gate)
    return scale_channels(source, scale), pooled, hidden, scale


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
    if x.numel() == 0:
        return eager.channel_gate_backward(grad, x, w1, b1, w2, b2, pooled, hidden, scale, gate, needed)
    grad, source, hidden, scale = _dense(grad, x), _dense(x, x), hidden.contiguous(), scale.contiguous()
    for_layers = any(needed[1:])
    config = _fused_config(source, w1, gate, whole=False) if needed[0] else None
    if config:
        small = (_matrix(w1), _matrix(w2), hidden, scale, gate, for_layers, config)
        dx, dlogits, dhidden = fused_gate_gradient(grad, source, *small)
    else:
        partial, pixels = sum_over_pixels(grad, source), x.shape[2] * x.shape[3]
        through_weights = needed[0] or (w1 is not None and any(needed[1:3]))  # else dlogits is all there is to compute
        if through_weights and _layers_fit(x, w1, gate):
            small = (_matrix(w1), _matrix(w2), hidden, scale, gate, for_layers, needed[0])
            dlogits, dhidden, share = gate_gradient(partial, pixels, *small)
        else:
            small = (w1, w2, hidden, scale, gate, needed)
            dlogits, dhidden, share = eager.gate_gradient(_whole(partial), pixels, *small)
        dx = scale_channels(grad, scale, share) if needed[0] else not_asked(scale)
    ours = gradients_fit(*x.shape[:2], x.shape[1] if w1 is None else w1.shape[0])
    of_layers = layer_gradients if ours else eager.layer_gradients
    return dx, *of_layers(dlogits, dhidden, pooled.contiguous(), hidden, (w1, b1, w2, b2), needed[1:])


def _dense(tensor: Tensor, x: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=memory_layout(x))


def _layers_fit(x: Tensor, w1: Tensor | None, gate: str) -> bool:
    batch, channels = x.shape[:2]
    hidden = None if w1 is None else w1.shape[0]
    return layers_fit(batch, channels, hidden, x.numel() * x.dtype.itemsize, gate == "softmax")


def _fused_config(x: Tensor, w1: Tensor | None, gate: str, whole: bool) -> FusedConfig | None:
    if not _layers_fit(x, w1, gate):
        return None
    batch, channels, height, width = x.shape
    hidden = None if w1 is None else w1.shape[0]
    return fused_config(batch, channels, hidden, height * width, x.dtype.itemsize, is_channels_last(x), whole)


def _whole(partial: Tensor) -> Tensor:
    """Return the sum of the partial sums."""
    return partial[0] if len(partial) == 1 else partial.sum(0)


def _matrix(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.flatten(1).contiguous()


def _vector(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()
