"""The public functions: they check the arguments and pick the implementation."""

import torch
from torch import Tensor

from polychrome.kernels.backend import call_reference, chosen_backend
from polychrome.kernels.checks import check_device, check_float, check_input, check_shape, check_small_dtype, sizes
from polychrome.kernels.leaves import leaf
from polychrome.kernels.library import call
from polychrome.kernels.spatial_attention import reference, register  # noqa: F401  (registers the ops)
from polychrome.kernels.spatial_attention.eager import check_present
from polychrome.kernels.tensors import autocasts


@leaf
def channel_stats(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return mean and max over the channels present, per pixel (CBAM, Woo et al. 2018; report A).

    Args:
        x: [batch, channels, height, width], float32, float64, float16 or bfloat16.
        mask: [batch, channels] bool, true where a channel is present; by default all are.

    Returns:
        [batch, 2, height, width]: the mean, summed in float32 (float64 for float64), and the max, in x's dtype,
        channels_last if x is. The max's gradient goes to the one channel `torch.max(dim=1)` names; ties are not shared.

    Raises:
        ValueError: a shape or device does not fit, or, on the CPU, a sample has no present channel. On a CUDA device an
            assertion in the kernel fails instead, as in torch's indexing: a later call reports it, and the CUDA context
            is lost. Without the kernel (float64, no Triton) CUDA does not check it.
        TypeError: x is none of these dtypes or mask is not bool.
        RuntimeError: the backend in force cannot run on x's device, or follow a transform of `torch.func`: see
            `use_backend`.
    """
    check_input(x)
    if mask is not None:
        _check_mask(mask, x)
    backend = chosen_backend("channel_stats", x)
    if backend != "reference":
        return call("channel_stats", x, mask, backend)[0]
    if mask is not None and mask.device.type == "cpu" and not torch.compiler.is_compiling():
        check_present(mask)
    return call_reference(reference.channel_stats, x, mask)


@leaf
def spatial_gate(x: Tensor, logits: Tensor) -> Tensor:
    """Return x * sigmoid(logits), the second half of spatial attention (CBAM, Woo et al. 2018).

    With a normalisation between the two halves, as in timm: `spatial_gate(x, norm(conv(channel_stats(x))))`.

    Args:
        x: [batch, channels, height, width], float32, float64, float16 or bfloat16.
        logits: [batch, 1, height, width], float32 or x's dtype; under autocast float16 or bfloat16 too.

    Returns:
        [batch, channels, height, width] in x's dtype, channels_last if x is. The sigmoid stays in float32 (float64 for
        float64), under autocast too; only the product is rounded.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype is none of the above.
        RuntimeError: the backend in force cannot run on x's device, or follow a transform of `torch.func`: see
            `use_backend`.
    """
    check_input(x)
    check_float("logits", logits)
    if autocasts(x) and logits.dtype in (torch.float16, torch.bfloat16) and logits.dtype != x.dtype:
        logits = logits.float()  # a convolution under autocast makes such logits from float32 statistics
    check_small_dtype("logits", logits, x)
    check_device("logits", logits, x)
    batch, _, height, width = x.shape
    check_shape("logits", logits, batch=batch, channels=1, height=height, width=width)
    backend = chosen_backend("spatial_gate", x)
    if backend == "reference":
        return call_reference(reference.spatial_gate, x, logits)
    return call("spatial_gate", x, logits, backend)


@leaf
def spatial_attention(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x * sigmoid(conv2d(channel_stats(x), weight, bias, padding=k//2)) (CBAM, Woo et al. 2018; report A).

    Args:
        x: [batch, channels, height, width], float32, float64, float16 or bfloat16.
        weight: [1, 2, k, k] with k odd and at least 3; float32 or x's dtype.
        bias: [1], float32 or x's dtype.

    Returns:
        [batch, channels, height, width] in x's dtype, channels_last if x is. The two maps, their convolution and the
        sigmoid stay in float32 (float64 for float64), under autocast too; only the product is rounded.

    Raises:
        ValueError: a shape or device does not fit, or k is even or below 3.
        TypeError: a dtype is none of the above.
        RuntimeError: the backend in force cannot run on x's device, or follow a transform of `torch.func`: see
            `use_backend`.
    """
    check_input(x)
    check_small_dtype("weight", weight, x)
    check_device("weight", weight, x)
    if 0 in x.shape[2:]:
        raise ValueError(f"x must have at least one pixel, got {sizes(x)}")
    if weight.dim() != 4 or weight.shape[:2] != (1, 2) or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"weight must be [1, 2, k, k], got {sizes(weight)}")
    if weight.shape[2] < 3 or weight.shape[2] % 2 == 0:
        raise ValueError(f"weight must be [1, 2, k, k] with k odd and at least 3, got {sizes(weight)}")
    if bias is not None:
        check_small_dtype("bias", bias, x)
        check_device("bias", bias, x)
        check_shape("bias", bias, out_channels=1)
    backend = chosen_backend("spatial_attention", x)
    if backend == "reference":
        return call_reference(reference.spatial_attention, x, weight, bias)
    return call("spatial_attention", x, weight, bias, backend)[0]


channel_stats.reference = reference.channel_stats
spatial_gate.reference = reference.spatial_gate
spatial_attention.reference = reference.spatial_attention


def _check_mask(mask: Tensor, x: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, got {getattr(mask, 'dtype', type(mask).__name__)}")
    check_device("mask", mask, x)
    check_shape("mask", mask, batch=x.shape[0], channels=x.shape[1])
