"""Modulated convolution: one kernel whose channels each sample scales (StyleGAN2 and StyleGAN3)."""

import torch
from torch import Tensor

from polychrome.kernels.backend import call_reference, current_backend
from polychrome.kernels.channel_gate.scale import channel_scale
from polychrome.kernels.checks import (
    check_device,
    check_float,
    check_input,
    check_same_dtype,
    check_shape,
    check_small_dtype,
    sizes,
)
from polychrome.kernels.dynamic_conv import per_sample_conv2d, per_sample_conv_transpose2d
from polychrome.kernels.dynamic_conv.api import Padding, Pair
from polychrome.kernels.dynamic_conv.arguments import checked_geometry, checked_transposed_geometry
from polychrome.kernels.dynamic_conv.problem import resolve_pair
from polychrome.kernels.leaves import leaf
from polychrome.kernels.tensors import cast_for_autocast, wide_dtype, without_autocast

# Values of x and y for each weight from which the kernels are scaled in their place. On a CPU both take as long at two
# values, and scaled kernels 0.3 to 0.95 of the time from 14 on; on a GPU it is not measured yet.
SCALE_KERNELS_FROM = 4


@leaf
def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    stride: Pair = 1,
    padding: Padding = 0,
    *,
    demodulate: bool = True,
    input_gain: Tensor | None = None,
    transposed: bool = False,
    eps: float = 1e-8,
) -> Tensor:
    """Convolve each sample with `weight * style[b]`, each output channel divided by its norm (Karras et al. 2020).

    Where x and y have few values for each weight, no sample's kernel is made: the style scales x and the norms scale y,
    around one convolution. Elsewhere, on large images, it is `per_sample_conv2d` with the scaled kernels.

    Args:
        x: [batch, in_channels, height, width], float32, float64, float16 or bfloat16.
        weight: [out_channels, in_channels, kernel_height, kernel_width], x's dtype.
        style: [batch, in_channels], float32 or x's dtype.
        stride, padding: as in `per_sample_conv2d`; where transposed, an int or a pair of ints.
        demodulate: divide by the norm, `sqrt(sum((weight * style)**2) + eps)` over in_channels and the kernel.
        input_gain: scales x's channels after the norm is taken (StyleGAN3): [], [in_channels] or [batch, in_channels].
        transposed: `F.conv_transpose2d` in place of `F.conv2d`, for up-sampling; weight is laid out as before.
        eps: added to the squared norm, above 0.

    Returns:
        [batch, out_channels, out_height, out_width] in x's dtype, channels_last if x is. Norms are computed in float32
        (float64 for float64), under autocast too, which casts x and weight.

    Raises:
        ValueError: a shape, device or padding does not fit, the output would be empty, or eps is not positive.
        TypeError: a dtype is none of the above, or differs from x's.
        RuntimeError: the backend in force cannot run on x's device, or follow a transform of `torch.func`: see
            `use_backend`.
    """
    check_input(x)
    x, weight = cast_for_autocast(x, weight)
    check_same_dtype("weight", weight, x)
    check_device("weight", weight, x)
    check_shape("weight", weight, out_channels=None, in_channels=x.shape[1], kernel_height=None, kernel_width=None)
    if 0 in weight.shape:
        raise ValueError(f"weight must have no dimension of size 0, got {sizes(weight)}")
    check_small_dtype("style", style, x)
    check_device("style", style, x)
    check_shape("style", style, batch=x.shape[0], in_channels=x.shape[1])
    if input_gain is not None:
        _check_gain(input_gain, x)
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps!r}")
    for name, flag in (("demodulate", demodulate), ("transposed", transposed)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be a bool, got {flag!r}")
    given = stride, padding, demodulate, input_gain, transposed, eps
    if current_backend() == "reference":
        if transposed:
            checked_transposed_geometry(x, weight, stride, padding, 0, 1, 1)
        else:
            checked_geometry(x, weight, stride, padding, 1, 1, "zeros")
        return call_reference(_definition, x, weight, style, *given)
    convolve = per_sample_conv_transpose2d if transposed else per_sample_conv2d
    if _scales_kernels(x, weight, stride, transposed):
        kernels = _kernels(weight, style, demodulate, input_gain, eps)
        return convolve(x, kernels.transpose(1, 2) if transposed else kernels, None, stride, padding)
    weight, before, after = _scales(weight, style, demodulate, input_gain, eps)
    y = convolve(channel_scale(x, before), weight.transpose(0, 1) if transposed else weight, None, stride, padding)
    return y if after is None else channel_scale(y, after)


def _definition(
    x, weight, style, stride=1, padding=0, demodulate=True, input_gain=None, transposed=False, eps=1e-8
) -> Tensor:
    """Convolve each sample with its kernel: the formula of Karras et al. 2020."""
    kernels = _kernels(weight, style, demodulate, input_gain, eps)
    if transposed:
        return per_sample_conv_transpose2d.reference(x, kernels.transpose(1, 2), None, stride, padding)
    return per_sample_conv2d.reference(x, kernels, None, stride, padding)


modulated_conv2d.reference = _definition


def _kernels(weight: Tensor, style: Tensor, demodulate: bool, input_gain: Tensor | None, eps: float) -> Tensor:
    """Return the kernel of each sample, [batch, out_channels, in_channels, ...], in weight's dtype."""
    wide = wide_dtype(weight.dtype)
    style = style.to(wide)
    if demodulate:
        style, eps = _bounded(style, eps)
        eps = eps[:, :, None, None, None]
    kernels = weight.to(wide) * style[:, None, :, None, None]
    if demodulate:
        kernels = kernels * (kernels.square().sum((2, 3, 4), keepdim=True) + eps).rsqrt()
    if input_gain is not None:
        kernels = kernels * input_gain.to(wide).expand(style.shape)[:, None, :, None, None]
    return kernels.to(weight.dtype)


def _bounded(style: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return styles [batch, in_channels] over the largest of each sample, and eps [batch, 1] for their demodulation.

    The largest cancels out of the demodulated kernels, whose squares it would make infinite, or zero.
    """
    largest = _largest(style)
    return style / largest, eps / largest.square()


def _largest(factors: Tensor) -> Tensor:
    """Return the largest size of each sample's factors [batch, in_channels], as [batch, 1], above 0."""
    return factors.detach().abs().amax(1, keepdim=True).clamp(min=1e-12)


def _scales(
    weight: Tensor, style: Tensor, demodulate: bool, input_gain: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the kernel, the factors of x's channels, [batch, in_channels], and of y's, [batch, out_channels] or None.

    The factors are wide.
    """
    wide, is_half = wide_dtype(weight.dtype), weight.dtype == torch.float16
    before, after = style.to(wide), None
    if demodulate or is_half:
        exact = weight.to(wide)
        squares = exact.square().sum((2, 3))  # [out_channels, in_channels]
    if is_half:  # without the norms of kernels and factors, y is of x's size, and does not leave float16's range
        norm = (squares.detach().sum(1) + eps).sqrt()  # [out_channels]
        weight = (exact / norm[:, None, None, None]).to(weight.dtype)
    if demodulate:  # the norms cancel out of the quotient
        before, eps = _bounded(before, eps)
        if is_half:
            squares, eps = squares / norm.square()[:, None], eps / norm.square()
        with without_autocast(weight):
            after = (before.square() @ squares.t() + eps).rsqrt()
    if input_gain is not None:
        before = before * input_gain.to(wide)
    if is_half and (input_gain is not None or not demodulate):
        largest = _largest(before)
        before, after = before / largest, (norm if after is None else after) * largest
    return weight, before, after


def _scales_kernels(x: Tensor, weight: Tensor, stride: Pair, transposed: bool) -> bool:
    """Return whether the kernels are to be scaled in place of x and y."""
    backend = current_backend()
    if backend == "triton":  # a convolution with one kernel is torch's
        return True
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # a rule on sizes would fix them
        return False
    down, across = resolve_pair("stride", stride)
    pixels = x.shape[2] * x.shape[3]
    out_pixels = pixels * down * across if transposed else pixels // (down * across)
    values = x.shape[1] * pixels + weight.shape[0] * out_pixels
    return values >= SCALE_KERNELS_FROM * weight.numel()


def _check_gain(gain: Tensor, x: Tensor) -> None:
    check_float("input_gain", gain)
    check_device("input_gain", gain, x)
    batch, channels = x.shape[:2]
    if tuple(gain.shape) not in ((), (channels,), (batch, channels)):
        wanted = f"in_channels={int(channels)}"
        raise ValueError(f"input_gain must be [], [{wanted}] or [batch={int(batch)}, {wanted}], got {sizes(gain)}")
