"""`polychrome::per_sample_conv2d`, `polychrome::dynamic_conv2d`, their backward ops, and the op with an epilogue.

`backend` is "auto" or "triton", by `use_backend` when the public function was called: the implementation that
computed the output computes the gradients.
"""

import torch
from torch import Tensor

from polychrome.kernels.backend import runs_triton
from polychrome.kernels.dynamic_conv import reference
from polychrome.kernels.dynamic_conv.eager import ops as eager
from polychrome.kernels.dynamic_conv.problem import Geometry
from polychrome.kernels.library import asked, call, needs, register_backward, register_op
from polychrome.kernels.tensors import empty_as, gradients_as, laid_out_as, wide_dtype


def _implementation(x: Tensor, backend: str):
    """Return the module whose functions compute the ops on `x`; Triton is imported when it is first needed."""
    if runs_triton(x, backend):
        from polychrome.kernels.dynamic_conv.triton import ops

        return ops
    return eager


def per_sample_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    backend: str = "auto",
) -> Tensor:
    """Convolve sample b with `weight[b]`; padding is [top, bottom, left, right]."""
    geometry = Geometry(stride, padding, dilation, groups)
    return _implementation(x, backend).per_sample_conv2d(x, weight, bias, geometry)


def per_sample_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    needed: list[bool],
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias; gradients not needed are empty placeholders."""
    geometry = Geometry(stride, padding, dilation, groups)
    return _implementation(x, backend).per_sample_conv2d_backward(grad, x, weight, geometry, needed)


def dynamic_conv2d(
    x: Tensor,
    experts: Tensor,
    mixing: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    backend: str = "auto",
) -> Tensor:
    """Convolve each sample with its mix of the experts."""
    geometry = Geometry(stride, padding, dilation, groups)
    return _implementation(x, backend).dynamic_conv2d(x, experts, mixing, bias, geometry)


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
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, experts, mixing and bias; gradients not needed are empty placeholders."""
    geometry = Geometry(stride, padding, dilation, groups)
    return _implementation(x, backend).dynamic_conv2d_backward(grad, x, experts, mixing, bias, geometry, needed)


def dynamic_conv2d_affine(
    x: Tensor,
    experts: Tensor,
    mixing: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    backend: str = "auto",
) -> Tensor:
    """Convolve each sample with its mix of the experts, then scale, shift and ReLU; has no gradient."""
    implementation = _implementation(x, backend)
    arguments = (x, experts, mixing, bias, Geometry(stride, padding, dilation, groups))
    if implementation is eager:
        return laid_out_as(x, reference.affine(eager.dynamic_conv2d(*arguments), scale, shift, relu))
    return implementation.dynamic_conv2d(*arguments, scale, shift, relu)


def per_sample_conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    backend: str = "auto",
) -> Tensor:
    """Return the gradient of an image whose convolution with `weight[b]` has the gradient x, plus a bias per sample."""
    geometry = Geometry(stride, padding, dilation, groups)
    return _implementation(x, backend).per_sample_conv_transpose2d(x, weight, bias, geometry)


def dynamic_conv_transpose2d(
    x: Tensor,
    experts: Tensor,
    mixing: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    backend: str = "auto",
) -> Tensor:
    """Return the gradient of an image whose dynamic convolution has the gradient x, plus a mixed bias."""
    geometry = Geometry(stride, padding, dilation, groups)
    return _implementation(x, backend).dynamic_conv_transpose2d(x, experts, mixing, bias, geometry)


def _per_sample_fake(x, weight, bias, stride, padding, dilation, groups, *_):
    return empty_as(x, Geometry(stride, padding, dilation, groups).output_shape(x, weight))


def _per_sample_backward_fake(grad, x, weight, stride, padding, dilation, groups, needed, backend="auto"):
    bias = weight.new_empty(weight.shape[:2])
    return gradients_as((x, weight, bias), needed)


def _per_sample_setup(ctx, inputs, output):
    x, weight, _, *ctx.geometry, ctx.backend = inputs
    ctx.save_for_backward(x, weight)


def _per_sample_gradient(ctx, grad):
    needed = needs(ctx)[:3]
    gradients = call("per_sample_conv2d_backward", grad, *ctx.saved_tensors, *ctx.geometry, needed, ctx.backend)
    return *asked(gradients, needed), None, None, None, None, None


def _per_sample_backward_setup(ctx, inputs, output):
    grad, x, weight, *ctx.geometry, ctx.needed, ctx.backend = inputs
    ctx.save_for_backward(grad, x, weight)


def _per_sample_second(ctx, *cotangents):
    """Differentiate `<cx, dx> + <cw, dweight> + <cb, dbias>`, which is `<grad, conv(cx, weight) + conv(x, cw, cb)>`."""
    grad, x, weight = ctx.saved_tensors
    cx, cw, cb = asked(cotangents, ctx.needed)
    for_grad, for_x, for_weight = needs(ctx)[:3]
    dgrad, dx, dweight = [], None, None
    if cx is not None:
        if for_grad:
            dgrad.append(call("per_sample_conv2d", cx, weight, None, *ctx.geometry, ctx.backend))
        if for_weight:
            needed = [False, True, False]
            dweight = call("per_sample_conv2d_backward", grad, cx, weight, *ctx.geometry, needed, ctx.backend)[1]
    if cw is not None:
        if for_grad:
            dgrad.append(call("per_sample_conv2d", x, cw, cb, *ctx.geometry, ctx.backend))
        if for_x:
            needed = [True, False, False]
            dx = call("per_sample_conv2d_backward", grad, x, cw, *ctx.geometry, needed, ctx.backend)[0]
    elif cb is not None and for_grad:
        dgrad.append(cb[:, :, None, None].expand(grad.shape))
    return _sum(dgrad), dx, dweight, None, None, None, None, None, None


def _dynamic_fake(x, experts, mixing, bias, *rest):
    return _per_sample_fake(x, experts, bias, *rest)


def _dynamic_backward_fake(grad, x, experts, mixing, bias, stride, padding, dilation, groups, needed, backend="auto"):
    return gradients_as((x, experts, mixing, bias), needed)


def _dynamic_setup(ctx, inputs, output):
    x, experts, mixing, bias, *ctx.geometry, ctx.backend = inputs
    ctx.save_for_backward(x, experts, mixing, bias)


def _dynamic_gradient(ctx, grad):
    needed = needs(ctx)[:4]
    gradients = call("dynamic_conv2d_backward", grad, *ctx.saved_tensors, *ctx.geometry, needed, ctx.backend)
    return *asked(gradients, needed), None, None, None, None, None


def _dynamic_backward_setup(ctx, inputs, output):
    grad, x, experts, mixing, bias, *ctx.geometry, ctx.needed, ctx.backend = inputs
    ctx.save_for_backward(grad, x, experts, mixing, bias)


def _dynamic_second(ctx, *cotangents):
    """Differentiate `<cx, dx> + <ce, dexperts> + <cm, dmixing> + <cb, dbias>`.

    This is `<grad, conv(cx, experts, mixing) + conv(x, ce, mixing, cb) + conv(x, experts, cm, bias)>`. The last two are
    one convolution, whose experts and mixing are those of both side by side.
    """
    grad, x, experts, mixing, bias = ctx.saved_tensors
    cx, ce, cm, cb = asked(cotangents, ctx.needed)
    for_grad, for_x, for_experts, for_mixing, for_bias = needs(ctx)[:5]
    dgrad, dx, dexperts, dmixing, dbias = [], None, [], [], None

    def differentiated(x, experts, mixing, bias, *needed):
        if not any(needed):
            return [None] * 4
        arguments = (grad, x, experts, mixing, bias, *ctx.geometry, list(needed), ctx.backend)
        return asked(call("dynamic_conv2d_backward", *arguments), needed)

    if cx is not None:
        if for_grad:
            dgrad.append(call("dynamic_conv2d", cx, experts, mixing, None, *ctx.geometry, ctx.backend))
        _, *found, _ = differentiated(cx, experts, mixing, None, False, for_experts, for_mixing, False)
        dexperts.append(found[0])
        dmixing.append(found[1])
    sides = []
    if ce is not None or cb is not None:
        sides.append((_or_zeros(ce, experts), mixing, _or_zeros(cb, bias)))
    if cm is not None:
        sides.append((experts, cm, bias))
    if sides:
        both = (_beside(each, dim) for each, dim in zip(zip(*sides, strict=True), (0, 1, 0), strict=True))
        both = tuple(both)
        if for_grad:
            dgrad.append(call("dynamic_conv2d", x, *both, *ctx.geometry, ctx.backend))
        first, last = ce is not None or cb is not None, cm is not None
        needed = (for_x, for_experts and last, for_mixing and first, for_bias and last)
        dx, *found, dbias = differentiated(x, *both, *needed)
        count = experts.shape[0]
        dexperts.append(None if found[0] is None else found[0][-count:])
        dmixing.append(None if found[1] is None else found[1][:, :count])
        dbias = None if dbias is None else dbias[-count:]
    return _sum(dgrad), dx, _sum(dexperts), _sum(dmixing), dbias, None, None, None, None, None, None


def _per_sample_transpose_fake(x, weight, bias, stride, padding, dilation, groups, *_):
    return empty_as(x, Geometry(stride, padding, dilation, groups).input_shape(x, weight))


def _per_sample_transpose_gradient(ctx, grad):
    x, weight = ctx.saved_tensors
    for_x, for_weight, for_bias = needs(ctx)[:3]
    rest = (*ctx.geometry, ctx.backend)
    dx = call("per_sample_conv2d", grad, weight, None, *rest) if for_x else None
    dweight = None
    if for_weight:
        needed = [False, True, False]
        dweight = call("per_sample_conv2d_backward", x, grad, weight, *ctx.geometry, needed, ctx.backend)[1]
    return dx, dweight, grad.sum((2, 3)) if for_bias else None, None, None, None, None, None


def _dynamic_transpose_fake(x, experts, mixing, bias, *rest):
    return _per_sample_transpose_fake(x, experts, bias, *rest)


def _dynamic_transpose_gradient(ctx, grad):
    x, experts, mixing, bias = ctx.saved_tensors
    for_x, for_experts, for_mixing, for_bias = needs(ctx)[:4]
    dx = dexperts = dmixing = dbias = None
    if for_x:
        dx = call("dynamic_conv2d", grad, experts, mixing, None, *ctx.geometry, ctx.backend)
    if for_experts or for_mixing:
        needed = [False, for_experts, for_mixing, False]
        arguments = (x, grad, experts, mixing, None, *ctx.geometry, needed, ctx.backend)
        _, dexperts, dmixing, _ = asked(call("dynamic_conv2d_backward", *arguments), needed)
    if bias is not None and (for_mixing or for_bias):
        wide = wide_dtype(x.dtype)
        sums = grad.sum((2, 3), dtype=wide)
        if for_mixing:
            dmixing = (dmixing.to(wide) + sums @ bias.to(wide).T).to(mixing.dtype)
        if for_bias:
            dbias = (mixing.to(wide).T @ sums).to(bias.dtype)
    return dx, dexperts, dmixing, dbias, None, None, None, None, None


def _or_zeros(cotangent: Tensor | None, given: Tensor | None) -> Tensor | None:
    return torch.zeros_like(given) if cotangent is None and given is not None else cotangent


def _beside(tensors: tuple[Tensor | None, ...], dim: int) -> Tensor | None:
    return tensors[0] if len(tensors) == 1 or tensors[0] is None else torch.cat(tensors, dim)


def _sum(tensors: list[Tensor | None]) -> Tensor | None:
    """Return the sum of the tensors that are not None; None without any."""
    given = [each for each in tensors if each is not None]
    return sum(given[1:], given[0]) if given else None


register_op("per_sample_conv2d", per_sample_conv2d, _per_sample_fake)
register_op("per_sample_conv2d_backward", per_sample_conv2d_backward, _per_sample_backward_fake)
register_backward("per_sample_conv2d", _per_sample_setup, _per_sample_gradient)
register_backward("per_sample_conv2d_backward", _per_sample_backward_setup, _per_sample_second)
register_op("dynamic_conv2d", dynamic_conv2d, _dynamic_fake)
register_op("dynamic_conv2d_backward", dynamic_conv2d_backward, _dynamic_backward_fake)
register_backward("dynamic_conv2d", _dynamic_setup, _dynamic_gradient)
register_backward("dynamic_conv2d_backward", _dynamic_backward_setup, _dynamic_second)
register_op("dynamic_conv2d_affine", dynamic_conv2d_affine, _dynamic_fake)
register_op("per_sample_conv_transpose2d", per_sample_conv_transpose2d, _per_sample_transpose_fake)
register_backward("per_sample_conv_transpose2d", _per_sample_setup, _per_sample_transpose_gradient)
register_op("dynamic_conv_transpose2d", dynamic_conv_transpose2d, _dynamic_transpose_fake)
register_backward("dynamic_conv_transpose2d", _dynamic_setup, _dynamic_transpose_gradient)
