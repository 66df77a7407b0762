import dataclasses
import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from polychrome.engine.channels.names import RGB, Channels
from polychrome.engine.data import image_set, loader
from polychrome.engine.data.conventions import Trained
from polychrome.engine.data.files import stacks
from polychrome.engine.data.files.decode import Unsupported
from polychrome.engine.data.readers import choice
from polychrome.engine.data.sets import listing, scan
from polychrome.engine.data.stores.whole import WholeImages
from polychrome.engine.errors import UserError
from tests.engine.data import image_kinds, photos
from tests.engine.data.image_kinds import npy
from tests.refusals import refusal


def values(*shape, seed=0, dtype=np.float32):
    drawn = np.random.default_rng(seed).normal(50, 20, shape)
    return drawn.clip(0, 255).astype(dtype)


def pages(array, **options):
    """Return a TIFF file with a page for each channel of an array [height, width, channels]."""
    first, *rest = (Image.fromarray(page) for page in np.moveaxis(array, -1, 0))
    return image_kinds.encoded(first, "TIFF", save_all=True, append_images=rest, **options)


def bands(array):
    """Return a TIFF file with a single page of all channels, uint8 [height, width, channels], the first three RGB."""
    height, width, count = array.shape
    after = 8 + array.size
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, count, after), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 8), (277, 3, 1, count), (278, 4, 1, height), (279, 4, 1, array.size)]
    entries += [(338, 3, count - 3, after + 2 * count)]
    extra = struct.pack(f"<{2 * count - 3}H", *[8] * count, *[0] * (count - 3))
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", after + len(extra)) + array.tobytes() + extra + directory + bytes(4)


def folder(root, files, names=None):
    """Write a data folder of two classes whose three splits are the files in turn."""
    image_kinds.write(root, files)
    rows = [f"{name} {i // 3 % 2}\n" for i, name in enumerate(files)]
    for i, split in enumerate(image_set.SPLITS):
        (root / f"{split}.txt").write_text("".join(rows[i::3]))
    if names is not None:
        (root / "channels.txt").write_text(names)
    return root


def opened(root, **options):
    images = listing.read(root)
    return scan.apply(images, scan.scan(root, photos.below(root), workers=1), **options)


def reasons(root):
    return {item.path: item.reason for item in scan.scan(root, photos.below(root), workers=1).rejected}


def fault(*arguments, **options):
    return refusal(opened, *arguments, **options)


@pytest.mark.parametrize(
    ("shape", "channels", "expected"),
    [
        ((20, 30, 5), None, (20, 30, 5)),
        ((5, 20, 30), None, (20, 30, 5)),
        ((9, 20, 9), None, (9, 20, 9)),
        ((9, 9, 48), 48, (9, 9, 48)),
        ((9, 9, 48), None, (9, 9, 48)),
        ((48, 9, 9), None, (9, 9, 48)),
        ((9, 48, 9), None, (9, 48, 9)),
        ((9, 9, 9), None, (9, 9, 9)),
        ((48, 9, 9), 48, (9, 9, 48)),
        ((4, 7, 4), 4, (4, 7, 4)),
        ((4, 7, 6), 5, (7, 6, 4)),
        ((20, 30), 5, (20, 30, 1)),
        ((1, 20, 30), None, (20, 30, 1)),
    ],
)
def test_channels_are_the_named_number_or_beside_equal_axes_or_shorter(tmp_path, shape, channels, expected):
    array = values(*shape)
    np.save(tmp_path / "a.npy", array)
    got = stacks.read(tmp_path / "a.npy", channels)
    assert got.shape == expected
    leading = len(shape) == 3 and expected[-1] != shape[-1]
    whole = np.moveaxis(array, 0, -1) if leading else array.reshape(expected)
    np.testing.assert_array_equal(got, whole)
    assert got.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "int16", "float16", "float32", "float64"])
def test_values_are_kept_as_uint8_or_float32(tmp_path, dtype):
    array = values(6, 7, 3, dtype=dtype)
    np.save(tmp_path / "a.npy", np.asfortranarray(array))
    got = stacks.read(tmp_path / "a.npy")
    assert got.dtype == (np.uint8 if dtype == "uint8" else np.float32)
    np.testing.assert_array_equal(got, array.astype(np.float32))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_pages_of_a_tiff_are_its_channels(tmp_path, dtype, compression):
    array = values(6, 7, 9, dtype=dtype)
    (tmp_path / "a.tif").write_bytes(pages(array, compression=compression))
    got = stacks.read(tmp_path / "a.tif")
    assert got.dtype == (np.uint8 if dtype == "uint8" else np.float32)
    np.testing.assert_array_equal(got, array)


def test_pages_of_other_modes_and_sizes_are_refused(tmp_path):
    colour, gray = Image.fromarray(image_kinds.picture()), Image.fromarray(values(6, 7, dtype=np.uint8))
    for second, message in (
        (colour, r"2 images of different size or type in one file \(6 x 7 uint8, 93 x 121 x 3 uint8\)"),
        (Image.fromarray(values(7, 6, dtype=np.uint8)), r"2 images .* \(6 x 7 uint8, 7 x 6 uint8\), wanted one"),
    ):
        (tmp_path / "a.tif").write_bytes(image_kinds.encoded(gray, "TIFF", save_all=True, append_images=[second]))
        with pytest.raises(Unsupported, match=message):
            stacks.read(tmp_path / "a.tif")


def test_unusable_arrays_are_rejected_with_their_reason(tmp_path):
    whole = values(6, 7, 5)
    holes = whole.copy()
    holes[0, :3], holes[1, 1, 2] = np.nan, np.inf
    archive = io.BytesIO()
    np.savez(archive, cube=whole)
    files = {
        "holes.npy": npy(holes),
        "huge.npy": npy(np.full((30, 30, 2), 1e300)),
        "text.npy": b"hello, this is no array",
        "empty.npy": b"",
        "cut.npy": npy(whole)[:-9],
        "header.npy": npy(whole)[:20],
        "long.npy": npy(values(6, 7, 5, dtype=np.int64)),
        "objects.npy": npy(np.array([{}, {}], dtype=object)),
        "line.npy": npy(values(9)),
        "none.npy": npy(values(0, 7, 5)),
        "archive.npy": archive.getvalue(),
        "cut.tif": pages(values(60, 70, 3, dtype=np.uint8))[:-5000],
    }
    found = reasons(folder(tmp_path, files | {"good.npy": npy(whole)}))
    assert found.keys() == files.keys()
    assert found["holes.npy"] == "1 of 210 values are infinite"
    assert found["huge.npy"] == "1,800 of 1,800 values are infinite"
    assert found["text.npy"].startswith("damaged, or no .npy file: ")
    assert found["empty.npy"] == "empty file"
    assert found["cut.npy"].startswith("truncated: ")
    assert found["header.npy"].startswith(("truncated: ", "damaged, or no .npy file: "))
    assert found["long.npy"] == "values are int64, wanted uint8 int8 uint16 int16 uint32 int32 float16 float32 float64"
    assert found["objects.npy"].startswith("values are Python objects, wanted uint8 ")
    assert found["line.npy"] == "shape [9], wanted [height, width, channels] or [channels, height, width]"
    assert found["none.npy"].startswith("shape [0, 7, 5], wanted ")
    assert found["archive.npy"] == "an .npz archive, wanted a single .npy array"
    assert not any("\n" in reason for reason in found.values())


@pytest.mark.parametrize("count", [5, 6, 8])
def test_bands_in_one_page_are_read(tmp_path, count):
    array = values(6, 7, count, dtype=np.uint8)
    (tmp_path / "a.tif").write_bytes(bands(array))
    np.testing.assert_array_equal(stacks.read(tmp_path / "a.tif"), array)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.uint16])
def test_names_and_statistics_are_those_of_the_usable_training_files(tmp_path, dtype):
    arrays = {f"{i}.npy": values(6 + i, 7, 5, seed=i, dtype=dtype) + dtype(i) for i in range(9)}
    for array in arrays.values():
        array[..., 4] = 7
    files = {name: npy(array) for name, array in arrays.items()} | {"bad.npy": b"x"}
    images = opened(folder(tmp_path, files, "red\r\n\nnear infrared\nb3\nb4\nflat\n"))
    assert images.stacks
    assert images.dtype == ("uint8" if dtype == np.uint8 else "float32")
    assert images.splits["train"].sizes == ((6, 7), (9, 7), (12, 7))
    assert images.channels.names == ("red", "near infrared", "b3", "b4", "flat")
    train = np.concatenate([arrays[f"{i}.npy"].reshape(-1, 5) for i in (0, 3, 6)]).astype(np.float64)
    train /= 255 if dtype == np.uint8 else 1
    np.testing.assert_allclose(images.channels.mean, train.mean(0), rtol=1e-12)
    np.testing.assert_allclose(images.channels.std[:4], train.std(0)[:4], rtol=1e-12)
    assert images.channels.std[4] == 1


def test_statistics_of_large_images_and_large_offsets_are_exact(tmp_path, monkeypatch):
    monkeypatch.setattr("polychrome.engine.data.files.statistics.BLOCK", 100)
    arrays = {f"{i}.npy": values(40, 30, 2, seed=i, dtype=np.float64) / 100 + [1e4, -3e3] for i in range(6)}
    images = opened(folder(tmp_path, {name: npy(array) for name, array in arrays.items()}))
    train = np.concatenate([arrays[f"{i}.npy"].astype(np.float32).reshape(-1, 2) for i in (0, 3)]).astype(np.float64)
    np.testing.assert_allclose(images.channels.mean, train.mean(0), rtol=1e-13)
    np.testing.assert_allclose(images.channels.std, train.std(0), rtol=1e-9)
    assert images.channels.names == ("0", "1")


def test_given_statistics_replace_the_measured_ones(tmp_path):
    root = folder(tmp_path, {f"{i}.npy": npy(values(6, 7, 2, seed=i)) for i in range(6)})
    given = Channels(("x", "y"), (1.0, 2.0), (3.0, 4.0))
    assert opened(root, trained=Trained(given)).channels == given
    assert "0.npy has 2 channels, wanted 3" in fault(root, trained=Trained(RGB))


def test_a_second_scan_reads_nothing_and_tells_the_same(tmp_path):
    root = folder(tmp_path, {f"{i}.npy": npy(values(6, 7, 5, seed=i)) for i in range(6)} | {"bad.npy": b"x"})
    paths = photos.below(root)
    first, again = scan.scan(root, paths, workers=1), scan.scan(root, paths, workers=1)
    assert (first.decoded, again.decoded) == (7, 0)
    images = listing.read(root)
    assert scan.apply(images, first) == scan.apply(images, again)
    (root / "channels.txt").write_text("a\nb\nc\nd\ne\n")  # may change which axis holds the channels
    assert scan.scan(root, paths, workers=1).decoded == 7


def test_channels_txt_decides_the_axis(tmp_path):
    files = {f"{i}.npy": npy(values(4, 5, 6, seed=i)) for i in range(6)}
    assert opened(folder(tmp_path / "a", files)).splits["train"].sizes == ((5, 6), (5, 6))
    images = opened(folder(tmp_path / "b", files, "a\nb\nc\nd\ne\nf\n"))
    assert images.splits["train"].sizes == ((4, 5), (4, 5))
    assert len(images.channels) == 6


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("a\nb\na\n", "channels.txt:3: channel 'a' is named twice"),
        ("a\nb,c\n", "channels.txt:2: a channel cannot be named 'b,c': wanted no plus, comma or slash"),
        ("a\n../b\n", "channels.txt:2: a channel cannot be named '../b'"),
        ("..\n", "channels.txt:1: a channel cannot be named '..'"),
        ("a+b\n", "channels.txt:1: a channel cannot be named 'a+b'"),
        ("a\n\nall\n", "channels.txt:3: a channel cannot be named 'all': "),
        ("\n", "channels.txt names no channels: wanted a line for each"),
        ("a\nb\n", "channels.txt:2: names 2 channels, but 0.npy has 5"),
        ("\xff", "channels.txt is not UTF-8 text"),
    ],
)
def test_faults_in_channels_txt_name_file_and_line(tmp_path, names, message):
    root = folder(tmp_path, {f"{i}.npy": npy(values(6, 7, 5, seed=i)) for i in range(6)})
    (root / "channels.txt").write_text(names, encoding="latin-1")
    assert message in fault(root)


def test_files_of_a_set_are_of_one_kind(tmp_path):
    arrays = {f"{i}.npy": npy(values(6, 7, 5, seed=i)) for i in range(6)}
    photo = image_kinds.encoded(image_kinds.picture(), "PNG")
    mixed = fault(folder(tmp_path / "a", arrays | {"x.png": photo}))
    assert mixed.endswith("mixes photos and arrays, such as x.png and 0.npy: wanted one kind")
    counts = fault(folder(tmp_path / "b", arrays | {"x.npy": npy(values(6, 7, 4))}))
    assert "0.npy has 5 channels, x.npy has 4: where numbers differ, channels.csv, with lines such as " in counts
    assert counts.endswith("where they do not, channels.txt, with a line for each, tells which axis has them")
    types = fault(folder(tmp_path / "c", arrays | {"x.npy": npy(values(6, 7, 5, dtype=np.uint8))}))
    assert types.endswith("0.npy has values of type float32, x.npy of uint8: wanted one type, such as float32 in all")


def test_tiff_pages_are_channels_where_photos_are_not_the_more(tmp_path):
    files = {f"{i}.tif": pages(values(6, 7, 4, seed=i, dtype=np.uint8)) for i in range(6)}
    images = opened(folder(tmp_path / "a", files | {"x.npy": npy(values(6, 7, 4, dtype=np.uint8))}))
    assert (len(images.channels), images.dtype) == (4, "uint8")
    photos = {f"{i}.png": image_kinds.encoded(image_kinds.picture(seed=i), "PNG") for i in range(6)}
    root = folder(tmp_path / "b", photos | {"x.tif": files["0.tif"]})
    assert reasons(root) == {"x.tif": "4 pages in one TIFF file, among photos: keep the first"}
    images = opened(root)
    assert (images.channels, images.dtype, images.stacks) == (RGB, "uint8", False)


@pytest.mark.parametrize("others", [1, 6], ids=["a preview", "as many previews"])
def test_previews_and_single_pages_among_tiff_stacks_are_left_out(tmp_path, others):
    files = {f"{i}.tif": pages(values(6, 7, 4, seed=i, dtype=np.uint8)) for i in range(6)}
    page = pages(values(6, 7, 1, dtype=np.uint8))
    more = {f"p{i}.png": image_kinds.encoded(image_kinds.picture(seed=i), "PNG") for i in range(others - 1)}
    root = folder(tmp_path, files | more | {"page.tif": page}, "red\ngreen\nblue\nnir\n")
    why = "a photo or page of 8 bits among 6 files of measured values such as 0.tif: remove it"
    assert reasons(root) == dict.fromkeys([*more, "page.tif"], why)
    assert opened(root).channels.names == ("red", "green", "blue", "nir")


def test_photos_keep_their_channels_and_refuse_other_names(tmp_path):
    photos = {f"{i}.png": image_kinds.encoded(image_kinds.picture(seed=i), "PNG") for i in range(6)}
    assert opened(folder(tmp_path / "a", photos, "R\nG\nB\n")).channels is RGB
    assert "names 2 channels, but the images are photos of R, G and B" in fault(
        folder(tmp_path / "b", photos, "a\nb\n")
    )


@pytest.fixture(scope="module", params=["float32", "uint8"])
def five(request, tmp_path_factory):
    """Stacks of five channels and many sizes, some stored channels first, one of the size wanted."""
    arrays = [values(17 + i, 30 - i, 5, seed=i, dtype=request.param) for i in range(12)] + [values(16, 16, 5)] * 3
    arrays = [array.astype(request.param) for array in arrays]
    files = {f"{i}.npy": npy(np.moveaxis(array, -1, 0) if i % 4 else array) for i, array in enumerate(arrays)}
    return opened(folder(tmp_path_factory.mktemp("five"), files))


@pytest.mark.parametrize("train", [True, False])
def test_backends_give_the_stored_values_cropped_and_resized(five, train):
    options = {"size": 16, "batch_size": 3, "train": train, "workers": 0, "seed": 1, "eval_crop": 1.0}
    pixels = WholeImages.load(five, 1)
    assert pixels.values.nbytes == WholeImages.bytes_needed(five)
    with (
        loader.Loader(five, "train", backend="auto", **options) as streamed,
        loader.Loader(five, "train", store=pixels, **options) as held,
    ):
        assert streamed.channels == five.channels
        work = streamed.requests(0)
        for a, b, what in zip(streamed.epoch(0), held.epoch(0), work, strict=True):
            assert a.images.dtype == getattr(torch, five.dtype)
            assert a.images.shape == (len(what.indices), 5, 16, 16)
            assert a.images.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(a.images, b.images)
            for image, index, crop, flip in zip(a.images, what.indices, what.crops.tolist(), what.flips, strict=True):
                whole = stacks.read(five.root / five.splits["train"].paths[index], 5)
                whole = torch.from_numpy(whole).permute(2, 0, 1)
                expected = functional.resized_crop(whole, *crop, [16, 16], antialias=True)
                assert torch.equal(image, expected.flip(-1) if flip else expected)


def test_worker_processes_read_stacks_too(five):
    options = {"size": 16, "batch_size": 3, "train": True, "backend": "torch"}
    with (
        loader.Loader(five, "train", workers=0, **options) as a,
        loader.Loader(five, "train", workers=1, **options) as b,
    ):
        for ours, theirs in zip(a.epoch(0), b.epoch(0), strict=True):
            assert torch.equal(ours.images, theirs.images)


def test_dali_is_refused_and_auto_is_torch(five):
    with pytest.raises(UserError, match="backend dali reads photos of 8 bits, not measured values"):
        loader.Loader(five, "train", size=16, batch_size=3, train=True, backend="dali")
    assert choice.resolve("auto", stacks=True) == "torch"


def test_one_channel_arrays_are_listed_in_class_folders(tmp_path):
    for name in ("a", "b"):
        image_kinds.write(tmp_path / name, {f"{i}.NPY": npy(values(8, 9, seed=i)) for i in range(4)})
    images = opened(tmp_path)
    assert (len(images.channels), images.channels.names) == (1, ("0",))
    with loader.Loader(images, "train", size=8, batch_size=4, train=True, workers=0) as batches:
        assert next(batches.epoch(0)).images.shape == (4, 1, 8, 8)


def test_the_set_can_be_split_off_and_still_be_read(five):
    only = dataclasses.replace(five, splits={"images": five.splits["test"]})
    with loader.Loader(only, "images", size=16, batch_size=9, train=False, workers=0) as batches:
        assert next(batches.epoch(0)).images.shape == (5, 5, 16, 16)
