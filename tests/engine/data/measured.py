"""Files of measured data in every form that is read, as bytes, with the values and names that they hold."""

import io
from typing import NamedTuple

import numpy as np
import pytest

from tests.engine.data import image_kinds

tifffile = pytest.importorskip("tifffile")
imagecodecs = pytest.importorskip("imagecodecs")

HEIGHT, WIDTH = 12, 17
GDAL = "<GDALMetadata>\n{}</GDALMetadata>"
BAND = '<Item name="DESCRIPTION" sample="{}" role="description">{}</Item>\n'


class Kind(NamedTuple):
    """A file's bytes, the values [height, width, channels] to be read from them, and the channels' names."""

    content: bytes
    values: np.ndarray
    names: tuple[str, ...] = ()


def drawn(channels, dtype=np.uint16, seed=0, height=HEIGHT, width=WIDTH):
    """Return values [height, width, channels] over more than 8 bits, or over all of them, of a type."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 3, (height, width, channels)).astype(dtype)
    low, high = (-3000, 3000) if np.dtype(dtype).kind == "i" else (0, 4096)
    small = np.iinfo(dtype)
    return rng.integers(max(low, small.min), min(high, small.max + 1), (height, width, channels)).astype(dtype)


def tiff(values, names=(), nodata=None, orientation=1, **options):
    """Return a TIFF file as GDAL writes it: bands in one page, with descriptions and the value of missing pixels."""
    tags = []
    if names:
        items = "".join(BAND.format(i, name) for i, name in enumerate(names))
        tags.append((42112, "s", 0, GDAL.format(items), True))
    if nodata is not None:
        tags.append((42113, "s", 0, str(nodata), True))
    if orientation > 1:
        tags.append((274, "H", 1, orientation, True))
    stream = io.BytesIO()
    options = {"photometric": "minisblack", "planarconfig": "contig", "metadata": None} | options
    if values.shape[-1] == 1 or options["photometric"] is None:
        options = {key: value for key, value in options.items() if value is not None and key != "planarconfig"}
    tifffile.imwrite(stream, values, extratags=tags, **options)
    return stream.getvalue()


def described(values, axes, **options):
    """Return a TIFF file with pages, and the description of axes and channels that tifffile writes."""
    stream = io.BytesIO()
    metadata = {"axes": axes} | options.pop("metadata", {})
    tifffile.imwrite(stream, values, photometric="minisblack", metadata=metadata, **options)
    return stream.getvalue()


def pages(values):
    """Return a TIFF file with a page for each channel of [height, width, channels] and no description."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.moveaxis(values, -1, 0), photometric="minisblack", metadata=None)
    return stream.getvalue()


def kinds():
    """Return every form of measured data by name."""
    five, four, three, one = drawn(5), drawn(4), drawn(3), drawn(1)
    bytes_, floats = drawn(4, np.uint8), drawn(3, np.float32)
    first = np.moveaxis(five, -1, 0)
    sentinel = tuple(f"B{i:02d}" for i in range(1, 14))
    opaque = np.concatenate([three, np.full_like(one, 65535)], 2)
    found = {
        "13 bands": Kind(tiff(drawn(13), sentinel), drawn(13), sentinel),
        "bands without names": Kind(tiff(five), five),
        "bands by lzw": Kind(tiff(five, compression="lzw", predictor=True), five),
        "bands by deflate": Kind(tiff(five, compression="zlib", predictor=True), five),
        "bands by zstd": Kind(tiff(five, compression="zstd"), five),
        "bands in tiles": Kind(tiff(five, tile=(16, 16)), five),
        "planar": Kind(tiff(first, planarconfig="separate"), five),
        "big tiff, big end first": Kind(tiff(five, bigtiff=True, byteorder=">"), five),
        "RGB and near infrared": Kind(tiff(four, photometric="rgb", extrasamples=[0]), four, ("R", "G", "B", "3")),
        "near infrared said to be alpha": Kind(
            tiff(bytes_, photometric="rgb", extrasamples=[2]), bytes_, ("R", "G", "B", "3")
        ),
        "two bands of bytes": Kind(tiff(bytes_[..., :2]), bytes_[..., :2]),
        "16 bits gray": Kind(tiff(one), one),
        "16 bits RGB": Kind(tiff(three, photometric="rgb"), three, ("R", "G", "B")),
        "16 bits RGB, opaque": Kind(tiff(opaque, photometric="rgb", extrasamples=[2]), three, ("R", "G", "B")),
        "floats": Kind(tiff(floats), floats),
        "one float": Kind(tiff(floats[..., :1]), floats[..., :1]),
        "halves": Kind(tiff(floats.astype(np.float16)), floats.astype(np.float16)),
        "doubles": Kind(tiff(floats.astype(np.float64)), floats),
        "signed": Kind(tiff(drawn(3, np.int16)), drawn(3, np.int16)),
        "signed bytes": Kind(tiff(drawn(3, np.int8)), drawn(3, np.int8)),
        "32 bits": Kind(tiff(drawn(3, np.uint32)), drawn(3, np.uint32)),
        "pages": Kind(pages(five), five),
        "pages that are rows": Kind(described(drawn(5, np.uint8, 0, 17, 17), "QYX"), drawn(5, np.uint8, 0, 17, 17)),
        "OME": Kind(
            described(first, "CYX", ome=True, metadata={"Channel": {"Name": list("vwxyz")}}), five, tuple("vwxyz")
        ),
        "ImageJ": Kind(
            described(first, "CYX", imagej=True, metadata={"Labels": ["DAPI", "a/b", "c", "d", "e"]}),
            five,
            ("DAPI", "a b", "c", "d", "e"),
        ),
        "ImageJ slices": Kind(described(first, "ZYX", imagej=True), five, tuple(f"Z{i}" for i in range(5))),
        "PNG gray": Kind(image_kinds.png16(one[..., 0], 0), one),
        "PNG RGB": Kind(image_kinds.png16(three, 2), three, ("R", "G", "B")),
        "PNG gray and alpha": Kind(image_kinds.png16(four[..., :2], 4), four[..., :2]),
        "PNG RGBA": Kind(image_kinds.png16(four, 6), four, ("R", "G", "B", "alpha")),
        "PNG RGBA, opaque": Kind(image_kinds.png16(opaque, 6), three, ("R", "G", "B")),
        "PGM": Kind(b"P5\n%d %d\n65535\n" % (WIDTH, HEIGHT) + one.astype(">u2").tobytes(), one),
        "PFM": Kind(b"Pf\n%d %d\n-1.0\n" % (WIDTH, HEIGHT) + floats[::-1, :, :1].tobytes(), floats[..., :1]),
        "JPEG 2000 of 12 bits": Kind(jpeg_2000(one[..., 0]), one),
        "JPEG 2000 of 12 bits, RGB": Kind(jpeg_2000(three), three, ("R", "G", "B")),
    }
    return found


def jpeg_2000(values):
    """Return a lossless JPEG 2000 of 12 bits a sample."""
    return imagecodecs.jpeg2k_encode(values, level=0, bitspersample=12, reversible=True)


def ome_colours(values, name):
    """Return an OME-TIFF of colours, which are the samples of one channel of a name."""
    stream = io.BytesIO()
    metadata = {"axes": "YXS", "Channel": {"Name": name}}
    tifffile.imwrite(stream, values, photometric="rgb", ome=True, metadata=metadata)
    return stream.getvalue()
