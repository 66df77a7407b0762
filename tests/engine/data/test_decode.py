import io

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
