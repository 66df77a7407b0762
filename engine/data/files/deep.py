"""Images of more than 8 bits a sample in formats of photos: PNG, PGM, PFM and JPEG 2000, at full scale."""

from __future__ import annotations

from io import BytesIO

import numpy as np

from polychrome.engine.channels.names import RGB
from polychrome.engine.data.files import decode, kinds
from polychrome.engine.data.files.guard import check_values
from polychrome.engine.data.files.pixels import Pixels, check_type, upright, without_opaque
from polychrome.engine.errors import Unavailable

PNG_DEPTH = 24  # the byte of a PNG that has the bits of a sample
CODESTREAM, BITS = b"\xff\x4f\xff\x51", 42  # the start of a JPEG 2000 codestream, and the byte of a sample's bits in it
CODECS = "needs imagecodecs: pip install imagecodecs"


def is_deep(content: bytes) -> bool:
    """Return whether an image file of these bytes, which is no TIFF, holds more than 8 bits a sample.

    A PPM of colours with more is none: it tells its white, to which its values are scaled.
    """
    kind = kinds.of(content[: kinds.HEAD])
    if kind == "PNG":
        return content[PNG_DEPTH : PNG_DEPTH + 1] == b"\x10"
    if kind == "JPEG 2000":
        return _bits(content) > 8
    if kind != "PPM":
        return False
    with decode.opened(BytesIO(content)) as image:
        return image.mode.startswith(("I", "F"))


def _bits(content: bytes) -> int:
    """Return the bits of a JPEG 2000's first sample; 0 where it has no codestream."""
    start = content.find(CODESTREAM)
    sample = content[start + BITS : start + BITS + 1] if start >= 0 else b""
    return (sample[0] & 0x7F) + 1 if sample else 0  # the highest bit tells of signs


def white(content: bytes) -> int:
    """Return the value of white in the pixels that `read` returns of an image file of whole numbers."""
    return 2 ** _bits(content) - 1 if kinds.of(content[: kinds.HEAD]) == "JPEG 2000" else 65535


def is_float(content: bytes) -> bool:
    """Return whether an image file that `is_deep` has values with a fraction, and so is never a photo."""
    return content[:2] in (b"Pf", b"PF")


def read(content: bytes, channels: int | None = None) -> Pixels:
    """Return the pixels of an image file of these bytes that `is_deep`: uint16, or float32 of a PFM.

    Values of a PGM are scaled from 0..its maximum to 0..65535. Transparency is a further channel, unless it is opaque
    everywhere and `channels` does not count it.

    Raises:
        Unsupported: the file is too large.
        Unavailable: its reading needs a package.
        OSError: the file is damaged (in `guard.guarded`).
    """
    kind = kinds.of(content[: kinds.HEAD])
    with decode.opened(BytesIO(content)) as image:
        if kind == "PPM":
            values = np.asarray(image)
            return Pixels((values if image.mode == "F" else values.astype(np.uint16))[..., None])
        check_values((image.height, image.width, len(image.getbands())))
        orientation = image.getexif().get(decode.ORIENTATION, 1) if kind == "PNG" else 1
    return upright(_named(_decoded(content, kind), channels), orientation)


def _named(values: np.ndarray, channels: int | None) -> Pixels:
    check_type(values.dtype)
    count = values.shape[2]
    pixels = Pixels(values, (RGB.names if count in (3, 4) else ()) + ("alpha",) * (count == 4))
    return without_opaque(pixels) if count in (2, 4) and channels != count else pixels


def _decoded(content: bytes, kind: str) -> np.ndarray:
    """Return the values [height, width, channels] of a PNG or JPEG 2000."""
    try:
        import imagecodecs
    except ImportError as error:
        raise Unavailable(f"{kind} of more than 8 bits {CODECS}") from error
    values = imagecodecs.png_decode(content) if kind == "PNG" else imagecodecs.jpeg2k_decode(content)
    return values if values.ndim == 3 else values[..., None]
