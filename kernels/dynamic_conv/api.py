"""The public functions: they check and cast the arguments and pick the implementation."""

from functools import partial

import torch
from torch import Tensor

from polychrome.kernels.backend import call_reference, chosen_backend, owned
from polychrome.kernels.checks import check_device, check_input, check_shape, check_small_dtype
from polychrome.kernels.dynamic_conv import reference, register  # noqa: F401  (registers the ops)
from polychrome.kernels.dynamic_conv.arguments import (
    check_bias,
    check_kernels,
    check_mixing,
    checked_geometry,
    remembered,
)
from polychrome.kernels.dynamic_conv.borders import with_borders
from polychrome.kernels.dynamic_conv.eager import kept
from polychrome.kernels.dynamic_conv.eager.forms import forms_of
from polychrome.kernels.dynamic_conv.problem import Geometry
from polychrome.kernels.dynamic_conv.shared import broadcast, is_shared, shared_conv2d
from polychrome.kernels.leaves import leaf
from polychrome.kernels.library import call
from polychrome.kernels.tensors import cast_for_autocast

Pair = int | tuple[int, int]
Padding = Pair | tuple[int, int, int, int] | str


@leaf
def dynamic_conv2d(
    x: Tensor,
    experts: Tensor,
    mixing: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Convolve each sample with its own mix of shared expert kernels (CondConv, Yang et al. 2019; report C).

    Args:
        x: [batch, in_channels, height, width], float32, float64, float16 or bfloat16.
        experts: [experts, out_channels, in_channels/groups, kernel_height, kernel_width], x's dtype.
        mixing: [batch, experts], any real numbers, float32 or x's dtype. The mix is summed in float32 (float64 for
            float64) and rounded once. Or [batch, experts, kernel_height, kernel_width], a mix for each tap (ODConv).
        bias: [experts, out_channels], mixed like the experts, x's dtype; None with a mix for each tap.
        stride, dilation: an int or a pair of ints.
        padding: an int, a pair of ints, `"same"` (stride 1 only) or `"valid"`, as in `F.conv2d`; or four ints (left,
            right, top, bottom), as in `F.pad`.
        padding_mode: `"zeros"`, `"reflect"`, `"replicate"` or `"circular"`, as in `nn.Conv2d`. All but the first copy
            x with its borders.
        scale, shift: [out_channels], float32 or x's dtype: the result is `y * scale + shift`, such as a BatchNorm in
            evaluation. It is computed inside the convolution, or after it where gradients are recorded.
        relu: clamp at zero, last.

    Returns:
        [batch, out_channels, out_height, out_width] in x's dtype, channels_last if x is.

    Under autocast x, experts and bias are cast to the autocast dtype; mixing is left alone.

    Raises:
        ValueError: a shape, device, padding or group count does not fit, the output would be empty, or x has not the
            pixels that `padding_mode` repeats.
        TypeError: a dtype is none of the above, or differs from x's.
        RuntimeError: the backend in force cannot run on x's device, or follow a transform of `torch.func`: see
            `use_backend`.
    """
    x, experts, bias, geometry = prepare_dynamic(
        x, experts, bias, mixing, stride, padding, dilation, groups, padding_mode, scale, shift, relu
    )
    mixing = mixing.flatten(2) if mixing.dim() == 4 else mixing
    backend = chosen_backend("dynamic_conv2d", x)
    epilogue = (scale, shift, relu)
    if backend == "reference":
        whole = partial(reference.dynamic_conv2d, padding_mode=padding_mode, scale=scale, shift=shift, relu=relu)
        return call_reference(whole, x, experts, mixing, bias, stride, padding, dilation, groups)
    x, geometry = with_borders(x, geometry, padding_mode)
    records = torch.jit.is_tracing() or wants_gradient(x, experts, mixing, bias, scale, shift)
    if records and mixing.dim() == 2 and keeps_the_mix(x, experts, geometry, backend):
        form = forms_of(x, experts, geometry, per_sample=False).forward.form
        return reference.affine(owned(kept.dynamic_conv2d(form, x, experts, mixing, bias, geometry)), *epilogue)
    if scale is None and shift is None and not relu:
        return call("dynamic_conv2d", x, experts, mixing, bias, *geometry, backend)
    if records:
        y = call("dynamic_conv2d", x, experts, mixing, bias, *geometry, backend)
        return reference.affine(y, *epilogue)
    return call("dynamic_conv2d_affine", x, experts, mixing, bias, *geometry, *epilogue, backend)


@leaf
def per_sample_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """Convolve each sample with the kernel given for it, such as one generated by a network (report B).

    As in `F.conv2d` the kernels are not flipped: flip an asymmetric point-spread function in height and width before.

    Args:
        x: [batch, in_channels, height, width], float32, float64, float16 or bfloat16; or one image [in_channels,
            height, width] for all kernels.
        weight: [batch, out_channels, in_channels/groups, kernel_height, kernel_width], x's dtype; or one kernel
            [out_channels, in_channels/groups, kernel_height, kernel_width] for all samples: then it is `F.conv2d`.
        bias: [batch, out_channels], x's dtype; [out_channels] with one kernel.
        stride, dilation: an int or a pair of ints.
        padding: an int, a pair of ints, `"same"` (stride 1 only) or `"valid"`, as in `F.conv2d`; or four ints (left,
            right, top, bottom), as in `F.pad`.
        padding_mode: `"zeros"`, `"reflect"`, `"replicate"` or `"circular"`, as in `nn.Conv2d`. All but the first copy
            x with its borders.

    Returns:
        [batch, out_channels, out_height, out_width] in x's dtype, channels_last if x is; without the batch for one
        image and one kernel.

    Under autocast x, weight and bias are cast to the autocast dtype.

    Raises:
        ValueError: a shape, device, padding or group count does not fit, the output would be empty, or x has not the
            pixels that `padding_mode` repeats.
        TypeError: a dtype is none of the above, or differs from x's.
        RuntimeError: the backend in force cannot run on x's device, or follow a transform of `torch.func`: see
            `use_backend`.
    """
    given = stride, padding, dilation, groups
    if is_shared(weight):
        return shared_conv2d(x, weight, bias, *given, padding_mode)
    x, weight, bias, geometry = prepare_per_sample(broadcast(x, weight), weight, bias, *given, padding_mode)
    backend = chosen_backend("per_sample_conv2d", x)
    if backend == "reference":
        whole = partial(reference.per_sample_conv2d, padding_mode=padding_mode)
        return call_reference(whole, x, weight, bias, *given)
    x, geometry = with_borders(x, geometry, padding_mode)
    return call("per_sample_conv2d", x, weight, bias, *geometry, backend)


dynamic_conv2d.reference = reference.dynamic_conv2d
per_sample_conv2d.reference = reference.per_sample_conv2d


@remembered
def prepare_dynamic(x, experts, bias, mixing, stride, padding, dilation, groups, padding_mode, scale, shift, relu):
    """Return x, experts and bias as autocast has them, and the op's geometry; raise where an argument does not fit."""
    check_input(x)
    x, experts, bias = cast_for_autocast(x, experts, bias)
    groups = check_kernels("experts", experts, x, groups)
    check_mixing(mixing, x, experts, by_tap=True)
    if bias is not None and mixing.dim() == 4:
        raise ValueError("bias must be None where mixing has a mix for each tap, got a tensor")
    check_bias(bias, x, experts=experts.shape[0], out_channels=experts.shape[1])
    if not isinstance(relu, bool):
        raise TypeError(f"relu must be a bool, got {relu!r}")
    _check_affine("scale", scale, x, experts)
    _check_affine("shift", shift, x, experts)
    return x, experts, bias, checked_geometry(x, experts, stride, padding, dilation, groups, padding_mode)


@remembered
def prepare_per_sample(x, weight, bias, stride, padding, dilation, groups, padding_mode):
    """Return x, weight and bias as autocast has them, and the op's geometry; raise where an argument does not fit."""
    check_input(x)
    x, weight, bias = cast_for_autocast(x, weight, bias)
    groups = check_kernels("weight", weight, x, groups)
    check_bias(bias, x, batch=x.shape[0], out_channels=weight.shape[1])
    return x, weight, bias, checked_geometry(x, weight, stride, padding, dilation, groups, padding_mode)


def _check_affine(name: str, vector: Tensor | None, x: Tensor, experts: Tensor) -> None:
    if vector is None:
        return
    check_small_dtype(name, vector, x)
    check_device(name, vector, x)
    check_shape(name, vector, out_channels=experts.shape[1])


def keeps_the_mix(x: Tensor, experts: Tensor, geometry: Geometry, backend: str) -> bool:
    """Return whether a call that records gradients is to mix outside the op, so that autograd keeps the mix.

    True on a CPU where the mixed weights are few: mixing again for the gradients would make the op slower.
    False in a compiled call, as the answer depends on the batch size, and in a traced call, as the trace serves calls
    with and without gradients.
    """
    if x.device.type != "cpu" or backend != "auto" or x.shape[0] == 0:
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return forms_of(x, experts, geometry, per_sample=False).keep_the_mix


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Return whether autograd would record a call with these arguments."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
