"""`polychrome::augment`. It has no gradient: images are uint8."""

import torch
from torch import Tensor

from kernels.augment import eager
from kernels.augment.geometry import clamped
from kernels.backend import runs_triton
from kernels.library import register_op


def augment(
    images: Tensor,
    indices: Tensor | None,
    crops: Tensor | None,
    flips: Tensor | None,
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
    check_values(images, indices, crops, channels)
    arguments = (images, indices, crops, flips, angles, brightness, contrast, gamma, grayscale, channels, cutouts)
    if runs_triton(images, backend, dtype):
        from kernels.augment.triton import augment as implementation
    else:
        implementation = eager.augment
    return implementation(*arguments, mean, std, height, width, dtype)


def check_values(images: Tensor, indices: Tensor | None, crops: Tensor | None, channels: Tensor | None) -> None:
    """Raise ValueError where a parameter on the CPU is out of range; on other devices asking would cost a wait."""
    if images.device.type != "cpu":
        return
    batch = len(images) if indices is None else len(indices)
    if indices is not None:
        _check_range("indices", indices, 0, len(images) - 1)
    if channels is not None:
        _check_range("channels", channels, None, images.shape[3] - 1)
    if crops is not None:
        empty = (clamped(crops, batch, images)[:, 2:] < 1).any(1).nonzero().flatten().tolist()
        if empty:
            box = crops[empty[0]].tolist()
            raise ValueError(
                f"crops must meet the images of {images.shape[1]} x {images.shape[2]} pixels, got {box} "
                f"(top, left, height, width) in sample {empty[0]}"
            )


def _check_range(name: str, values: Tensor, least: int | None, most: int) -> None:
    wrong = values > most
    if least is not None:
        wrong = wrong | (values < least)
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        span = f"{least} to {most}" if least is not None else f"at most {most}"
        raise ValueError(f"{name} must be {span}, got {values[tuple(place)].item()} in sample {place[0]}")


def _fake(
    images,
    indices,
    crops,
    flips,
    angles,
    brightness,
    contrast,
    gamma,
    grayscale,
    channels,
    cutouts,
    mean,
    std,
    height,
    width,
    dtype,
    backend="auto",
):
    batch = images.shape[0] if indices is None else indices.shape[0]
    count = images.shape[3] if channels is None else channels.shape[1]
    shape = (batch, count, height, width)
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)


register_op("augment", augment, _fake)
