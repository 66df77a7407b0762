"""Files that become unreadable after training has begun: how they are reported, and how many end the training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from polychrome.engine.errors import UserError, one_line

MOST, AT_LEAST = 0.1, 10  # a share of an epoch's images so far, and a count


class Tally:
    """Counts the unreadable files of an epoch; `on_fault(path, reason)` is called for files not in `reported`."""

    def __init__(self, root, paths: Sequence[str], on_fault: Callable[[str, str], None] | None, reported: set[str]):
        self._root, self._paths, self._on_fault, self._reported = root, paths, on_fault, reported
        self._seen = self._failed = 0

    def add(self, indices: np.ndarray, faults: dict[int, str]) -> None:
        """Count the faults of a batch of images.

        Raises UserError if none of several images could be read, or at least 10 and more than a tenth so far.
        """
        self._seen += len(indices)
        self._failed += len(faults)
        for position, reason in faults.items():
            path = self._paths[indices[position]]
            if path not in self._reported:
                self._reported.add(path)
                if self._on_fault is not None:
                    self._on_fault(path, reason)
        none_left = len(faults) == len(indices) > 1
        if none_left or (self._failed >= AT_LEAST and self._failed > MOST * self._seen):
            position, reason = next(iter(faults.items()))
            first = f"{self._root / self._paths[indices[position]]}: {reason}"
            raise UserError(f"{self._failed:,} of {self._seen:,} images could not be read; the last are like {first}")


def rows(count: int, faults: Iterable[int], train: bool) -> np.ndarray:
    """Return the rows of a batch of `count` images to use, int64.

    In training good rows replace rows with a fault, else rows with a fault are left out. Empty without a good row.
    """
    bad = np.array(sorted(faults), np.int64)
    good = np.setdiff1d(np.arange(count), bad)
    if not train or not len(good):
        return good
    chosen = np.arange(count)
    chosen[bad] = np.resize(good, len(bad))
    return chosen


def attempted(read: Callable[[str], np.ndarray], path: str, shape: tuple[int, int, int]) -> np.ndarray | str:
    """Return an image [height, width, channels], or the reason in a line if it is unreadable or of another shape."""
    try:
        image = read(path)
    except (OSError, ValueError) as error:
        return f"can no longer be read: {one_line(error)}"
    if image.shape != tuple(shape):
        return f"has changed: wanted {list(map(int, shape))}, got {list(image.shape)}"
    return image
