"""The definition of an image file's pixels, with which every backend has to agree."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from polychrome.engine.channels.names import RGB
from polychrome.engine.data.files import kinds
from polychrome.engine.data.files.guard import check_pixels, guarded, most_pixels, too_large
from polychrome.engine.data.files.kinds import FRAMES, SCALED, TRANSPARENT
from polychrome.engine.data.files.pixels import Pixels
from polychrome.engine.errors import Unsupported

# XMP and text chunks may carry an orientation too; only EXIF proper counts, as in DALI and torchvision.
ORIENTATION = 0x112
OTHER_ORIENTATIONS = ("xmp", "XML:com.adobe.xmp", "Raw profile type exif", "Raw profile type xmp")

START_OF_SCAN, END_OF_IMAGE = 0xDA, b"\xff\xd9"

# What Pillow says of a file that tells its encoding.
ENCODED = ("compression", "progressive", "adobe_transform")
DEEP = re.compile(";16[BLN]")  # of 16 bits, until the image is loaded
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
MODES = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr", "I;16", "I;16B", "I")
TIFF_MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "I;16", "I;16B")


def rgb(file: str | os.PathLike | IO[bytes]) -> np.ndarray:
    """Return the pixels of a whole image file, uint8 [height, width, 3], rotated as its EXIF data says.

    Gray becomes three equal channels, transparency is dropped, 16 bits are rounded to 8, CMYK and palettes are
    converted; of several frames the first is taken. Raises Unsupported for a kind outside the allow list, OSError for a
    damaged or missing file.
    """
    return inspected(file)[0]


def inspected(file: str | os.PathLike | IO[bytes]) -> tuple[np.ndarray, str]:
    """Return the pixels of an image file as `rgb` does, and in words how the file is encoded.

    The words tell whatever another decoder may treat in a way of its own: the format, the mode, EXIF's orientation, the
    compression, several frames, more than 8 bits, transparency and, of a JPEG, the sampling of its components,
    progressive scans and Adobe's transform. Raises Unsupported and OSError as `rgb` does.
    """
    with opened(file) as image:
        check(image)
        if image.format != "TIFF":
            _drop_other_orientations(image)
        how = _encoding(image)
        image.load()
        return _three_channels(_upright(image)), f"{how}, {TRANSPARENT}" if _is_transparent(image) else how


def of_pillow(image: Image.Image) -> tuple[np.ndarray, str, int | None]:
    """Return the pixels of a Pillow image, which is left as it is, as `rgb` returns those of its file.

    With them come the words of `inspected` and, of 16 bits, the highest value that there may be, else None. Pillow
    forgets that colours had more than 8 bits once the image is loaded.

    Raises:
        Unsupported: the image is of a mode that no photo has, such as floats, or has values that no photo has.
    """
    if image.mode not in MODES:
        raise Unsupported(f"an image of mode {image.mode} is no photo")
    check_pixels(image.height, image.width)
    cut = _is_cut(image)
    how = _encoding(image) + f", {TRANSPARENT}" * _is_transparent(image)
    image = image.copy()
    _drop_other_orientations(image)
    pixels = _three_channels(ImageOps.exif_transpose(image))
    if image.mode.startswith("I"):
        return pixels, how, int(np.asarray(image).max())
    return pixels, how, 256 * int(pixels.max()) + 255 if cut else None  # Pillow keeps the upper 8 bits


def samples(content: bytes, channels: int | None = None) -> Pixels:
    """Return the samples of a photo of 8 bits, uint8 [height, width, channels], upright: gray is one channel.

    Palettes, CMYK and YCbCr are colours, R, G and B. Transparency is a further channel, unless it is opaque everywhere
    and `channels` does not count it.

    Raises:
        Unsupported: the file is of a kind outside the allow list, or has several frames or more than 8 bits.
        OSError: the file is damaged (in `guard.guarded`).
    """
    with opened(BytesIO(content)) as image:
        check(image)
        if image.format not in ("MPO", "TIFF") and getattr(image, "n_frames", 1) > 1:
            raise Unsupported(f"{image.n_frames} frames in one file, wanted one")
        if image.format == "PPM" and SCALED in _encoding(image):
            raise Unsupported("a PPM of colours with more than 8 bits: save it as PNG")
        _drop_other_orientations(image)
        image.load()
        return _samples(image, channels)


def samples_of_pillow(image: Image.Image, channels: int | None = None) -> Pixels:
    """Return the samples of a Pillow image, which is left as it is, as `samples` returns those of its file.

    Raises:
        Unsupported: the image is no photo of 8 bits, has several frames, or is of a TIFF, of which Pillow does not tell
            all. Pillow forgets that samples had more than 8 bits once the image is loaded.
    """
    if image.mode not in MODES or image.mode.startswith("I"):
        raise Unsupported(f"an image of mode {image.mode} is no photo of 8 bits")
    if _is_cut(image) or SCALED in _encoding(image):
        raise Unsupported("it has more than 8 bits a sample, of which Pillow keeps 8: give its path")
    if image.format == "TIFF":
        raise Unsupported("Pillow does not tell all that a TIFF says of its channels: give its path")
    if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:
        raise Unsupported(f"{frames} frames in one file, wanted one")
    check_pixels(image.height, image.width)
    image = image.copy()
    _drop_other_orientations(image)
    return _samples(image, channels)


def _samples(image: Image.Image, channels: int | None) -> Pixels:
    gray = image.mode in ("1", "L", "LA")
    counted = "A" in image.getbands() and channels == (2 if gray else 4)
    mode = ("L" if gray else "RGB") + "A" * (counted or _is_transparent(image))
    values = np.array(_upright(image).convert(mode))
    if gray:
        return Pixels(values if values.ndim == 3 else values[..., None])
    return Pixels(values, (*RGB.names, "alpha")[: values.shape[2]])


@contextmanager
def opened(file: str | os.PathLike | IO[bytes]) -> Iterator[Image.Image]:
    """Open an image file of at most `guard.most_pixels()` pixels.

    Raises:
        Unsupported: the image has more pixels.
        Unavailable: it needs more memory than there is.
        OSError: the file is missing or damaged, or the block inside fails, whatever the decoder raises.
        UserError: the environment names no number of pixels.
    """
    most = most_pixels()
    if Image.MAX_IMAGE_PIXELS is not None and most > 2 * Image.MAX_IMAGE_PIXELS:  # the user raised the bound
        Image.MAX_IMAGE_PIXELS = most
    by_name = isinstance(file, (str, os.PathLike))
    # Given a name Pillow may map the file into memory, and then it does not turn a TIFF as its orientation says.
    with guarded(), open(file, "rb") if by_name else nullcontext(file) as stream:
        try:
            image = Image.open(stream)
        except Image.DecompressionBombError as error:
            count = re.search(r"\((\d+) pixels\)", str(error))
            raise Unsupported(too_large(f"{int(count[1]):,} pixels" if count else "too many pixels", most)) from error
        with image:
            check_pixels(image.height, image.width)
            yield image


def _drop_other_orientations(image: Image.Image) -> None:
    for key in OTHER_ORIENTATIONS:
        image.info.pop(key, None)


def _is_transparent(image: Image.Image) -> bool:
    alpha = "A" in image.getbands() and image.getchannel("A").getextrema()[0] < 255
    return alpha or "transparency" in image.info


def _encoding(image: Image.Image) -> str:
    found = [image.format or "no file", image.mode, f"orientation {image.getexif().get(ORIENTATION, 1)}"]
    sampling = [f"{across}x{down}" for _, across, down, _ in getattr(image, "layer", ())]
    found += [f"sampling {' '.join(sampling)}"] * bool(sampling)
    found += [f"{name} {image.info[name]}" for name in ENCODED if name in image.info]
    if image.format == "PPM" and image.tile and image.tile[0][0] != "raw" and image.tile[0][3][1] > 255:
        found.append(SCALED)
    if image.format not in ("MPO", "TIFF") and (frames := _frames(image)) > 1:
        found.append(f"{FRAMES} {frames}")
    return ", ".join(found)


def _frames(image: Image.Image) -> int:
    """Return how many frames an image has; 1 where a user has chosen another than the first, or loaded a GIF.

    Pillow counts the frames of a GIF by reading it again, and a change that was made to the loaded image would be lost.
    """
    if image.tell() > 0 or (image.format == "GIF" and not image.tile):
        return 1
    return getattr(image, "n_frames", 1)


def verify(content: bytes) -> None:
    """Raise OSError where a PNG's checksums or end, or a JPEG's end, are wrong, which a decoder may not notice."""
    kind = kinds.of(content[: kinds.HEAD])
    if kind == "PNG":
        with opened(BytesIO(content)) as image:
            image.verify()
    if kind == "JPEG" and not _has_end(content):
        raise OSError("truncated: there is no mark of its end")


def _has_end(content: bytes) -> bool:
    """Return whether a JPEG has an end mark after the beginning of its first scan; not that of a thumbnail before."""
    place = 2
    while (marker := content.find(b"\xff", place)) >= 0 and marker + 4 <= len(content):
        kind = content[marker + 1]
        if kind == START_OF_SCAN:
            return content.find(END_OF_IMAGE, marker) >= 0
        has_length = kind not in (0x00, 0x01, 0xFF) and not 0xD0 <= kind <= 0xD9
        place = marker + (2 + int.from_bytes(content[marker + 2 : marker + 4], "big") if has_length else 1)
    return False


def check(image: Image.Image) -> None:
    """Raise Unsupported unless the opened image can be made a photo: 8 or 16 bits in up to four samples, or a palette.

    Of a TIFF file that has several pages, or bands that Pillow leaves out, `tiffs.nature` says so.
    """
    kind = image.format
    if kind not in FORMATS:
        raise Unsupported(f"{kind} is not supported: save it as PNG")
    modes = TIFF_MODES if kind == "TIFF" else MODES
    if image.mode not in modes:
        raise Unsupported(f"{kind} of mode {image.mode} is no photo")


def _is_cut(image: Image.Image) -> bool:
    """Return whether Pillow keeps 8 of the 16 bits of an image's samples; False once the image is loaded."""
    return image.mode[0] != "I" and any(DEEP.search(str(tile[3])) for tile in getattr(image, "tile", ()))


def _upright(image: Image.Image) -> Image.Image:
    if image.format == "TIFF":  # Pillow has rotated the image while loading
        return image
    return ImageOps.exif_transpose(image)


def _three_channels(image: Image.Image) -> np.ndarray:
    if not image.mode.startswith("I"):
        return np.asarray(image.convert("RGB"))
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        has = f"values from {values.min():,} to {values.max():,}"
        raise Unsupported(f"an image of mode {image.mode} with {has}, wanted 0..65535, or 0..255 in mode L")
    gray = (values.astype(np.uint32) * 255 + 32767) // 65535
    return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)
