"""Decoded images, or their central squares, squeezed to one size, in the memory of the device or the host."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polychrome.engine.data.stores.mapping import Mapping


class UniformImages:
    """Images by path, uint8 [count, height, width, channels], on the device or in host memory."""

    def __init__(
        self,
        values: Tensor,
        paths: Sequence[str],
        faults: dict[str, str] | None = None,
        mapped: np.ndarray | None = None,
        regions: np.ndarray | None = None,
    ):
        """Take over `values` of the images `paths`, in that order.

        Files in `faults`, with a reason each, could not be read and are not among the images. `mapped` is the array
        whose memory `values` shares, where it may be mapped from a file. `regions`, int64 [count, 4], are the parts
        (top, left, height, width) of the images that the values show, in the images' own pixels; None: all of them.

        Raises:
            ValueError: the values are not uint8 [count, height, width, channels] with an image of each path.
        """
        if values.dtype != torch.uint8 or values.dim() != 4 or len(values) != len(paths):
            raise ValueError(f"{list(values.shape)} {values.dtype} of {len(paths)} images, wanted uint8 and 4 axes")
        self.values, self.faults, self._regions = values, faults or {}, regions
        self.mapping = Mapping(mapped)
        self._indices = {path: index for index, path in enumerate(paths) if path not in self.faults}

    @classmethod
    def of(
        cls,
        values: np.ndarray,
        paths: Sequence[str],
        on: torch.device,
        faults: dict[str, str] | None = None,
        regions: np.ndarray | None = None,
    ) -> UniformImages:
        """Return a store on the device `on` of decoded images [count, height, width, channels], maybe read-only."""
        with warnings.catch_warnings():  # torch warns of read-only arrays; nothing here writes
            warnings.simplefilter("ignore", UserWarning)
            mapped = values if on.type == "cpu" else None
            return cls(torch.from_numpy(values).to(on), paths, faults, mapped, regions)

    def __len__(self) -> int:
        return len(self._indices)

    def __contains__(self, path: str) -> bool:
        return path in self._indices

    @property
    def side(self) -> int | None:
        """Height and width in pixels that images, or parts of them, were squeezed to; None where none was."""
        return None if self._regions is None else self.values.shape[1]

    def indices(self, paths: Sequence[str]) -> np.ndarray:
        """Return the index of each image among the values, int64; raises ValueError for unknown paths."""
        missing = [path for path in paths if path not in self]
        if missing:
            raise ValueError(f"{len(missing)} of {len(paths)} images are not in the store, such as {missing[0]}")
        return np.array([self._indices[path] for path in paths], np.int64)

    def regions(self, indices: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Return the part (top, left, height, width) of each image, of these `sizes` [n, 2], that its values show."""
        whole = np.concatenate([np.zeros_like(sizes), sizes], 1)
        return whole if self._regions is None else self._regions[indices]
