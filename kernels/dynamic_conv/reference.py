"""The definitions in plain PyTorch, used as "naive" by tests and benchmarks. They do not check their arguments."""

import torch
import torch.nn.functional as F
from torch import Tensor

from polychrome.kernels.dynamic_conv.borders import bordered, evenly_padded, with_borders
from polychrome.kernels.dynamic_conv.problem import resolve_geometry, resolve_ints, resolve_padding
from polychrome.kernels.dynamic_conv.trust import is_trusted, is_trusted_otherwise
from polychrome.kernels.tensors import wide_dtype


def mix(mixing: Tensor, experts: Tensor | None) -> Tensor | None:
    """Return `sum_k mixing[b, k] * experts[k]`, [batch, ...]: summed in float32 (or float64), rounded once.

    mixing is [batch, experts]; or a mix for each tap of experts [experts, out, in, height, width], [batch, experts,
    taps] or [batch, experts, height, width]. Without experts, as of a bias that is not there, None is returned.
    """
    if experts is None:
        return None
    wide = wide_dtype(experts.dtype)
    if mixing.dim() > 2:
        taps = experts.shape[3:]
        mixed = torch.einsum("bkp,koip->boip", mixing.flatten(2).to(wide), experts.to(wide).flatten(3))
        return mixed.to(experts.dtype).unflatten(3, taps)
    mixed = mixing.to(wide) @ experts.to(wide).flatten(1)
    return mixed.to(experts.dtype).unflatten(1, experts.shape[1:])


def per_sample_conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, padding_mode="zeros"):
    """Convolve sample b with `weight[b]`: one grouped convolution, a group of channels per sample.

    A weight of four dimensions is one kernel for all samples, an x of three one image for all kernels.
    """
    if x.dim() == 3:
        y = per_sample_conv2d(
            _batch(x, weight), weight, bias, stride, padding, dilation, groups, padding_mode=padding_mode
        )
        return y if weight.dim() == 5 else y.squeeze(0)
    geometry = resolve_geometry(weight.shape[-2:], stride, padding, dilation, groups)
    x, geometry = with_borders(x, geometry, padding_mode)
    if x.shape[0] and not is_trusted(x, weight.shape[-2:], geometry):
        return _per_sample_conv2d(*_in_float32(x, weight, bias), geometry).to(x.dtype)
    return _per_sample_conv2d(x, weight, bias, geometry)


def _per_sample_conv2d(x, weight, bias, geometry):
    stride, padding, dilation, groups = geometry
    x, padding = evenly_padded(x, padding)
    batch, channels, height, width = x.shape
    if weight.dim() == 4:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if batch == 0:
        no_bias = None if bias is None else bias.sum(0)
        return F.conv2d(x, weight.sum(0), no_bias, stride, padding, dilation, groups)
    # contiguous: with one sample of other strides, torch's CPU convolution in float64 has wrong gradients
    flat = x.contiguous().reshape(1, batch * channels, height, width)
    bias = None if bias is None else bias.flatten()
    y = F.conv2d(flat, weight.contiguous().flatten(0, 1), bias, stride, padding, dilation, batch * groups)
    return y.unflatten(1, (batch, -1)).squeeze(0)


def per_sample_conv_transpose2d(x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """Convolve sample b transposed with `weight[b]`: one grouped transposed convolution.

    A weight of four dimensions is one kernel for all samples, an x of three one image for all kernels.
    """
    given = stride, padding, output_padding, groups, dilation
    if x.dim() == 3:
        y = per_sample_conv_transpose2d(_batch(x, weight), weight, bias, *given)
        return y if weight.dim() == 5 else y.squeeze(0)
    if x.shape[0] and not is_trusted_otherwise(x):
        return per_sample_conv_transpose2d(*_in_float32(x, weight, bias), *given).to(x.dtype)
    if weight.dim() == 4:
        return F.conv_transpose2d(x, weight, bias, *given)
    batch, channels, height, width = x.shape
    if batch == 0:
        no_bias = None if bias is None else bias.sum(0)
        return F.conv_transpose2d(x, weight.sum(0), no_bias, *given)
    flat = x.flatten().view(1, batch * channels, height, width)  # strides of its own: torch reads a layout in them
    bias = None if bias is None else bias.flatten()
    rest = stride, padding, output_padding, batch * groups, dilation
    y = F.conv_transpose2d(flat, weight.contiguous().flatten(0, 1), bias, *rest)
    return y.unflatten(1, (batch, -1)).squeeze(0)


def _batch(x, weight):
    """Return the image x [channels, height, width] once for each kernel, or as a batch of one."""
    return x.expand(weight.shape[0] if weight.dim() == 5 else 1, *x.shape)


def dynamic_conv_transpose2d(
    x, experts, mixing, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    """Convolve sample b transposed with its own mix of the experts, `mixing` in at least float32."""
    weight, bias = mix(mixing, experts), mix(mixing, bias)
    return per_sample_conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation)


def dynamic_conv2d(
    x,
    experts,
    mixing,
    bias=None,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    *,
    padding_mode="zeros",
    scale=None,
    shift=None,
    relu=False,
):
    """Convolve sample b with its own mix of the experts, `mixing` in at least float32; then scale, shift and ReLU."""
    weight, bias = mix(mixing, experts), mix(mixing, bias)
    y = per_sample_conv2d(x, weight, bias, stride, padding, dilation, groups, padding_mode=padding_mode)
    return affine(y, scale, shift, relu)


def per_sample_conv1d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, padding_mode="zeros"):
    """Convolve sample b along its length with `weight[b]`: one grouped convolution."""
    return _per_sample(F.conv1d, x, weight, bias, stride, padding, dilation, groups, padding_mode)


def per_sample_conv3d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, padding_mode="zeros"):
    """Convolve sample b, a volume, with `weight[b]`: one grouped convolution."""
    return _per_sample(F.conv3d, x, weight, bias, stride, padding, dilation, groups, padding_mode)


def dynamic_conv1d(x, experts, mixing, bias=None, stride=1, padding=0, dilation=1, groups=1, *, padding_mode="zeros"):
    """Convolve sample b along its length with its own mix of the experts."""
    weight, bias = mix(mixing, experts), mix(mixing, bias)
    return per_sample_conv1d(x, weight, bias, stride, padding, dilation, groups, padding_mode=padding_mode)


def dynamic_conv3d(x, experts, mixing, bias=None, stride=1, padding=0, dilation=1, groups=1, *, padding_mode="zeros"):
    """Convolve sample b, a volume, with its own mix of the experts."""
    weight, bias = mix(mixing, experts), mix(mixing, bias)
    return per_sample_conv3d(x, weight, bias, stride, padding, dilation, groups, padding_mode=padding_mode)


def _per_sample(convolve, x, weight, bias, stride, padding, dilation, groups, mode):
    if not is_trusted_otherwise(x):
        wide = _in_float32(x, weight, bias)
        return _per_sample(convolve, *wide, stride, padding, dilation, groups, mode).to(x.dtype)
    kernel = weight.shape[3:]
    stride, dilation = (resolve_ints(n, v, len(kernel)) for n, v in (("stride", stride), ("dilation", dilation)))
    x = bordered(x, resolve_padding(padding, kernel, stride, dilation), mode)
    batch, channels, *size = x.shape
    if batch == 0:
        return convolve(x, weight.sum(0), None if bias is None else bias.sum(0), stride, 0, dilation, groups)
    flat, bias = x.flatten().view(1, batch * channels, *size), None if bias is None else bias.flatten()
    y = convolve(flat, weight.contiguous().flatten(0, 1), bias, stride, 0, dilation, batch * groups)
    return y.unflatten(1, (batch, -1)).squeeze(0)


def _in_float32(x, weight, bias):
    return x.float(), weight.float(), None if bias is None else bias.float()


def affine(y: Tensor, scale: Tensor | None, shift: Tensor | None, relu: bool) -> Tensor:
    """Return `relu(y * scale + shift)`, each part where given; y [batch, channels, height, width], others [channels].

    Computed in float32 (float64 for float64), rounded once.
    """
    if scale is not None or shift is not None:
        wide = y.to(wide_dtype(y.dtype))
        wide = wide if scale is None else wide * scale[:, None, None]
        wide = wide if shift is None else wide + shift[:, None, None]
        y = wide.to(y.dtype)
    return y.relu() if relu else y
