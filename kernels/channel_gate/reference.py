"""The definition in plain PyTorch, used as "naive" by tests and benchmarks. It does not check its arguments."""

import torch.nn.functional as F

from kernels.tensors import wide_dtype


def channel_gate(x, w1, b1, w2, b2, gate="sigmoid"):
    """Multiply each channel by a gate that one or two linear layers make from all channel means."""
    hidden = x.mean((2, 3), dtype=wide_dtype(x.dtype))
    if w1 is not None:
        hidden = linear(hidden, w1, b1).relu()
    logits = linear(hidden, w2, b2)
    scale = logits.sigmoid() if gate == "sigmoid" else logits.softmax(1)
    return (x * scale[:, :, None, None]).to(x.dtype)


def linear(inputs, weight, bias):
    """Return the linear layer in the dtype of `inputs`; weight is [out, in] or [out, in, 1, 1]."""
    return F.linear(inputs, weight.flatten(1).to(inputs.dtype), None if bias is None else bias.to(inputs.dtype))
