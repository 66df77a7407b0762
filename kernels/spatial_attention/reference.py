"""The definitions in plain PyTorch, used as "naive" by tests and benchmarks. They do not check their arguments."""

import torch
import torch.nn.functional as F

from polychrome.kernels.tensors import wide_dtype


def wide_stats(x, mask=None):
    """Return mean and max over the present channels before rounding, and the channel of the max, [batch, 1, h, w]."""
    wide = x.to(wide_dtype(x.dtype))
    if mask is None:
        mean, largest = wide.mean(1, keepdim=True), wide.max(1, keepdim=True)
    else:
        present = mask[:, :, None, None]
        mean = wide.where(present, 0).sum(1, keepdim=True) / present.sum(1, keepdim=True)
        largest = wide.where(present, -torch.inf).max(1, keepdim=True)
    return torch.cat([mean, largest.values], 1), largest.indices


def channel_stats(x, mask=None):
    """Return mean and max over the present channels, stacked."""
    return wide_stats(x, mask)[0].to(x.dtype)


def spatial_gate(x, logits):
    """Multiply x by the sigmoid of a number per pixel."""
    return (x * logits.to(wide_dtype(x.dtype)).sigmoid()).to(x.dtype)


def spatial_attention(x, weight, bias=None):
    """Multiply x by a map in (0, 1): the sigmoid of a convolution of its channel mean and max."""
    wide = wide_dtype(x.dtype)
    bias = None if bias is None else bias.to(wide)
    logits = F.conv2d(wide_stats(x)[0], weight.to(wide), bias, padding=weight.shape[-1] // 2)
    return (x * logits.sigmoid()).to(x.dtype)
