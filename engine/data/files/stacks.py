"""Measured data: .npy arrays, and images that are no photos of 8 bits, of any number of channels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polychrome.engine.channels.names import ALL, SHUFFLED, is_reserved
from polychrome.engine.data.files import kinds, shards
from polychrome.engine.data.files.guard import check_values, guarded
from polychrome.engine.data.files.pixels import Pixels, check_type, converted
from polychrome.engine.data.files.text import numbered_lines
from polychrome.engine.errors import Unsupported, UserError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from io import BytesIO

    from polychrome.engine.data.arrangement import Arrangement
    from polychrome.engine.data.image_set import ImageSet

NAMES_FILE = "channels.txt"


def opener(images: ImageSet) -> Callable[[str], np.ndarray]:
    """Return a function from a file's path in the set to its pixels [height, width, channels]; it can be pickled.

    Missing values of stacks are the channel's mean, and channels that an image lacks are 0.
    """
    if not images.stacks:
        return partial(_photo, images.root)
    scale = 255 if images.dtype == "uint8" else 1
    means = tuple(scale * mean for mean in images.channels.mean)
    return partial(_stack, images.root, means, dict(images.arrangements))


def _stack(root: Path, means: tuple[float, ...], arrangements: Mapping[str, Arrangement], path: str) -> np.ndarray:
    if (arrangement := arrangements.get(path)) is None:
        return read(root / path, len(means), means)
    mean_of = {source: mean for source, mean in zip(arrangement.sources, means, strict=True)}
    count, side_by_side = arrangement.form
    own = tuple(mean_of.get(place, 0.0) for place in range(count))
    if arrangement.files:
        each = [read(root / file, 1, own[i : i + 1]) for i, file in enumerate(arrangement.files)]
        if len({part.shape[:2] for part in each}) > 1:
            raise ValueError(f"its files have different sizes: {', '.join(arrangement.files)}")
        image = np.concatenate(each, 2)
    else:
        image = read(root / path, count, own, side_by_side)
    if image.shape[2] != count:
        raise ValueError(f"has changed: wanted {count} channels, got {image.shape[2]}")
    return arrangement.placed(image)


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


def read(
    file: Path, channels: int | None = None, means: tuple[float, ...] | None = None, side_by_side: bool = False
) -> np.ndarray:
    """Return a stack [height, width, channels]: uint8 where its values are stored so, else float32.

    Missing values become their channel's mean, where `means` are given and as many as the channels. For `side_by_side`
    see `engine.data.arrangement.Form`.

    Raises:
        Unsupported: the file is whole but of another kind, or too large; the message is one line.
        Unavailable: its reading needs a package, or memory that is not there.
        OSError: the file is missing or damaged.
    """
    with guarded():
        values, _, missing, _ = pixels(file, channels, side_by_side=side_by_side)
        if missing is not None and means is not None and len(means) == values.shape[2]:
            fill = np.rint(means) if values.dtype == np.uint8 else np.asarray(means)
            np.copyto(values, fill.astype(values.dtype), where=missing)
        return values


def pixels(file: Path, channels: int | None = None, content: bytes = b"", side_by_side: bool = False) -> Pixels:
    """Return the pixels of a stack, uint8 where its values are stored so, else float32, and which are missing.

    An array may be [height, width, channels], [channels, height, width] or [height, width]. The channels are on the
    first or the last axis: the axis of length `channels`; else the axis beside two that are equal, the image; else the
    shorter axis, else the last. For TIFF files see `tiffs.read`, for others of more than 8 bits `deep.read`, for photos
    `decode.samples`. NaN is missing.

    `content` has the file's bytes where they are read already. For `side_by_side` see `engine.data.arrangement.Form`.

    Raises Unsupported and, in `guard.guarded`, OSError as `read` does.
    """
    stored = _stored(file, 1 if side_by_side else channels, content)
    if side_by_side:
        stored = _parted(stored, channels or 1)
    missing, values = stored.missing, stored.values
    if missing is not None:
        values = np.where(missing, values.dtype.type(0), values)  # what stands for none may be beyond float32
    if values.dtype.kind == "f" and np.isnan(values.max()):
        missing = np.isnan(values) if missing is None else missing | np.isnan(values)
    return Pixels(converted(values), stored.names, missing, values.dtype.name)


def _stored(file: Path, channels: int | None, content: bytes) -> Pixels:
    from polychrome.engine.data.files import decode, deep, tiffs

    if not content and is_array(file):
        return Pixels(_array(shards.opened(file), channels))
    content = content or shards.read_bytes(file)
    if kinds.of(content[: kinds.HEAD]) == "TIFF":
        return tiffs.read(content, channels)
    return deep.read(content, channels) if deep.is_deep(content) else decode.samples(content, channels)


def _parted(pixels: Pixels, count: int) -> Pixels:
    """Return an image of one channel cut into `count` parts of equal width, from left to right, as channels."""
    height, width, channels = pixels.values.shape
    if channels != 1 or width % count:
        found = f"{width} pixels of {channels} channel{'s' * (channels > 1)} in a row"
        raise Unsupported(f"{found}, wanted one channel that {count} parts of equal width make")

    def parted(values: np.ndarray) -> np.ndarray:
        return values.reshape(height, count, width // count).transpose(0, 2, 1)

    missing = None if pixels.missing is None else parted(pixels.missing)
    return pixels._replace(values=parted(pixels.values), names=(), missing=missing)


def _array(file: Path | BytesIO, channels: int | None) -> np.ndarray:
    try:
        values = np.load(file, mmap_mode="r" if isinstance(file, Path) else None, allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        text = one_line(error)
        if "Python objects" in text:
            check_type(np.dtype(object))
        cut = any(sign in text for sign in ("mmap length", "No data left", "EOF"))
        raise OSError(f"{'truncated' if cut else 'damaged, or no .npy file'}: {text}") from error
    if not isinstance(values, np.ndarray):
        values.close()
        raise Unsupported("an .npz archive, wanted a single .npy array")
    check_type(values.dtype)
    if values.ndim not in (2, 3) or not values.size:
        raise Unsupported(f"shape {list(values.shape)}, wanted [height, width, channels] or [channels, height, width]")
    check_values(values.shape)
    if values.ndim == 2:
        return values[..., None]
    return values.transpose(1, 2, 0) if _channels_lead(values.shape, channels) else values


def _channels_lead(shape: tuple[int, ...], channels: int | None) -> bool:
    """Return whether the first of three axes has the channels, and not the last."""
    first, middle, last = shape
    if first == last:
        return False
    if channels in (first, last):
        return channels == first
    if middle in (first, last):
        return middle == last
    return first < last


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
        if not name.strip(".") or any(mark in name for mark in "+,/\n") or is_reserved(name):
            wanted = f"wanted no plus, comma or slash in it, not dots alone, and not {ALL} or {SHUFFLED} or the like"
            raise UserError(f"{source}: a channel cannot be named {name!r}: {wanted}")
        names.append(name)
    return tuple(names)
