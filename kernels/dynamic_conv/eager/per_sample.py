"""Convolutions with given weights, shared or per sample, with padding as [top, bottom, left, right].

Per sample they are one grouped convolution (`groups`) or one call a sample (`loop`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from polychrome.kernels.dynamic_conv.problem import Geometry
from polychrome.kernels.dynamic_conv.trust import is_trusted
from polychrome.kernels.tensors import empty_as

TAPS_BYTES = 8 << 20


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
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        grad, padded, weight, None, stride, symmetric, dilation, False, [0, 0], groups, [*needed, False]
    )
    return _cropped(x, dx, padding, symmetric) if needed[0] else None, dweight if needed[1] else None


def convolve(form: str, x, weight, bias, geometry: Geometry) -> Tensor:
    """Return sample b convolved with `weight[b]`; the layout is open."""
    padded, symmetric = _pad(x, weight, geometry)
    if form == "loop":
        y = empty_as(x, geometry.output_shape(x, weight))
        for b, one in enumerate(weight.unbind()):
            some = None if bias is None else bias[b]
            y[b : b + 1] = _conv2d(padded[b : b + 1], one, some, symmetric, geometry)
        return y
    bias = None if bias is None else bias.flatten()
    grouped = geometry._replace(groups=len(x) * geometry.groups)
    y = _conv2d(_as_channels(padded), weight.flatten(0, 1), bias, symmetric, grouped)
    return y.unflatten(1, (len(x), -1)).squeeze(0)


def convolve_backward(form: str, grad, x, weight, geometry: Geometry, needed) -> tuple[Tensor, Tensor]:
    """Return the gradients of x, in any layout, and of the weights, [batch, ...]; gradients not needed are None."""
    if form == "loop":
        dx, dweights = empty_as(x, x.shape) if needed[0] else None, []
        for b, one in enumerate(weight.unbind()):
            part = slice(b, b + 1)
            dsample, dweight = convolve_with_backward(grad[part], x[part], one, geometry, needed)
            dweights.append(dweight)
            if needed[0]:
                dx[part] = dsample
        return dx, torch.stack(dweights) if needed[1] else None
    padded, symmetric = _pad(x, weight, geometry, is_read=needed[1])
    padded = _as_channels(padded) if needed[1] else x.new_empty(1, padded.shape[:2].numel(), *padded.shape[2:])
    flat = (_as_channels(grad), padded, weight.flatten(0, 1))
    around = [symmetric[0], symmetric[0], symmetric[1], symmetric[1]]
    grouped = geometry._replace(padding=around, groups=len(x) * geometry.groups)
    dx, dweight = convolve_with_backward(*flat, grouped, needed)
    dx = _cropped(x, dx.unflatten(1, (len(x), -1)).squeeze(0), geometry.padding, symmetric) if needed[0] else None
    return dx, dweight.reshape(weight.shape) if needed[1] else None


def weight_gradient_by_taps(grad, x, kernel, geometry: Geometry):
    """Yield (row, columns, gradient) for some taps: [batch, out_channels, columns * in_channels/groups], taps outside.

    Each is one matrix product a sample over the output pixels. Few taps' gradients exist at a time.
    """
    batch, out_channels, height, width = grad.shape
    stride, (top, bottom, left, right), dilation, groups = geometry
    by_pixel = grad.unflatten(1, (groups, -1)).flatten(3).flatten(0, 1)  # [batch * groups, out/groups, pixels]
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, right, top, bottom)).unflatten(3, (groups, -1))
    by_sample, by_row, by_column, by_group, by_channel = padded.stride()
    tap_bytes = batch * out_channels * padded.shape[4] * x.element_size()
    step = min(kernel[1], max(1, TAPS_BYTES // tap_bytes))
    for row in range(kernel[0]):
        for column in range(0, kernel[1], step):
            taps = min(step, kernel[1] - column)
            patch = padded[:, row * dilation[0] :, column * dilation[1] :].as_strided(
                (batch, groups, height, width, taps, padded.shape[4]),
                (by_sample, by_group, by_row * stride[0], by_column * stride[1], by_column * dilation[1], by_channel),
            )
            product = by_pixel @ patch.reshape(batch * groups, height * width, -1)
            yield row, slice(column, column + taps), product.unflatten(0, (batch, groups)).flatten(1, 2)


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: list[int], geometry: Geometry) -> Tensor:
    """Return `F.conv2d` with this padding of rows and columns, in float32 where torch is wrong in x's dtype."""
    rows, columns = padding
    around = geometry._replace(padding=[rows, rows, columns, columns])
    if not is_trusted(x, weight.shape[2:], around):
        return _conv2d(x.float(), weight.float(), None if bias is None else bias.float(), padding, geometry).to(x.dtype)
    return F.conv2d(x, weight, bias, geometry.stride, padding, geometry.dilation, geometry.groups)


def _as_channels(x: Tensor) -> Tensor:
    return x.contiguous().reshape(1, -1, *x.shape[2:])


def _pad(x: Tensor, weight: Tensor, geometry: Geometry, is_read: bool = True) -> tuple[Tensor, list[int]]:
    """Return x and the symmetric padding left to the convolution; negative padding crops.

    Where nobody reads x, it is any tensor of the shape.
    """
    top, bottom, left, right = geometry.padding
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
