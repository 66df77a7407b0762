"""Channels whose file has an unusable name among theirs are in one order in all files, or the files are refused."""

import numpy as np
import pytest

from polychrome.engine.channels.names import Channels
from polychrome.engine.data.conventions import Trained
from polychrome.engine.data.given import image_sets
from polychrome.engine.data.sets import listing, scan
from polychrome.engine.errors import UserError
from tests.engine.data import measured

NAMES = ("DAPI", "FITC", "DNA", "Cy5", "BF")
UNUSABLE = {"": "one has no name", "DAPI": "two are called DAPI", "all": "all has a meaning of its own"}
WRITERS = ("OME", "GDAL", "ImageJ")


def written(names, writer, values=None):
    """Return a file of five channels with these names."""
    values = measured.drawn(5) if values is None else values
    first = np.moveaxis(values, -1, 0)
    if writer == "GDAL":
        return measured.tiff(values, names)
    metadata = {"Channel": {"Name": list(names)}} if writer == "OME" else {"Labels": list(names)}
    return measured.described(first, "CYX", metadata=metadata, **{writer.lower(): True})


def opened(root, contents, channels_txt=()):
    """Return the scanned set of files, each in one of two classes and in every split."""
    root.mkdir()
    rows = [f"{number}.tif {number % 2}\n" for number, _ in enumerate(contents)]
    for number, content in enumerate(contents):
        (root / f"{number}.tif").write_bytes(content)
    for split in ("train", "val", "test"):
        (root / f"{split}.txt").write_text("".join(rows))
    if channels_txt:
        (root / "channels.txt").write_text("\n".join(channels_txt))
    images = listing.read(root)
    return scan.apply(images, scan.scan(root, images.splits["train"].paths, workers=1, cache=False))


def with_one(name):
    return NAMES[:2] + (name,) + NAMES[3:]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", UNUSABLE)
def test_files_of_another_order_are_refused_where_their_names_are_unusable(tmp_path, writer, name):
    same, turned = written(with_one(name), writer), written(with_one(name)[::-1], writer)
    images = opened(tmp_path / "same", [same] * 4)
    assert images.channels.names == tuple("01234")
    (note,) = images.notes
    assert UNUSABLE[name] in note
    assert f"DAPI, FITC, {name or '(no name)'}, Cy5, BF are taken as 0, 1, 2, 3, 4, in this order" in note
    with pytest.raises(UserError, match="which cannot be put together by name, as ") as caught:
        opened(tmp_path / "turned", [same, same, turned, turned])
    assert f"BF, Cy5, {name or '(no name)'}, FITC, DAPI" in str(caught.value)
    whole = written(NAMES, writer)
    with pytest.raises(UserError, match="which are no names, as"):
        opened(tmp_path / "some", [whole, whole, same, same])
    given = opened(tmp_path / "given", [same, turned], NAMES)
    assert given.channels.names == NAMES
    assert f"BF, Cy5, {name or '(no name)'}, FITC, DAPI in 1 file such as 1.tif: the former" in given.notes[0]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", UNUSABLE)
def test_a_trained_model_takes_unusable_names_in_its_own_order_alone(tmp_path, writer, name):
    named = Trained(Channels(NAMES, (0.0,) * 5, (1.0,) * 5), "float32")
    numbered = opened(tmp_path / "set", [written(with_one(name), writer)] * 2)
    numbered = Trained(numbered.channels, "float32", numbered.conventions)
    file = tmp_path / "x.tif"
    for trained, asked in ((named, ()), (numbered, ()), (named, NAMES)):
        file.write_bytes(written(with_one(name), writer))
        ((_, images),) = image_sets((file,), trained, asked)
        assert (images.arrangements, images.channels.names) == ({}, trained.channels.names)
        assert [UNUSABLE[name] in note for note in images.notes] == [True]
        for turned in (with_one(name)[::-1], with_one("")[::-1]):
            file.write_bytes(written(turned, writer))
            with pytest.raises(UserError, match=r"x\.tif: has channels BF, Cy5, .*, FITC, DAPI, wanted the order"):
                image_sets((file,), trained, asked)


def test_a_model_of_numbers_refuses_the_names_of_its_training_in_another_order(tmp_path):
    images = opened(tmp_path / "set", [written(with_one(""), "GDAL")] * 2)
    trained, file = Trained(images.channels, "float32", images.conventions), tmp_path / "x.tif"
    for names in (NAMES, ("a", "b", "c", "d", "e")):
        file.write_bytes(written(names, "GDAL"))
        ((_, given),) = image_sets((file,), trained)
        assert (given.arrangements, given.channels.names) == ({}, tuple("01234"))
    file.write_bytes(written(NAMES[::-1], "GDAL"))
    with pytest.raises(UserError, match="has channels BF, Cy5, DNA, FITC, DAPI, wanted the order DAPI, FITC"):
        image_sets((file,), trained)


def test_the_name_of_a_stain_in_colours_is_no_channels(tmp_path):
    values = measured.drawn(3)
    content = measured.ome_colours(values, "HE")
    images = opened(tmp_path / "set", [content] * 2)
    assert (images.channels.names, images.notes) == (("R", "G", "B"), ())
