"""Checks that the public convolutions share, forward and transposed."""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from polychrome.kernels.checks import (
    as_int,
    check_device,
    check_same_dtype,
    check_shape,
    check_small_dtype,
    sizes,
)
from polychrome.kernels.dynamic_conv.borders import check_borders
from polychrome.kernels.dynamic_conv.problem import Geometry, axes_of, resolve_geometry, resolve_transposed
from polychrome.kernels.tensors import autocasts

CHECKED = 4096  # calls that are remembered


def remembered(prepare: Callable) -> Callable:
    """Return `prepare(x, kernels, bias, *rest)` that does not check again what it has checked and found right.

    `prepare` returns x, kernels and bias, unchanged without autocast, and the geometry, which only depends on the
    tensors' shapes, dtypes and devices and on the other arguments.
    """
    known: dict[tuple, Geometry] = {}

    @wraps(prepare)
    def prepared(x, kernels, bias, *rest):
        key = _key_of((x, kernels, bias, *rest))
        if key is None or not isinstance(x, Tensor) or autocasts(x):
            return prepare(x, kernels, bias, *rest)
        geometry = known.get(key)
        if geometry is None:
            if len(known) >= CHECKED:
                known.clear()
            geometry = known[key] = prepare(x, kernels, bias, *rest)[3]
        return x, kernels, bias, geometry

    return prepared


def _key_of(arguments: tuple) -> tuple | None:
    """Return what a check can see of the arguments; None while torch compiles or traces, and for unusual arguments."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return None
    key = []
    for argument in arguments:
        kind = type(argument)
        if kind is Tensor or kind is torch.nn.Parameter:
            key.append((argument.shape, argument.dtype, argument.device))
        elif argument is None or kind is int or kind is str or kind is bool:
            key.append((kind, argument))  # with the kind, as True is 1
        elif kind is tuple and all(type(each) is int for each in argument):  # 1.0 is 1 too
            key.append(argument)
        else:
            return None
    return tuple(key)


def check_kernels(
    name: str, kernels: Tensor, x: Tensor, groups, *, transposed: bool = False, shared: bool = False
) -> int:
    """Return groups as an int; raise where groups or the kernels do not fit x [batch, channels, ...].

    `name` is "weight", of kernels for each sample or, where `shared`, of one for all, or "experts". Their channels are
    [out, in/groups], where transposed [in, out/groups].
    """
    check_same_dtype(name, kernels, x)
    check_device(name, kernels, x)
    name = f"{name}, one kernel for all samples as it has no batch," if shared else name
    channels, given = x.shape[1], groups
    groups = as_int(given)
    if groups is None or groups < 1 or channels % groups:
        raise ValueError(f"groups must be a positive divisor of in_channels={int(channels)}, got {given!r}")
    wanted = {} if shared else {"experts": None} if name == "experts" else {"batch": x.shape[0]}
    first = len(wanted)
    if transposed:
        wanted |= {"in_channels": channels, "out_channels/groups": None}
    else:
        wanted |= {"out_channels": None, "in_channels/groups": channels // groups}
    check_shape(name, kernels, **wanted, **{f"kernel_{axis}": None for axis in axes_of(x)})
    if 0 in kernels.shape[first:] or (name == "experts" and kernels.shape[0] == 0):
        raise ValueError(f"{name} must have no dimension of size 0, got {sizes(kernels)}")
    if not transposed and kernels.shape[first] % groups:
        of = f" of {name}" if shared else ""
        raise ValueError(f"out_channels{of} must be a multiple of groups={groups}, got {int(kernels.shape[first])}")
    return groups


def check_mixing(mixing: Tensor, x: Tensor, experts: Tensor, by_tap: bool = False) -> None:
    """Raise TypeError or ValueError unless mixing is [batch, experts], float32 or of x's dtype.

    Where `by_tap`, [batch, experts, kernel_height, kernel_width] is allowed too.
    """
    check_small_dtype("mixing", mixing, x)
    check_device("mixing", mixing, x)
    taps = {}
    if by_tap and mixing.dim() == 4:
        taps = {"kernel_height": experts.shape[3], "kernel_width": experts.shape[4]}
    check_shape("mixing", mixing, batch=x.shape[0], experts=experts.shape[0], **taps)


def check_bias(bias: Tensor | None, x: Tensor, **wanted: int) -> None:
    """Raise TypeError or ValueError unless bias is None, or of the shape wanted and x's dtype."""
    if bias is not None:
        check_same_dtype("bias", bias, x)
        check_device("bias", bias, x)
        check_shape("bias", bias, **wanted)


def checked_geometry(x: Tensor, kernels: Tensor, stride, padding, dilation, groups: int, mode: str) -> Geometry:
    """Return the geometry of a call; raise where x or the output has no pixel, or x not those that `mode` repeats."""
    size, kernel = x.shape[2:], kernels.shape[-2:]
    if 0 in size:
        raise ValueError(f"x must be at least 1 x 1, got {sizes(x)}")
    geometry = resolve_geometry(kernel, stride, padding, dilation, groups)
    check_borders(x, geometry.padding, mode)
    height, width = geometry.output_size(size, kernel)
    if height < 1 or width < 1:
        raise ValueError(
            f"output must be at least 1 x 1, got {int(height)} x {int(width)} from x {sizes(x)}, "
            f"kernel {list(map(int, kernel))}, "
            f"stride {geometry.stride}, padding {geometry.padding}, dilation {geometry.dilation}"
        )
    return geometry


def checked_transposed_geometry(
    x: Tensor, kernels: Tensor, stride, padding, output_padding, dilation, groups: int
) -> Geometry:
    """Return the geometry of the convolution that has x as its output; raise where x or the result has no pixel."""
    size, kernel = x.shape[2:], kernels.shape[-2:]
    if 0 in size:
        raise ValueError(f"x must be at least 1 x 1, got {sizes(x)}")
    geometry = resolve_transposed(stride, padding, output_padding, dilation, groups)
    height, width = geometry.input_size(size, kernel)
    if height < 1 or width < 1:
        raise ValueError(
            f"output must be at least 1 x 1, got {int(height)} x {int(width)} from x {sizes(x)}, "
            f"kernel {list(map(int, kernel))}, stride {geometry.stride}, padding {geometry.padding[::2]}, "
            f"output_padding {[geometry.padding[0] - geometry.padding[1], geometry.padding[2] - geometry.padding[3]]}, "
            f"dilation {geometry.dilation}"
        )
    return geometry
