"""Dtypes and memory layouts that the definition, the op and its fake must agree on."""

from contextlib import nullcontext

import torch
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype sums are kept in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocasts(x: Tensor) -> bool:
    """Return whether autocast is on for x's device; the meta device has none, and torch raises when asked."""
    kind = x.device.type
    return kind != "meta" and torch.is_autocast_enabled(kind)


def cast_for_autocast(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the tensors in the autocast dtype of x's device where autocast is on; float64 stays, as in torch."""
    if not autocasts(x):
        return (x, *others)
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(t.to(dtype) if _follows_autocast(t) else t for t in (x, *others))


def _follows_autocast(tensor: Tensor | None) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64


def without_autocast(x: Tensor):
    """Return a context in which autocast is off; the meta device and torch.fx's proxies have no autocast."""
    if not isinstance(x, Tensor) or x.device.type == "meta":
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def is_channels_last(x: Tensor) -> bool:
    """Return whether x's channels lie next to each other; strides of dimensions of size one are ignored."""
    _, channels, height, width = x.shape
    return channels > 1 and height * width > 1 and x.stride(1) == 1


def memory_layout(x: Tensor) -> torch.memory_format:
    """Return the memory format of the outputs and the gradient of `x`."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def empty_as(x: Tensor, shape) -> Tensor:
    """Return an uninitialised [batch, channels, height, width] tensor in x's dtype and memory format."""
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_layout(x))


def laid_out_as(x: Tensor, y: Tensor) -> Tensor:
    """Return `y` in x's dtype and memory format."""
    return in_layout(x, y.to(x.dtype))


def in_layout(x: Tensor, y: Tensor) -> Tensor:
    """Return `y` dense in x's memory format; under functorch's transforms, which know no such format, as it is."""
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return y
    return y.contiguous(memory_format=memory_layout(x))


def not_asked(x: Tensor) -> Tensor:
    """Return the empty tensor that stands for a gradient that is not needed (an op's outputs cannot be None)."""
    return x.new_empty(0)


def gradients_as(tensors: tuple[Tensor | None, ...], needed: list[bool]) -> tuple[Tensor, ...]:
    """Return an uninitialised gradient of each tensor, the first in its memory format; `not_asked` if not needed.

    tensors are an op's: x [batch, channels, height, width] and others of any shape.
    """
    x, *others = tensors
    return (
        empty_as(x, x.shape) if needed[0] else not_asked(x),
        *(o.new_empty(o.shape) if need else not_asked(x) for o, need in zip(others, needed[1:], strict=True)),
    )


def needs_64_bits(*tensors: Tensor | None) -> bool:
    """Return whether 32-bit offsets do not reach all of a tensor and a tile beyond its end."""
    return any(tensor is not None and tensor.numel() >= 2**31 - 2**20 for tensor in tensors)


def allows_tf32() -> bool:
    """Return whether torch lets float32 convolutions on CUDA use TF32, by whichever of its two settings was used."""
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # the newer setting was touched: asking the older one raises
        return torch.backends.cudnn.conv.fp32_precision == "tf32"
