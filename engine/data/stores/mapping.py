"""Arrays mapped from files, which another program may cut short."""

from __future__ import annotations

import os

import numpy as np

from polychrome.engine.errors import StorageError


class Mapping:
    """The file that an array is mapped from, if it is, held open: it may be renamed or removed meanwhile."""

    def __init__(self, values: np.ndarray | None):
        source = values
        while source is not None and not isinstance(source, np.memmap):
            source = getattr(source, "base", None)
        self._mapped = source

    def check(self) -> None:
        """Raise StorageError where the file is now shorter than the array: to read the array would end the process."""
        if self._mapped is not None and self._mapped.base.size() < len(self._mapped.base):
            raise StorageError(
                f"{os.fspath(self._mapped.filename)} was cut short by another program while this one used it; start "
                "again: what is damaged is decoded anew"
            )
