"""Text files that a user wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from polychrome.engine.errors import UserError


def numbered_lines(file: Path, around: str | None = None) -> Iterator[tuple[int, str]]:
    """Yield the number and the text, stripped of white space or the marks `around`, of each line that is not blank.

    Raises UserError where the file cannot be read or is not UTF-8.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    # Not splitlines(): it also cuts at characters that file names may hold.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.strip(around)
