"""Convolutions with given weights, shared or per sample, with padding as [top, bottom, left, right].

Per sample they are one grouped convolution (`groups`) or one call a sample (`loop`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from polychrome.kernels.dynamic_conv.problem import Geometry
from polychrome.kernels.dynamic_conv.trust import is_trusted
from polychrome.kernels.tensors import empty_as, is_channels_last

convolution_backward, unsafe_view = torch.ops.aten.convolution_backward.default, torch.ops.aten._unsafe_view.default


def convolve_with(x, weight, geometry: Geometry) -> Tensor:
    """Return `conv2d(x, weight)`; the layout is open."""
    x, symmetric = _pad(x, weight, geometry)
    return _conv2d(x, weight, None, symmetric, geometry)


def convolve_with_backward(grad, x, weight, geometry: Geometry, needed) -> tuple[Tensor, Tensor]:
    """Return the gradients of x, in any layout, and weight; gradients not needed are None."""
    if not is_trusted(x, weight.shape[2:], geometry):
        found = convolve_with_backward(grad.float(), x.float(), weight.float(), geometry, needed)
        return tuple(each if each is None else each.to(x.dtype) for each in found)
    stride, padding, dilation, groups = geometry
    padded, symmetric = _pad(x, weight, geometry, is_read=needed[1])
    dx, dweight, _ = convolution_backward(
        grad, padded, weight, None, stride, symmetric, dilation, False, [0, 0], groups, [*needed, False]
    )
    return _cropped(x, dx, padding, symmetric) if needed[0] else None, dweight if needed[1] else None


def convolve(form: str, x, weight, bias, geometry: Geometry, y: Tensor | None = None) -> Tensor:
    """Return sample b convolved with `weight[b]`, written to `y` if given, else in any layout."""
    padded, symmetric = _pad(x, weight, geometry)
    if form == "loop":
        y = empty_as(x, geometry.output_shape(x, weight)) if y is None else y
        biases = [None] * len(x) if bias is None else bias.unbind()
        for sample, own, some, result in zip(padded.split(1), weight.unbind(), biases, y.split(1), strict=True):
            result.copy_(_conv2d(sample, own, some, symmetric, geometry))
        return y
    bias = None if bias is None else bias.flatten()
    grouped = geometry._replace(groups=len(x) * geometry.groups)
    result = _conv2d(_as_channels(padded), weight.flatten(0, 1), bias, symmetric, grouped)
    # to torch no view, as nobody has the whole
    result = unsafe_view(result.contiguous(), (*weight.shape[:2], *result.shape[2:]))
    return result if y is None else y.copy_(result)


def convolve_for_autograd(form: str, x, weight, bias, geometry: Geometry) -> Tensor:
    """Return what `convolve` returns, of functions that torch can differentiate, forward too."""
    if form == "groups":
        return convolve(form, x, weight, bias, geometry)
    padded, symmetric = _pad(x, weight, geometry)
    biases = [None] * len(x) if bias is None else bias.unbind()
    samples = zip(padded.split(1), weight.unbind(), biases, strict=True)
    return torch.cat([_conv2d(sample, own, some, symmetric, geometry) for sample, own, some in samples])


def convolve_backward(form: str, grad, x, weight, geometry: Geometry, needed, dx: Tensor | None = None):
    """Return the gradients of x, written to `dx` if given, and of the weights, [batch, ...], both in any layout.

    Gradients not needed are None.
    """
    if not is_trusted(x, weight.shape[3:], geometry):
        found, dweight = convolve_backward(form, grad.float(), x.float(), weight.float(), geometry, needed)
        dx = found if dx is None or found is None else dx.copy_(found)
        return dx, None if dweight is None else dweight.to(weight.dtype)
    stride, padding, dilation, groups = geometry
    padded, symmetric = _pad(x, weight, geometry, is_read=needed[1])
    rest = None, stride, symmetric, dilation, False, [0, 0]
    if form == "loop":
        dx = empty_as(x, x.shape) if needed[0] and dx is None else dx
        dweight = _empty_weights(weight, is_channels_last(x)) if needed[1] else None
        for b, (some, sample, own) in enumerate(zip(grad.split(1), padded.split(1), weight.unbind(), strict=True)):
            found, gradient, _ = convolution_backward(some, sample, own, *rest, groups, [*needed, False])
            if needed[0]:
                dx[b] = _cropped(x, found, padding, symmetric)[0]
            if needed[1]:
                dweight[b] = gradient
        return dx, dweight
    flat = _as_channels(padded) if needed[1] else x.new_empty(1, padded.shape[:2].numel(), *padded.shape[2:])
    found, dweight, _ = convolution_backward(
        _as_channels(grad), flat, weight.flatten(0, 1), *rest, len(x) * groups, [*needed, False]
    )
    if needed[0]:
        found = _cropped(x, found.unflatten(1, (len(x), -1)).squeeze(0), padding, symmetric)
        dx = found if dx is None else dx.copy_(found)
    return dx, dweight.reshape(weight.shape) if needed[1] else None


def _empty_weights(weight: Tensor, channels_last: bool) -> Tensor:
    """Return uninitialised weights [batch, out, in, kh, kw], their channels inside where asked."""
    if not channels_last:
        return weight.new_empty(weight.shape)
    batch, outputs, inputs, *kernel = weight.shape
    return weight.new_empty(batch, outputs, *kernel, inputs).permute(0, 1, 4, 2, 3)


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: list[int], geometry: Geometry) -> Tensor:
    """Return `F.conv2d` with this padding of rows and columns, in float32 where torch is wrong in x's dtype."""
    rows, columns = padding
    around = [rows, rows, columns, columns]
    if x.dtype in (torch.bfloat16, torch.float16) and not is_trusted(
        x, weight.shape[2:], geometry._replace(padding=around)
    ):
        return _conv2d(x.float(), weight.float(), None if bias is None else bias.float(), padding, geometry).to(x.dtype)
    return F.conv2d(x, weight, bias, geometry.stride, padding, geometry.dilation, geometry.groups)


def _as_channels(x: Tensor) -> Tensor:
    return x.contiguous().reshape(1, -1, *x.shape[2:])


def _pad(x: Tensor, weight: Tensor, geometry: Geometry, is_read: bool = True) -> tuple[Tensor, list[int]]:
    """Return x and the symmetric padding left to the convolution; negative padding crops.

    Where nobody reads x, it is any tensor of the shape.
    """
    top, bottom, left, right = geometry.padding
    if (top, left) != (bottom, right):
        sizes = x.shape[2:], weight.shape[-2:]
        if geometry._replace(padding=[top, top, left, left]).output_size(*sizes) == geometry.output_size(*sizes):
            bottom, right = top, left  # the stride steps over the difference
    # oneDNN's bfloat16 weight gradient with padding of its own reads past images narrower than the stride (torch 2.15).
    narrow = x.dtype == torch.bfloat16 and x.shape[3] < geometry.stride[1]
    if top == bottom and left == right and min(top, left) >= 0 and not narrow:
        return x, [top, left]
    if not is_read:
        return empty_as(x, (*x.shape[:2], x.shape[2] + top + bottom, x.shape[3] + left + right)), [0, 0]
    return F.pad(x, (left, right, top, bottom)), [0, 0]


def _cropped(x: Tensor, dx: Tensor, padding: list[int], symmetric: list[int]) -> Tensor:
    """Return dx without the rows and columns that `_pad` added to x, and with zeros where it cropped x."""
    top, left = padding[0] - symmetric[0], padding[2] - symmetric[1]
    bottom, right = dx.shape[2] - top - x.shape[2], dx.shape[3] - left - x.shape[3]
    if min(top, left, bottom, right) < 0:
        return F.pad(dx, (-left, -right, -top, -bottom))
    return dx[:, :, top : top + x.shape[2], left : left + x.shape[3]]
