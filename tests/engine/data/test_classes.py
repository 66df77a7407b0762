"""Every class that is trained has an image to train on, and what a split lacks is told."""

import numpy as np
import pytest

from polychrome.engine.data.image_set import lacking, without
from polychrome.engine.data.opening import Wanted, open_set
from polychrome.engine.data.sets import listing, scan
from tests.engine.data import image_kinds, photos
from tests.refusals import refusal

NAMES = ("cat", "dog", "eel")
PNG = image_kinds.encoded(image_kinds.picture(), "PNG")
DEEP = image_kinds.png16(np.arange(93 * 121, dtype=np.uint16).reshape(93, 121), 0)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
FORMS = ("folders", "split folders", "lists", "table", "split table")


def write(root, form, contents, count=4):
    """Write `count` images of each class, with the contents of its files, in a form."""
    splits = ("train", "val", "test") if form in ("split folders", "lists", "split table") else ("",)
    files, rows = {}, []
    for label, (name, content) in enumerate(contents.items()):
        for split in splits:
            for number in range(count):
                inside = {"folders": f"{name}/", "split folders": f"{split}/{name}/"}.get(form, "")
                path = f"{inside}{split}{name}{number}.png"
                files[path] = content
                rows.append((split, path, label, name))
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    if form == "lists":
        for split in splits:
            lines = (f"{path} {label}\n" for part, path, label, _ in rows if part == split)
            (root / f"{split}.txt").write_text("".join(lines))
        (root / "classes.txt").write_text("".join(f"{name}\n" for name in contents))
    elif "table" in form:
        lines = (f"{path},{name},{split}\n" for split, path, _, name in rows)
        (root / "labels.csv").write_text("file,label,split\n" + "".join(lines))
        if form == "table":
            lines = (f"{path},{name}\n" for _, path, _, name in rows)
            (root / "labels.csv").write_text("file,label\n" + "".join(lines))
    return root


def scanned(root):
    images = listing.read(root)
    paths = [path for split in images.splits.values() for path in split.paths]
    return scan.apply(images, scan.scan(root, paths, workers=1, cache=False))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("content", "others", "why"),
    [(HEIC, PNG, "HEIC, which"), (b"", PNG, "empty file"), (PNG, DEEP, "a photo or page of 8 bits among")],
)
def test_a_class_whose_images_are_all_unusable_is_refused_with_the_reason(tmp_path, form, content, others, why):
    whole = scanned(write(tmp_path / "whole", form, dict.fromkeys(NAMES, others)))
    assert set(whole.splits["train"].labels) == {0, 1, 2}
    found = refusal(scanned, write(tmp_path / "other", form, {"cat": content, "dog": others, "eel": others}))
    assert "class 'cat' has no usable image to train on" in found
    assert "were rejected, the first is " in found
    assert f".png: {why}" in found


def test_a_class_of_which_some_images_are_left_is_trained(tmp_path):
    write(tmp_path, "split folders", dict.fromkeys(NAMES, PNG))
    for number in range(3):
        (tmp_path / f"train/cat/traincat{number}.png").write_bytes(b"")
    images = scanned(tmp_path)
    assert np.bincount(images.splits["train"].labels).tolist() == [1, 4, 4]
    gone = ["train/cat/traincat3.png"]  # it can no longer be read when it is decoded
    assert "class 'cat' has no usable image to train on" in refusal(without, images, gone)


def test_classes_without_an_image_in_a_split_are_told(tmp_path):
    write(tmp_path, "split folders", dict.fromkeys(NAMES, PNG))
    for number in range(4):
        (tmp_path / f"val/cat/valcat{number}.png").write_bytes(b"")
        (tmp_path / f"test/cat/testcat{number}.png").write_bytes(b"")
        (tmp_path / f"test/eel/testeel{number}.png").write_bytes(b"")
    told = ("class 'cat' has no image in val", "2 classes, such as 'cat', have no image in test")
    assert lacking(scanned(tmp_path)) == told
    opened = open_set(listing.read(tmp_path), Wanted("auto", photos.CPU, 1))
    assert opened.images.notes[-2:] == told
    assert opened.images.splits.keys() == {"train", "val", "test"}


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("gap", [0, 1, 2])
def test_a_class_that_no_training_image_has_is_refused_unless_its_number_is_asked_for(tmp_path, first, gap):
    write(tmp_path, "lists", dict.fromkeys(NAMES, PNG))
    for split in ("train", "val", "test"):
        lines = (tmp_path / f"{split}.txt").read_text().splitlines()
        kept = [line for line in lines if split != "train" or not line.endswith(f" {gap}")]
        numbered = (f"{line[:-1]}{int(line[-1]) + first}\n" for line in kept)
        (tmp_path / f"{split}.txt").write_text("".join(numbered))
    found = refusal(listing.read, tmp_path)
    label = f"label {gap + first}, counted from {first}"
    assert f"train.txt: class {NAMES[gap]!r} ({label}) has no image to train on" in found
    assert "--num-classes 3" in found
    images = listing.read(tmp_path, num_classes=3)
    assert set(images.splits["train"].labels) == {0, 1, 2} - {gap}
    assert lacking(images) == (f"class {NAMES[gap]!r} has no image in train",)
