"""The order of the images in an epoch, and their crops and flips, the same for every backend and batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from polychrome.kernels.augment import Recipe

ORDER = 0
AT_ONCE = 4096  # images: more at once are slower, as intermediate values leave the cache


def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the images in an epoch, a permutation of 0..n-1, int64 [n]."""
    return np.random.default_rng([ORDER, seed, epoch]).permutation(n)


def crops_and_flips(
    recipe: Recipe, indices: np.ndarray, sizes: np.ndarray, seed: int, epoch: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the crops int64 [n, 4] of (top, left, height, width) and flips bool [n] that a recipe gives some images.

    Crops and flips are those of `kernels.augment.draw`, by (seed, epoch, image index); None where the recipe has none.
    indices: int64 [n], the images' positions in the split; sizes: int64 [n, 2], their (height, width) in pixels.
    """
    import torch  # here, as the command line imports this file and has to start without torch

    from polychrome.kernels.augment import draw

    parts = zip(torch.from_numpy(indices).split(AT_ONCE), torch.from_numpy(sizes).split(AT_ONCE), strict=True)
    drawn = [draw(recipe, rows, shapes, seed, epoch) for rows, shapes in parts]
    columns = ([each.crops for each in drawn], [each.flips for each in drawn])
    return tuple(None if column[0] is None else torch.cat(column).numpy() for column in columns)


def center_crops(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """Return the central square of side `fraction` of the short side, int64 [n, 4] of (top, left, height, width)."""
    sizes = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
    side = np.maximum(1, np.rint(fraction * sizes.min(axis=1, keepdims=True)))
    shape = np.repeat(side, 2, axis=1)
    return np.concatenate([(sizes - shape) // 2, shape], axis=1).astype(np.int64)
