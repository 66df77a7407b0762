"""`polychrome::channel_scale`: the product at the end of squeeze-excitation, with any gate.

Backward is two passes, `sum_p dy x` for the gate and `dy s` for x, where autograd's product writes `dy x` out and reads
it again.
"""

import torch
from torch import Tensor

from polychrome.kernels.backend import call_reference, chosen_backend, runs_triton
from polychrome.kernels.checks import check_device, check_float, check_input, check_shape
from polychrome.kernels.leaves import leaf
from polychrome.kernels.library import call, register_product
from polychrome.kernels.tensors import in_layout, laid_out_as, not_asked, wide_dtype


@leaf
def channel_scale(x: Tensor, scale: Tensor) -> Tensor:
    """Return x * scale, the second half of squeeze-excitation (Hu et al. 2018).

    Args:
        x: [batch, channels, height, width], float32, float64, float16 or bfloat16.
        scale: [batch, channels] or [batch, channels, 1, 1], any of these dtypes.

    Returns:
        [batch, channels, height, width] in x's dtype, channels_last if x is; the product is rounded once.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype is none of the above.
    """
    check_input(x)
    check_float("scale", scale)
    check_device("scale", scale, x)
    scale = scale.flatten(1)
    check_shape("scale", scale, batch=x.shape[0], channels=x.shape[1])
    backend = chosen_backend("channel_scale", x)
    # in a compiled graph the product can fuse with its neighbours, which a kernel of its own could not
    if backend == "reference" or (backend == "auto" and torch.compiler.is_compiling()):
        return call_reference(_reference, x, scale)
    return call("channel_scale", x, scale, backend)


def _reference(x: Tensor, scale: Tensor) -> Tensor:
    return (x * scale.flatten(1).to(wide_dtype(x.dtype))[:, :, None, None]).to(x.dtype)


channel_scale.reference = _reference


def _forward(x: Tensor, scale: Tensor, backend: str = "auto") -> Tensor:
    if x.numel() == 0 or not runs_triton(x, backend):
        return laid_out_as(x, _reference(x, scale))
    from polychrome.kernels.channel_gate.triton.pixels import scale_channels

    return scale_channels(in_layout(x, x), scale.float().contiguous())


def _backward(
    grad: Tensor, x: Tensor, scale: Tensor, needed: list[bool], backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and scale; gradients not needed are empty placeholders."""
    dx, dscale = not_asked(x), not_asked(x)
    if x.numel() == 0 or not runs_triton(x, backend):
        if needed[0]:
            dx = laid_out_as(x, _reference(grad, scale))
        if needed[1]:
            dscale = (grad.to(wide_dtype(x.dtype)) * x).sum((2, 3)).to(scale.dtype)
        return dx, dscale
    from polychrome.kernels.channel_gate.triton.pixels import scale_channels, sum_over_pixels

    grad = in_layout(x, grad)
    if needed[1]:
        dscale = sum_over_pixels(grad, in_layout(x, x)).sum(0).to(scale.dtype)
    if needed[0]:
        dx = scale_channels(grad, scale.float().contiguous())
    return dx, dscale


register_product("channel_scale", _forward, _backward, _reference)
