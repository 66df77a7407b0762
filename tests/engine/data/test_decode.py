import io
import re

import numpy as np
import pytest
from PIL import Image

from polychrome.engine.data.files import decode
from tests.engine.data import image_kinds

ACCEPTED = image_kinds.accepted()
REFUSED = {name: file for name, file in image_kinds.refused().items() if name != "tiff pages"}  # of pages the first


@pytest.mark.parametrize("kind", ACCEPTED)
def test_dali_decodes_the_same_pixels(kind):
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def whole():
        source = [[np.frombuffer(ACCEPTED[kind], np.uint8)]]
        return fn.decoders.image(fn.external_source(source, cycle=True), output_type=types.RGB)

    ours = decode.rgb(io.BytesIO(ACCEPTED[kind]))
    theirs = np.array(whole().run()[0].at(0))
    assert ours.shape == theirs.shape
    # 16 bits in several channels are cut to 8 by Pillow and rounded by DALI; 16-bit palettes of TIFF likewise.
    allowed = 1 if kind in ("png 16 rgb", "png 16 gray alpha", "png 16 rgba", "tiff palette") else 0
    assert np.abs(ours.astype(int) - theirs).max() <= allowed


@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_are_refused_with_a_reason(kind):
    content, reason = REFUSED[kind]
    with pytest.raises(decode.Unsupported) as fault:
        decode.rgb(io.BytesIO(content))
    assert reason in str(fault.value)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("value", range(1, 9))
def test_exif_orientation_is_undone(value):
    upright = image_kinds.picture()
    undo = {1: lambda a: a, 2: np.fliplr, 3: lambda a: a[::-1, ::-1], 4: np.flipud}
    undo |= {5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1)}
    undo |= {8: np.rot90}
    stored = image_kinds.encoded(upright, "PNG", exif=image_kinds.orientation(value))
    np.testing.assert_array_equal(decode.rgb(io.BytesIO(stored)), undo[value](upright))


def test_an_orientation_in_xmp_is_ignored():
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    stored = image_kinds.encoded(image_kinds.picture(), "JPEG", xmp=xmp)
    assert decode.rgb(io.BytesIO(stored)).shape == (image_kinds.HEIGHT, image_kinds.WIDTH, 3)


def test_transparency_is_dropped_and_gray_becomes_three_equal_channels():
    clear = image_kinds.picture(channels=4)
    np.testing.assert_array_equal(decode.rgb(io.BytesIO(ACCEPTED["png rgba"])), clear[..., :3])
    gray = np.asarray(Image.fromarray(image_kinds.picture()).convert("L"))
    np.testing.assert_array_equal(decode.rgb(io.BytesIO(ACCEPTED["png gray"])), np.stack([gray] * 3, -1))


def test_sixteen_bits_are_rounded():
    values = np.array([[0, 128, 129, 257, 65407, 65535]], np.uint16)
    expected = [0, 0, 1, 1, 255, 255]
    assert decode.rgb(io.BytesIO(image_kinds.png16(values, 0)))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(("low", "high"), [(-1, 9), (0, 65536), (-40000, 25000), (-(2**31), 2**31 - 1), (70000, 70001)])
def test_whole_numbers_that_16_bits_do_not_hold_are_refused(low, high):
    values = np.array([[low, high]], np.int32)
    told = f"an image of mode I with values from {low:,} to {high:,}, wanted 0..65535, or 0..255 in mode L"
    with pytest.raises(decode.Unsupported, match=re.escape(told)):
        decode.of_pillow(Image.fromarray(values))


@pytest.mark.parametrize("mode", ["La", "I;16L", "I;16N", "F", "RGBa", "LAB", "HSV"])
def test_pillow_images_of_modes_that_photos_have_not_are_refused(mode):
    with pytest.raises(decode.Unsupported, match=f"^an image of mode {mode} is no photo$"):
        decode.of_pillow(Image.new(mode, (8, 6)))


@pytest.mark.parametrize("mode", decode.MODES)
def test_pillow_images_of_all_other_modes_have_the_pixels_that_files_have(mode):
    rng = np.random.default_rng(0)
    if mode.startswith("I"):
        values = rng.integers(0, 65536, (6, 8))
        values[0, :2] = 0, 65535
        kind = {"I": "<i4", "I;16": "<u2", "I;16B": ">u2"}[mode]
        pixels, _, highest = decode.of_pillow(Image.frombytes(mode, (8, 6), values.astype(kind).tobytes()))
        assert highest == 65535
        np.testing.assert_array_equal(pixels, np.rint(values / 257)[..., None].repeat(3, 2))
    else:
        image = Image.fromarray(image_kinds.picture(channels=4)).convert("RGB").convert("L" if mode == "LA" else "RGB")
        image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
        pixels, _, highest = decode.of_pillow(image)
        assert highest is None
        np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))
