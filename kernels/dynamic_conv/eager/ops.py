"""The op bodies in eager PyTorch with explicit gradients: autograd is off inside an opaque op."""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from polychrome.kernels.dynamic_conv.eager import mixed, stacked
from polychrome.kernels.dynamic_conv.eager.forms import forms_of
from polychrome.kernels.dynamic_conv.eager.mixing import add_products
from polychrome.kernels.dynamic_conv.eager.per_sample import convolve, convolve_backward
from polychrome.kernels.dynamic_conv.problem import Geometry
from polychrome.kernels.dynamic_conv.reference import mix
from polychrome.kernels.dynamic_conv.trust import is_emulated
from polychrome.kernels.tensors import empty_as, laid_out_as, not_asked, wide_dtype


def _native(body: Callable) -> Callable:
    """Return an op's body that runs in float32 where torch only emulates the dtype of its first argument.

    The first result has the dtype of the first argument, as has a gradient of the bias; other gradients have their
    arguments' dtypes.
    """

    @wraps(body)
    def run(*given):
        first = given[0]
        if not is_emulated(first):
            return body(*given)
        found = body(*(each.float() if getattr(each, "dtype", None) == first.dtype else each for each in given))
        if isinstance(found, Tensor):
            return found.to(first.dtype)
        kinds = [each.dtype for each in given[1:] if isinstance(each, Tensor)]
        kinds += [first.dtype] * (len(found) - len(kinds))  # of a bias that is not there
        return tuple(each.to(kind) for each, kind in zip(found, kinds, strict=True))

    return run


@_native
def per_sample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve sample b with `weight[b]`; padding is [top, bottom, left, right]."""
    if len(x) == 0:
        return empty_as(x, geometry.output_shape(x, weight))
    form = forms_of(x, weight, geometry, per_sample=True).forward.form
    return laid_out_as(x, convolve(form, x, weight, bias, geometry))


@_native
def per_sample_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias; gradients not needed are empty placeholders."""
    if x.shape[0] == 0:
        shapes = (x.shape, weight.shape, weight.shape[:2])
        return tuple(x.new_zeros(s) if need else not_asked(x) for s, need in zip(shapes, needed, strict=True))
    dx = dweight = None
    if needed[0] or needed[1]:
        form = forms_of(x, weight, geometry, per_sample=True).weight_gradient.form
        dx, dweight = convolve_backward(form, grad, x, weight, geometry, needed[:2])
    return (
        laid_out_as(x, dx) if needed[0] else not_asked(x),
        dweight.contiguous() if needed[1] else not_asked(x),
        grad.sum((2, 3)) if needed[2] else not_asked(x),
    )


def per_sample_conv_transpose2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Return the adjoint of `per_sample_conv2d`, the gradient of an image whose output has the gradient x."""
    image = empty_as(x, geometry.input_shape(x, weight))
    y, _, _ = per_sample_conv2d_backward(x, image, weight, geometry, [True, False, False])
    return y if bias is None else y.add_(bias[:, :, None, None])


def dynamic_conv_transpose2d(
    x: Tensor, experts: Tensor, mixing: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """Return the adjoint of `dynamic_conv2d`, the gradient of an image whose output has the gradient x."""
    image = empty_as(x, geometry.input_shape(x, experts))
    y, *_ = dynamic_conv2d_backward(x, image, experts, mixing, None, geometry, [True, False, False, False])
    return y if bias is None else y.add_(mix(mixing, bias)[:, :, None, None])


@_native
def dynamic_conv2d(x: Tensor, experts: Tensor, mixing: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve each sample with its mix of the experts; mixing is [batch, experts] or [batch, experts, taps]."""
    if len(x) == 0:
        return empty_as(x, geometry.output_shape(x, experts))
    form = forms_of(x, experts, geometry, per_sample=False, by_tap=mixing.dim() == 3).forward.form
    if form == "stacked":
        return stacked.forward(x, experts, mixing, bias, geometry)
    return mixed.forward(form, x, experts, mixing, bias, geometry)


@_native
def dynamic_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    experts: Tensor,
    mixing: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, experts, mixing and bias; gradients not needed are empty placeholders."""
    for_x, for_experts, for_mixing, for_bias = needed
    wide = mixing.to(wide_dtype(x.dtype))
    dmixing = torch.zeros_like(wide) if for_mixing else None
    dexperts = experts.new_zeros(experts.shape, dtype=wide.dtype) if for_experts and len(x) == 0 else None
    dx = empty_as(x, x.shape) if for_x and len(x) == 0 else None
    if len(x) and (for_x or for_experts or for_mixing):
        chosen = forms_of(x, experts, geometry, per_sample=False, by_tap=mixing.dim() == 3)
        if chosen.forward.form == "stacked":
            dx, dexperts, dmixing = stacked.backward(grad, x, experts, wide, geometry, needed[:3])
        else:
            dx, dexperts = mixed.backward(chosen, grad, x, experts, wide, dmixing, geometry, for_x, for_experts)
    dbias = wide.new_zeros(bias.shape) if for_bias else None
    if bias is not None and (for_bias or for_mixing):
        add_products(grad.sum((2, 3)), bias, wide, dmixing, dbias)
    return (
        dx if for_x else not_asked(x),
        dexperts.to(experts.dtype).contiguous() if for_experts else not_asked(x),
        dmixing.to(mixing.dtype).contiguous() if for_mixing else not_asked(x),
        dbias.to(bias.dtype) if for_bias else not_asked(x),
    )
