"""Files that cannot be read once training has begun: how readers report such files, and how many are too many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from polychrome.engine.errors import UserError

MOST, AT_LEAST = 0.1, 10  # a share of an epoch's images so far, and a count


class Tally:
    """The faults of an epoch of a split; each file is told of once in the life of `told`."""

    def __init__(self, root, paths: Sequence[str], on_fault: Callable[[str, str], None] | None, told: set[str]):
        self._root, self._paths, self._on_fault, self._told = root, paths, on_fault, told
        self._seen = self._failed = 0

    def add(self, indices: np.ndarray, faults: dict[int, str]) -> None:
        """Count the faults of a batch of the images `indices`.

        Raises UserError where none of several images could be read, or more than a tenth so far and at least 10.
        """
        self._seen += len(indices)
        self._failed += len(faults)
        for position, reason in faults.items():
            path = self._paths[indices[position]]
            if path not in self._told:
                self._told.add(path)
                if self._on_fault is not None:
                    self._on_fault(path, reason)
        none_left = len(faults) == len(indices) > 1
        if none_left or (self._failed >= AT_LEAST and self._failed > MOST * self._seen):
            position, reason = next(iter(faults.items()))
            first = f"{self._root / self._paths[indices[position]]}: {reason}"
            raise UserError(f"{self._failed:,} of {self._seen:,} images could not be read; the last are like {first}")


def rows(count: int, faults: Iterable[int], train: bool) -> np.ndarray:
    """Return the rows of a batch of `count` to use, int64: in training good rows stand in for rows with a fault,
    else faulty rows are left out; without a good row the result is empty.
    """
    bad = np.array(sorted(faults), np.int64)
    good = np.setdiff1d(np.arange(count), bad)
    if not train or not len(good):
        return good
    chosen = np.arange(count)
    chosen[bad] = np.resize(good, len(bad))
    return chosen


def attempted(read: Callable[[str], np.ndarray], path: str, shape: tuple[int, int, int]) -> np.ndarray | str:
    """Return an image [height, width, channels], or in a line why the file cannot be read or has another shape."""
    try:
        image = read(path)
    except (OSError, ValueError) as error:
        return f"can no longer be read: {' '.join(str(error).split())}"
    if image.shape != tuple(shape):
        return f"has changed: wanted {list(map(int, shape))}, got {list(image.shape)}"
    return image
