"""What happens to each image, drawn by (seed, epoch) and image index: the same for every backend and batch size."""

from __future__ import annotations

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
    import torch  # here, as the command line imports this file and has to start without torch

    from kernels.augment import parameters

    sizes = torch.from_numpy(np.array(sizes, np.int64).reshape(-1, 2))
    drawn = torch.from_numpy(_generator(CROPS, seed, epoch).random((4, len(sizes), TRIES)))
    return parameters.random_crops(drawn.permute(1, 2, 0), sizes, scale, ratio).numpy()


def center_crops(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """Return the central square of side `fraction` of the short side, int64 [n, 4] of (top, left, height, width)."""
    sizes = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
    side = np.maximum(1, np.rint(fraction * sizes.min(axis=1, keepdims=True)))
    shape = np.repeat(side, 2, axis=1)
    return np.concatenate([(sizes - shape) // 2, shape], axis=1).astype(np.int64)


def _generator(purpose: int, seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([purpose, seed, epoch])
