"""The definition in plain PyTorch, used as "naive" by tests and benchmarks. It does not check its arguments."""

import torch.nn.functional as F

from polychrome.kernels.tensors import wide_dtype


def channel_gate(x, w1, b1, w2, b2, gate="sigmoid"):
    """Multiply each channel by a gate that one or two linear layers make from all channel means."""
    hidden = x.mean((2, 3), dtype=wide_dtype(x.dtype))
    if w1 is not None:
        hidden = linear(hidden, w1, b1).relu()
    scale = gate_of_logits(linear(hidden, w2, b2), gate)
    return (x * scale[:, :, None, None]).to(x.dtype)


def gate_of_logits(logits, gate):
    """Return the gate, `sigmoid` or `softmax` over the channels, of logits [batch, channels]."""
    return logits.sigmoid() if gate == "sigmoid" else logits.softmax(1)


def linear(inputs, weight, bias):
    """Return the linear layer in the dtype of `inputs`; weight is [out, in] or [out, in, 1, 1]."""
    return F.linear(inputs, weight.flatten(1).to(inputs.dtype), None if bias is None else bias.to(inputs.dtype))
