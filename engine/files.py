"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from engine.errors import StorageError


def write_atomically(path: Path, content: bytes | memoryview | str) -> None:
    """Write a file: into another name, to the disk, then renamed; what stood there stays until then.

    Text is UTF-8, with names of files that are no valid text as escapes.

    Raises:
        StorageError: it cannot be written, as where the disk is full.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    partial = path.with_name(path.name + ".partial")
    try:
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}; what stood there is intact"
        ) from error
