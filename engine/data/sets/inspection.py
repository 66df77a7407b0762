"""What a file is: a usable photo, a usable stack, or the reason why it cannot be used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from polychrome.engine.data.arrangement import Form
from polychrome.engine.data.files import dali_check, kinds, shards, stacks
from polychrome.engine.data.files.guard import guarded, most_pixels, too_large
from polychrome.engine.data.files.pixels import Pixels, why_unusable
from polychrome.engine.data.files.statistics import Apart, Moments, apart, measure
from polychrome.engine.errors import Unavailable, Unsupported, one_line
from polychrome.engine.machine import integrity

if TYPE_CHECKING:
    from polychrome.engine.data.files import tiffs

AT_ONCE = 2**28  # bytes of a file that are read at once
DEEPEST = 65535  # the highest value of a photo's samples
COMPARED = 2**26  # bytes of pixels that wait to be compared
TOLERANCE = 2  # of a photo's bytes, between decoders
DEEP = ("TIFF", "PNG", "PPM", "JPEG 2000")  # kinds that may hold more than photos do
LARGEST = 24  # bytes of such a file for each pixel that an image may have
MISSING, NOWHERE = "missing file", "a link that leads nowhere"
UNIDENTIFIED = "UnidentifiedImageError"  # of Pillow, which is not imported where every verdict is known
DAMAGED = (b"\x89PNG", b"RIFF", b"BM")  # what damaged images begin with


class Photo(NamedTuple):
    """A usable photo: its size, and how it is encoded (see `engine.data.files.decode.inspected`).

    `by_pillow` says why Pillow has to decode it where DALI decodes the others; empty where DALI decodes it alike.
    `digest` is the same for equal files alone; empty for a file that is too large to be read at once.
    """

    height: int
    width: int
    encoding: str
    by_pillow: str = ""
    digest: str = ""


@dataclass(frozen=True)
class Stack:
    """A usable file of any number of channels.

    dtype: the type of its values as they are read, "uint8" or "float32"; stored: their type in the file.
    moments: the statistics of the channels; highest: the highest value.
    names: the names of the channels, where the file has them; told: those that it has where they are not usable (see
        `engine.data.files.pixels.why_unusable`).
    missing: how many values are missing.
    as_photo: what the file is in a set of photos: a photo, the reason why it is none, or empty for an array.
    looks_photo: whether it has four samples of 8 bits of which the last looks like transparency.
    digest: the same for equal files, and arrays of equal values, alone.
    apart: a value that looks as if it stood for none; None of bytes too, whose extremes are black and white.
    """

    height: int
    width: int
    dtype: str
    stored: str
    moments: Moments
    highest: float
    names: tuple[str, ...] = ()
    missing: int = 0
    as_photo: Photo | str = ""
    looks_photo: bool = False
    digest: str = ""
    told: tuple[str, ...] = ()
    apart: Apart | None = None

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.moments.channels

    @property
    def scale(self) -> str:
        """What the values may be mixed with: bytes, other whole numbers, or fractions."""
        return scale_of(self.stored)


def scale_of(stored: str) -> str:
    """Return what values of a type may be mixed with, see `Stack.scale`."""
    return stored if stored == "uint8" else "fractions" if stored.startswith("f") else "whole numbers"


class Passing(str):
    """Why a file is rejected here and now: for want of a package or of memory, or as a disk or a network failed."""


Verdict = Photo | Stack | str  # or why the file is rejected
Seen = list[tuple[bytes, np.ndarray]]


def of_all(files: Iterable[tuple[str, Form]], compared: bool, measured: bool = False) -> list[Verdict]:
    """Return the verdict on each file; photos are decoded by DALI too and `compared`.

    A file's form has the number of channels of a stack whose shape does not tell their axis. With `measured`, the
    samples of photos are measured values too.

    Raises UserError where the environment names no number of pixels.
    """
    found: list[Verdict] = []
    waiting: list[tuple[int, bytes, np.ndarray]] = []  # place among the verdicts, content and pixels

    def compare() -> None:
        differences = dali_check.differences([item[1:] for item in waiting], TOLERANCE)
        for (place, *_), by_pillow in zip(waiting, differences, strict=True):
            found[place] = _left_to_pillow(found[place], by_pillow)
        waiting.clear()

    for file, form in files:
        seen: list[tuple[bytes, np.ndarray]] = []
        found.append(_of(file, form, measured, seen if compared and not measured else None))
        waiting += [(len(found) - 1, *item) for item in seen]
        if len(waiting) == dali_check.MOST or sum(pixels.size for *_, pixels in waiting) > COMPARED:
            compare()
    if waiting:
        compare()
    return found


def _left_to_pillow(verdict: Verdict, why: str) -> Verdict:
    if isinstance(verdict, Stack):
        return replace(verdict, as_photo=_left_to_pillow(verdict.as_photo, why))
    return verdict._replace(by_pillow=why) if isinstance(verdict, Photo) else verdict


def _of(file: str, form: Form, measured: bool, seen: Seen | None) -> Verdict:
    """Return the verdict on a file; a photo's bytes and pixels, which are to be compared, are appended to `seen`."""
    try:
        with guarded():
            if (size := shards.size(file)) == 0:
                return "empty file"
            if (size > AT_ONCE or file.lower().endswith(kinds.ARRAY)) and stacks.is_array(file):
                return stack(_pixels(file, form))
            content = shards.read_bytes(file) if size <= AT_ONCE else b""
            kind = kinds.of(content[: kinds.HEAD] or shards.head(file))
            if kind == "array":
                return stack(_pixels(file, form))
            if not content and (measured or kind in DEEP):  # to know its bits
                if size > (most := LARGEST * most_pixels()):
                    return too_large(f"{size:,} bytes", most)
                content = shards.read_bytes(file)
            if measured:
                return _samples(file, form, content)
            return _image(file, content, kind, form, seen)
    except FileNotFoundError:
        return NOWHERE if os.path.islink(file) else MISSING
    except (Unsupported, OSError) as error:
        return _failure(file, error)


def _failure(file: str, error: Unsupported | OSError) -> str:
    """Return why a file is rejected, as `Passing` where it may be otherwise when it is read again."""
    if isinstance(error, Unsupported):
        return Passing(one_line(error)) if isinstance(error, Unavailable) else one_line(error)
    if type(error).__name__ == UNIDENTIFIED:
        return _unidentified(file)
    return Passing(error.strerror) if error.strerror else _damage(error)


def _samples(file: str, form: Form, content: bytes) -> Stack | str:
    from polychrome.engine.data.files import decode

    decode.verify(content)
    return stack(_pixels(file, form, content), content)


def _pixels(file: str, form: Form, content: bytes = b"") -> Pixels:
    return stacks.pixels(Path(file), form.channels, content, form.side_by_side)


def _image(file: str, content: bytes, kind: str, form: Form, seen: Seen | None) -> Verdict:
    """Return the verdict on an image file; `content` is empty for a photo that is too large to be read at once."""
    from polychrome.engine.data.files import deep, tiffs

    if kind == "TIFF":
        nature = tiffs.nature(content)
    elif kind in DEEP and deep.is_deep(content):
        fractions = deep.is_float(content)
        why = "values with fractions, among photos" * fractions
        nature = tiffs.Nature(photo=not fractions, measured=True, why_not=why, exact=True)
    else:
        return _photo(file, content, seen)
    if not nature.measured:
        return _noted(_photo(file, content, seen), nature)
    pixels = _pixels(file, form, content)
    found = stack(pixels, content)
    if isinstance(found, str):
        return found
    if not nature.photo:
        return replace(found, as_photo=nature.why_not)
    looks_photo = nature.alpha and _looks_like_alpha(pixels.values[..., 3])
    as_photo = _as_photo(file, content, seen, pixels if nature.exact else None)
    if isinstance(as_photo, Photo) and kind == "TIFF":
        as_photo = _noted(as_photo, nature)
    elif isinstance(as_photo, Photo) and deep.white(content) < DEEPEST:
        as_photo = as_photo._replace(encoding=f"{as_photo.encoding}, {kinds.SCALED}")
    return replace(found, as_photo=as_photo, looks_photo=looks_photo)


def _noted(photo: Photo, nature: tiffs.Nature) -> Photo:
    """Return the photo of a TIFF with notes in its encoding on what the photo leaves out."""
    notes = [kinds.TRANSPARENT] * nature.mask + [kinds.UNHEARD] * nature.unheard
    return photo._replace(encoding=", ".join((photo.encoding, *notes)))


def _as_photo(file: str, content: bytes, seen: Seen | None, wanted: Pixels | None) -> Photo | str:
    """Return a file of measured values as a photo, or the reason why it cannot be one: that it is not as `wanted`."""
    try:
        with guarded():
            return _photo(file, content, seen, wanted)
    except (Unsupported, OSError) as error:
        return _failure(file, error)


def _photo(file: str, content: bytes, seen: Seen | None, wanted: Pixels | None = None) -> Photo:
    from polychrome.engine.data.files import decode

    decode.verify(content)
    pixels, how = decode.inspected(BytesIO(content) if content else shards.opened(file))
    if wanted is not None and not _shows(pixels, wanted, content):
        kind = kinds.of(content[: kinds.HEAD])
        raise Unsupported(f"a {kind} of more than 8 bits that Pillow reads otherwise, among photos: save it as PNG")
    by_pillow = "" if seen is None or content else "it is too large to be compared"
    if seen is not None and content:
        seen.append((content, pixels))
    return Photo(*pixels.shape[:2], how, by_pillow, _digest(content) if content else "")


def _shows(photo: np.ndarray, wanted: Pixels, content: bytes) -> bool:
    """Return whether a photo has the values of a file, gray or R, G and B, scaled to 8 bits, where none is missing."""
    from polychrome.engine.data.files import deep

    shown = 3 if wanted.values.shape[2] > 2 else 1
    if photo.shape[:2] != wanted.values.shape[:2]:
        return False
    right = np.abs(photo - wanted.values[..., :shown] * (255 / deep.white(content))) <= TOLERANCE
    return bool((right if wanted.missing is None else right | wanted.missing[..., :shown]).all())


def _digest(content: bytes | np.ndarray) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def stack(pixels: Pixels, content: bytes = b"") -> Stack | str:
    """Return the verdict on a stack of these pixels, read from a file of these bytes."""
    values, names, missing, stored = pixels
    lost = 0 if missing is None else int(missing.sum())
    if lost == values.size:
        return "all values are missing"
    there = values if missing is None else values[~missing]
    highest = float(there.max())
    if np.isinf(highest) or np.isinf(there.min()):
        return f"{int(np.isinf(values).sum()):,} of {values.size:,} values are infinite"
    found = measure(values, missing)
    digest = _digest(content or values)
    names, told = ((), names) if why_unusable(names) else (names, ())
    far = None if values.dtype == np.uint8 else apart(values, missing)
    kind = values.dtype.name, stored
    return Stack(*values.shape[:2], *kind, found, highest, names, lost, digest=digest, told=told, apart=far)


def _looks_like_alpha(band: np.ndarray) -> bool:
    """Return whether at least half of a band of bytes is fully transparent or fully opaque."""
    return 2 * int(((band == 0) | (band == 255)).sum()) >= band.size


def _unidentified(file: str) -> str:
    try:
        head = shards.head(file)
    except OSError as error:
        return _damage(error)
    kind = kinds.of(head)
    if kind == "TIFF":
        return "a damaged TIFF, or one that Pillow cannot read"
    if head.startswith(b"PF"):
        return "a PFM of colours, which is not read: save it as TIFF or .npy"
    if kind in ("AVIF", "HEIC", "JPEG XL") and not _is_read(kind):
        return Passing(f"{kind}, which this installation of Pillow does not read: install a plugin, or save it as PNG")
    if head.startswith(integrity.ARCHIVE):
        return "an archive, such as .zip or .npz: unpack it"
    if kind or head.startswith(DAMAGED):
        return "truncated or damaged in its header"
    return f"not an image: it starts with {head[:24]!r}"


def _is_read(kind: str) -> bool:
    """Return whether the installed Pillow reads a kind of image file that not every Pillow reads."""
    from PIL import features

    return kind == "AVIF" and bool(features.check("avif"))


def _damage(error: OSError) -> str:
    text = one_line(error)
    if text.startswith(("truncated: ", "damaged")):
        return text
    cut = "truncated" in text.lower() or isinstance(error.__cause__, EOFError)
    return f"{'truncated' if cut else 'damaged'}: {text}"


def is_passing(verdict: Verdict) -> bool:
    """Return whether a verdict, or the verdict on the file as a photo, may be otherwise when the file is read again."""
    return isinstance(verdict.as_photo if isinstance(verdict, Stack) else verdict, Passing)


def to_entry(verdict: Verdict) -> list:
    """Return a verdict as JSON holds it."""
    if isinstance(verdict, str):
        return [verdict]
    if isinstance(verdict, Photo):
        return list(verdict)
    size, kinds = [verdict.height, verdict.width], [verdict.dtype, verdict.stored]
    found = [verdict.moments.to_text(), verdict.highest, list(verdict.names), verdict.missing]
    more = [verdict.looks_photo, verdict.digest, list(verdict.told), list(verdict.apart or ())]
    return [*size, *kinds, *found, to_entry(verdict.as_photo), *more]


def from_entry(entry: list) -> Verdict | None:
    """Return the verdict that `to_entry` stored; None for any other list."""
    match entry:
        case [str(reason)]:
            return reason
        case [int(), int(), str(), str(), str()]:
            return Photo(*entry)
        case [
            int(),
            int(),
            str(),
            str(),
            str(text),
            float(),
            list(names),
            int(),
            list(other),
            bool(),
            str(),
            list(told),
            [] | [int(), float(), float()] as far,
        ]:
            as_photo = from_entry(other)
            if isinstance(as_photo, (str, Photo)):
                with suppress(ValueError):
                    moments = Moments.from_text(text)
                    own = tuple(map(str, names)), entry[7], as_photo, *entry[9:11], tuple(map(str, told))
                    return Stack(*entry[:4], moments, entry[5], *own, Apart(*far) if far else None)
    return None
