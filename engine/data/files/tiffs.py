"""TIFF files that are measured data: any number of bands of any type, in one page or several, read by tifffile."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

import numpy as np

from polychrome.engine.channels.names import RGB
from polychrome.engine.data.files import decode, kinds
from polychrome.engine.data.files.deep import CODECS
from polychrome.engine.data.files.guard import check_values
from polychrome.engine.data.files.pixels import Pixels, check_type, cleaned, upright, without_opaque
from polychrome.engine.errors import Unavailable, Unsupported

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

ORIENTATION, GDAL_METADATA, GDAL_NODATA = 274, 42112, 42113
MINISWHITE, MINISBLACK, COLOURS, PALETTE, MASK, SEPARATED, YCBCR = range(7)  # photometric interpretations
SAMPLES = {MINISWHITE: 1, MINISBLACK: 1, COLOURS: 3, PALETTE: 1, SEPARATED: 4, YCBCR: 3}
CODED = (MINISWHITE, PALETTE, SEPARATED, YCBCR)
IMAGE, CHANNELS, UNKNOWN = "YX", "CS", "IQ"  # tifffile's names of axes
OF_PLANES = ("ome", "mmstack")  # series whose description tells of planes that a file may lack
ALPHA = (1, 2)  # of ExtraSamples
# Names, in small letters, that say no more of a photo's samples than their places do.
OF_PHOTOS = (("r", "red", "gray", "grey", "0"), ("g", "green", "alpha", "1"), ("b", "blue", "2"), ("a", "alpha", "3"))
NEEDS = "needs tifffile: pip install tifffile"
COPIES = "a TIFF of smaller copies or masks alone, as raw photos and overviews are: export the image itself as TIFF"
BEHIND = "a smaller copy before the image, among photos: save the image alone"


class Nature(NamedTuple):
    """What a TIFF file may be, by its tags.

    photo: whether it can be a photo, of 8 bits or scaled to them; else `why_not` says what it is.
    measured: whether it can be measured data, which a plain photo of 8 bits cannot.
    alpha: whether it has a fourth sample of 8 bits that may be transparency or a band.
    mask: whether it has a mask beside its image.
    exact: whether its values, scaled to 8 bits, are the photo's: of more bits, and not multiplied by transparency.
    unheard: whether it names channels other than a photo's, or a nodata value, which a photo of 8 bits does not have.
    """

    photo: bool
    measured: bool
    alpha: bool = False
    why_not: str = ""
    mask: bool = False
    exact: bool = False
    unheard: bool = False


def nature(content: bytes) -> Nature:
    """Return what a TIFF file of these bytes is.

    Raises Unavailable where tifffile is not installed, Unsupported where the file has smaller copies of an image alone,
    OSError (in `guard.guarded`) where it is damaged.
    """
    with _opened(content) as tif:
        pages = _main_pages(tif)
        page = pages[0]
        if page.index:  # Pillow would decode the first
            return Nature(photo=False, measured=True, why_not=BEHIND)
        # A description may tell of images that follow the first without pages of their own.
        told = tif.series[0].size // max(page.size, 1) if tif.is_imagej or tif.is_shaped or tif.is_ome else 1
        if (count := max(len(pages), told)) > 1:
            why = f"{count} pages in one TIFF file, among photos: keep the first"
            return Nature(photo=False, measured=True, why_not=why)
        samples, extra = page.samplesperpixel, tuple(map(int, page.extrasamples))
        bits, plain = page.bitspersample, page.sampleformat in (1, 4)
        wanted = SAMPLES.get(int(page.photometric))
        if wanted is None:
            return Nature(photo=True, measured=False)  # of a colour space, such as CIELab: the decoder decides
        kind = f"TIFF of {samples} channel{'s' * (samples > 1)} of {page.dtype} values, among photos"
        if not plain or bits > 16 or (page.photometric == PALETTE and bits > 8):
            return Nature(photo=False, measured=True, why_not=kind)
        has_alpha = samples == wanted + 1 and (extra[:1] in ((1,), (2,)) or (not extra and wanted == 3))
        if samples != wanted and not has_alpha:
            return Nature(photo=False, measured=True, why_not=kind)
        if bits > 8:
            if page.photometric == MINISWHITE:
                return Nature(photo=False, measured=True, why_not=f"{kind}, with white as 0")
            multiplied = has_alpha and extra[:1] == (1,)
            return Nature(photo=samples == 1 or wanted == 3, measured=True, why_not=kind, exact=not multiplied)
        ambiguous, mask = has_alpha and wanted == 3, any(each.is_mask for each in tif.pages)
        return Nature(photo=True, measured=ambiguous, alpha=ambiguous, mask=mask, unheard=_tells_more(tif, samples))


def _tells_more(tif: TiffFile, samples: int) -> bool:
    """Return whether a photo's file has names of channels that are no photo's, or a nodata value."""
    names = ()
    with suppress(ElementTree.ParseError):  # a description that nobody can read names nothing
        names = _names(tif, tif.series[0], "", samples)
    other = (name and name.lower() not in known for name, known in zip(names, OF_PHOTOS, strict=False))
    return GDAL_NODATA in tif.pages.first.tags or any(other)


def read(content: bytes, channels: int | None = None) -> Pixels:
    """Return the pixels of a TIFF file of these bytes, upright; overviews are left out.

    Axes and names of channels are those of the file's own description (GDAL's, OME's, ImageJ's). Pages without a
    description are channels, unless there are as many as rows, and the rows are shorter: two equal axes are the image.
    Where `channels` is the number of pages or the length of the rows, and not both, it decides. Photos of 8 bits with
    a palette, CMYK, YCbCr or white as 0 are read as `decode.samples` reads them.

    Raises:
        Unsupported: the file holds several images, or axes that cannot be channels.
        Unavailable: its reading needs a package.
        OSError: the file is damaged (in `guard.guarded`).
    """
    with _opened(content) as tif:
        series, mask = _parts(tif)
        page = series.keyframe
        check_type(np.dtype("uint8") if series.dtype == bool else series.dtype)
        check_values(series.shape)
        if _is_coded_photo(page, series):
            if page.index:
                raise Unsupported(BEHIND)
            return decode.samples(content, channels)
        if page.photometric == PALETTE:
            raise Unsupported("pages with palettes, wanted pages of one channel each")
        values = _values(series)
        if series.dtype == bool:
            values = values.astype(np.uint8) * np.uint8(255)
        values, axis = _channels_last(values, series.axes, channels)
        missing = _missing(values, page, mask)
        names = _names(tif, series, axis, values.shape[2])
        is_alpha = page.extrasamples and int(page.extrasamples[-1]) in ALPHA and values.dtype == np.uint16
        if is_alpha and channels != values.shape[2]:
            return upright(without_opaque(Pixels(values, names, missing)), _orientation(page))
        return upright(Pixels(values, names, missing), _orientation(page))


def _is_coded_photo(page: TiffPage, series: TiffPageSeries) -> bool:
    """Return whether an image is a photo of 8 bits whose samples are not its gray or its R, G and B."""
    plain = page.bitspersample <= 8 and page.sampleformat in (1, 4) and series.size == page.size
    return plain and page.photometric in CODED and page.samplesperpixel == SAMPLES[int(page.photometric)]


@contextmanager
def _opened(content: bytes) -> Iterator[TiffFile]:
    """Open a file; what tifffile only logs as an error is an OSError too."""
    try:
        import tifffile
    except ImportError as error:
        raise Unavailable(f"TIFF {NEEDS}") from error
    with _logged() as faults, tifffile.TiffFile(BytesIO(content)) as tif:
        if not len(tif.pages):
            raise OSError("damaged: no page")
        yield tif
        if faults:
            raise OSError(f"damaged: {' '.join(faults[0].split())}")


class _Faults(logging.Handler):
    def __init__(self):
        super().__init__(logging.ERROR)
        self.messages: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.messages.append(record.getMessage().rpartition("> ")[2])


@contextmanager
def _logged() -> Iterator[list[str]]:
    """Collect the errors that tifffile logs in this thread."""
    logger, handler = logging.getLogger("tifffile"), _Faults()
    logger.addHandler(handler)
    try:
        yield handler.messages
    finally:
        logger.removeHandler(handler)


def _main_pages(tif: TiffFile) -> list[TiffPage]:
    """Return the pages that are neither a smaller copy of another nor a mask; raises Unsupported where none is."""
    pages = [page for page in tif.pages if not page.is_reduced and not page.is_mask]
    if not pages:
        raise Unsupported(COPIES)
    return pages


def _parts(tif: TiffFile) -> tuple[TiffPageSeries, np.ndarray | None]:
    """Return the single image of a file, and the mask of its usable pixels, [height, width], if it has one."""
    images, masks = [], []
    for series in tif.series:
        page = series.keyframe
        if page.is_reduced:
            continue
        if page.is_mask:
            masks.append(series)
        else:
            images.append(series)
    if not images:
        raise Unsupported(COPIES)
    if len(images) != 1:
        sizes = ", ".join(f"{' x '.join(map(str, series.shape))} {series.dtype}" for series in images[:4])
        raise Unsupported(f"{len(images)} images of different size or type in one file ({sizes}), wanted one")
    (series,) = images
    if series.is_multifile or (tif.is_ome and series.kind == "generic"):
        raise Unsupported("its OME description tells of further files, wanted all in one")
    if series.kind in OF_PLANES and (absent := sum(page is None for page in series)):  # tifffile would give zeros
        raise Unsupported(f"its description tells of {len(series)} planes, {absent} of which are not in this file")
    lengths = dict(zip(series.axes, series.shape, strict=False))
    size = lengths.get("Y"), lengths.get("X")
    if masks and masks[0].shape != size:
        shape = " x ".join(map(str, masks[0].shape))
        raise Unsupported(f"a mask of {shape} beside an image of {size[0]} x {size[1]}, wanted one of its size")
    return series, _values(masks[0]) if masks else None


def _values(series: TiffPageSeries) -> np.ndarray:
    try:
        return series.asarray(maxworkers=1)
    except (ValueError, KeyError, RuntimeError, ImportError) as error:
        if "imagecodecs" in str(error) or isinstance(error, ImportError):
            raise Unavailable(f"its compression {CODECS}") from error
        raise


def _channels_last(values: np.ndarray, axes: str, channels: int | None) -> tuple[np.ndarray, str]:
    """Return values [height, width, channels], and the name of the axis of the channels, which may be empty."""
    others = [axis for axis in axes if axis not in IMAGE]
    if len(others) > 1 or values.ndim != len(axes) or not set(IMAGE) <= set(axes):
        sizes = ", ".join(f"{axis} {length}" for axis, length in zip(axes, values.shape, strict=False))
        raise Unsupported(f"axes {sizes}, wanted Y, X and one of channels: save one slice or time alone")
    if not others:
        return values[..., None], ""
    (axis,) = others
    if axis in UNKNOWN and axes == f"{axis}YX":
        pages, height, width = values.shape
        told = pages != width and channels in (pages, width)  # of equal lengths none says which axis is meant
        rows = width == channels if told else pages == height and width < height
        if rows:
            return values, axis
    return np.moveaxis(values, axes.index(axis), -1), axis


def _missing(values: np.ndarray, page: TiffPage, mask: np.ndarray | None) -> np.ndarray | None:
    missing = np.zeros(values.shape, bool)
    if GDAL_NODATA in page.tags:
        try:
            none = float(page.tags[GDAL_NODATA].value)
        except ValueError:
            none = np.nan  # NaN is found anyway
        if not np.isnan(none):
            missing |= values == (np.float32(none) if values.dtype == np.float32 else none)
    if mask is not None:
        missing |= ~mask.astype(bool)[..., None]
    return missing if missing.any() else None


def _orientation(page: TiffPage) -> int:
    return int(page.tags[ORIENTATION].value) if ORIENTATION in page.tags else 1


def _names(tif: TiffFile, series: TiffPageSeries, axis: str, count: int) -> tuple[str, ...]:
    """Return the names that the file gives its channels, of which some may be empty; none where it gives none."""
    page, found = series.keyframe, {}
    if GDAL_METADATA in page.tags:
        found = _described(page.tags[GDAL_METADATA].value)
    elif series.kind == "ome" and axis in CHANNELS:
        found = dict(enumerate(_of_ome(tif.ome_metadata)))
    elif series.kind == "imagej" and axis in CHANNELS:
        found = dict(enumerate(_labels(tif)))
    found = {number: name for number, name in found.items() if name}
    if len(found) < count and page.photometric == COLOURS and axis == "S":
        found = dict(enumerate([*RGB.names, *map(str, range(3, count))])) | found
    elif len(found) < count and axis and axis not in CHANNELS + UNKNOWN:
        found = {number: f"{axis}{number}" for number in range(count)}
    return cleaned([found.get(number, "") for number in range(count)])


def _labels(tif: TiffFile) -> Sequence[str]:
    """Return ImageJ's labels of planes; none where a file's name is the label of the only plane."""
    labels = (tif.imagej_metadata or {}).get("Labels", ())
    if isinstance(labels, str):  # of one plane
        return () if os.path.splitext(labels)[1].lower() in kinds.SUFFIXES else (labels,)
    return labels


def _described(text: str) -> dict[int, str]:
    root = ElementTree.fromstring(text)
    items = [item for item in root.iter("Item") if item.get("name") == "DESCRIPTION" and item.get("sample")]
    return {int(item.get("sample")): item.text or "" for item in items}


def _of_ome(text: str) -> list[str]:
    """Return a name for each sample; none of those of a channel of several, such as a stain in colours."""
    image = next((node for node in ElementTree.fromstring(text).iter() if node.tag.endswith("}Pixels")), ())
    channels = [node for node in image if node.tag.endswith("}Channel")]
    samples = [int(node.get("SamplesPerPixel", 1)) for node in channels]
    named = zip(channels, samples, strict=True)
    return [node.get("Name", "") if count == 1 else "" for node, count in named for _ in range(count)]
