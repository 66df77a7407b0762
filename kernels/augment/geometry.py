"""The position of an output pixel in its source image."""

from collections.abc import Sequence
from operator import index

import torch
from torch import Tensor

# Further than any image reaches; a box may be given as (0, 0, largest, largest), whose sums must not overflow.
FAR = 2**30


def resolve_size(size, images: Tensor) -> tuple[int, int]:
    """Return the output's (height, width); None means the size of `images` [count, height, width, channels]."""
    if size is None:
        return images.shape[1], images.shape[2]
    height, width = size if isinstance(size, Sequence) else (size, size)
    return index(height), index(width)


def clamped(crops: Tensor | None, batch: int, images: Tensor) -> Tensor:
    """Return the boxes [batch, 4] of (top, left, height, width) clipped to the images, int64."""
    height, width = images.shape[1], images.shape[2]
    if crops is None:
        return torch.tensor([0, 0, height, width], device=images.device).expand(batch, -1)
    crops = crops.long().clamp(-FAR, FAR)
    start = crops[:, :2].clamp_min(0)
    end = torch.minimum(crops[:, :2] + crops[:, 2:], torch.tensor([height, width], device=crops.device))
    return torch.cat([start, end - start], 1)


def source_positions(
    crops: Tensor,
    flips: Tensor | None,
    vflips: Tensor | None,
    angles: Tensor | None,
    size: tuple[int, int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, x within the crop and the share of each output pixel that the crop covers, [batch, height, width].

    Coordinates are in pixels of the image, the centre of the crop's first pixel at 0.5. The crop is resized to `size`,
    flipped, then rotated about its centre; this function inverts the steps in reverse order.
    """
    height, width = size
    y = (torch.arange(height, device=crops.device, dtype=dtype) + 0.5 - height / 2)[:, None]
    x = torch.arange(width, device=crops.device, dtype=dtype) + 0.5 - width / 2
    cover = torch.ones((), device=crops.device, dtype=dtype)
    if angles is not None:
        turn = torch.deg2rad(angles.to(dtype))[:, None, None]
        y, x = turn.sin() * x + turn.cos() * y, turn.cos() * x - turn.sin() * y
        cover = (height / 2 + 0.5 - y.abs()).clamp(0, 1) * (width / 2 + 0.5 - x.abs()).clamp(0, 1)
    if flips is not None:
        x = torch.where(flips[:, None, None], -x, x)
    if vflips is not None:
        y = torch.where(vflips[:, None, None], -y, y)
    rows, columns = (side[:, None, None] for side in crops[:, 2:].to(dtype).unbind(1))
    y = torch.minimum(((y + height / 2) * (rows / height)).clamp_min(0), rows)
    x = torch.minimum(((x + width / 2) * (columns / width)).clamp_min(0), columns)
    shape = (crops.shape[0], height, width)
    return y.expand(shape), x.expand(shape), cover.expand(shape)
