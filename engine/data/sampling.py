"""What happens to each image, drawn by (seed, epoch) and image index: the same for every backend and batch size."""

from __future__ import annotations

import math

import numpy as np

ORDER, CROPS, FLIPS = range(3)
TRIES = 10


def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the images in an epoch, a permutation of 0..n-1, int64 [n]."""
    return _generator(ORDER, seed, epoch).permutation(n)


def flips(n: int, seed: int, epoch: int, p: float = 0.5) -> np.ndarray:
    """Return whether each image is mirrored, bool [n], true with probability `p`."""
    return _generator(FLIPS, seed, epoch).random(n) < p


def random_crops(
    sizes: np.ndarray,
    seed: int,
    epoch: int,
    scale: tuple[float, float] = (0.35, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """Draw a crop for each image, distributed as torchvision's RandomResizedCrop.

    `sizes` is [n, 2] of (height, width) in pixels; returns int64 [n, 4] of (top, left, height, width).
    `scale` is the range of the crop's share of the area, `ratio` that of width / height.
    """
    sizes = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
    height, width = sizes[:, :1], sizes[:, 1:]
    area, aspect, vertical, horizontal = _generator(CROPS, seed, epoch).random((4, len(sizes), TRIES))
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(low + (high - low) * aspect)
    crop_height, crop_width = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    fits = (crop_height > 0) & (crop_height <= height) & (crop_width > 0) & (crop_width <= width)
    top = np.floor(vertical * (height - crop_height + 1))
    left = np.floor(horizontal * (width - crop_width + 1))
    tries = np.stack([top, left, crop_height, crop_width], axis=-1)  # [n, tries, 4]
    first = tries[np.arange(len(sizes)), fits.argmax(axis=1)]
    return np.where(fits.any(axis=1, keepdims=True), first, _central(sizes, ratio)).astype(np.int64)


def center_crops(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """Return the central square of side `fraction` of the short side, int64 [n, 4] of (top, left, height, width)."""
    sizes = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
    side = np.maximum(1, np.rint(fraction * sizes.min(axis=1, keepdims=True)))
    shape = np.repeat(side, 2, axis=1)
    return np.concatenate([(sizes - shape) // 2, shape], axis=1).astype(np.int64)


def _central(sizes: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    height, width = sizes.T
    shape = np.stack([np.minimum(height, np.rint(width / ratio[0])), np.minimum(width, np.rint(height * ratio[1]))], 1)
    return np.concatenate([(sizes - shape) // 2, np.maximum(shape, 1)], axis=1)


def _generator(purpose: int, seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([purpose, seed, epoch])
