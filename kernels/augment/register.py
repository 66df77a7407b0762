"""`polychrome::augment`. It has no gradient: images are uint8."""

import torch
from torch import Tensor

from polychrome.kernels.augment import eager
from polychrome.kernels.augment.arguments import Arguments, check_values
from polychrome.kernels.backend import runs_triton
from polychrome.kernels.library import register_op


def augment(
    images: Tensor,
    indices: Tensor | None,
    crops: Tensor | None,
    flips: Tensor | None,
    vflips: Tensor | None,
    angles: Tensor | None,
    brightness: Tensor | None,
    contrast: Tensor | None,
    gamma: Tensor | None,
    grayscale: Tensor | None,
    channels: Tensor | None,
    cutouts: Tensor | None,
    mean: list[float],
    std: list[float],
    height: int,
    width: int,
    dtype: torch.dtype,
    backend: str = "auto",
) -> Tensor:
    """Return the batch [batch, channels, height, width] in `dtype`, channels_last."""
    per_sample = (indices, crops, flips, vflips, angles, brightness, contrast, gamma, grayscale, channels, cutouts)
    given = Arguments(images, *per_sample, mean, std, height, width, dtype)
    check_values(given)
    if runs_triton(images, backend, dtype):
        from polychrome.kernels.augment.triton import ops as implementation
    else:
        implementation = eager
    return implementation.augment(given)


def _fake(*arguments):
    return Arguments(*arguments[: len(Arguments._fields)]).empty()


register_op("augment", augment, _fake)
