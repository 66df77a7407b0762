"""Argument checks of the public functions. Sizes are formatted only for an error."""

from operator import index

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_input(x: Tensor, *axes: str) -> None:
    """Raise TypeError or ValueError unless `x` is a float tensor [batch, channels, *axes] with a channel.

    Without `axes` they are height and width.
    """
    check_float("x", x)
    check_shape("x", x, batch=None, channels=None, **dict.fromkeys(axes or ("height", "width")))
    if x.shape[1] == 0:
        raise ValueError(f"x must have at least one channel, got {sizes(x)}")


def check_float(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless `tensor` is a tensor of one of the four float dtypes."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {_short(tensor.dtype)}")


def check_shape(name: str, tensor: Tensor, **wanted: int | None) -> None:
    """Raise ValueError unless the shape is `wanted`, dimension name to size in order; None takes any size."""
    fits = tensor.dim() == len(wanted)
    if fits:
        for size, want in zip(tensor.shape, wanted.values(), strict=True):
            if want is not None and size != want:
                fits = False
    if not fits:
        words = ", ".join(dim if want is None else f"{dim}={int(want)}" for dim, want in wanted.items())
        raise ValueError(f"{name} must be [{words}], got {sizes(tensor)}")


def check_same_dtype(name: str, tensor: Tensor, x: Tensor) -> None:
    """Raise TypeError unless `tensor` has x's dtype."""
    check_float(name, tensor)
    if tensor.dtype != x.dtype:
        raise TypeError(
            f"{name} must have x's dtype {_short(x.dtype)}, got {_short(tensor.dtype)}; cast one or use autocast"
        )


def check_small_dtype(name: str, tensor: Tensor, x: Tensor) -> None:
    """Raise TypeError unless `tensor`, an operand of the float32 part, is float32 or has x's dtype."""
    check_float(name, tensor)
    if tensor.dtype not in (torch.float32, x.dtype):
        raise TypeError(f"{name} must be float32 or have x's dtype {_short(x.dtype)}, got {_short(tensor.dtype)}")


def check_device(name: str, tensor: Tensor, x: Tensor, owner: str = "x's") -> None:
    """Raise ValueError unless `tensor` is on the device of `x`, which the caller knows as `owner`."""
    if tensor.device != x.device:
        raise ValueError(f"{name} must be on {owner} device {x.device}, got {tensor.device}")


def as_int(value) -> int | None:
    """Return an integer of any library, such as NumPy's, or a bool as an int; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return int(index(value))
    except TypeError:
        return None


def sizes(tensor: Tensor) -> str:
    """Return the shape in words, such as `[8, 3]`."""
    return "[" + ", ".join(str(int(size)) for size in tensor.shape) + "]"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
