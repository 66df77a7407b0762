"""The ops in eager PyTorch with explicit gradients: autograd is off inside an opaque op."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dynamic_conv.geometry import output_size
from kernels.dynamic_conv.reference import mix
from kernels.tensors import empty_as, laid_out_as, not_asked, wide_dtype


def per_sample_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Convolve sample b with `weight[b]`; padding is [top, bottom, left, right]."""
    batch = x.shape[0]
    if batch == 0:
        return empty_as(x, (0, weight.shape[1], *output_size(x, weight.shape[3:], stride, padding, dilation)))
    flat, symmetric = _samples_as_channels(x, padding)
    flat_bias = None if bias is None else bias.flatten()
    y = F.conv2d(flat, weight.flatten(0, 1), flat_bias, stride, symmetric, dilation, batch * groups)
    return laid_out_as(x, y.unflatten(1, (batch, -1)).squeeze(0))


def per_sample_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias; one not needed is an empty placeholder."""
    batch = x.shape[0]
    if batch == 0:
        shapes = (x.shape, weight.shape, weight.shape[:2])
        return tuple(x.new_zeros(s) if need else not_asked(x) for s, need in zip(shapes, needed, strict=True))
    dx = dweight = None
    if needed[0] or needed[1]:
        flat, symmetric = _samples_as_channels(x, padding)
        dx, dweight, _ = torch.ops.aten.convolution_backward(
            grad.reshape(1, -1, *grad.shape[2:]),
            flat,
            weight.flatten(0, 1),
            None,
            stride,
            symmetric,
            dilation,
            False,
            [0, 0],
            batch * groups,
            [needed[0], needed[1], False],
        )
    return (
        _crop_to(x, dx.unflatten(1, (batch, -1)).squeeze(0), padding, symmetric) if needed[0] else not_asked(x),
        dweight.reshape(weight.shape).contiguous() if needed[1] else not_asked(x),
        grad.sum((2, 3)) if needed[2] else not_asked(x),
    )


def dynamic_conv2d(
    x: Tensor,
    experts: Tensor,
    mixing: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Mix the experts per sample, then convolve each sample with its mix."""
    mixed_bias = None if bias is None else mix(mixing, bias)
    return per_sample_conv2d(x, mix(mixing, experts), mixed_bias, stride, padding, dilation, groups)


def dynamic_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    experts: Tensor,
    mixing: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, experts, mixing and bias; one not needed is an empty placeholder."""
    for_mixing = needed[2]
    weight = mix(mixing, experts) if needed[0] else experts.new_empty((x.shape[0], *experts.shape[1:]))
    dx, dmixed, dmixed_bias = per_sample_conv2d_backward(
        grad,
        x,
        weight,
        stride,
        padding,
        dilation,
        groups,
        [needed[0], needed[1] or for_mixing, needed[3] or (for_mixing and bias is not None)],
    )
    dmixing = not_asked(x)
    if for_mixing:
        dmixing = _over_experts(dmixed, experts)
        if bias is not None:
            dmixing = dmixing + _over_experts(dmixed_bias, bias)
        dmixing = dmixing.to(mixing.dtype)
    return (
        dx,
        _over_samples(mixing, dmixed, experts) if needed[1] else not_asked(x),
        dmixing,
        _over_samples(mixing, dmixed_bias, bias) if needed[3] else not_asked(x),
    )


def _over_experts(gradient: Tensor, experts: Tensor) -> Tensor:
    """Return `<gradient[b], experts[k]>`, [batch, experts], in the wide dtype."""
    wide = wide_dtype(experts.dtype)
    return gradient.to(wide).flatten(1) @ experts.to(wide).flatten(1).T


def _over_samples(mixing: Tensor, gradient: Tensor, experts: Tensor) -> Tensor:
    """Return `sum_b mixing[b, k] * gradient[b]` in the shape and dtype of `experts`."""
    wide = wide_dtype(experts.dtype)
    return (mixing.to(wide).T @ gradient.to(wide).flatten(1)).to(experts.dtype).reshape(experts.shape)


def _samples_as_channels(x: Tensor, padding: list[int]) -> tuple[Tensor, list[int]]:
    """Return x as [1, batch * channels, height, width] and the symmetric padding still to be done by the conv."""
    top, bottom, left, right = padding
    if top == bottom and left == right:
        return x.reshape(1, -1, *x.shape[2:]), [top, left]
    padded = F.pad(x, (left, right, top, bottom))
    return padded.reshape(1, -1, *padded.shape[2:]), [0, 0]


def _crop_to(x: Tensor, dx: Tensor, padding: list[int], symmetric: list[int]) -> Tensor:
    """Return dx without the rows and columns that `_samples_as_channels` padded, laid out as x."""
    top, left = padding[0] - symmetric[0], padding[2] - symmetric[1]
    return laid_out_as(x, dx[:, :, top : top + x.shape[2], left : left + x.shape[3]])
