"""Images that are no photos of 8 bits: no channel is dropped, no value crushed, no axis guessed without a word."""

import dataclasses
import io
import itertools
import re
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from polychrome.engine.channels.names import RGB
from polychrome.engine.data.arrangement import Form
from polychrome.engine.data.conventions import Trained
from polychrome.engine.data.files import decode, stacks, statistics, tiffs
from polychrome.engine.data.files.pixels import Pixels, upright
from polychrome.engine.data.given import image_sets
from polychrome.engine.data.sets import inspection, listing, scan
from polychrome.engine.errors import UserError
from tests.engine.data import image_kinds, measured
from tests.engine.data.image_kinds import npy
from tests.refusals import refusal

KINDS = measured.kinds()
tifffile = measured.tifffile
PHOTOS = {f"{i}.png": image_kinds.encoded(image_kinds.picture(seed=i), "PNG") for i in range(4)}


def write(root, files, names=None):
    """Write a folder of two classes with every file in each of three splits' class folders."""
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (name, content) in enumerate(files.items()):
        (root / name).write_bytes(content)
        rows.append(f"{name} {number % 2}\n")
    for split in ("train", "val", "test"):
        (root / f"{split}.txt").write_text("".join(rows))
    if names:
        (root / "channels.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def opened(root):
    images = listing.read(root)
    report = scan.scan(root, images.splits["train"].paths, workers=1, cache=False)
    return scan.apply(images, report), report


@pytest.mark.parametrize("name", KINDS)
def test_every_value_and_name_of_measured_data_is_read(tmp_path, name):
    kind = KINDS[name]
    images, report = opened(write(tmp_path, {"a.tif": kind.content, "b.tif": kind.content}))
    assert report.rejected == ()
    assert images.stacks
    assert images.channels.names == (kind.names or tuple(map(str, range(kind.values.shape[2]))))
    assert images.dtype == ("uint8" if kind.values.dtype == np.uint8 else "float32")
    read = stacks.opener(images)("a.tif")
    assert read.dtype == images.dtype
    np.testing.assert_array_equal(read, kind.values)
    scale = 255 if images.dtype == "uint8" else 1
    np.testing.assert_allclose(images.channels.mean, kind.values.mean((0, 1), np.float64) / scale, rtol=1e-6, atol=1e-9)
    size = f"{kind.values.shape[0]} x {kind.values.shape[1]}"
    count = f"{kind.values.shape[2]} channel{'s' * (kind.values.shape[2] > 1)}"
    assert scan.shape(images) == f"{count}, {size}, named {', '.join(images.channels.names)}; values are {images.dtype}"


def fault(*arguments, **options):
    return refusal(opened, *arguments, **options)


def reason(tmp_path, content, name="a.tif"):
    (tmp_path / name).write_bytes(content)
    found = inspection.of_all([(str(tmp_path / name), Form())], False)[0]
    assert isinstance(found, str), found
    return found


def rgba(values, extra):
    return measured.tiff(values, photometric="rgb", extrasamples=extra)


def with_alpha(seed, alpha):
    """Return 8-bit colours with a fourth sample."""
    return np.concatenate([measured.drawn(3, np.uint8, seed), alpha[..., None]], 2).astype(np.uint8)


def soft_mask():
    """Return transparency that is opaque in the middle, with a soft border."""
    mask = np.zeros((measured.HEIGHT, measured.WIDTH))
    mask[3:-3, 3:-3], mask[2, 3:-3] = 255, 128
    return mask


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_a_file_that_is_cut_is_never_read_as_less(tmp_path, name):
    kind, file = KINDS[name], tmp_path / "a.tif"
    rng = np.random.default_rng(0)
    for end in rng.integers(1, len(kind.content), 25):
        file.write_bytes(kind.content[:end])
        found = inspection.of_all([(str(file), Form())], False)[0]
        if not isinstance(found, str):
            np.testing.assert_array_equal(stacks.read(file), kind.values)


def test_a_few_files_of_16_bits_among_photos_are_scaled_counted_and_said(tmp_path):
    deep, dim = np.full((9, 8, 3), 65535, np.uint16), np.full((9, 8), 4095, np.uint16)
    deep[0, 0] = 0, 32896, 257
    files = PHOTOS | {"deep.png": image_kinds.png16(deep, 2), "dim.tif": measured.tiff(dim[..., None])}
    images, report = opened(write(tmp_path, files))
    assert (images.channels, images.stacks, report.rejected) == (RGB, False, ())
    read = stacks.opener(images)
    assert read("deep.png")[0, 0].tolist() == [0, 128, 1]
    assert (read("deep.png")[1:] == 255).all()
    assert (read("dim.tif") == 16).all()
    assert scan.remarks(report, by_dali=False) == (
        "2 photos of 16 bits among photos of 8, scaled from 0..65535 to 0..255, such as deep.png",
        "1 photo of these with no value above 4,095: they become dark, such as dim.tif",
    )


WRITTEN = list(
    itertools.product(
        ("contig", "separate"), (None, "zlib", "lzw", "packbits"), (None, (16, 16)), "<>", (1, 6), (None, "unassalpha")
    )
)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb"])
def test_a_tiff_among_photos_has_the_pixels_that_tifffile_reads_or_is_refused(tmp_path, photometric, bits):
    colours, most, file, used = 3 if photometric == "rgb" else 1, 2**bits - 1, tmp_path / "a.tif", 0
    for planar, compression, tile, order, orientation, extra in WRITTEN:
        samples = colours + bool(extra)
        values = measured.drawn(samples, f"uint{bits}", height=20, width=24) * np.array(
            1 if bits == 8 else 16, "uint16"
        )
        values = values.astype(f"uint{bits}")
        values[:11, :, colours:] = most  # looks like transparency
        options = {"tile": tile, "byteorder": order, "photometric": photometric, "compression": compression}
        if samples > 1:
            options |= {"planarconfig": planar, "extrasamples": [extra] if extra else None}
        elif planar == "separate":
            continue
        stored = np.moveaxis(values, -1, 0) if planar == "separate" else values
        file.write_bytes(measured.tiff(stored, orientation=orientation, **options))
        verdict = inspection.of_all([(str(file), Form())], False)[0]
        verdict = verdict.as_photo if isinstance(verdict, inspection.Stack) else verdict
        if isinstance(verdict, str):
            continue
        values = tifffile.imread(file).reshape(stored.shape)
        values = np.moveaxis(values, 0, -1) if planar == "separate" else values
        wanted = upright(Pixels(values), orientation).values[..., :colours].astype(float) * (255 / most)
        for source in (file, io.BytesIO(file.read_bytes())):
            found = decode.rgb(source)
            assert found.shape == (*wanted.shape[:2], 3)
            assert np.abs(found - (255 - wanted if photometric == "miniswhite" else wanted)).max() <= 1
        used += 1
    assert used >= (0 if (photometric, bits) == ("miniswhite", 16) else 16)


@pytest.mark.parametrize("bits", [9, 10, 12, 15, 16])
@pytest.mark.parametrize(
    ("form", "colours"), [("jp2", 1), ("jp2", 3), ("j2k", 1), ("j2k", 3), ("png", 1), ("png", 3), ("pgm", 1)]
)
def test_deep_photos_of_any_number_of_bits_have_their_values_or_are_refused(tmp_path, bits, form, colours):
    most, file = 2**bits - 1, tmp_path / f"a.{form}"
    for highest in (most, most // 2):
        values = np.linspace(0, highest, 20 * 24 * colours).round().astype(np.uint16).reshape(20, 24, colours)
        if form == "png":
            most = 65535
            content = image_kinds.png16(values, 0 if colours == 1 else 2)
        elif form == "pgm":
            content = b"P5\n24 20\n%d\n" % most + values.astype(">u2").tobytes()
        else:
            content = measured.imagecodecs.jpeg2k_encode(
                values.squeeze(), level=0, bitspersample=bits, codecformat=form
            )
        file.write_bytes(content)
        found = inspection.of_all([(str(file), Form())], False)[0].as_photo
        if isinstance(found, str):
            name = {"jp2": "JPEG 2000", "j2k": "JPEG 2000"}[form]
            assert found == f"a {name} of more than 8 bits that Pillow reads otherwise, among photos: save it as PNG"
            assert highest == most
            continue
        assert np.abs(decode.rgb(file) - values * (255 / most)).max() <= 2
        report = scan.scan(tmp_path, [file.name, *image_kinds.write(tmp_path, PHOTOS)], workers=1, cache=False)
        dark = any("become dark" in line for line in scan.remarks(report, by_dali=False))
        assert dark == (form == "png" and highest < scan.DIM)


def test_16_bits_with_white_as_0_are_no_photo(tmp_path):
    white = measured.tiff(np.zeros((9, 8, 1), np.uint16), photometric="miniswhite")
    _, report = opened(write(tmp_path, PHOTOS | {"white.tif": white}))
    why = "TIFF of 1 channel of uint16 values, among photos, with white as 0"
    assert {item.path: item.reason for item in report.rejected} == {"white.tif": why}


def test_missing_values_of_16_bits_are_not_compared_with_the_photo(tmp_path):
    values = measured.drawn(1, np.uint16)
    values[3:5] = 65535
    _, report = opened(write(tmp_path, PHOTOS | {"gaps.tif": measured.tiff(values, nodata=65535)}))
    assert report.rejected == ()


def test_photos_among_measured_data_are_left_out_and_named(tmp_path):
    files = {f"{i}.tif": KINDS["16 bits RGB"].content for i in range(5)}
    images, report = opened(write(tmp_path, files | PHOTOS))
    why = "a photo or page of 8 bits among 5 files of measured values such as 0.tif: remove it"
    assert {item.path: item.reason for item in report.rejected} == dict.fromkeys(PHOTOS, why)
    assert (images.channels.names, images.dtype) == (("R", "G", "B"), "float32")


def test_measured_data_that_cannot_be_a_photo_is_left_out_among_photos_and_named(tmp_path):
    files = PHOTOS | {
        "float.tif": KINDS["floats"].content,
        "bands.tif": KINDS["bands without names"].content,
        "pages.tif": KINDS["pages"].content,
    }
    images, report = opened(write(tmp_path, files))
    assert images.channels is RGB
    assert {item.path: item.reason for item in report.rejected} == {
        "float.tif": "TIFF of 3 channels of float32 values, among photos",
        "bands.tif": "TIFF of 5 channels of uint16 values, among photos",
        "pages.tif": "5 pages in one TIFF file, among photos: keep the first",
    }


@pytest.mark.parametrize("extra", [[1], [2], "none"])
def test_a_fourth_sample_is_transparency_only_where_it_looks_so(tmp_path, extra):
    def file(seed, alpha):
        content = rgba(with_alpha(seed, alpha), [2] if extra == "none" else extra)
        return without_tag(content, 338) if extra == "none" else content

    clear = {f"{i}.tif": file(i, soft_mask()) for i in range(4)}
    images, report = opened(write(tmp_path / "clear", clear))
    assert (images.channels, images.stacks) == (RGB, False)
    assert "4 photos with transparency, which is dropped, such as 0.tif" in scan.remarks(report, by_dali=False)
    bands = {f"{i}.tif": file(i, measured.drawn(1, np.uint8, i)[..., 0]) for i in range(4)}
    one_empty = bands | {"empty.tif": file(9, np.zeros_like(soft_mask()))}
    images, report = opened(write(tmp_path / "bands", one_empty))
    assert report.rejected == ()
    assert images.channels.names == ("R", "G", "B", "3")
    np.testing.assert_array_equal(stacks.opener(images)("1.tif"), with_alpha(1, measured.drawn(1, np.uint8, 1)[..., 0]))
    images, report = opened(write(tmp_path / "among photos", {"a.tif": bands["0.tif"]} | PHOTOS))
    assert (images.channels, report.rejected) == (RGB, ())
    assert any(note.startswith("1 photo with transparency") for note in scan.remarks(report, by_dali=False))


def without_tag(content, tag):
    """Return a TIFF file, little end first, without one of its tags: renamed to a private number."""
    place = content.index(tag.to_bytes(2, "little") + b"\3\0")
    return content[:place] + (65000).to_bytes(2, "little") + content[place + 2 :]


def test_a_fourth_sample_of_no_known_meaning_is_a_band(tmp_path):
    images, _ = opened(write(tmp_path, {f"{i}.tif": rgba(with_alpha(i, soft_mask()), [0]) for i in range(2)}))
    assert images.channels.names == ("R", "G", "B", "3")


def test_channels_txt_says_that_a_fourth_sample_is_a_band_or_is_not(tmp_path):
    masks = {f"{i}.tif": rgba(with_alpha(i, soft_mask()), [2]) for i in range(4)}
    images, _ = opened(write(tmp_path / "a", masks, ["red", "green", "blue", "cloud"]))
    assert images.channels.names == ("red", "green", "blue", "cloud")
    bands = {f"{i}.tif": rgba(measured.drawn(4, np.uint8, i), [2]) for i in range(4)}
    assert opened(write(tmp_path / "b", bands))[0].stacks
    assert opened(write(tmp_path / "c", bands, ["R", "G", "B"]))[0].channels is RGB


def test_axes_that_cannot_be_channels_are_named(tmp_path):
    values = np.arange(3 * 5 * 12 * 17, dtype=np.uint16).reshape(3, 5, 12, 17)
    stack = measured.described(values, "ZCYX", imagej=True)
    wanted = "wanted Y, X and one of channels: save one slice or time alone"
    assert reason(tmp_path, stack) == f"axes Z 3, C 5, Y 12, X 17, {wanted}"
    assert reason(tmp_path, measured.described(values, "TCYX", ome=True)) == f"axes T 3, C 5, Y 12, X 17, {wanted}"
    colours = image_kinds.encoded(
        Image.fromarray(image_kinds.picture(6, 7)), "TIFF", save_all=True, append_images=[Image.new("RGB", (7, 6))]
    )
    assert reason(tmp_path, colours).startswith("axes I 2, Y 6, X 7, S 3, wanted")
    palettes = [Image.fromarray(image_kinds.picture(6, 7, seed=i)).quantize(9) for i in range(3)]
    paged = image_kinds.encoded(palettes[0], "TIFF", save_all=True, append_images=palettes[1:])
    assert reason(tmp_path, paged) == "pages with palettes, wanted pages of one channel each"


def test_an_ome_file_that_tells_of_further_files_is_refused(tmp_path):
    with tifffile.TiffFile(io.BytesIO(KINDS["OME"].content)) as whole:
        text = whole.ome_metadata
    further = '<TiffData IFD="0"><UUID FileName="b.tif">urn:uuid:1</UUID></TiffData>'
    stream = io.BytesIO()
    text = re.sub(r"<TiffData[^>]*/>", further, text)
    tifffile.imwrite(stream, np.zeros((12, 17), np.uint16), description=text, metadata=None)
    assert reason(tmp_path, stream.getvalue()) == "its OME description tells of further files, wanted all in one"


@pytest.mark.parametrize("there", [(0,), (0, 2), (1,), (0, 1, 2)])
def test_planes_that_an_ome_file_lacks_are_not_taken_for_zeros(tmp_path, there):
    values = np.moveaxis(measured.drawn(3), -1, 0)
    with tifffile.TiffFile(io.BytesIO(measured.described(values, "CYX", ome=True))) as whole:
        text = whole.ome_metadata
    planes = "".join(f'<TiffData FirstC="{plane}" IFD="{page}" PlaneCount="1"/>' for page, plane in enumerate(there))
    text, stream = re.sub(r"<TiffData[^>]*/>", planes, text), io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for plane in there:
            writer.write(values[plane], description=text if plane == there[0] else "", metadata=None)
    if len(there) < 3:
        lacking = f"{3 - len(there)} of which are not in this file"
        assert reason(tmp_path, stream.getvalue()) == f"its description tells of 3 planes, {lacking}"
    else:
        np.testing.assert_array_equal(tiffs.read(stream.getvalue()).values, measured.drawn(3))


def test_overviews_and_masks_are_no_channels(tmp_path):
    def layered(values, **options):
        stream = io.BytesIO()
        with tifffile.TiffWriter(stream) as writer:
            writer.write(values, metadata=None, **options)
            writer.write(values[::2, ::2], subfiletype=1, metadata=None, **options)
            writer.write(values[::4, ::4], subfiletype=1, metadata=None, **options)
        return stream.getvalue()

    photo = image_kinds.picture(80, 60)
    files = {f"{i}.tif": layered(photo, photometric="rgb") for i in range(2)}
    images, _ = opened(write(tmp_path / "photos", files))
    assert images.channels is RGB
    np.testing.assert_array_equal(stacks.opener(images)("0.tif"), photo)
    values = measured.drawn(5, height=80, width=60)
    files = {f"{i}.tif": layered(values, photometric="minisblack", planarconfig="contig") for i in range(2)}
    images, _ = opened(write(tmp_path / "bands", files))
    np.testing.assert_array_equal(stacks.opener(images)("0.tif"), values)


def paged_tiff(*pages):
    """Return a TIFF of pages, each an array and whether it is a smaller copy."""
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for values, smaller in pages:
            writer.write(values, metadata=None, subfiletype=int(smaller), photometric="rgb")
    return stream.getvalue()


def test_a_smaller_copy_is_never_taken_for_the_image(tmp_path):
    photo = image_kinds.picture(80, 60)
    behind = paged_tiff((photo[::4, ::4], True), (photo, False))
    assert reason(tmp_path, paged_tiff((photo, True), (photo[::2, ::2], True))) == tiffs.COPIES
    (tmp_path / "behind.tif").write_bytes(behind)
    np.testing.assert_array_equal(stacks.pixels(tmp_path / "behind.tif").values, photo)
    _, report = opened(write(tmp_path / "set", PHOTOS | {"behind.tif": behind}))
    assert [(item.path, item.reason) for item in report.rejected] == [("behind.tif", tiffs.BEHIND)]


def test_overviews_beside_images_are_not_images(tmp_path):
    photo = image_kinds.picture(80, 60)
    files = {f"{name}/{i}.tif": paged_tiff((photo, False)) for name in "ab" for i in range(4)}
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
        (tmp_path / f"{path}.ovr").write_bytes(paged_tiff((photo[::2, ::2], True)))
    images = listing.read(tmp_path)
    assert set(images.paths) == set(files)
    assert images.account.ignored == {".ovr": 8}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_that_follow_the_first_without_pages_of_their_own_are_channels(tmp_path, dtype):
    values = measured.drawn(5, dtype)
    stream = io.BytesIO()
    options = {"photometric": "minisblack", "metadata": {"axes": "CYX"}, "truncate": True}
    tifffile.imwrite(stream, np.moveaxis(values, -1, 0), **options)
    with tifffile.TiffFile(io.BytesIO(stream.getvalue())) as written:
        assert len(written.pages) == 1
    images, _ = opened(write(tmp_path, {"a.tif": stream.getvalue(), "b.tif": stream.getvalue()}))
    assert len(images.channels) == 5
    np.testing.assert_array_equal(stacks.opener(images)("a.tif"), values)
    (tmp_path / "a.tif").write_bytes(stream.getvalue()[:-50])
    assert isinstance(inspection.of_all([(str(tmp_path / "a.tif"), Form())], False)[0], str)


def masked(values, mask, planar="contig"):
    stream = io.BytesIO()
    values = values if planar == "contig" else np.moveaxis(values, -1, 0)
    with tifffile.TiffWriter(stream) as writer:
        writer.write(values, metadata=None, photometric="minisblack", planarconfig=planar)
        writer.write(mask, subfiletype=4, photometric="mask", metadata=None)
    return stream.getvalue()


@pytest.mark.parametrize("how", ["nodata", "NaN", "NaN in an array", "mask", "planar mask", "bytes"])
def test_missing_values_are_left_out_of_the_statistics_and_become_the_mean(tmp_path, how):
    dtype = {"nodata": np.int16, "mask": np.uint16, "planar mask": np.uint16, "bytes": np.uint8}.get(how, np.float32)
    files, every, gone = {}, [], []
    for i in range(3):
        values = measured.drawn(3, dtype, i)
        missing = np.random.default_rng(i).random(values.shape) < 0.2
        if how == "planar mask":
            missing = np.repeat(missing[..., :1], 3, 2)
            files[f"{i}.tif"] = masked(values, ~missing[..., 0], "separate")
        elif how == "mask":
            missing = np.repeat(missing[..., :1], 3, 2)
            files[f"{i}.tif"] = masked(values, ~missing[..., 0])
        elif how in ("nodata", "bytes"):
            none = 7 if how == "bytes" else -9999
            values[values == none] += 1
            files[f"{i}.tif"] = measured.tiff(np.where(missing, none, values).astype(dtype), nodata=none)
        else:
            holed = np.where(missing, np.nan, values)
            files[f"{i}.npy" if "array" in how else f"{i}.tif"] = npy(holed) if "array" in how else measured.tiff(holed)
        every.append(values)
        gone.append(missing)
    images, report = opened(write(tmp_path, files))
    scale = 255 if dtype == np.uint8 else 1
    there = np.ma.masked_array(np.concatenate(every).astype(np.float64), np.concatenate(gone)) / scale
    np.testing.assert_allclose(images.channels.mean, there.mean((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(images.channels.std, there.std((0, 1)), rtol=1e-9)
    for path, values, missing in zip(files, every, gone, strict=True):
        fill = np.array(images.channels.mean) * scale
        fill = np.rint(fill) if dtype == np.uint8 else fill
        expected = np.where(missing, fill, values).astype(images.dtype)
        np.testing.assert_array_equal(stacks.opener(images)(path), expected)
    first = next(iter(files))
    assert scan.remarks(report, by_dali=False) == (
        f"3 stacks with missing values, which become the mean of their channel, such as {first}",
    )


@pytest.mark.parametrize(
    ("dtype", "none"), [(np.int32, -(2**31)), (np.float64, -1.7e308), (np.float32, -3.4028234663852886e38)]
)
def test_what_stands_for_no_value_may_be_beyond_what_is_read(tmp_path, dtype, none):
    values = measured.drawn(2, dtype)
    missing = np.random.default_rng(0).random(values.shape) < 0.3
    content = measured.tiff(np.where(missing, dtype(none), values), nodata=none)
    images, report = opened(write(tmp_path, {"a.tif": content, "b.tif": content}))
    assert report.stacks["a.tif"].missing == missing.sum()
    read = stacks.opener(images)("a.tif")
    np.testing.assert_array_equal(read[~missing], values.astype(np.float32)[~missing])
    expected = np.broadcast_to(np.float32(images.channels.mean), read.shape)
    np.testing.assert_array_equal(read[missing], expected[missing])


def unusual(dtype, low, high, none, share=0.1, form="npy"):
    """Return a file of two channels with a value in a share of the second one's pixels."""
    values = np.random.default_rng(0).uniform(low, high, (20, 30, 2)).astype(dtype)
    values[: round(20 * share), :, 1] = none
    return npy(values) if form == "npy" else measured.tiff(values)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (("float32", 0, 1, -9999), "-9999"),
        (("float32", 0, 4000, -9999, 0.1, "tif"), "-9999"),
        (("int16", 0, 12000, -9999), "-9999"),
        (("int16", -100, 12000, -32768), "-32768"),
        (("uint16", 0, 40000, 65535), "65535"),
        (("float64", 250, 320, -3.4e38), "-3.4e+38"),
        (("float32", 0, 1, -1), "-1"),
        (("float32", 0, 1, -9999, 0), None),
        (("uint16", 64000, 65535, 65535), None),  # too bright
        (("uint16", 3000, 4000, 0), None),  # a background
        (("float32", 0, 1, 1.2), None),
        (("float32", -20000, 0, -9999), None),  # a value among others
        (("uint8", 0, 100, 255), None),
    ],
)
def test_a_value_that_looks_as_if_it_stood_for_none_is_told(tmp_path, made, told):
    _, report = opened(write(tmp_path, dict.fromkeys(("a.tif", "b.tif"), unusual(*made))))
    if told:
        told = (
            f"the value {told}, far from all others, fills a part of 2 stacks, such as 10% of channel 1 of a.tif: if "
            "it stands for missing values, save them as NaN, or give a GeoTIFF its nodata value",
        )
    assert scan.remarks(report, by_dali=False) == (told or ())


def test_values_that_are_missing_do_not_look_as_if_they_stood_for_none(tmp_path):
    values = np.full((20, 30, 2), -9999, np.int16)
    values[2:] = measured.drawn(2, np.uint16, height=18, width=30)
    holed = np.where(values == -9999, np.nan, values)
    report = scan.scan(write(tmp_path, {"a.tif": measured.tiff(values, nodata=-9999)}), ["a.tif"], cache=False)
    assert (report.stacks["a.tif"].missing, report.stacks["a.tif"].apart) == (120, None)
    assert statistics.apart(np.nan_to_num(holed).astype(np.float32), np.isnan(holed)) is None
    assert statistics.apart(values.astype(np.float32)) == (0, -9999, 0.1)
    assert statistics.apart(np.full((4, 5, 1), -9999, np.float32)) == (0, -9999, 1)


@pytest.mark.parametrize("kind", ["float32", "uint16", "uint8"])
def test_channels_of_one_value_throughout_are_told(tmp_path, kind):
    values = np.arange(4 * 5 * 2, dtype=kind).reshape(4, 5, 2)
    zeros, flat = (np.concatenate([values, np.full((4, 5, 1), value, kind)], 2) for value in (0, 200))
    files = {"a.npy": zeros, "b.npy": flat, "c.npy": np.concatenate([values, values[..., :1]], 2)}
    for name, image in files.items():
        np.save(tmp_path / name, image)
    report = scan.scan(tmp_path, list(files), cache=False)
    assert scan.remarks(report, by_dali=False) == (
        "2 stacks with channels of one value throughout, taken as measured: NaN stands for a channel that an image "
        "lacks, or channels.csv tells its channels, such as a.npy",
    )
    np.save(tmp_path / "one.npy", np.ones((1, 1, 3), np.float32))
    assert scan.remarks(scan.scan(tmp_path, ["one.npy"], cache=False), by_dali=False) == ()


def test_what_a_photo_loses_is_told(tmp_path):
    deep = b"P6\n8 9\n1023\n" + np.full((9, 8, 3), 1023, ">u2").tobytes()
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(image_kinds.picture(9, 8), metadata=None, photometric="rgb")
        writer.write(np.ones((9, 8), bool), subfiletype=4, photometric="mask", metadata=None)
    images, report = opened(write(tmp_path, PHOTOS | {"deep.ppm": deep, "mask.tif": stream.getvalue()}))
    assert (report.rejected, images.channels) == ((), RGB)
    assert (stacks.opener(images)("deep.ppm") == 255).all()
    assert scan.remarks(report, by_dali=False) == (
        "1 photo with transparency, which is dropped, such as mask.tif",
        "1 photo of more than 8 bits, scaled from 0..their maximum to 0..255, such as deep.ppm",
    )


def test_of_several_frames_the_first_is_read_and_told(tmp_path):
    first, second = (Image.fromarray(image_kinds.picture(seed=seed)) for seed in (20, 21))
    moving = {
        "a.gif": image_kinds.encoded(first.quantize(64), "GIF", save_all=True, append_images=[second.quantize(64)]),
        "a.webp": image_kinds.encoded(first, "WEBP", save_all=True, append_images=[second], lossless=True),
        "a.apng": image_kinds.encoded(first, "PNG", save_all=True, append_images=[second]),
        "a.mpo": image_kinds.encoded(first, "MPO", save_all=True, append_images=[second], quality=95),
    }
    images, report = opened(write(tmp_path, PHOTOS | moving))
    assert report.rejected == ()
    (told,) = scan.remarks(report, by_dali=False)
    assert told == "3 photos of several frames, of which the first is used, such as a.gif"
    read = stacks.opener(images)
    for name, most in (("a.gif", 40), ("a.webp", 0), ("a.apng", 0), ("a.mpo", 12)):
        found = np.abs(read(name).astype(int) - np.asarray(first).astype(int))
        other = np.abs(read(name).astype(int) - np.asarray(second).astype(int))
        assert found.mean() <= most < other.mean()


def test_channels_and_files_without_any_value_are_refused(tmp_path):
    empty = np.full((9, 8, 2), np.nan, np.float32)
    assert reason(tmp_path, npy(empty), "a.npy") == "all values are missing"
    empty[..., 0] = measured.drawn(1, np.float32, 0, 9, 8)[..., 0]
    assert "channel 1 has no value in any training image: leave it out" in fault(
        write(tmp_path / "set", {"a.npy": npy(empty), "b.npy": npy(empty)})
    )


def test_whole_numbers_that_would_be_rounded_are_refused(tmp_path):
    values = measured.drawn(3, np.uint32)
    values[0, 0, 0] = 2**24 + 1
    assert reason(tmp_path, measured.tiff(values)) == (
        "a value of 16,777,217, and whole numbers above 16,777,216 would be rounded: scale them"
    )


def test_names_and_types_that_differ_between_files_are_named(tmp_path):
    def named(*names):
        return measured.tiff(measured.drawn(2), names)

    some = fault(write(tmp_path / "b", {"a.tif": named("red", "nir"), "b.tif": named()}))
    assert "b.tif has 2 channels without names, a.tif has red, nir: channels.csv, with lines such as" in some
    images, _ = opened(write(tmp_path / "c", {"a.tif": named("red", "nir"), "b.tif": named()}, ["x", "y"]))
    assert images.channels.names == ("x", "y")
    twice = {"a.tif": named("red", "red"), "b.tif": named("red", "red")}
    assert opened(write(tmp_path / "d", twice))[0].channels.names == ("0", "1")
    types = {"a.npy": npy(measured.drawn(2)), "b.npy": npy(measured.drawn(2, np.float32))}
    assert "a.npy has values of type uint16, b.npy of float32: wanted one type" in fault(write(tmp_path / "e", types))


def test_files_in_another_order_than_a_trained_model_are_read_in_the_models_order(tmp_path):
    images, _ = opened(write(tmp_path / "a", {n: measured.tiff(measured.drawn(2), ("red", "nir")) for n in "ab"}))
    file = tmp_path / "c.tif"
    file.write_bytes(measured.tiff(measured.drawn(2), ("nir", "red")))
    given = image_sets((file,), Trained(images.channels, images.dtype))[0][1]
    turned = stacks.opener(given)(given.splits["images"].paths[0])
    np.testing.assert_array_equal(turned, measured.drawn(2)[..., ::-1].astype(np.float32))
    file.write_bytes(measured.tiff(measured.drawn(2), ("nir", "blue")))
    with pytest.raises(UserError, match=r"c\.tif: has channels nir, blue, wanted some of red, nir"):
        image_sets((file,), Trained(images.channels, images.dtype))[0][1]
    file.write_bytes(measured.tiff(measured.drawn(2), ("red", "nir")))
    assert image_sets((file,), Trained(images.channels, images.dtype))[0][1].channels == images.channels


def test_a_file_of_16_bits_is_predicted_as_the_model_was_trained(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(KINDS["PNG RGB"].content)
    photo = image_sets((file,), Trained(RGB))[0][1]
    assert (photo.stacks, photo.dtype) == (False, "uint8")
    assert photo.notes[0].startswith("1 photo of 16 bits among photos of 8, scaled")
    images, _ = opened(write(tmp_path / "set", {n: KINDS["PNG RGB"].content for n in ("a.png", "b.png")}))
    stack = image_sets((file,), Trained(images.channels, images.dtype))[0][1]
    assert (stack.stacks, stack.dtype, stack.channels) == (True, "float32", images.channels)


@pytest.mark.parametrize("value", range(1, 9))
def test_measured_data_is_turned_as_pillow_turns_photos(value):
    values = image_kinds.picture(6, 9)
    image = Image.fromarray(values)
    image.getexif()[0x112] = value
    np.testing.assert_array_equal(upright(Pixels(values), value).values, np.asarray(ImageOps.exif_transpose(image)))


def test_orientations_of_tiff_and_png_are_heeded(tmp_path):
    values = measured.drawn(3)
    turned = np.rot90(values, -1)
    file = tmp_path / "a.tif"
    file.write_bytes(measured.tiff(values, photometric="rgb", orientation=6))
    np.testing.assert_array_equal(stacks.read(file), turned)
    png = image_kinds.png16(values, 2)
    exif = image_kinds.orientation(6).tobytes().removeprefix(b"Exif\0\0")
    chunk = b"eXIf" + exif
    place = png.index(b"IDAT") - 4
    checked = len(exif).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    file.write_bytes(png[:place] + checked + png[place:])
    np.testing.assert_array_equal(stacks.read(file), turned)


def test_where_a_package_is_lacking_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    assert reason(tmp_path, KINDS["JPEG 2000 of 12 bits"].content) == (
        "JPEG 2000 of more than 8 bits needs imagecodecs: pip install imagecodecs"
    )
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert reason(tmp_path, KINDS["pages"].content) == "TIFF needs tifffile: pip install tifffile"


def test_names_and_nodata_that_a_photo_cannot_have_are_told(tmp_path):
    def named(names, nodata=None, **options):
        items = "".join(
            f'<Item name="DESCRIPTION" sample="{i}" role="description">{n}</Item>' for i, n in enumerate(names)
        )
        tags = [(tiffs.GDAL_METADATA, "s", 0, f"<GDALMetadata>{items}</GDALMetadata>", True)] if names else []
        tags += [(tiffs.GDAL_NODATA, "s", 0, nodata, True)] if nodata else []
        stream = io.BytesIO()
        tifffile.imwrite(stream, image_kinds.picture(9, 8), photometric="rgb", metadata=None, extratags=tags, **options)
        return stream.getvalue()

    files = {"nir.tif": named(["nir", "red", "green"]), "empty.tif": named([], "0")}
    files |= {"plain.tif": named([]), "red.tif": named(["Red", "Green", "Blue"])}
    _, report = opened(write(tmp_path, files))
    (line,) = (line for line in scan.remarks(report, False) if "names of channels" in line)
    assert line == (
        "2 photos with names of channels or nodata, which photos have not: channels.csv tells bands, such as nir.tif"
    )


def test_the_label_of_imagejs_only_plane_is_its_channels_name(tmp_path):
    def plane(label):
        stream = io.BytesIO()
        tifffile.imwrite(stream, measured.drawn(1, np.uint16)[..., 0], imagej=True, metadata={"Labels": [label]})
        return stream.getvalue()

    files = {"a.tif": plane("DAPI"), "b.tif": plane("DsRed")}
    images, _ = opened(write(tmp_path / "stains", files))
    assert images.channels.names == ("DAPI", "DsRed")
    images, _ = opened(write(tmp_path / "files", {f"{i}.tif": plane(f"well {i}.tif") for i in range(2)}))
    assert images.channels.names == ("0",)


def test_a_mask_of_another_size_than_its_image_is_refused(tmp_path):
    content = masked(measured.drawn(5), np.ones((3, 4), bool))
    assert reason(tmp_path, content).startswith("a mask of 3 x 4 beside an image of ")


def test_a_compression_that_needs_imagecodecs_says_so_where_it_is_lacking(tmp_path):
    (tmp_path / "a.tif").write_bytes(KINDS["bands by lzw"].content)
    program = (
        "import sys; sys.modules['imagecodecs'] = None\n"
        "from polychrome.engine.data.sets import inspection\n"
        "print(*inspection.of_all([(sys.argv[1], inspection.Form())], False))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.tif")]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert found == "its compression needs imagecodecs: pip install imagecodecs"


def test_a_second_scan_reads_nothing_and_tells_the_same_of_measured_data(tmp_path):
    files = {f"{i}.tif": kind.content for i, kind in enumerate(KINDS.values())} | PHOTOS
    files["none.npy"] = unusual("float32", 0, 1, -9999)
    root = write(tmp_path, files)
    first = scan.scan(root, list(files), workers=1)
    again = scan.scan(root, list(files), workers=1)
    assert (first.decoded, again.decoded) == (len(files), 0)
    assert first.stacks.keys() == again.stacks.keys()
    for path, stack in first.stacks.items():
        other = again.stacks[path]
        np.testing.assert_array_equal(stack.moments.values, other.moments.values)
        assert dataclasses.replace(stack, moments=other.moments) == other
    assert first.rejected == again.rejected


def paged(values, **options):
    """Return a TIFF file with a page for each of the first axis' entries, and no description of the axes."""
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for page in values:
            writer.write(page, photometric="minisblack", metadata=None, contiguous=False, **options)
    return stream.getvalue()


FORMS = {
    "pages": paged,
    "pages, compressed": lambda values: paged(values, compression="zlib"),
    "pages, shape told": lambda values: measured.described(values, None, metadata={"axes": "QYX"}),
    "pages, channels told": lambda values: measured.described(values, "CYX"),
    "pages, times told": lambda values: measured.described(values, "TYX"),
    "array": npy,
    "bands": measured.tiff,
    "bands, planar": lambda values: measured.tiff(values, planarconfig="separate" if len(values) > 1 else None),
}
LENGTHS = (1, 2, 3, 4, 5)


@pytest.mark.parametrize("form", FORMS)
def test_the_number_of_channels_that_the_scan_found_changes_nothing_in_reading(tmp_path, form):
    for size in itertools.product(LENGTHS, LENGTHS, LENGTHS):
        content = FORMS[form](np.arange(np.prod(size), dtype=np.uint16).reshape(size))
        (tmp_path / "file").write_bytes(content)
        scanned = stacks.pixels(tmp_path / "file")
        read = stacks.read(tmp_path / "file", scanned.values.shape[2])
        np.testing.assert_array_equal(read, scanned.values, err_msg=f"{size}")


@pytest.mark.parametrize("alpha", [0, 1000, 65535])
@pytest.mark.parametrize("form", ["TIFF", "TIFF, planar", "PNG", "PNG, gray", "JPEG 2000"])
def test_the_number_of_samples_that_the_scan_found_changes_nothing_in_reading(tmp_path, form, alpha):
    count = 2 if form == "PNG, gray" else 4
    for height, width in itertools.product(LENGTHS, LENGTHS):
        values = measured.drawn(count, height=height, width=width)
        values[..., -1] = alpha
        if form.startswith("TIFF"):
            options = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
            if "planar" in form:
                content = measured.tiff(np.moveaxis(values, -1, 0), planarconfig="separate", **options)
            else:
                content = measured.tiff(values, **options)
        elif form.startswith("PNG"):
            content = image_kinds.png16(values, 4 if count == 2 else 6)
        else:
            content = measured.imagecodecs.jpeg2k_encode(values, level=0)
        (tmp_path / "file").write_bytes(content)
        scanned = stacks.pixels(tmp_path / "file")
        assert scanned.values.shape == (height, width, count - (alpha == 65535))
        np.testing.assert_array_equal(stacks.read(tmp_path / "file", scanned.values.shape[2]), scanned.values)
