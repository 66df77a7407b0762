"""What is told of a file by its path is told of it as a Pillow image too, and once, whatever else is given."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import polychrome
from polychrome.engine.errors import UserError
from polychrome.train.run import main
from tests.engine.data import image_kinds, measured, tars
from tests.refusals import refusal
from tests.train.test_reading import csv, drawn, loaded, opaque, png

VALUES = np.random.default_rng(0).integers(0, 256, (12, 10, 3))
DIM = VALUES.astype(np.uint16) * 16 + 15  # 12 bits of 16
WHOLE = VALUES.astype(np.uint16) * 257
KINDS = image_kinds.accepted() | image_kinds.uncommon()
KINDS |= {
    "png of 12 bits, gray": image_kinds.png16(DIM[..., 0], 0),
    "png of 12 bits, colours": image_kinds.png16(DIM, 2),
    "tiff of 12 bits, gray": measured.tiff(DIM[..., :1]),
    "tiff of 12 bits, colours": measured.tiff(DIM, photometric="rgb"),
    "tiff of 16 bits, colours": measured.tiff(WHOLE, photometric="rgb", byteorder=">"),
    "pgm of 12 bits": b"P5 10 12 4095\n" + DIM[..., 0].astype(">u2").tobytes(),
    "ppm of 12 bits": b"P6 10 12 4095\n" + DIM.astype(">u2").tobytes(),
}


@pytest.fixture(scope="module")
def network():
    """A network of photos."""
    return polychrome.load("prism4_small-shapes")


def told(model, image, use="predict"):
    """Return what a prediction, or another use, warns of, without the kind of the image."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        getattr(model, use)(image)
    return [str(each.message).removeprefix(f"{type(image).__name__}: ") for each in caught]


def notes(model, image):
    """Return what is `told`, but of values: those are of the central square of a file, and of a whole Pillow image."""
    return [line for line in told(model, image) if "other units" not in line]


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_as_a_pillow_image_is_told_of_as_its_file_is(network, tmp_path, kind):
    file = tmp_path / "x.png"
    file.write_bytes(KINDS[kind])
    with Image.open(file) as image:
        assert notes(network, image) == notes(network, file)


def test_a_dark_image_of_no_file_is_told_of(network, tmp_path):
    file = tmp_path / "x.png"
    file.write_bytes(KINDS["png of 12 bits, gray"])
    with Image.open(file) as image:
        image.load()
    for given in (image.copy(), Image.fromarray(np.asarray(image)), Image.fromarray(VALUES[..., 0].astype(np.int32))):
        highest = np.asarray(given).max()
        assert notes(network, given) == [
            "1 photo of 16 bits among photos of 8, scaled from 0..65535 to 0..255, such as image",
            f"1 photo of these with no value above {highest:,}: they become dark, such as image",
        ]


def test_another_frame_than_the_first_is_not_called_the_first(network, tmp_path):
    (tmp_path / "x.gif").write_bytes(KINDS["animated gif"])
    with Image.open(tmp_path / "x.gif") as image:
        assert notes(network, image) == ["1 photo of several frames, of which the first is used, such as x.gif"]
        image.seek(1)
        assert notes(network, image) == []


@pytest.mark.parametrize("kind", ["animated gif", "animated png", "animated webp", "png palette transparent"])
def test_a_change_made_to_a_pillow_image_is_seen_and_stays(network, tmp_path, kind):
    (tmp_path / "x").write_bytes(KINDS[kind])
    with Image.open(tmp_path / "x") as image:
        image.thumbnail((40, 40))
        pixels = np.asarray(image.convert("RGB"))
        found = network.predict(image).probabilities
        assert found == network.predict(Image.fromarray(pixels)).probabilities
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), pixels)


@pytest.mark.parametrize("names", ["R+G+B", "B+G+R", "1+2+3", "1+B+R"])
def test_measured_bytes_as_a_pillow_image_are_told_of_as_their_file_is(tmp_path, names):
    model = loaded(tmp_path, opaque() | csv(f".,{names}"))
    flat = np.dstack([VALUES[..., 0], np.full((12, 10), 7), VALUES[..., 1]]).astype(np.uint8)
    files = {"colours.png": VALUES.astype(np.uint8), "flat.png": flat}
    for name, values in files.items():
        (tmp_path / name).write_bytes(png(Image.fromarray(values)))
        lines = told(model, tmp_path / name)
        assert any("in this order" in line or "as there" in line for line in lines) == (names != "R+G+B")
        assert any("one value throughout" in line for line in lines) == (name == "flat.png")
        with Image.open(tmp_path / name) as image:
            assert told(model, image) == lines


@pytest.mark.parametrize("kind", [kind for kind in KINDS if (" 16" in kind or " 12 " in kind) and "bmp" not in kind])
def test_more_than_8_bits_are_never_taken_for_measured_bytes(tmp_path, kind):
    model = loaded(tmp_path, opaque() | csv(".,R+G+B"))
    (tmp_path / "x.png").write_bytes(KINDS[kind])
    assert refusal(model.predict, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert refusal(model.predict, image)


@pytest.mark.parametrize("arrays", [0, 1, 2])
def test_a_line_on_photos_is_told_once_beside_files_of_another_kind(network, tmp_path, arrays):
    names = ["png of 12 bits, gray", "png of 12 bits, colours", "png rgba", "animated gif", "ppm of 12 bits"]
    for number, kind in enumerate(names):
        (tmp_path / f"{number}.png").write_bytes(KINDS[kind])
    for number, values in enumerate([VALUES, np.where([True, False, True], VALUES, 9)][:arrays]):
        np.save(tmp_path / f"{number}.npy", values.astype(np.uint8))
    *of_arrays, first, second, third, fourth, fifth = told(network, tmp_path)
    assert [first, second, third, fourth, fifth] == [
        "1 photo of several frames, of which the first is used, such as 3.png",
        "1 photo with transparency, which is dropped, such as 2.png",
        "1 photo of more than 8 bits, scaled from 0..their maximum to 0..255, such as 4.png",
        "2 photos of 16 bits among photos of 8, scaled from 0..65535 to 0..255, such as 0.png",
        "2 photos of these with no value above 4,095: they become dark, such as 0.png",
    ]
    assert [line.rsplit(" ", 1)[1] for line in of_arrays] == ["1.npy"] * (arrays == 2)


def given_as(way, file):
    """Return an image of 8 bits in one of the ways that images are given."""
    with Image.open(file) as image:
        pixels = np.array(image)
    ways = {"path": file, "pillow": Image.fromarray(pixels), "array": pixels}
    return ways.get(way, torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("way", ["path", "pillow", "array", "tensor"])
@pytest.mark.parametrize(("factor", "faint"), [(1, False), (1 / 10, False), (1 / 128, True)])
def test_photos_in_other_units_are_told_of_however_they_are_given(network, tmp_path, way, factor, faint):
    file = tmp_path / "x.png"
    Image.fromarray((VALUES * factor).round().astype(np.uint8)).save(file)
    image = given_as(way, file)
    for use in ("predict", "preprocess"):
        lines = told(network, image, use)
        assert len(lines) == faint
        assert all("as faint as all others, the training had" in line and "other units?" in line for line in lines)


def test_of_many_photos_in_other_units_the_first_is_named_and_the_others_are_counted(network, tmp_path, capsys):
    for number in range(70):  # more than a batch
        Image.fromarray((VALUES / (128 if number % 7 == 3 else 1)).astype(np.uint8)).save(tmp_path / f"{number:02}.png")
    (line,) = told(network, tmp_path)
    assert line.startswith(f"{tmp_path}/03.png: channel ")
    assert line.endswith("other units? (9 more such images)")
    assert main(["predict", "prism4_small-shapes", str(tmp_path)]) == 0
    assert capsys.readouterr().err.count("other units?") == 1


@pytest.fixture
def tar(tmp_path):
    """A tar of three photos, two of them in folders, and what is no image."""
    names = ("0.png", "a/1.png", "b/c/2.png")
    images = {name: png(Image.fromarray(drawn(3, seed, np.uint8))) for seed, name in enumerate(names)}
    return tars.write(tmp_path / "set/x.tar", images | {"notes.txt": b"none"})


def test_a_tar_stands_for_the_images_in_it_wherever_it_is_given(network, tar, capsys):
    wanted = network.predict(tar.parent)
    assert [each.path for each in wanted] == [f"{tar}/{name}" for name in ("0.png", "a/1.png", "b/c/2.png")]
    assert all(each.name in network.classes for each in wanted)
    for given in (tar, str(tar), [tar], [str(tar.parent / "*.tar")]):
        assert network.predict(given) == wanted
        assert network.preprocess(given).equal(network.preprocess(tar.parent))
    assert network.predict([tar, f"{tar}/0.png"]) == [*wanted, wanted[0]]
    assert main(["predict", "prism4_small-shapes", str(tar)]) == 0
    assert capsys.readouterr().out.count(f"{tar}/") == 3


@pytest.mark.parametrize(
    ("content", "said"), [(None, "has no images: wanted"), (b"x" * 3000, "is not a tar"), (b"", "no images|empty")]
)
def test_a_tar_without_images_is_refused(network, tmp_path, content, said):
    tar = tars.write(tmp_path / "x.tar", {"notes.txt": b"none"})
    if content is not None:
        tar.write_bytes(content)
    for use in (network.predict, network.preprocess):
        for given in (tar, [tar]):
            with pytest.raises(UserError, match=said):
                use(given)
