"""Convolutions with one kernel for all samples, which are torch's own, and of one image with the kernels of many."""

from functools import partial

from torch import Tensor

from polychrome.kernels.backend import call_reference, current_backend, owned
from polychrome.kernels.checks import check_input
from polychrome.kernels.dynamic_conv import reference
from polychrome.kernels.dynamic_conv.arguments import (
    check_bias,
    check_kernels,
    checked_geometry,
    checked_transposed_geometry,
)
from polychrome.kernels.tensors import cast_for_autocast


def is_shared(weight) -> bool:
    """Return whether weight is one kernel [channels, channels, height, width], not one for each sample."""
    return isinstance(weight, Tensor) and weight.dim() == 4


def broadcast(x, weight):
    """Return x; an image [channels, height, width] once for each kernel of weight [batch, ...], without copies."""
    is_image = isinstance(x, Tensor) and x.dim() == 3 and isinstance(weight, Tensor) and weight.dim() == 5
    return x.expand(weight.shape[0], *x.shape) if is_image else x


def shared_conv2d(x, weight, bias, stride, padding, dilation, groups, mode: str) -> Tensor:
    """Return F.conv2d of x [batch, channels, height, width], or without the batch; bias is [out_channels]."""
    x, weight, bias, groups, is_image = _prepared("per_sample_conv2d", x, weight, bias, groups)
    checked_geometry(x, weight, stride, padding, dilation, groups, mode)
    definition = partial(reference.per_sample_conv2d, padding_mode=mode)
    y = call_reference(definition, x, weight, bias, stride, padding, dilation, groups)
    return owned(y.squeeze(0)) if is_image else y


def shared_conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation) -> Tensor:
    """Return F.conv_transpose2d of x [batch, channels, height, width], or without the batch; bias is [out_channels]."""
    op = "per_sample_conv_transpose2d"
    x, weight, bias, groups, is_image = _prepared(op, x, weight, bias, groups, transposed=True)
    checked_transposed_geometry(x, weight, stride, padding, output_padding, dilation, groups)
    rest = stride, padding, output_padding, groups, dilation
    y = call_reference(reference.per_sample_conv_transpose2d, x, weight, bias, *rest)
    return owned(y.squeeze(0)) if is_image else y


def _prepared(op: str, x, weight, bias, groups, transposed: bool = False):
    """Return x with a batch, weight and bias as autocast has them, groups, and whether x had no batch."""
    is_image = isinstance(x, Tensor) and x.dim() == 3
    x = x.unsqueeze(0) if is_image else x
    check_input(x)
    x, weight, bias = cast_for_autocast(x, weight, bias)
    groups = check_kernels("weight", weight, x, groups, transposed=transposed, shared=True)
    check_bias(bias, x, out_channels=weight.shape[1] * groups if transposed else weight.shape[0])
    if current_backend() == "triton":
        raise RuntimeError(f"{op} has no kernel for a weight that all samples share; call it under use_backend('auto')")
    return x, weight, bias, groups, is_image
