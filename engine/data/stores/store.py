"""What every store of decoded images offers."""

from __future__ import annotations

from typing import Any, Protocol


class Store(Protocol):
    """Decoded images, each known by its path.

    values: all of them, an array or a tensor. faults: by path, in one line, why a file could not be read; such files
    are not among the images.
    """

    values: Any
    faults: dict[str, str]

    @property
    def nbytes(self) -> int:
        """The bytes that the images take."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __contains__(self, path: str) -> bool:
        """Return whether the image of this path is there."""
