"""Both backends read every accepted kind of file alike, whatever DALI by itself makes of it."""

import numpy as np
import pytest
import torch
from PIL import features

from polychrome.engine.data import image_set, loader
from polychrome.engine.data.files import dali_check
from polychrome.engine.data.sets import scan
from tests.engine.data import image_kinds, photos

pytest.importorskip("nvidia.dali")


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    root = tmp_path_factory.mktemp("kinds")
    kinds = image_kinds.accepted() | image_kinds.uncommon()
    paths = image_kinds.write(root, {name.replace(" ", "_"): content for name, content in kinds.items()})
    return photos.scanned(root, paths, (("train", 1.0), ("test", 1.0)))


def batches(images, backend, **options):
    with loader.Loader(images, "test", size=40, batch_size=5, train=False, backend=backend, **options) as batches:
        return torch.cat([batch.images for batch in batches.epoch(0)]).int()


def test_every_kind_has_the_same_pixels_within_two_in_both_backends(every_kind):
    ours, theirs = batches(every_kind, "dali"), batches(every_kind, "torch")
    assert len(ours) == len(every_kind.splits["test"].paths) >= 60 + features.check("avif")
    worst = (ours - theirs).abs().amax((1, 2, 3))
    assert {path: int(d) for path, d in zip(every_kind.splits["test"].paths, worst, strict=True) if d > 2} == {}


def test_a_set_that_only_pillow_can_decode_needs_nothing_of_dali(every_kind):
    split = every_kind.splits["test"]
    only = [i for i, path in enumerate(split.paths) if path in every_kind.by_pillow]
    assert len(only) >= 3
    columns = (tuple(column[i] for i in only) for column in (split.paths, split.labels, split.sizes))
    images = image_set.ImageSet(
        every_kind.root, tuple("abc"), {"test": image_set.Split(*columns)}, by_pillow=every_kind.by_pillow
    )
    assert torch.equal(batches(images, "dali"), batches(images, "torch"))


def test_a_file_that_dali_decodes_otherwise_is_named_and_read_by_pillow(tmp_path, monkeypatch):
    rotate = image_kinds.encoded(image_kinds.picture(seed=3), "PNG")
    files = {f"{i}.png": image_kinds.encoded(image_kinds.picture(seed=i), "PNG") for i in range(8)}
    paths = image_kinds.write(tmp_path, files)
    ask = dali_check._Process.decoded

    def wrong(process, files):
        decoded = zip(files, ask(process, files), strict=True)
        return [pixels[::-1, ::-1] if encoded == rotate else pixels for encoded, pixels in decoded]

    monkeypatch.setattr(dali_check._Process, "decoded", wrong)
    report = scan.scan(tmp_path, paths, workers=1, cache=False)
    assert report.by_pillow.keys() == {"3.png"}
    assert report.by_pillow["3.png"].startswith("DALI's pixels differ by up to ")


def test_a_decoder_that_crashes_or_refuses_is_asked_again_about_the_next_file():
    pixels = image_kinds.picture()
    good = image_kinds.encoded(pixels, "PNG")
    assert dali_check.difference(good, pixels, 2) == ""
    dali_check._processes[0]._process.kill()
    assert dali_check.difference(good, pixels, 2) == dali_check.CRASHED
    assert dali_check.difference(b"no image", pixels, 2) == "DALI cannot decode it"
    assert dali_check.difference(good, pixels, 2) == ""
    assert dali_check.difference(good, pixels + np.uint8(3), 2).startswith("DALI's pixels differ by up to ")
    assert dali_check.difference(good, pixels[1:], 2) == "DALI sees it as 93 x 121, not 92 x 121"


def test_of_files_asked_about_together_each_has_its_own_answer():
    pixels = [image_kinds.picture(20 + i, 30, seed=i) for i in range(40)]
    files = [(image_kinds.encoded(each, "PNG"), each) for each in pixels]
    assert dali_check.differences(files, 2) == [""] * 40
    files[3] = b"no image", pixels[3]
    files[4] = files[4][0], pixels[4] + np.uint8(9)
    files[21] = files[21][0], pixels[20]
    found = dali_check.differences(files, 2)
    assert found[3] == "DALI cannot decode it"
    assert found[4].startswith("DALI's pixels differ by up to ")
    assert found[21] == "DALI sees it as 41 x 30, not 40 x 30"
    assert [i for i, why in enumerate(found) if why] == [3, 4, 21]


def test_where_dali_does_not_start_it_is_asked_once(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("raise ImportError")
    monkeypatch.setattr(dali_check, "PROGRAM", tmp_path / "broken.py")
    monkeypatch.setattr(dali_check, "_processes", [])
    monkeypatch.setattr(dali_check, "_unavailable", [])
    files = {f"{i}.png": image_kinds.encoded(image_kinds.picture(seed=i), "PNG") for i in range(3)}
    report = scan.scan(tmp_path, image_kinds.write(tmp_path, files), workers=1, cache=False)
    assert report.by_pillow == dict.fromkeys(files, "DALI does not start")
    assert dali_check._processes == []
