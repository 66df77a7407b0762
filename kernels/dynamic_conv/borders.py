"""What lies around an image: the modes of padding of `nn.Conv2d`, and padding that differs from side to side."""

import torch.nn.functional as F
from torch import Tensor

from polychrome.kernels.checks import sizes
from polychrome.kernels.dynamic_conv.problem import Geometry
from polychrome.kernels.tensors import memory_layout

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def check_mode(mode: str) -> None:
    """Raise ValueError unless `mode` is known."""
    if mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {mode!r}")


def check_borders(x: Tensor, geometry: Geometry, mode: str) -> None:
    """Raise ValueError unless `mode` is known and x has the pixels that it repeats."""
    check_mode(mode)
    top, bottom, left, right = geometry.padding
    height, width = x.shape[2:]
    room = {"reflect": 1, "circular": 0}.get(mode)
    if room is not None and (max(top, bottom) > height - room or max(left, right) > width - room):
        raise ValueError(
            f"padding must be at most {height - room} rows and {width - room} columns for padding_mode={mode!r} of x "
            f"{sizes(x)}, got {top} above, {bottom} below, {left} on the left, {right} on the right"
        )


def with_borders(x: Tensor, geometry: Geometry, mode: str) -> tuple[Tensor, Geometry]:
    """Return x with the borders that `mode` makes, in x's memory format, and the geometry without them.

    Zeros are left to the convolution.
    """
    if mode == "zeros" or not any(geometry.padding):
        return x, geometry
    top, bottom, left, right = geometry.padding
    padded = F.pad(x, (left, right, top, bottom), mode=mode).contiguous(memory_format=memory_layout(x))
    return padded, geometry._replace(padding=[0, 0, 0, 0])


def evenly_padded(x: Tensor, padding: list[int]) -> tuple[Tensor, tuple[int, int]]:
    """Return x, padded with zeros where the padding is uneven, and the padding left to torch's convolution."""
    top, bottom, left, right = padding
    if top == bottom and left == right:
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom)), (0, 0)
