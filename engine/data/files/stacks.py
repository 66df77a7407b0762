"""Images of any number of channels: .npy arrays, and TIFF files with a page for each channel."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polychrome.engine.channels.names import ALL, SHUFFLED
from polychrome.engine.data.files import kinds, shards
from polychrome.engine.data.files.guard import check_pixels, check_values, guarded
from polychrome.engine.data.files.text import numbered_lines
from polychrome.engine.errors import Unsupported, UserError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from io import BytesIO

    from PIL import Image

    from polychrome.engine.data.image_set import ImageSet

DTYPES = ("uint8", "uint16", "int16", "float16", "float32", "float64")
PAGE_MODES = ("L", "I;16", "I;16B", "I", "F")
NAMES_FILE = "channels.txt"


def opener(images: ImageSet) -> Callable[[str], np.ndarray]:
    """Return a function from a file's path in the set to its pixels [height, width, channels]; it can be pickled."""
    return partial(_stack, images.root, len(images.channels)) if images.stacks else partial(_photo, images.root)


def _stack(root: Path, channels: int, path: str) -> np.ndarray:
    return read(root / path, channels)


def _photo(root: Path, path: str) -> np.ndarray:
    from polychrome.engine.data.files import decode

    image = decode.rgb(shards.opened(root / path))
    return np.require(image, requirements="W")  # torch warns of arrays that cannot be written to


def is_array(file: str | Path) -> bool:
    """Return whether a file or a member of a tar is an .npy array: by its first bytes, else by its name.

    Raises OSError where the file is missing.
    """
    kind = kinds.of(shards.head(file))
    return kind == "array" or (not kind and Path(file).suffix.lower() == kinds.ARRAY)


def read(file: Path, channels: int | None = None) -> np.ndarray:
    """Return a stack [height, width, channels]: uint8 where its values are stored so, else float32.

    An array may be [height, width, channels], [channels, height, width] or [height, width]. The channels are
    on the first or the last axis: the axis of length `channels`, else the shorter axis, else the last.

    Raises:
        Unsupported: the file is whole but of another kind, or too large; the message is one line.
        OSError: the file is missing or damaged.
    """
    with guarded():
        values = _array(shards.opened(file), channels) if is_array(file) else _pages(shards.opened(file))
        with np.errstate(over="ignore"):  # a float64 too large becomes infinite and is found later
            return np.array(values, np.uint8 if values.dtype == np.uint8 else np.float32, order="C")


def _array(file: Path | BytesIO, channels: int | None) -> np.ndarray:
    try:
        values = np.load(file, mmap_mode="r" if isinstance(file, Path) else None, allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        text = one_line(error)
        if "Python objects" in text:
            raise Unsupported(f"values are Python objects, wanted {' '.join(DTYPES)}") from error
        cut = any(sign in text for sign in ("mmap length", "No data left", "EOF"))
        raise OSError(f"{'truncated' if cut else 'damaged, or no .npy file'}: {text}") from error
    if not isinstance(values, np.ndarray):
        values.close()
        raise Unsupported("an .npz archive, wanted a single .npy array")
    if values.dtype.name not in DTYPES:
        raise Unsupported(f"values are {values.dtype.name}, wanted {' '.join(DTYPES)}")
    if values.ndim not in (2, 3) or not values.size:
        raise Unsupported(f"shape {list(values.shape)}, wanted [height, width, channels] or [channels, height, width]")
    check_values(values.shape)
    if values.ndim == 2:
        return values[..., None]
    first, _, last = values.shape
    leading = channels != last if channels in (first, last) else first < last
    return values.transpose(1, 2, 0) if leading else values


def _pages(file: Path | BytesIO) -> np.ndarray:
    from polychrome.engine.data.files import decode

    with decode.opened(file) as image:
        count = getattr(image, "n_frames", 1)
        check_values((count, image.height, image.width))
        pages = [_page(image, number) for number in range(count)]
    for number, page in enumerate(pages, 1):
        if page.shape != pages[0].shape:
            raise Unsupported(f"page {number} has the size {list(page.shape)}, the first {list(pages[0].shape)}")
    same = len({page.dtype for page in pages}) == 1
    return np.stack(pages if same else [page.astype(np.float32) for page in pages], -1)


def _page(image: Image.Image, number: int) -> np.ndarray:
    image.seek(number)
    if image.mode not in PAGE_MODES:
        raise Unsupported(f"page {number + 1} is of mode {image.mode}, wanted pages of one channel each")
    check_pixels(image.height, image.width)
    return np.asarray(image)


def channel_names(root: Path) -> tuple[str, ...] | None:
    """Return the names in the lines of `channels.txt`, or None where there is no such file.

    Raises:
        UserError: the file is empty, or a name occurs twice or cannot be used in a combination such as nir+red.
    """
    file = root / NAMES_FILE
    if not file.exists():
        return None
    names = checked_names((f"{file}:{number}", name) for number, name in numbered_lines(file))
    if not names:
        raise UserError(f"{file} names no channels: wanted a line for each")
    return names


def checked_names(sources: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return the channel names of pairs of a source, to be named in an error, and a name.

    Raises:
        UserError: a name occurs twice or cannot be used in a combination such as nir+red.
    """
    names: list[str] = []
    for source, name in sources:
        if name in names:
            raise UserError(f"{source}: channel {name!r} is named twice")
        if not name.strip(".") or any(mark in name for mark in "+,/\n") or name in (ALL, SHUFFLED):
            wanted = f"wanted no plus, comma or slash in it, not dots alone, and not {ALL} or {SHUFFLED}"
            raise UserError(f"{source}: a channel cannot be named {name!r}: {wanted}")
        names.append(name)
    return tuple(names)
