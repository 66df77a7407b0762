"""The definitions in plain PyTorch, used as "naive" by tests and benchmarks. They do not check their arguments."""

import torch.nn.functional as F
from torch import Tensor

from kernels.tensors import wide_dtype


def mix(mixing: Tensor, experts: Tensor) -> Tensor:
    """Return `sum_k mixing[b, k] * experts[k]`, [batch, ...]: summed in float32 (or float64), rounded once."""
    wide = wide_dtype(experts.dtype)
    mixed = mixing.to(wide) @ experts.to(wide).flatten(1)
    return mixed.to(experts.dtype).unflatten(1, experts.shape[1:])


def per_sample_conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Convolve sample b with `weight[b]`: one grouped convolution, a group of channels per sample."""
    batch, channels, height, width = x.shape
    if batch == 0:
        no_bias = None if bias is None else bias.sum(0)
        return F.conv2d(x, weight.sum(0), no_bias, stride, padding, dilation, groups)
    flat = x.reshape(1, batch * channels, height, width)
    bias = None if bias is None else bias.flatten()
    y = F.conv2d(flat, weight.flatten(0, 1), bias, stride, padding, dilation, batch * groups)
    return y.unflatten(1, (batch, -1)).squeeze(0)


def dynamic_conv2d(x, experts, mixing, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Convolve sample b with its own mix of the experts, `mixing` in at least float32."""
    bias = None if bias is None else mix(mixing, bias)
    return per_sample_conv2d(x, mix(mixing, experts), bias, stride, padding, dilation, groups)
