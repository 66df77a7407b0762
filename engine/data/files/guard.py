"""How files that others wrote are read: any failure becomes a file's verdict, and none needs memory without bound."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

from polychrome.engine.errors import Unavailable, Unsupported, UserError, one_line

PIXELS_VARIABLE = "POLYCHROME_MAX_PIXELS"
DAMAGED = "damaged: "
MOST_PIXELS = 178_956_970  # Pillow's own bound


@contextmanager
def guarded() -> Iterator[None]:
    """Raise whatever the reading of a file's bytes raises inside as OSError, a damaged file, or as Unsupported.

    Decoders raise errors of many kinds over damaged bytes: IndexError, struct.error, RecursionError and more. Raises
    Unavailable where there is too little memory.
    """
    try:
        yield
    except (OSError, Unsupported, UserError):
        raise
    except MemoryError as error:
        raise Unavailable("it needs more memory than there is: shrink it, or cut it into tiles") from error
    except Exception as error:
        raise OSError(f"{DAMAGED}{one_line(error)}") from error


def most_pixels() -> int:
    """Return how many pixels an image may have; the environment variable POLYCHROME_MAX_PIXELS may give another number.

    Raises:
        UserError: the variable is not a positive whole number.
    """
    text = os.environ.get(PIXELS_VARIABLE, "").strip() or str(MOST_PIXELS)
    if not text.isascii() or not text.isdigit() or not 0 < len(text) <= 18 or int(text) < 1:
        raise UserError(f"{PIXELS_VARIABLE} must be a number of pixels such as {MOST_PIXELS}, got {text!r}")
    return int(text)


def too_large(amount: str, most: int) -> str:
    """Return the reason against a file with more pixels or values than are read."""
    return f"{amount}, at most {most:,} are read: shrink it, cut it into tiles, or set {PIXELS_VARIABLE}"


def check_pixels(height: int, width: int) -> None:
    """Raise Unsupported where a photo has more pixels than are read."""
    if height * width > (most := most_pixels()):
        raise Unsupported(too_large(f"{height:,} x {width:,} pixels", most))


def check_values(shape: tuple[int, ...]) -> None:
    """Raise Unsupported where a stack has more values than are read: three times the pixels of a photo."""
    if prod(shape) > (most := 3 * most_pixels()):
        raise Unsupported(too_large(f"{' x '.join(f'{length:,}' for length in shape)} values", most))


def regular_size(file: str | os.PathLike) -> int:
    """Return the bytes of a file; raises OSError where it is missing, Unsupported where it is a folder or a device."""
    state = os.stat(file)
    if stat.S_ISDIR(state.st_mode):
        raise Unsupported("a folder, wanted a file")
    if not stat.S_ISREG(state.st_mode):
        raise Unsupported("a pipe, a socket or a device, wanted a file")
    return state.st_size
