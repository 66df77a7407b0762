"""What lies around an image, the modes of padding of `nn.Conv2d`, and around a kernel smaller than others."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from polychrome.kernels.checks import check_device, sizes
from polychrome.kernels.dynamic_conv.problem import Geometry, axes_of, resolve_pair
from polychrome.kernels.tensors import autocasts, in_layout, without_autocast

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def check_mode(mode: str) -> None:
    """Raise ValueError unless `mode` is known."""
    if mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {mode!r}")


def check_borders(x: Tensor, padding: list[int], mode: str) -> None:
    """Raise ValueError unless `mode` is known and x [batch, channels, ...] has the pixels that it repeats."""
    check_mode(mode)
    if mode not in ("reflect", "circular"):
        return
    most = [size - 1 if mode == "reflect" else size for size in x.shape[2:]]
    sides = [tuple(padding[place : place + 2]) for place in range(0, len(padding), 2)]
    if any(max(pair) > limit for pair, limit in zip(sides, most, strict=True)):
        limits, given = (
            ", ".join(f"{axis} {each}" for axis, each in zip(axes_of(x), values, strict=True))
            for values in (most, sides)
        )
        raise ValueError(
            f"padding must be at most {limits} for padding_mode={mode!r} of x {sizes(x)}, got {given} (before, after)"
        )


def with_borders(x: Tensor, geometry: Geometry, mode: str) -> tuple[Tensor, Geometry]:
    """Return x with the borders that `mode` makes, in x's memory format, and the geometry without them.

    Zeros are left to the convolution.
    """
    if mode == "zeros" or not any(geometry.padding):
        return x, geometry
    padded = in_layout(x, bordered(x, geometry.padding, mode))
    return padded, geometry._replace(padding=[0, 0, 0, 0])


def bordered(x: Tensor, padding: list[int], mode: str) -> Tensor:
    """Return x [batch, channels, ...] with its borders; padding is before and after each axis, the first axis first."""
    if not any(padding):
        return x
    last_first = [side for axis in reversed(range(x.dim() - 2)) for side in padding[2 * axis : 2 * axis + 2]]
    with without_autocast(x) if autocasts(x) else nullcontext():  # a CPU's autocast would pad some modes in float32
        return F.pad(x, last_first, mode="constant" if mode == "zeros" else mode)


def evenly_padded(x: Tensor, padding: list[int]) -> tuple[Tensor, tuple[int, int]]:
    """Return x, padded with zeros where the padding is uneven, and the padding left to torch's convolution."""
    top, bottom, left, right = padding
    if top == bottom and left == right:
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom)), (0, 0)


def pad_kernels(kernels: Sequence[Tensor], size: int | tuple[int, int] | None = None) -> Tensor:
    """Return kernels of different sizes as one tensor, zeros around them and their centres on each other.

    The tap at row `(height - 1) // 2` and column `(width - 1) // 2`, which `padding="same"` puts on each pixel, stays
    the centre: `per_sample_conv2d(x, pad_kernels(kernels), padding="same")` convolves each sample with its own kernel
    as `F.conv2d(..., padding="same")` would. Gradients flow back to the kernels.

    Args:
        kernels: tensors [..., height, width] of one dtype and device that differ in the last two sizes only, such as
            point-spread functions [out_channels, in_channels/groups, height, width], one for each sample.
        size: of the result, an int or a pair (height, width), at least that of every kernel; by default the largest
            height and the largest width. One size for all batches compiles once.

    Returns:
        [len(kernels), ..., height, width].

    Raises:
        TypeError: kernels is no sequence of tensors, or their dtypes differ.
        ValueError: there is no kernel, one has a size of 0 or fewer than two dimensions, the other sizes or the
            devices differ, or `size` is below a kernel's.
    """
    kernels = list(kernels)
    if not kernels:
        raise ValueError("kernels must have at least one kernel, got none")
    for place, kernel in enumerate(kernels):
        name = f"kernels[{place}]"
        if not isinstance(kernel, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(kernel).__name__}")
        if kernel.dim() < 2 or 0 in kernel.shape[-2:]:
            raise ValueError(f"{name} must be [..., height, width], each at least 1, got {sizes(kernel)}")
        if kernel.shape[:-2] != kernels[0].shape[:-2]:
            raise ValueError(f"{name} must have the first dimensions of {sizes(kernels[0])}, got {sizes(kernel)}")
        if kernel.dtype != kernels[0].dtype:
            raise TypeError(f"{name} must have the dtype {kernels[0].dtype} of the first, got {kernel.dtype}")
        check_device(name, kernel, kernels[0], "the first one's")
    most = [max(kernel.shape[axis] for kernel in kernels) for axis in (-2, -1)]
    wanted = most if size is None else resolve_pair("size", size)
    if any(want < least for want, least in zip(wanted, most, strict=True)):
        raise ValueError(f"size must be at least {most}, the largest kernel's, got {size!r}")
    return torch.stack([_centred(kernel, *wanted) for kernel in kernels])


def _centred(kernel: Tensor, height: int, width: int) -> Tensor:
    """Return the kernel [..., rows, columns] with zeros around it, its centre where that of the larger one is."""
    rows, columns = kernel.shape[-2:]
    top, left = (height - 1) // 2 - (rows - 1) // 2, (width - 1) // 2 - (columns - 1) // 2
    return F.pad(kernel, (left, width - columns - left, top, height - rows - top))
