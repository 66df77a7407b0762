"""The public transposed convolutions: they check and cast the arguments and pick the implementation."""

import torch
from torch import Tensor

from polychrome.kernels.backend import call_reference, chosen_backend
from polychrome.kernels.checks import check_input
from polychrome.kernels.dynamic_conv import reference
from polychrome.kernels.dynamic_conv.api import Pair, keeps_the_mix, wants_gradient
from polychrome.kernels.dynamic_conv.arguments import (
    check_bias,
    check_kernels,
    check_mixing,
    checked_transposed_geometry,
)
from polychrome.kernels.dynamic_conv.eager import kept
from polychrome.kernels.dynamic_conv.problem import Geometry
from polychrome.kernels.dynamic_conv.shared import broadcast, is_shared, shared_conv_transpose2d
from polychrome.kernels.leaves import leaf
from polychrome.kernels.library import call
from polychrome.kernels.tensors import cast_for_autocast, empty_as


@leaf
def per_sample_conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
) -> Tensor:
    """Convolve each sample transposed, with the kernel given for it: StyleGAN2's up-sampling, the adjoint of a blur.

    The adjoint of `per_sample_conv2d` with the same weight and geometry, which is how it is computed: as the gradient
    of x. Arguments in the order of `F.conv_transpose2d`.

    Args:
        x: [batch, in_channels, height, width], float32, float64, float16 or bfloat16; or one image [in_channels,
            height, width] for all kernels.
        weight: [batch, in_channels, out_channels/groups, kernel_height, kernel_width], x's dtype; or one kernel
            [in_channels, out_channels/groups, kernel_height, kernel_width] for all samples: then it is
            `F.conv_transpose2d`.
        bias: [batch, out_channels], x's dtype; [out_channels] with one kernel.
        stride, padding, dilation: an int or a pair of ints.
        output_padding: an int or a pair of ints: rows and columns added at the bottom and on the right.

    Returns:
        [batch, out_channels, out_height, out_width] in x's dtype, channels_last if x is; out_height is (height - 1) *
        stride - 2 * padding + dilation * (kernel_height - 1) + output_padding + 1.

    Under autocast x, weight and bias are cast to the autocast dtype.

    Raises:
        ValueError: a shape, device, padding or group count does not fit, or the output would be empty.
        TypeError: a dtype is none of the above, or differs from x's.
        RuntimeError: the backend in force cannot run on x's device, or follow a transform of `torch.func`: see
            `use_backend`.
    """
    given = stride, padding, output_padding, groups, dilation
    if is_shared(weight):
        return shared_conv_transpose2d(x, weight, bias, *given)
    x = broadcast(x, weight)
    check_input(x)
    x, weight, bias = cast_for_autocast(x, weight, bias)
    groups = check_kernels("weight", weight, x, groups, transposed=True)
    check_bias(bias, x, batch=x.shape[0], out_channels=weight.shape[2] * groups)
    geometry = checked_transposed_geometry(x, weight, stride, padding, output_padding, dilation, groups)
    backend = chosen_backend("per_sample_conv_transpose2d", x)
    if backend == "reference":
        return call_reference(reference.per_sample_conv_transpose2d, x, weight, bias, *given)
    return call("per_sample_conv_transpose2d", x, weight, bias, *geometry, backend)


@leaf
def dynamic_conv_transpose2d(
    x: Tensor,
    experts: Tensor,
    mixing: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
) -> Tensor:
    """Convolve each sample transposed, with its own mix of shared expert kernels.

    The adjoint of `dynamic_conv2d` with the same experts, mixing and geometry, which is how it is computed: as the
    gradient of x. Arguments in the order of `F.conv_transpose2d`.

    Args:
        x: [batch, in_channels, height, width], float32, float64, float16 or bfloat16.
        experts: [experts, in_channels, out_channels/groups, kernel_height, kernel_width], x's dtype.
        mixing: [batch, experts], any real numbers, float32 or x's dtype. The mix is summed in float32 (float64 for
            float64) and rounded once.
        bias: [experts, out_channels], mixed like the experts, x's dtype.
        stride, padding, dilation: an int or a pair of ints.
        output_padding: an int or a pair of ints: rows and columns added at the bottom and on the right.

    Returns:
        [batch, out_channels, out_height, out_width] in x's dtype, channels_last if x is; out_height is (height - 1) *
        stride - 2 * padding + dilation * (kernel_height - 1) + output_padding + 1.

    Under autocast x, experts and bias are cast to the autocast dtype; mixing is left alone.

    Raises:
        ValueError: a shape, device, padding or group count does not fit, or the output would be empty.
        TypeError: a dtype is none of the above, or differs from x's.
        RuntimeError: the backend in force cannot run on x's device, or follow a transform of `torch.func`: see
            `use_backend`.
    """
    check_input(x)
    x, experts, bias = cast_for_autocast(x, experts, bias)
    groups = check_kernels("experts", experts, x, groups, transposed=True)
    check_mixing(mixing, x, experts)
    check_bias(bias, x, experts=experts.shape[0], out_channels=experts.shape[2] * groups)
    geometry = checked_transposed_geometry(x, experts, stride, padding, output_padding, dilation, groups)
    backend = chosen_backend("dynamic_conv_transpose2d", x)
    if backend == "reference":
        rest = stride, padding, output_padding, groups, dilation
        return call_reference(reference.dynamic_conv_transpose2d, x, experts, mixing, bias, *rest)
    if _mixes_outside(x, experts, mixing, bias, geometry, backend):
        mixed_bias = None if bias is None else call_reference(reference.mix, mixing, bias)
        weight = call_reference(kept.mixed, experts, mixing)
        return call("per_sample_conv_transpose2d", x, weight, mixed_bias, *geometry, backend)
    return call("dynamic_conv_transpose2d", x, experts, mixing, bias, *geometry, backend)


per_sample_conv_transpose2d.reference = reference.per_sample_conv_transpose2d
dynamic_conv_transpose2d.reference = reference.dynamic_conv_transpose2d


def _mixes_outside(x, experts, mixing, bias, geometry: Geometry, backend: str) -> bool:
    """Return whether autograd is to keep the mix, as `keeps_the_mix` says of the convolution with x as its output."""
    if x.device.type != "cpu" or not (torch.jit.is_tracing() or wants_gradient(x, experts, mixing, bias)):
        return False
    return keeps_the_mix(empty_as(x, geometry.input_shape(x, experts)), experts, geometry, backend)
