"""The ops in torch's own operators, for graphs that run without this package, with a batch of any size.

The definitions use one convolution with a group per sample, whose number a graph would fix. Here a convolution with
kernels for each sample is a matrix product; a dynamic convolution is the same product with mixed kernels, or, in
`STACKED`, one convolution with all experts whose results are mixed. Outputs that an op returns only for its gradient
are empty.

`torch.onnx.export` records `OPS` and, for dynamic convolutions, `STACKED` (`polychrome.kernels.library.call`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from polychrome.kernels.channel_gate import reference as channel_gate
from polychrome.kernels.channel_gate.scale import channel_scale
from polychrome.kernels.dynamic_conv import reference as dynamic_conv
from polychrome.kernels.dynamic_conv.borders import evenly_padded
from polychrome.kernels.dynamic_conv.problem import Geometry
from polychrome.kernels.library import record_as
from polychrome.kernels.spatial_attention import reference as spatial_attention
from polychrome.kernels.tensors import wide_dtype


def _dynamic_conv2d(x, experts, mixing, bias, *geometry_and_backend):
    weight, bias = dynamic_conv.mix(mixing, experts), dynamic_conv.mix(mixing, bias)
    return _per_sample_conv2d(x, weight, bias, *geometry_and_backend)


def _stacked_conv2d(x, experts, mixing, bias, stride, padding, dilation, groups, backend="auto"):
    if mixing.dim() == 3:
        return _dynamic_conv2d(x, experts, mixing, bias, stride, padding, dilation, groups, backend)
    count, out_channels = experts.shape[:2]
    # [groups, experts, out_channels/groups, ...], as a group of the convolution has its channels together
    stacked = experts.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 2)
    x, symmetric = evenly_padded(x, padding)
    y = F.conv2d(x, stacked, None, stride, symmetric, dilation, groups)
    y = y.unflatten(1, (groups, count, out_channels // groups))
    wide = mixing.to(wide_dtype(x.dtype))
    y = (y * wide[:, None, :, None, None, None]).sum(2).flatten(1, 2)
    y = y if bias is None else y + (wide @ bias.to(wide.dtype))[:, :, None, None]
    return y.to(x.dtype)


def _then_affine(convolve: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x, experts, mixing, bias, stride, padding, dilation, groups, scale, shift, relu, backend="auto"):
        y = convolve(x, experts, mixing, bias, stride, padding, dilation, groups)
        return dynamic_conv.affine(y, scale, shift, relu)

    return run


def _per_sample_conv2d(x, weight, bias, stride, padding, dilation, groups, backend="auto"):
    kernel = weight.shape[3:]
    size = Geometry(stride, padding, dilation, groups).output_size(x.shape[2:], kernel)
    x, symmetric = evenly_padded(x, padding)
    # [batch, groups, in_channels/groups * kernel pixels, output pixels]
    patches = F.unfold(x, kernel, dilation, symmetric, stride).unflatten(1, (groups, -1))
    y = weight.unflatten(1, (groups, -1)).flatten(3) @ patches
    y = y.flatten(1, 2).unflatten(2, size)
    return y if bias is None else y + bias[:, :, None, None]


def _dynamic_conv_transpose2d(x, experts, mixing, bias, *geometry_and_backend):
    weight, bias = dynamic_conv.mix(mixing, experts), dynamic_conv.mix(mixing, bias)
    return _per_sample_conv_transpose2d(x, weight, bias, *geometry_and_backend)


def _per_sample_conv_transpose2d(x, weight, bias, stride, padding, dilation, groups, backend="auto"):
    if torch.jit.is_tracing():  # torch's older exporter writes F.fold for one image size only
        return _from_zeros_between(x, weight, bias, stride, padding, dilation, groups)
    kernel, size = weight.shape[3:], x.shape[2:]
    whole = Geometry(stride, [0, 0, 0, 0], dilation, groups).input_size(size, kernel)
    # [batch, groups, out_channels/groups * kernel pixels, pixels]
    patches = weight.unflatten(1, (groups, -1)).flatten(3).transpose(2, 3) @ x.flatten(2).unflatten(1, (groups, -1))
    y = F.fold(patches.flatten(1, 2), whole, kernel, dilation, 0, stride)
    top, bottom, left, right = padding
    y = F.pad(y, (-left, -right, -top, -bottom))
    return y if bias is None else y + bias[:, :, None, None]


def _from_zeros_between(x, weight, bias, stride, padding, dilation, groups):
    """Return the transposed convolution as the convolution, at stride 1, of x with zeros between its pixels."""
    rows, columns = stride
    spread = F.pad(x[:, :, :, None, :, None], (0, columns - 1, 0, 0, 0, rows - 1)).flatten(4).flatten(2, 3)
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[3:], strict=True)]
    top, bottom, left, right = (reach[side // 2] - each for side, each in enumerate(padding))
    spread = F.pad(spread, (left, right - columns + 1, top, bottom - rows + 1))
    # [batch, groups, in/groups, out/groups, ...] -> [batch, groups * out/groups, in/groups, ...], turned by 180 degrees
    turned = weight.unflatten(1, (groups, -1)).transpose(2, 3).flatten(1, 2).flip(3, 4)
    return _per_sample_conv2d(spread, turned, bias, [1, 1], [0, 0, 0, 0], dilation, groups)


def _channel_stats(x, mask, backend="auto"):
    return spatial_attention.channel_stats(x, mask), x.new_empty(0)


def _spatial_gate(x, logits, backend="auto"):
    return spatial_attention.spatial_gate(x, logits)


def _spatial_attention(x, weight, bias, backend="auto"):
    return spatial_attention.spatial_attention(x, weight, bias), *[x.new_empty(0)] * 3


def _channel_scale(x, scale, backend="auto"):
    return channel_scale.reference(x, scale)


def _channel_gate(x, w1, b1, w2, b2, gate, backend="auto"):
    return channel_gate.channel_gate(x, w1, b1, w2, b2, gate), *[x.new_empty(0)] * 3


OPS = {
    torch.ops.polychrome.channel_gate.default: _channel_gate,
    torch.ops.polychrome.channel_scale.default: _channel_scale,
    torch.ops.polychrome.channel_stats.default: _channel_stats,
    torch.ops.polychrome.dynamic_conv2d.default: _dynamic_conv2d,
    torch.ops.polychrome.dynamic_conv2d_affine.default: _then_affine(_dynamic_conv2d),
    torch.ops.polychrome.dynamic_conv_transpose2d.default: _dynamic_conv_transpose2d,
    torch.ops.polychrome.per_sample_conv_transpose2d.default: _per_sample_conv_transpose2d,
    torch.ops.polychrome.per_sample_conv2d.default: _per_sample_conv2d,
    torch.ops.polychrome.spatial_attention.default: _spatial_attention,
    torch.ops.polychrome.spatial_gate.default: _spatial_gate,
}

STACKED = {
    torch.ops.polychrome.dynamic_conv2d.default: _stacked_conv2d,
    torch.ops.polychrome.dynamic_conv2d_affine.default: _then_affine(_stacked_conv2d),
}

record_as({**OPS, **STACKED})
