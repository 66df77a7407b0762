"""Pixels of measured data as a file holds them, with what the file says about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from polychrome.engine.channels.names import is_reserved
from polychrome.engine.errors import Unsupported

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64")
EXACT = 2**24  # float32 holds every whole number up to here


class Pixels(NamedTuple):
    """Values [height, width, channels], and the channels' names where the file has them, as `cleaned` has them.

    `missing` marks values that are none, bool of the same shape; None where all are there. `stored` is the type of the
    values in the file.
    """

    values: np.ndarray
    names: tuple[str, ...] = ()
    missing: np.ndarray | None = None
    stored: str = ""


def check_type(dtype: np.dtype) -> None:
    """Raise Unsupported where values of a type are not read."""
    if dtype.name not in DTYPES:
        found = "Python objects" if dtype.hasobject else dtype.name
        raise Unsupported(f"values are {found}, wanted {' '.join(DTYPES)}")


def converted(values: np.ndarray) -> np.ndarray:
    """Return values as uint8 where they are stored so, else as float32, in C order.

    Raises Unsupported where whole numbers are too large to be exact in float32.
    """
    if values.dtype.kind in "iu" and values.dtype.itemsize > 2:
        largest = max(int(values.max()), -int(values.min()))
        if largest > EXACT:
            raise Unsupported(f"a value of {largest:,}, and whole numbers above {EXACT:,} would be rounded: scale them")
    with np.errstate(over="ignore"):  # a float64 too large becomes infinite and is found later
        return np.array(values, np.uint8 if values.dtype == np.uint8 else np.float32, order="C")


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Return an image as EXIF's `orientation`, 1 to 8, says that it is to be seen."""
    return _each(pixels, lambda values: _turned(values, orientation))


def _each(pixels: Pixels, change: Callable[[np.ndarray], np.ndarray]) -> Pixels:
    missing = None if pixels.missing is None else change(pixels.missing)
    return pixels._replace(values=change(pixels.values), missing=missing)


def _turned(values: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values[::-1] if orientation in (3, 4, 7, 8) else values


def without_opaque(pixels: Pixels) -> Pixels:
    """Return an image of whole numbers without its last sample, transparency, where that is opaque everywhere."""
    if not (pixels.values[..., -1] == np.iinfo(pixels.values.dtype).max).all():
        return pixels
    return _each(pixels, lambda values: values[..., :-1])._replace(names=pixels.names[:-1])


def cleaned(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of a file's channels without the marks that combinations use; none where all are empty."""
    marks = dict.fromkeys(map(ord, "+,/\0"), " ")
    found = tuple(" ".join(name.translate(marks).split()) for name in names)
    return found if any(found) else ()


def why_unusable(names: Sequence[str]) -> str | None:
    """Return why cleaned names cannot be those of channels; None where they can."""
    for name in names:
        if not name.strip("."):
            return "one has no name"
        if is_reserved(name):
            return f"{name} has a meaning of its own"
        if names.count(name) > 1:
            return f"two are called {name}"
    return None
