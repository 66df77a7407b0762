"""Decoded images in host memory, so that several models train on files that are decoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from polychrome.engine.data.faults import attempted
from polychrome.engine.data.files import stacks
from polychrome.engine.data.image_set import ImageSet, sizes_of
from polychrome.engine.data.stores.mapping import Mapping

CHUNK = 64  # images


class WholeImages:
    """Whole images by path, their values one after another in a single array."""

    def __init__(
        self,
        values: np.ndarray,
        paths: Sequence[str],
        sizes: np.ndarray,
        channels: int,
        faults: dict[str, str] | None = None,
    ):
        """Take over `values` of the images `paths` of `sizes` (height, width), each [height, width, channels].

        Files in `faults`, with a reason each, could not be read and are not among the images.

        Raises:
            ValueError: the numbers of values, paths and sizes do not agree.
        """
        self.values, self.paths, self.faults = values, paths, faults or {}
        self.channels = channels
        self.mapping = Mapping(values)
        self._sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
        self._starts = _starts(self._sizes, channels)
        self._indices = {path: index for index, path in enumerate(paths)}
        if len(self._indices) != len(self._sizes) or len(values) != self._starts[-1]:
            raise ValueError(f"{len(values)} values of {len(self._indices)} paths and {len(self._sizes)} sizes")
        for path in self.faults:
            del self._indices[path]

    @classmethod
    def load(cls, images: ImageSet, workers: int, progress: Callable[[int, int], None] | None = None) -> WholeImages:
        """Return every image of a scanned set, each decoded once, in `workers` threads.

        `progress(done, total)` is called as images are decoded. Files that can no longer be read are in `faults`.

        Raises:
            ValueError: the set has not been scanned.
        """
        sizes, channels = sizes_of(images), len(images.channels)
        paths, shapes = list(sizes), np.array(list(sizes.values()), np.int64)
        whole = cls(np.empty(_starts(shapes, channels)[-1], images.dtype), paths, shapes, channels)
        read, faults, done = stacks.opener(images), {}, 0

        def decode(chunk: Sequence[str]) -> int:
            for path in chunk:
                image = attempted(read, path, whole[path].shape)
                if isinstance(image, str):
                    faults[path] = image
                else:
                    whole[path][:] = image
            return len(chunk)

        with ThreadPoolExecutor(max(1, workers), "decode") as pool:
            for count in pool.map(decode, [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]):
                done += count
                if progress:
                    progress(done, len(paths))
        return cls(whole.values, paths, shapes, channels, faults)

    @classmethod
    def of(cls, images: ImageSet, values: np.ndarray, faults: dict[str, str]) -> WholeImages:
        """Return the pixels of a scanned set from the bytes of `values`, which `load` decoded earlier.

        Raises:
            ValueError: the set has not been scanned, or has another number of values.
        """
        sizes = sizes_of(images)
        return cls(values.view(images.dtype), list(sizes), list(sizes.values()), len(images.channels), faults)

    @staticmethod
    def bytes_needed(images: ImageSet) -> int:
        """Return the bytes that the images of a set take. Raises ValueError where the set has not been scanned."""
        values = sum(height * width for height, width in sizes_of(images).values()) * len(images.channels)
        return values * np.dtype(images.dtype).itemsize

    def __len__(self) -> int:
        return len(self._indices)

    def __contains__(self, path: str) -> bool:
        return path in self._indices

    def __getitem__(self, path: str) -> np.ndarray:
        """Return an image [height, width, channels]; it shares the memory. Raises KeyError for an unknown path."""
        index = self._indices[path]
        return self.values[self._starts[index] : self._starts[index + 1]].reshape(*self._sizes[index], self.channels)


def _starts(sizes: np.ndarray, channels: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes.prod(1) * channels)])
