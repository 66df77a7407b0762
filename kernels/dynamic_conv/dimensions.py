"""The public convolutions of signals and volumes: along a length as images of one row, of volumes in plain PyTorch."""

from functools import partial

from torch import Tensor

from polychrome.kernels.backend import call_reference, current_backend, owned
from polychrome.kernels.checks import check_input, sizes
from polychrome.kernels.dynamic_conv import reference
from polychrome.kernels.dynamic_conv.api import dynamic_conv2d, per_sample_conv2d
from polychrome.kernels.dynamic_conv.arguments import check_bias, check_kernels, check_mixing
from polychrome.kernels.dynamic_conv.borders import check_borders
from polychrome.kernels.dynamic_conv.problem import axes_of, resolve_ints, resolve_padding
from polychrome.kernels.leaves import leaf
from polychrome.kernels.tensors import cast_for_autocast

Single = int | tuple[int]
Triple = int | tuple[int, int, int]


@leaf
def per_sample_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Single = 1,
    padding: Single | tuple[int, int] | str = 0,
    dilation: Single = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """Convolve each signal with the kernel given for it: `per_sample_conv2d` of views with one row, without copies.

    Args:
        x: [batch, in_channels, length], float32, float64, float16 or bfloat16.
        weight: [batch, out_channels, in_channels/groups, kernel_length], x's dtype.
        bias: [batch, out_channels], x's dtype.
        stride, dilation: an int.
        padding: an int, two (left, right), `"same"` (stride 1 only) or `"valid"`.
        padding_mode: `"zeros"`, `"reflect"`, `"replicate"` or `"circular"`, as in `nn.Conv1d`.

    Returns:
        [batch, out_channels, out_length] in x's dtype; channels lie next to each other if x's do.

    Raises:
        ValueError: a shape, device, padding or group count does not fit, the output would be empty, or x has not the
            values that `padding_mode` repeats.
        TypeError: a dtype is none of the above, or differs from x's.
        RuntimeError: the backend in force cannot run on x's device, or follow a transform of `torch.func`: see
            `use_backend`.
    """
    x, weight, bias, *rest = _per_sample(1, x, weight, bias, stride, padding, dilation, groups, padding_mode)
    y = per_sample_conv2d(_row(x), _row(weight), bias, *_of_rows(*rest), padding_mode=padding_mode)
    return owned(y.squeeze(2))


@leaf
def dynamic_conv1d(
    x: Tensor,
    experts: Tensor,
    mixing: Tensor,
    bias: Tensor | None = None,
    stride: Single = 1,
    padding: Single | tuple[int, int] | str = 0,
    dilation: Single = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """Convolve each signal with its own mix of shared experts: `dynamic_conv2d` of views with one row, without copies.

    Args:
        x: [batch, in_channels, length], float32, float64, float16 or bfloat16.
        experts: [experts, out_channels, in_channels/groups, kernel_length], x's dtype.
        mixing: [batch, experts], any real numbers, float32 or x's dtype.
        bias: [experts, out_channels], mixed like the experts, x's dtype.
        stride, dilation: an int.
        padding: an int, two (left, right), `"same"` (stride 1 only) or `"valid"`.
        padding_mode: `"zeros"`, `"reflect"`, `"replicate"` or `"circular"`, as in `nn.Conv1d`.

    Returns:
        [batch, out_channels, out_length] in x's dtype; channels lie next to each other if x's do.

    Raises:
        ValueError: a shape, device, padding or group count does not fit, the output would be empty, or x has not the
            values that `padding_mode` repeats.
        TypeError: a dtype is none of the above, or differs from x's.
        RuntimeError: the backend in force cannot run on x's device, or follow a transform of `torch.func`: see
            `use_backend`.
    """
    x, experts, bias, *rest = _dynamic(1, x, experts, mixing, bias, stride, padding, dilation, groups, padding_mode)
    y = dynamic_conv2d(_row(x), _row(experts), mixing, bias, *_of_rows(*rest), padding_mode=padding_mode)
    return owned(y.squeeze(2))


@leaf
def per_sample_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Triple = 1,
    padding: Triple | tuple[int, int, int, int, int, int] | str = 0,
    dilation: Triple = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """Convolve each volume with the kernel given for it. Plain PyTorch, one grouped convolution: there is no kernel.

    Args:
        x: [batch, in_channels, depth, height, width], float32, float64, float16 or bfloat16.
        weight: [batch, out_channels, in_channels/groups, kernel_depth, kernel_height, kernel_width], x's dtype.
        bias: [batch, out_channels], x's dtype.
        stride, dilation: an int or three.
        padding: an int, three, six (left, right, top, bottom, front, back), `"same"` (stride 1 only) or `"valid"`.
        padding_mode: `"zeros"`, `"reflect"`, `"replicate"` or `"circular"`, as in `nn.Conv3d`.

    Returns:
        [batch, out_channels, out_depth, out_height, out_width] in x's dtype.

    Raises:
        ValueError: a shape, device, padding or group count does not fit, the output would be empty, or x has not the
            values that `padding_mode` repeats.
        TypeError: a dtype is none of the above, or differs from x's.
        RuntimeError: `use_backend("triton")` asks for a kernel.
    """
    x, weight, bias, *_ = _per_sample(3, x, weight, bias, stride, padding, dilation, groups, padding_mode)
    _check_plain("per_sample_conv3d")
    whole = partial(reference.per_sample_conv3d, padding_mode=padding_mode)
    return call_reference(whole, x, weight, bias, stride, padding, dilation, groups)


@leaf
def dynamic_conv3d(
    x: Tensor,
    experts: Tensor,
    mixing: Tensor,
    bias: Tensor | None = None,
    stride: Triple = 1,
    padding: Triple | tuple[int, int, int, int, int, int] | str = 0,
    dilation: Triple = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """Convolve each volume with its own mix of shared experts. Plain PyTorch, one grouped convolution: no kernel.

    Args:
        x: [batch, in_channels, depth, height, width], float32, float64, float16 or bfloat16.
        experts: [experts, out_channels, in_channels/groups, kernel_depth, kernel_height, kernel_width], x's dtype.
        mixing: [batch, experts], any real numbers, float32 or x's dtype.
        bias: [experts, out_channels], mixed like the experts, x's dtype.
        stride, dilation: an int or three.
        padding: an int, three, six (left, right, top, bottom, front, back), `"same"` (stride 1 only) or `"valid"`.
        padding_mode: `"zeros"`, `"reflect"`, `"replicate"` or `"circular"`, as in `nn.Conv3d`.

    Returns:
        [batch, out_channels, out_depth, out_height, out_width] in x's dtype.

    Raises:
        ValueError: a shape, device, padding or group count does not fit, the output would be empty, or x has not the
            values that `padding_mode` repeats.
        TypeError: a dtype is none of the above, or differs from x's.
        RuntimeError: `use_backend("triton")` asks for a kernel.
    """
    x, experts, bias, *_ = _dynamic(3, x, experts, mixing, bias, stride, padding, dilation, groups, padding_mode)
    _check_plain("dynamic_conv3d")
    whole = partial(reference.dynamic_conv3d, padding_mode=padding_mode)
    return call_reference(whole, x, experts, mixing, bias, stride, padding, dilation, groups)


per_sample_conv1d.reference = reference.per_sample_conv1d
dynamic_conv1d.reference = reference.dynamic_conv1d
per_sample_conv3d.reference = reference.per_sample_conv3d
dynamic_conv3d.reference = reference.dynamic_conv3d

AXES = {1: ("length",), 3: ("depth", "height", "width")}


def _per_sample(dims: int, x, weight, bias, stride, padding, dilation, groups, mode):
    """Return x, weight and bias as autocast has them, stride, sides, dilation and groups; raise where one is wrong."""
    check_input(x, *AXES[dims])
    x, weight, bias = cast_for_autocast(x, weight, bias)
    groups = check_kernels("weight", weight, x, groups)
    check_bias(bias, x, batch=x.shape[0], out_channels=weight.shape[1])
    return x, weight, bias, *_resolved(x, weight, stride, padding, dilation, mode), groups


def _dynamic(dims: int, x, experts, mixing, bias, stride, padding, dilation, groups, mode):
    """Return x, experts and bias as autocast has them, stride, sides, dilation and groups; raise where one is wrong."""
    check_input(x, *AXES[dims])
    x, experts, bias = cast_for_autocast(x, experts, bias)
    groups = check_kernels("experts", experts, x, groups)
    check_mixing(mixing, x, experts)
    check_bias(bias, x, experts=experts.shape[0], out_channels=experts.shape[1])
    return x, experts, bias, *_resolved(x, experts, stride, padding, dilation, mode), groups


def _resolved(x: Tensor, kernels: Tensor, stride, padding, dilation, mode: str) -> tuple[list[int], ...]:
    """Return stride, padding before and after each axis, and dilation; raise where x or the output has no value."""
    size, kernel, axes = x.shape[2:], kernels.shape[3:], axes_of(x)
    if 0 in size:
        raise ValueError(f"x must have no dimension of size 0 but the batch, got {sizes(x)}")
    stride, dilation = (resolve_ints(n, v, len(axes)) for n, v in (("stride", stride), ("dilation", dilation)))
    sides = resolve_padding(padding, kernel, stride, dilation)
    check_borders(x, sides, mode)
    for place, axis in enumerate(axes):
        padded = size[place] + sides[2 * place] + sides[2 * place + 1]
        reach = dilation[place] * (kernel[place] - 1) + 1
        if reach > padded:
            raise ValueError(
                f"output must have at least one value, got {axis} {int(padded)} with padding for a kernel that reaches "
                f"over {int(reach)}, from x {sizes(x)}, kernel {list(map(int, kernel))}, dilation {dilation}"
            )
    return stride, sides, dilation


def _row(tensor: Tensor) -> Tensor:
    """Return a view with an axis of one row before the length."""
    return tensor.unsqueeze(-2)


def _of_rows(stride, sides, dilation, groups) -> tuple:
    """Return stride, padding, dilation and groups of images of one row."""
    return (1, *stride), (*sides, 0, 0), (1, *dilation), groups


def _check_plain(op: str) -> None:
    if current_backend() == "triton":
        raise RuntimeError(f"{op} has no Triton kernel; call it under use_backend('auto')")
