"""The public function: it checks the arguments and picks the implementation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from polychrome.kernels.augment import reference, register  # noqa: F401  (registers the op)
from polychrome.kernels.augment.arguments import Arguments, check_values
from polychrome.kernels.augment.geometry import resolve_size
from polychrome.kernels.backend import chosen_backend
from polychrome.kernels.checks import FLOATS, as_int, check_device, check_shape, sizes
from polychrome.kernels.leaves import leaf
from polychrome.kernels.library import call

INTEGERS = (torch.int32, torch.int64)


@leaf
def augment(
    images: Tensor,
    crops: Tensor | None = None,
    flips: Tensor | None = None,
    angles: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channels: Tensor | None = None,
    size: int | tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    indices: Tensor | None = None,
    vflips: Tensor | None = None,
    brightness: Tensor | None = None,
    contrast: Tensor | None = None,
    gamma: Tensor | None = None,
    grayscale: Tensor | None = None,
    cutouts: Tensor | None = None,
) -> Tensor:
    """Return a training batch made from uint8 images in one pass; steps without an argument are skipped.

    In this order: gather by index, crop, resize, flip, rotate, then on values in 0..1 brightness, contrast, gamma,
    grayscale, then (v - mean) / std, selection of channels, cutout. `polychrome.kernels.augment.draw` draws the
    arguments.

    Args:
        images: uint8 [count, height, width, channels], any strides.
        crops: int32 or int64 [batch, 4], (top, left, height, width) in pixels; parts outside the image are cut off.
        flips: bool [batch], true for a mirror image.
        angles: float32 [batch], degrees counter-clockwise about the centre of the resized crop; pixels outside the crop
            are black, as in torchvision's `rotate`.
        mean, std: a float per channel of `images`, of values in 0..1; by default 0 and 1.
        channels: int32 or int64 [batch, out] or [out]: the channel of `images` for each output channel. A negative
            number makes an absent channel: zeros, the mean after normalisation.
        size: height and width of the output, or one number for both; by default the images'.
        dtype: of the output, one of the four float dtypes.
        indices: int32 or int64 [batch], which image each sample is; by default all of them in order.
        vflips: bool [batch], true for an image upside down, before any rotation.
        brightness: float32 [batch] or [batch, channels of images], v -> clamp(v * brightness).
        contrast: float32 [batch], v -> clamp((v - 0.5) * contrast + 0.5): about mid-grey, as in DALI, not about each
            image's mean.
        gamma: float32 [batch], v -> v ** gamma.
        grayscale: bool [batch], true where every channel becomes 0.2989 R + 0.587 G + 0.114 B.
        cutouts: int32 or int64 [batch, 4], boxes of the output set to zero.

    Returns:
        [batch, out, height, width] in `dtype`, channels_last. Resizing is bilinear; where it shrinks, the filter
        widens with the scale (antialiasing), as in torch's `interpolate(antialias=True)`. On a CPU without jitter,
        images of up to four channels are resized in uint8: within about 1/255. No gradient is recorded, and no tangent
        in forward mode.

    Raises:
        ValueError: a shape, a device, a size or the length of mean or std does not fit, std has a zero, or grayscale is
            asked of images without three channels; on the CPU also: an index or a channel that does not exist, a crop
            outside the image, a factor or angle that is not finite, a gamma not above 0. On CUDA the first three are
            device-side assertions, as in torch's indexing, and the last two are not checked.
        TypeError: a dtype is none of the above.
        RuntimeError: the backend in force cannot run on the images' device.
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        got = str(images.dtype) if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a uint8 tensor, got {got.removeprefix('torch.')}")
    check_shape("images", images, count=None, height=None, width=None, channels=None)
    if 0 in images.shape[1:]:
        raise ValueError(f"images must have at least one pixel and one channel, got {sizes(images)}")
    if dtype not in FLOATS:
        raise TypeError(f"dtype must be float32, float64, float16 or bfloat16, got {dtype}")
    height, width = _checked_size(size, images)
    _check_parameter("indices", indices, INTEGERS, images, batch=None)
    batch = (images if indices is None else indices).shape[0]
    for name, boxes in (("crops", crops), ("cutouts", cutouts)):
        _check_parameter(name, boxes, INTEGERS, images, batch=batch, box=4)
    for name, factor in (("angles", angles), ("contrast", contrast), ("gamma", gamma)):
        _check_parameter(name, factor, (torch.float32,), images, batch=batch)
    each = {"channels": images.shape[3]} if isinstance(brightness, Tensor) and brightness.dim() == 2 else {}
    _check_parameter("brightness", brightness, (torch.float32,), images, batch=batch, **each)
    for name, switch in (("flips", flips), ("vflips", vflips), ("grayscale", grayscale)):
        _check_parameter(name, switch, (torch.bool,), images, batch=batch)
    if grayscale is not None and images.shape[3] != 3:
        raise ValueError(f"grayscale needs images of 3 channels, got {images.shape[3]}")
    if channels is not None:
        wanted = (
            {"out": None} if isinstance(channels, Tensor) and channels.dim() == 1 else {"batch": batch, "out": None}
        )
        _check_parameter("channels", channels, INTEGERS, images, **wanted)
        if channels.shape[-1] == 0:
            raise ValueError("channels must name at least one output channel, got none")
        channels = channels.expand(batch, -1)
    means = _checked_statistic("mean", mean, 0.0, images)
    deviations = _checked_statistic("std", std, 1.0, images)
    if 0 in deviations:
        raise ValueError(f"std must not be zero, got {deviations}")
    backend = chosen_backend("augment", images, dtype, has_derivatives=False)
    factors = (None if factor is None else factor.detach() for factor in (angles, brightness, contrast, gamma))
    angles, brightness, contrast, gamma = factors
    per_sample = (indices, crops, flips, vflips, angles, brightness, contrast, gamma, grayscale, channels, cutouts)
    given = Arguments(images, *per_sample, means, deviations, height, width, dtype)
    if backend != "reference":
        return call("augment", *given, backend)
    check_values(given)
    jitter = {"brightness": brightness, "contrast": contrast, "gamma": gamma, "grayscale": grayscale}
    arguments = (crops, flips, angles, means, deviations, channels, (height, width), dtype)
    return reference.augment(images, *arguments, indices=indices, vflips=vflips, cutouts=cutouts, **jitter)


augment.reference = reference.augment


def _checked_size(size, images: Tensor) -> tuple[int, int]:
    sides = list(size) if isinstance(size, Sequence) and len(size) == 2 else [size]
    if size is not None and any(isinstance(side, bool) or as_int(side) is None for side in sides):
        raise TypeError(f"size must be an int or a pair of them, got {size!r}")
    height, width = resolve_size(size, images)
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least 1, got {size!r}")
    return height, width


def _check_parameter(name: str, value: Tensor | None, dtypes, images: Tensor, **shape: int | None) -> None:
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} must be {names}, got {str(value.dtype).removeprefix('torch.')}")
    check_shape(name, value, **shape)
    check_device(name, value, images, "images'")


def _checked_statistic(name: str, values: Sequence[float] | None, default: float, images: Tensor) -> list[float]:
    channels = images.shape[3]
    if values is None:
        return [default] * channels
    if isinstance(values, Tensor) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a sequence of floats, got {type(values).__name__}; call .tolist() on a tensor")
    if len(values) != channels:
        raise ValueError(f"{name} must have a value for each of the {channels} channels, got {len(values)}")
    found = [float(value) for value in values]
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{name} must be finite, got {found}")
    return found
