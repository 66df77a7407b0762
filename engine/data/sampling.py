"""What happens to each image, drawn by (seed, epoch) and image index: the same for every backend and batch size."""

from __future__ import annotations

import numpy as np

ORDER, FLIPS = 0, 2
AT_ONCE = 4096  # crops: more at once are slower, as what is in between leaves the cache


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
    indices: np.ndarray | None = None,
) -> np.ndarray:
    """Draw a crop for each image, distributed as torchvision's RandomResizedCrop and equal to `kernels.augment.draw`'s.

    `sizes` is [n, 2] of (height, width) in pixels, of the images `indices` [n] (default: 0 to n-1), by which they are
    drawn: a part of a set gets the crops that it has in the whole. Returns int64 [n, 4] of (top, left, height, width).
    `scale` is the range of the crop's share of the area, `ratio` that of width / height.
    """
    import torch  # here, as the command line imports this file and has to start without torch

    from kernels.augment import Recipe, draw

    sizes = torch.from_numpy(np.array(sizes, np.int64).reshape(-1, 2))
    which = torch.arange(len(sizes)) if indices is None else torch.from_numpy(indices)
    recipe = Recipe(scale=scale, ratio=ratio)
    parts = zip(which.split(AT_ONCE), sizes.split(AT_ONCE), strict=True)
    drawn = [draw(recipe, some, those, seed, epoch).crops for some, those in parts if len(some)]
    return torch.cat([torch.empty(0, 4, dtype=torch.int64), *drawn]).numpy()


def center_crops(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """Return the central square of side `fraction` of the short side, int64 [n, 4] of (top, left, height, width)."""
    sizes = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
    side = np.maximum(1, np.rint(fraction * sizes.min(axis=1, keepdims=True)))
    shape = np.repeat(side, 2, axis=1)
    return np.concatenate([(sizes - shape) // 2, shape], axis=1).astype(np.int64)


def _generator(purpose: int, seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([purpose, seed, epoch])
