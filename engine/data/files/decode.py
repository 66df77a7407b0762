"""The definition of an image file's pixels, with which every backend has to agree."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, TiffTags

from polychrome.engine.errors import SeveralPages, Unsupported

if TYPE_CHECKING:
    from os import PathLike

CONVERT = "convert it to PNG or JPEG"
TIFF_TAGS = {info.name: tag for tag, info in TiffTags.TAGS_V2.items()}
BITS_PER_SAMPLE, SAMPLES_PER_PIXEL = TIFF_TAGS["BitsPerSample"], TIFF_TAGS["SamplesPerPixel"]

# XMP and text chunks may carry an orientation too; only EXIF proper counts, as in DALI and torchvision.
ORIENTATION = 0x112
OTHER_ORIENTATIONS = ("xmp", "XML:com.adobe.xmp", "Raw profile type exif", "Raw profile type xmp")

# What Pillow says of a file that tells its encoding.
ENCODED = ("compression", "progressive", "adobe_transform")
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "WEBP", "TIFF", "PPM")
TIFF_MODES = ("RGB", "RGBA", "L", "P", "I;16", "I;16B")
PPM_MODES = ("RGB", "L", "1", "I")
BMP_LAYOUTS = ("BGR", "BGRX", "P", "L", "1")


def rgb(file: str | PathLike | IO[bytes]) -> np.ndarray:
    """Return the pixels of a whole image file, uint8 [height, width, 3], rotated as its EXIF data says.

    Gray becomes three equal channels, transparency is dropped, 16 bits are rounded to 8, CMYK and palettes are
    converted. Raises Unsupported for a kind outside the allow list, OSError for a damaged or missing file.
    """
    try:
        with Image.open(file) as image:
            check(image)
            image.load()
            return _three_channels(_upright(image))
    except (OSError, Unsupported):
        raise
    except Image.DecompressionBombError as error:
        raise Unsupported(f"too large: {error}") from error
    except Exception as error:  # Pillow's plugins raise many kinds over damaged bytes
        raise OSError(f"damaged: {error}") from error


def encoding(file: str | PathLike | IO[bytes]) -> str:
    """Return in words how an image file is encoded: whatever of it another decoder may treat in a way of its own.

    The format, the mode, EXIF's orientation, the compression and, of a JPEG, the sampling of its components,
    progressive scans and Adobe's transform. Reads the file's header; raises OSError for a damaged or missing file.
    """
    with Image.open(file) as image:
        try:
            orientation = image.getexif().get(ORIENTATION, 1)
        except Exception as error:  # as in `rgb`
            raise OSError(f"damaged: {error}") from error
        found = [image.format, image.mode, f"orientation {orientation}"]
        sampling = [f"{across}x{down}" for _, across, down, _ in getattr(image, "layer", ())]
        found += [f"sampling {' '.join(sampling)}"] * bool(sampling)
        found += [f"{name} {image.info[name]}" for name in ENCODED if name in image.info]
    return ", ".join(found)


def verify(file: str | PathLike | IO[bytes]) -> None:
    """Raise OSError where a PNG's checksums or end are wrong, which a decoder may not notice."""
    with Image.open(file) as image:
        try:
            if image.format == "PNG":
                image.verify()
        except (SyntaxError, ValueError, EOFError) as error:
            raise OSError(f"damaged: {error}") from error


def check(image: Image.Image) -> None:
    """Raise Unsupported unless the opened image is of a kind that all backends decode to the same pixels.

    Raises its subclass SeveralPages for a TIFF file of several pages.
    """
    kind = image.format
    if kind not in FORMATS:
        raise Unsupported(f"{kind} is not supported, {CONVERT}")
    if kind != "MPO" and getattr(image, "n_frames", 1) > 1:
        reason = f"{image.n_frames} frames in one {kind} file, wanted one: keep the first"
        raise SeveralPages(reason) if kind == "TIFF" else Unsupported(reason)
    if kind == "WEBP" and "exif" in image.info:
        raise Unsupported(f"WEBP with EXIF data is not supported, {CONVERT}")
    if kind == "TIFF" and image.tag_v2.get(SAMPLES_PER_PIXEL, 1) > 4:
        raise Unsupported(
            f"TIFF of {image.tag_v2[SAMPLES_PER_PIXEL]} bands in a page is not supported: save it as .npy"
        )
    if kind == "TIFF" and (image.mode not in TIFF_MODES or BITS_PER_SAMPLE not in image.tag_v2):
        raise Unsupported(f"TIFF of mode {image.mode} is not supported, {CONVERT}")
    if kind not in ("BMP", "PPM"):
        return
    codec, layout = image.tile[0].codec_name, image.tile[0].args
    if kind == "BMP" and (codec != "raw" or layout[0] not in BMP_LAYOUTS):
        raise Unsupported(f"BMP stored as {codec} {layout[0]} is not supported, {CONVERT}")
    if kind == "PPM" and (codec != "raw" or image.mode not in PPM_MODES):
        raise Unsupported(f"PPM of floats, as text or with a maximum other than 255 is not supported, {CONVERT}")


def _upright(image: Image.Image) -> Image.Image:
    if image.format == "TIFF":  # Pillow has rotated the image while loading
        return image
    for key in OTHER_ORIENTATIONS:
        image.info.pop(key, None)
    return ImageOps.exif_transpose(image)


def _three_channels(image: Image.Image) -> np.ndarray:
    if not image.mode.startswith("I"):
        return np.asarray(image.convert("RGB"))
    gray = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
    return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)
