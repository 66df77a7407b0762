import dataclasses
import errno
import io
import json
import os
import re

import numpy as np
import pytest
from PIL import features

from polychrome.engine.data import image_set
from polychrome.engine.data.files import decode
from polychrome.engine.data.sets import scan as scanning
from polychrome.engine.errors import Unavailable, UserError
from tests.engine.data import image_kinds, photos

WHOLE = image_kinds.encoded(image_kinds.picture(), "JPEG", quality=90)


def scan(root, files, **options):
    return scanning.scan(root, image_kinds.write(root, files), workers=1, **options)


def reasons(report):
    return {fault.path: fault.reason for fault in report.rejected}


def test_every_accepted_kind_passes_with_its_rotated_size(tmp_path):
    report = scan(tmp_path, image_kinds.accepted())
    assert report.rejected == ()
    assert report.by_pillow == {}
    assert report.sizes["jpeg exif 1"] == (93, 121)
    assert {report.sizes[f"jpeg exif {value}"] for value in (5, 6, 7, 8)} == {(121, 93)}
    assert report.encodings.keys() == report.sizes.keys()
    assert report.encodings["jpeg exif 7"] == "JPEG, RGB, orientation 7, sampling 2x2 1x1 1x1"
    alone = [name for name in report.encodings if name.startswith(("jpeg exif", "jpeg sampling", "jpeg progressive"))]
    # 4:2:0 is what Pillow saves by default
    assert len({report.encodings[name] for name in alone}) == len(alone) - 1
    assert report.encodings["jpeg sampling 2"] == report.encodings["jpeg exif 1"]


def test_uncommon_kinds_pass_and_say_what_is_used_of_several_frames(tmp_path):
    kinds = image_kinds.uncommon()
    report = scan(tmp_path, kinds)
    assert report.rejected == ()
    assert report.sizes["webp exif"] == (121, 93)
    several = [name for name, how in report.encodings.items() if how.endswith("the first frame of 2")]
    assert several == ["animated gif", "animated webp", "animated png"]
    assert report.by_pillow.keys() <= kinds.keys()


def test_refused_kinds_are_rejected_with_their_reason(tmp_path):
    refused = image_kinds.refused()
    found = reasons(scan(tmp_path, {name: content for name, (content, _) in refused.items()}))
    assert found.keys() == refused.keys()
    for name, (_, reason) in refused.items():
        assert reason in found[name]


def test_reasons_are_readable(tmp_path):
    whole_png = image_kinds.encoded(image_kinds.picture(), "PNG")
    files = {
        "page.jpg": b"<!DOCTYPE html>\n<html><body>404</body></html>",
        "zeros.jpg": bytes(5000),
        "empty.jpg": b"",
        "half.jpg": WHOLE[: len(WHOLE) // 2],
        "header.jpg": WHOLE[:50],
        "half.png": whole_png[: len(whole_png) // 2],
        "endless.png": whole_png[:-12],
        "flipped.png": whole_png[:2000] + bytes([whole_png[2000] ^ 1]) + whole_png[2001:],
    }
    image_kinds.write(tmp_path, files)
    (tmp_path / "folder.jpg").mkdir()
    found = reasons(scanning.scan(tmp_path, [*files, "missing.jpg", "folder.jpg"], workers=1))
    assert found["page.jpg"].startswith("not an image: it starts with b'<!DOCTYPE html")
    assert found["zeros.jpg"].startswith("not an image: it starts with b'\\x00")
    assert found["empty.jpg"] == "empty file"
    assert found["half.jpg"].startswith("truncated: ")
    assert found["header.jpg"].startswith("truncated")
    assert found["half.png"].startswith("truncated: ")
    assert found["endless.png"].startswith("truncated: ")
    assert found["flipped.png"].startswith("damaged: ")
    assert found["missing.jpg"] == "missing file"
    assert found["folder.jpg"] == "a folder, wanted a file"
    assert not any("\n" in reason for reason in found.values())


def damaged_files():
    rng = np.random.default_rng(0)
    cuts = [1, 2, 3, 10, 100, *rng.integers(4, len(WHOLE), 60)]
    files = {f"cut {cut}": WHOLE[:-cut] for cut in cuts}
    for i in range(150):
        content = bytearray(WHOLE)
        for place in rng.integers(2, len(WHOLE) if i % 2 else 700, rng.integers(1, 5)):
            content[place] ^= 1 << int(rng.integers(8))
        files[f"flips {i}"] = bytes(content)
    for i, place in enumerate(rng.integers(0, len(WHOLE), 60)):
        files[f"zeros {i}"] = WHOLE[:place] + bytes(30) + WHOLE[place + 30 :]
    for kind, content in image_kinds.accepted().items():
        for i in range(3):
            place = int(rng.integers(1, len(content)))
            files[f"{kind} cut {i}"] = content[:place]
            files[f"{kind} flip {i}"] = content[:place] + bytes([content[place] ^ 0x11]) + content[place + 1 :]
    return files


def test_a_truncated_jpeg_is_never_accepted(tmp_path):
    files = {name: content for name, content in damaged_files().items() if name.startswith("cut")}
    found = reasons(scan(tmp_path, files))
    assert found.keys() == files.keys()
    assert {reason for reason in found.values() if "truncated" not in reason} == set()


def test_whatever_is_accepted_goes_through_dali(tmp_path):
    pytest.importorskip("nvidia.dali")

    from polychrome.engine.data.batches import BatchRequest
    from polychrome.engine.data.readers import dali

    report = scan(tmp_path, damaged_files())
    assert len(report.sizes) > 150
    assert len(report.rejected) > 150
    assert report.by_pillow
    sizes = np.array(list(report.sizes.values()))
    rng = np.random.default_rng(1)
    top_left = rng.integers(0, (sizes + 1) // 2)
    crops = np.concatenate([top_left, sizes - top_left], 1)
    reader = dali.DaliReader(photos.reading(tmp_path, list(report.sizes), 16, 32, 1, frozenset(report.by_pillow)))
    requests = [
        BatchRequest(part, crops[part], np.zeros(len(part), bool)) for part in np.array_split(np.arange(len(sizes)), 10)
    ]
    batches = list(reader.read(requests))
    assert sum(source.shape[0] for source, _ in batches) == len(sizes)
    assert [faults for _, faults in batches] == [{}] * len(requests)
    reader.close()


def test_a_pfm_of_colours_is_named(tmp_path):
    report = scan(tmp_path, {"a.pgm": b"PF\n8 8\n-1.0\n" + bytes(768)})
    assert report.rejected[0].reason == "a PFM of colours, which is not read: save it as TIFF or .npy"


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_a_cut_avif_is_no_fault_of_the_installation(tmp_path):
    whole = image_kinds.encoded(image_kinds.picture(), "AVIF")
    for end in (40, 100, len(whole) // 2):
        reason = scan(tmp_path, {"a.avif": whole[:end]}).rejected[0].reason
        assert "install" not in reason
        assert reason.startswith(("truncated", "damaged"))


def test_no_reason_says_twice_what_is_wrong(tmp_path):
    array = io.BytesIO()
    np.save(array, image_kinds.picture())
    whole = [*(image_kinds.accepted() | image_kinds.uncommon()).values(), array.getvalue()]
    cut = {f"{number}.{end}": file[: len(file) * end // 5] for number, file in enumerate(whole) for end in range(1, 5)}
    for item in scan(tmp_path, cut).rejected:
        assert not re.search("(truncated|damaged): (truncated|damaged)", item.reason)


def test_a_second_scan_decodes_nothing_and_a_changed_file_is_scanned_again(tmp_path, cache_home):
    files = {"a.jpg": WHOLE, "b.jpg": WHOLE[:-9], "c.png": image_kinds.encoded(image_kinds.picture(), "PNG")}
    first = scan(tmp_path, files)
    assert first.decoded == 3
    again = scanning.scan(tmp_path, list(files))
    assert again == dataclasses.replace(first, decoded=0)
    assert again.encodings["c.png"] == "PNG, RGB, orientation 1"
    (tmp_path / "b.jpg").write_bytes(WHOLE)
    third = scanning.scan(tmp_path, list(files))
    assert (third.decoded, third.rejected) == (1, ())
    os.utime(tmp_path / "a.jpg", ns=(1, 1))
    assert scanning.scan(tmp_path, list(files)).decoded == 1
    assert scanning.scan(tmp_path, list(files), cache=False).decoded == 3
    assert [path.suffix for path in cache_home.iterdir()] == [".json"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "Input/output error"), MemoryError(), Unavailable("needs a package")],
    ids=lambda error: type(error).__name__,
)
def test_what_fails_here_and_now_is_read_again_by_the_next_scan(tmp_path, monkeypatch, error):
    def fail(content):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(decode, "verify", fail)
        first = scan(tmp_path, {"a.jpg": WHOLE})
    assert len(first.rejected) == 1
    again = scanning.scan(tmp_path, ["a.jpg"], workers=1)
    assert (again.decoded, again.rejected, again.sizes) == (1, (), {"a.jpg": (93, 121)})
    assert scanning.scan(tmp_path, ["a.jpg"], workers=1).decoded == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"rules": 1}', b"\xff\xfe", b"null"])
def test_a_damaged_cache_is_ignored(tmp_path, cache_home, content):
    scan(tmp_path, {"a.jpg": WHOLE})
    (file,) = cache_home.iterdir()
    file.write_bytes(content)
    assert scanning.scan(tmp_path, ["a.jpg"]).decoded == 1
    assert scanning.scan(tmp_path, ["a.jpg"]).decoded == 0


def test_malformed_entries_and_other_rules_are_scanned_again(tmp_path, cache_home, monkeypatch):
    scan(tmp_path, {"a.jpg": WHOLE})
    (file,) = cache_home.iterdir()
    content = json.loads(file.read_text())
    content["files"]["a.jpg"][2] = None
    file.write_text(json.dumps(content))
    assert scanning.scan(tmp_path, ["a.jpg"]).decoded == 1
    monkeypatch.setattr(scanning, "RULES", -1)
    assert scanning.scan(tmp_path, ["a.jpg"]).decoded == 1


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path, monkeypatch):
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "occupied"))
    with pytest.warns(UserWarning, match="could not be kept"):
        assert scan(tmp_path / "data", {"a.jpg": WHOLE}).sizes == {"a.jpg": (93, 121)}


def test_processes_and_progress(tmp_path):
    files = {f"{i}.jpg": WHOLE if i % 5 else WHOLE[:-50] for i in range(150)}
    calls = []
    paths = image_kinds.write(tmp_path, files)
    report = scanning.scan(tmp_path, paths, workers=2, progress=lambda *now: calls.append(now))
    assert calls == [(64, 150), (128, 150), (150, 150)]
    assert list(report.sizes) == [path for i, path in enumerate(paths) if i % 5]
    assert [fault.path for fault in report.rejected] == [path for i, path in enumerate(paths) if i % 5 == 0]
    scanning.scan(tmp_path, paths, progress=lambda *now: calls.append(now))
    assert calls[3:] == [(150, 150)]


def test_apply_drops_the_rejected_and_fills_sizes(tmp_path):
    report = scan(tmp_path, {"a.jpg": WHOLE, "b.jpg": b"", "c.jpg": WHOLE})
    splits = {"train": (("a.jpg", "b.jpg", "c.jpg"), (0, 1, 1)), "val": (("a.jpg",), (0,)), "test": (("c.jpg",), (1,))}
    images = image_set.ImageSet(tmp_path, ("x", "y"), {name: image_set.Split(*split) for name, split in splits.items()})
    kept = scanning.apply(images, report)
    assert kept.splits["train"] == image_set.Split(("a.jpg", "c.jpg"), (0, 1), ((93, 121), (93, 121)))
    assert kept.encodings == report.encodings
    assert kept.encodings.keys() == {"a.jpg", "c.jpg"}
    images.splits["val"] = image_set.Split(("b.jpg",), (1,))
    with pytest.raises(UserError, match=r"no usable image in val of .*all 1 were rejected.*b.jpg: empty file"):
        scanning.apply(images, report)
