"""Sets in tar shards: listed, scanned and loaded as the same files in folders are."""

import json
import os
import re
import tarfile
import time

import numpy as np
import pytest
import torch

from polychrome.engine.data import loader
from polychrome.engine.data.files import shards, stacks
from polychrome.engine.data.readers import choice
from polychrome.engine.data.sets import listing, scan
from polychrome.engine.data.stores.whole import WholeImages
from polychrome.engine.errors import UserError
from tests.engine.data import image_kinds, photos, tars
from tests.grids import grid
from tests.refusals import refusal

needs_dali = pytest.mark.skipif(choice.resolve("auto") != "dali", reason="NVIDIA DALI is not installed")
BOTH = [pytest.param("dali", marks=needs_dali), "torch"]
JPEG = image_kinds.encoded(image_kinds.picture(40, 50), "JPEG", quality=90)


def jpeg(seed):
    return image_kinds.encoded(image_kinds.picture(40 + seed % 7, 50 - seed % 5, seed=seed), "JPEG", quality=90)


@pytest.fixture(scope="module")
def files():
    """Forty images in four class folders, one in a folder with dots, under a name with spaces and accents."""
    return {f"{'abcd'[i % 4]}.x/é {i:02d}.jpg": jpeg(i) for i in range(40)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, files):
    root = tmp_path_factory.mktemp("folder")
    for name in "abcd":
        (root / f"{name}.x").mkdir()
    image_kinds.write(root, files)
    return scanned(root)


def scanned(data, **options):
    images = listing.read(data, **options)
    paths = [path for split in images.splits.values() for path in split.paths]
    return scan.apply(images, scan.scan(images.root, paths, workers=1))


def in_shards(root, files, count=3):
    """Spread files over tars 000.tar, 001.tar and so on."""
    names = list(files)
    for number in range(count):
        tars.write(root / f"{number:03d}.tar", {name: files[name] for name in names[number::count]})
    return root / f"{{000..{count - 1:03d}}}.tar"


def batches(images, backend, split="train", **options):
    given = {"size": 32, "batch_size": 6, "train": split == "train", "workers": 1, "seed": 3, "backend": backend}
    with loader.Loader(images, split, **given | options) as found:
        return [(batch.images, batch.labels, batch.indices) for epoch in (0, 1) for batch in found.epoch(epoch)]


def fault(*arguments, **options):
    return refusal(listing.read, *arguments, **options)


def labels(images, split="train"):
    chosen = images.splits[split]
    return dict(zip(chosen.paths, chosen.labels, strict=True))


def samples(count=12, **label):
    """Return members of samples 00, 01, ..., with a label member of each where `label` tells its extension and form."""
    members = {}
    for i in range(count):
        members[f"{i:02d}.jpg"] = JPEG
        members |= {f"{i:02d}.{extension}": form(i % 2).encode() for extension, form in label.items()}
    return members


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_tar_gives_the_batches_of_the_same_files_in_a_folder(tmp_path, folder, files, backend, split):
    inside = scanned(tars.write(tmp_path / "set.tar", files))
    assert inside.class_names == folder.class_names
    assert inside.splits[split].paths == tuple(f"set.tar/{path}" for path in folder.splits[split].paths)
    for ours, theirs in zip(batches(inside, backend, split), batches(folder, backend, split), strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
        np.testing.assert_array_equal(ours[2], theirs[2])


def test_worker_processes_read_from_tars(tmp_path, files):
    inside = scanned(in_shards(tmp_path, files))
    ours, theirs = batches(inside, "torch", workers=2), batches(inside, "torch", workers=0)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(ours, theirs, strict=True))


def test_images_of_shards_are_kept_in_memory_as_files_are(tmp_path, folder, files):
    ours = WholeImages.load(scanned(tars.write(tmp_path / "set.tar", files)), 2)
    theirs = WholeImages.load(folder, 2)
    for path in files:
        np.testing.assert_array_equal(ours[f"set.tar/{path}"], theirs[path])


def test_arrays_are_read_from_shards(tmp_path):
    rng = np.random.default_rng(0)
    values = {f"{'ab'[i % 2]}/{i}": rng.integers(0, 255, (20, 22, 5), np.uint8) for i in range(8)}
    (tmp_path / "channels.txt").write_text("blue\ngreen\nred\nnear\nfar\n")
    members = {}
    for name, array in values.items():
        np.save(tmp_path / "array.npy", array)
        members[f"{name}.npy"] = (tmp_path / "array.npy").read_bytes()
    images = scanned(tars.write(tmp_path / "set.tar", members))
    assert (images.stacks, images.channels.names) == (True, ("blue", "green", "red", "near", "far"))
    read = stacks.opener(images)
    for name, array in values.items():
        np.testing.assert_array_equal(read(f"set.tar/{name}.npy"), array)
    assert batches(images, "torch")[0][0].shape == (4, 5, 32, 32)


def test_numbers_in_cls_are_labels(tmp_path):
    tar = tars.write(tmp_path / "set.tar", samples(cls=lambda label: f"{label}\n"))
    images = listing.read(tar)
    assert images.class_names == ("0", "1")
    found = {path: label for split in images.splits for path, label in labels(images, split).items()}
    assert found == {f"set.tar/{i:02d}.jpg": i % 2 for i in range(12)}
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert listing.read(tar).class_names == ("cat", "dog")
    assert listing.read(tar, num_classes=3).class_names == ("cat", "dog", "2")


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (lambda label: json.dumps({"label": label, "caption": "x"}), ("0", "1")),
        (lambda label: json.dumps({"cls": ["dog", "cat"][label]}), ("cat", "dog")),
    ],
)
def test_numbers_and_names_in_json_are_labels(tmp_path, form, names):
    images = listing.read(tars.write(tmp_path / "set.tar", samples(json=form)))
    assert images.class_names == names
    for path, label in labels(images).items():
        assert (label == int(path[-5]) % 2) == (names == ("0", "1"))


def test_without_labels_the_folder_in_the_tar_is_the_class(tmp_path):
    members = {f"./set/{name}/{i}.jpg": JPEG for name in ("dog", "cat") for i in range(4)}
    members |= {"./set/dog/0.json": b'{"caption": "x"}', "./set/dog/0.txt": b"text", "./set/._0.jpg": b"x"}
    images = listing.read(tars.write(tmp_path / "set.tar", members))
    assert images.class_names == ("cat", "dog")
    assert {path.split("/")[2] for path, label in labels(images).items() if label} == {"dog"}
    assert sum(len(split.paths) for split in images.splits.values()) == 8


def as_folders(tmp_path, members, name="set.tar"):
    """Return for each file its split and class, as a tar of these files has them, and as the same folders have them."""
    content = {path: image_kinds.encoded(image_kinds.picture(9, 8, seed=i), "PNG") for i, path in enumerate(members)}
    found = []
    for path in content:
        (tmp_path / "folders" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folders" / path).write_bytes(content[path])
    for root in (tars.write(tmp_path / name, content), tmp_path / "folders"):
        try:
            images = listing.read(root)
        except UserError:
            found.append(None)
            continue
        found.append(
            {
                path.removeprefix(f"{name}/"): (split, images.class_names[label])
                for split, chosen in images.splits.items()
                for path, label in zip(chosen.paths, chosen.labels, strict=True)
            }
        )
        assert images.account.used == len(found[-1])
        assert images.account.present == len(members)
    return found


CLASSES = {
    "folders": "{split}{name}/{i}",
    "folders below": "{split}{name}/{year}/{i}",
    "folders of images": "{split}{name}/images/{i}",
    "flat": "{split}{i}",
}
SPLITS = {
    "none": ("",),
    "three": ("train/", "val/", "test/"),
    "other names": ("Training/", "valid/", "TESTING/"),
    "two": ("train/", "dev/"),
    "train alone": ("train/",),
    "no train": ("val/", "test/"),
    "twice": ("train/", "training/", "val/"),
}


@grid(above=("", "data/", "data/set/"), splits=SPLITS.keys(), classes=CLASSES.keys())
def test_folders_in_a_tar_are_the_splits_and_classes_that_folders_are(tmp_path, above, splits, classes):
    members = [
        f"{above}{CLASSES[classes]}.png".format(split=split, name=name, year=2020 + i % 2, i=f"{name}{i}")
        for split in SPLITS[splits]
        for name in ("cat", "dog")
        for i in range(5)
    ]
    ours, theirs = as_folders(tmp_path, members)
    assert ours == theirs
    refused = classes == "flat" or splits in ("no train", "twice")
    assert (ours is None) == refused
    if not refused:
        assert {name for _, name in ours.values()} == {"cat", "dog"}


def test_what_is_taken_from_the_folders_in_a_tar_is_said(tmp_path):
    members = {f"data/{split}/{name}/a/{i}.jpg": JPEG for split in ("train", "val") for name in "xy" for i in range(6)}
    members |= {f"data/test/{i}.jpg": JPEG for i in range(3)}
    images = listing.read(tars.write(tmp_path / "set.tar", members))
    assert images.notes[:4] == (
        "the set is that in the only folder of the tars, data/",
        "splits are the folders train/, val/, test/ in the tars",
        "24 images are in folders below those of the classes, such as set.tar/data/train/x/a/0.jpg: the upper folder "
        "is the class",
        "test/ has images but no labels: it is not used",
    )
    assert images.notes[4].startswith("no test: ")
    assert (images.account.used, images.account.ignored) == (24, {"in no split": 3})


def test_splits_in_a_tar_hold_where_samples_have_labels(tmp_path):
    members = {}
    for split in ("train", "val", "test"):
        members |= {f"{split}/{path}": content for path, content in samples(cls=str).items()}
    images = listing.read(tars.write(tmp_path / "set.tar", members))
    assert images.notes == ("splits are the folders train/, val/, test/ in the tars",)
    for split in ("train", "val", "test"):
        assert labels(images, split) == {f"set.tar/{split}/{i:02d}.jpg": i % 2 for i in range(12)}
    train = {path: content for path, content in members.items() if path.startswith("train")}
    alone = listing.read(tars.write(tmp_path / "train only.tar", train))
    assert {name: len(split.paths) for name, split in alone.splits.items()} == {"train": 8, "val": 2, "test": 2}
    assert alone.notes == ("no split is given: 12 images are split 80/10/10 per class",)
    other = {path.replace("val/", "wagon/").replace("test/", "plane/"): content for path, content in members.items()}
    kinds = listing.read(tars.write(tmp_path / "trains.tar", other))
    assert {path.split("/")[1] for path in kinds.splits["train"].paths} == {"train", "wagon", "plane"}


def test_splits_of_names_of_tars_and_of_folders_in_them_must_agree(tmp_path):
    for split in ("train", "val", "test"):
        members = {f"{split}/{name}/{split}{i}.jpg": JPEG for name in "xy" for i in range(3)}
        tars.write(tmp_path / f"{split}-0.tar", members)
    images = listing.read(tmp_path)
    assert images.class_names == ("x", "y")
    assert {path.split("/")[1] for path in images.splits["test"].paths} == {"test"}
    tars.write(tmp_path / "val-1.tar", {f"train/x/more{i}.jpg": JPEG for i in range(3)})
    assert fault(tmp_path).endswith("val-1.tar/train/x/more0.jpg is in train/, in a tar of the split val: which is it?")
    other = {f"{split}/x/{i}.jpg": JPEG for split in ("train", "val", "extra") for i in range(3)}
    assert fault(tars.write(tmp_path / "set.tar", other)).endswith(
        "set.tar/extra/x/0.jpg is in no split, though others are in train/, val/"
    )


def test_two_labels_that_agree_are_one(tmp_path):
    members = samples(cls=str, json=lambda label: json.dumps({"label": label}))
    assert listing.read(tars.write(tmp_path / "set.tar", members)).class_names == ("0", "1")


def test_a_key_ends_at_the_first_dot(tmp_path):
    members = {f"d.e/{i}.jpg": JPEG for i in range(6)}
    members |= {f"d.e/{i}.seg.png": b"a mask" for i in range(6)} | {f"d.e/{i}.cls": b"%d" % (i % 2) for i in range(6)}
    images = listing.read(tars.write(tmp_path / "set.tar", members))
    assert sorted(path for split in images.splits.values() for path in split.paths) == [
        f"set.tar/d.e/{i}.jpg" for i in range(6)
    ]


@pytest.mark.parametrize(
    "pattern", ["{000..002}.tar", "{000,001,002}.tar", "*.tar", "00?.tar", "0{00..02}.tar", "{000,00[12]}.tar", ""]
)
def test_patterns_and_folders_name_shards(tmp_path, files, pattern):
    expected = listing.read(in_shards(tmp_path / "my {shards}", files))
    assert listing.read(tmp_path / "my {shards}" / pattern if pattern else tmp_path / "my {shards}") == expected
    assert len(expected.splits["train"].paths) == 32
    assert {path.split("/")[0] for path in expected.splits["train"].paths} == {"000.tar", "001.tar", "002.tar"}
    assert expected.root == tmp_path / "my {shards}"


def test_shards_in_several_folders_have_the_folder_above_as_root(tmp_path, files):
    names = list(files)
    tars.write(tmp_path / "x/0.tar", {name: files[name] for name in names[:20]})
    tars.write(tmp_path / "y/0.tar", {name: files[name] for name in names[20:]})
    images = listing.read(tmp_path / "{x,y}/0.tar")
    assert images.root == tmp_path
    assert {path.split("/")[0] for path in images.splits["train"].paths} == {"x", "y"}


def test_tars_named_after_splits_are_these_splits(tmp_path):
    kinds = {"train-00": 6, "train-01": 2, "val": 3, "test_x": 4}
    for name, count in kinds.items():
        tars.write(tmp_path / f"{name}.tar", samples(count, cls=str))
    for data in (tmp_path, tmp_path / "{train-0*,val,test_x}.tar"):
        images = listing.read(data)
        assert {name: len(split.paths) for name, split in images.splits.items()} == {"train": 8, "val": 3, "test": 4}
        assert images.splits["train"].paths[6] == "train-01.tar/00.jpg"
    images = listing.read(tmp_path / "train-00.tar")
    assert {name: len(split.paths) for name, split in images.splits.items()} == {"train": 2, "val": 2, "test": 2}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{000..004}.tar", r"no shard at .*003.tar: 2 of the 5 that .*\{000..004\}.tar names are missing"),
        ("x/*.tar", r"no tar matches .*x/\*.tar"),
        ("{2..1}.tar", r"wanted a rising range, such as \{000..099\}, got \{2..1\}"),
        ("{0..99999999}.tar", "wanted a rising range"),
        ("{000}.tar", r"no shard at .*\{000\}.tar"),
        ("none.tar", "no shard at .*none.tar: 1 of the 1"),
    ],
)
def test_faults_in_patterns(tmp_path, files, pattern, message):
    in_shards(tmp_path, files)
    assert re.search(message, fault(tmp_path / pattern))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (samples(), "set.tar/00.jpg: no label: wanted a .cls, a .json with"),
        (samples(cls=str) | {"x.jpg": JPEG}, "set.tar/x.jpg: no label, though other samples have one"),
        (samples(cls=lambda _: "cat"), "set.tar/00.cls: wanted a whole number, got b'cat'"),
        (samples(json=lambda _: "{"), "set.tar/00.json: wanted JSON, got b'{'"),
        (samples(json=lambda _: '{"label": 0.5}'), r"00.json: label and cls must be one whole number or one name, got"),
        (samples(json=lambda _: '{"label": 1, "cls": 2}'), r"label and cls must be one .* got \[1, 2\]"),
        (samples(cls=str, json=lambda _: '{"label": 7}'), "a sample has two labels, 0 and 7: 00.cls"),
        (samples(cls=str) | {"00.png": JPEG}, "a sample has two images, 00.jpg and 00.png: wanted one"),
        ([*samples(cls=str).items(), ("00.jpg", JPEG)], "set.tar has 00.jpg twice"),
        (
            samples(cls=str) | {"x.jpg": JPEG, "x.json": b'{"cls": "x"}'},
            "00.jpg has a number as its label|x.jpg a name",
        ),
        (samples(cls=lambda label: str(3 * label)), r"label 3 is outside 0..1, as 2 classes are found in \*.tar"),
        (samples(4, cls=str), "2 images of class '0' in .*: wanted at least 3"),
        ({"notes.txt": b"x"}, "no images in the tars of"),
        ({}, "no images in the tars of"),
        (samples(cls=lambda _: "0"), "has one class: wanted at least 2"),
    ],
)
def test_faults_in_samples_are_the_users(tmp_path, members, message):
    assert re.search(message, fault(tars.write(tmp_path / "set.tar", members)))


def test_splits_that_are_not_there_are_made(tmp_path):
    for name in ("val-0", "test-0"):
        tars.write(tmp_path / f"{name}.tar", samples(cls=str))
    assert re.search("no train in .*, only test and val: wanted images to train on", fault(tmp_path))
    (tmp_path / "test-0.tar").rename(tmp_path / "train-0.tar")
    images = listing.read(tmp_path)
    counts = {name: len(split.paths) for name, split in images.splits.items()}
    assert counts["train"] == counts["val"] + counts["test"] == images.account.used - counts["train"]
    assert images.notes[0].startswith("no test: ")
    tars.write(tmp_path / "test.tar", {"x/0.jpg": JPEG, "x/0.json": b'{"cls": "x"}'})
    assert "has a number as its label" in fault(tmp_path)
    tars.write(tmp_path / "test.tar", samples(cls=str))
    tars.write(tmp_path / "more.tar", samples(cls=str))
    assert "more.tar tells no split, as others do: which is it?" in fault(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("train/000", "val/000", "test/000"),
        ("set-train-0000", "set-validation-0000", "set-test-0000"),
        ("Traindata_0", "VALID_0", "Testing_0"),
        ("dev-train-0", "dev-val-0", "dev-test-0"),
        ("a/train2017", "b/val2017", "c/test2017"),
    ],
    ids=lambda names: names[0],
)
def test_splits_are_told_by_any_word_of_a_path_that_not_all_tars_share(tmp_path, names):
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        tars.write(tmp_path / f"{name}.tar", samples(6 + 2 * number, cls=str))
    images = listing.read(tmp_path / "*/*.tar" if "/" in names[0] else tmp_path)
    assert [len(split.paths) for split in images.splits.values()] == [6, 8, 10]
    assert images.notes == ()


def test_a_tar_that_tells_two_splits_is_refused_unless_all_do(tmp_path):
    tars.write(tmp_path / "train-0.tar", samples(cls=str))
    tars.write(tmp_path / "test/val-0.tar", samples(cls=str))
    assert "test/val-0.tar tells the splits test and val: which is it?" in fault(tmp_path / "{train-0,test/val-0}.tar")
    (tmp_path / "train-0.tar").rename(tmp_path / "test/val-1.tar")
    assert [len(split.paths) for split in listing.read(tmp_path / "test").splits.values()] == [20, 2, 2]


def test_a_class_only_in_evaluation_is_a_fault(tmp_path):
    for name, classes in {"train": "ab", "val": "ac", "test": "ab"}.items():
        tars.write(tmp_path / f"{name}.tar", {f"{folder}/0.jpg": JPEG for folder in classes})
    assert re.search("class 'c' of .*val.tar/c/0.jpg is in val but not in train", fault(tmp_path))


def test_what_is_no_tar_is_a_fault(tmp_path):
    for kind in ("gz", "bz2", "xz"):
        with tarfile.open(tmp_path / "packed.tar", f"w:{kind}") as tar:
            tar.add(__file__)
        assert re.search("compressed with (gzip|bzip2|xz): unpack it", fault(tmp_path / "packed.tar"))
    for content in (b"", b"<html>" * 1000, JPEG):
        (tmp_path / "bad.tar").write_bytes(content)
        assert "bad.tar is not a tar that can be read" in fault(tmp_path / "bad.tar")


def test_damage_in_the_middle_of_a_tar_and_tars_in_a_row_are_faults(tmp_path):
    content = tars.write(tmp_path / "set.tar", samples(cls=str)).read_bytes()
    header = content.index(b"05.jpg")
    (tmp_path / "set.tar").write_bytes(content[: header + 100] + b"xyz" + content[header + 103 :])
    assert f"is damaged, or several tars in one: no header and no end at byte {header:,}" in fault(tmp_path / "set.tar")
    (tmp_path / "set.tar").write_bytes(content + content)
    assert "several tars in one" in fault(tmp_path / "set.tar")


def test_a_tar_without_its_end_mark_is_whole(tmp_path):
    tar = tars.write(tmp_path / "set.tar", samples(cls=str))
    known = shards.samples(tar)
    os.truncate(tar, tar.read_bytes().index(b"11.cls") + 1024)
    assert not known["cut"].any()
    np.testing.assert_array_equal(shards.samples(tar), known)


@pytest.mark.parametrize("where", ["header", "image", "label header", "label"])
def test_of_a_truncated_tar_only_the_last_sample_is_rejected(tmp_path, where):
    tar = tars.write(tmp_path / "set.tar", samples(cls=str))
    content = tar.read_bytes()
    begins = {"image": content.index(b"11.jpg"), "label": content.index(b"11.cls")}
    cuts = {
        "header": begins["image"] + 100,
        "image": begins["image"] + 700,
        "label header": begins["label"] + 100,
        "label": begins["label"] + 512,
    }
    os.truncate(tar, cuts[where])
    images = listing.read(tar)
    paths = [path for split in images.splits.values() for path in split.paths]
    report = scan.scan(images.root, paths, workers=1)
    last = "set.tar/10.jpg" if where == "header" else "set.tar/11.jpg"
    assert [(item.path, item.reason) for item in report.rejected] == [
        (last, "truncated: set.tar ends in it or right after it")
    ]


def test_images_that_cannot_be_used_are_rejected_alone(tmp_path):
    members = samples(cls=str)
    members |= {"00.jpg": JPEG[: len(JPEG) // 2], "01.jpg": b"", "02.jpg": b"<html>", "lone.cls": b"1"}
    images = listing.read(tars.write(tmp_path / "set.tar", members))
    report = scan.scan(images.root, [path for split in images.splits.values() for path in split.paths], workers=1)
    reasons = {item.path: item.reason for item in report.rejected}
    assert reasons.pop("set.tar/00.jpg").startswith("truncated: ")
    assert reasons == {
        "set.tar/01.jpg": "empty file",
        "set.tar/02.jpg": "not an image: it starts with b'<html>'",
        "set.tar/lone.cls": "the sample has no image",
    }


def test_headers_are_read_once(tmp_path, cache_home, monkeypatch):
    tar = tars.write(tmp_path / "set.tar", samples(cls=str))
    known = shards.samples(tar)
    assert shards.has_index(tar)
    shards._index.cache_clear()  # as in another process
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_read", None)
        np.testing.assert_array_equal(shards.samples(tar), known)
    os.utime(tar, ns=(1, 1))
    np.testing.assert_array_equal(shards.samples(tar), known)
    assert len(list((cache_home / "shards").iterdir())) == 1


def test_another_tar_of_the_same_size_and_time_is_read_anew(tmp_path):
    for number, name in enumerate(("one", "two")):
        tars.write(tmp_path / name / "set.tar", samples(cls=lambda i, number=number: str(i + number)))
        os.utime(tmp_path / name / "set.tar", ns=(1, 1))
    link = tmp_path / "current"
    found = []
    for name in ("one", "two"):
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        shards._index.cache_clear()  # as in another process
        found.append(shards.samples(link / "set.tar")["label"].tolist())
        np.testing.assert_array_equal(found[-1], shards.samples(tmp_path / name / "set.tar")["label"])
    assert found[0] != found[1]
    assert (tmp_path / "one/set.tar").stat().st_size == (tmp_path / "two/set.tar").stat().st_size
    content, tar = (tmp_path / "two/set.tar").read_bytes(), tmp_path / "one/set.tar"
    time.sleep(0.02)  # a tick of the clock of files
    tar.write_bytes(content)
    os.utime(tar, ns=(1, 1))
    assert shards.samples(tar)["label"].tolist() == found[1]


@pytest.mark.parametrize("content", [b"", b"x" * 300, None])
def test_a_damaged_index_is_made_again(tmp_path, cache_home, content):
    tar = tars.write(tmp_path / "set.tar", samples(cls=str))
    known = shards.samples(tar)
    (file,) = (cache_home / "shards").iterdir()
    file.write_bytes(file.read_bytes()[:-7] if content is None else content)
    shards._index.cache_clear()
    np.testing.assert_array_equal(shards.samples(tar), known)


def test_an_index_that_cannot_be_kept_is_no_failure(tmp_path, monkeypatch):
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "occupied"))
    with pytest.warns(UserWarning, match="could not be written"):
        assert len(shards.samples(tars.write(tmp_path / "set.tar", samples(cls=str)))) == 12


def test_many_shards_are_indexed_in_processes(tmp_path, monkeypatch):
    files = {f"{'ab'[i % 2]}/{i:02d}.jpg": JPEG for i in range(32)}
    pattern = in_shards(tmp_path, files, count=16)
    monkeypatch.setattr("polychrome.engine.data.sets.webdataset.cpus", lambda: 2)
    images = listing.read(pattern)
    found = set(images.paths)
    assert found == {f"{i % 16:03d}.tar/{'ab'[i % 2]}/{i:02d}.jpg" for i in range(32)}


def test_a_second_scan_decodes_nothing_until_the_tar_changes(tmp_path):
    tar = tars.write(tmp_path / "set.tar", samples(cls=str))
    paths = [f"set.tar/{name}" for name in shards.names(tar)]
    assert [scan.scan(tmp_path, paths, workers=1).decoded for _ in range(2)] == [12, 0]
    os.utime(tar, ns=(1, 1))
    assert scan.scan(tmp_path, paths, workers=1).decoded == 12


def test_lists_may_name_files_in_tars(tmp_path):
    tars.write(tmp_path / "set.tar", {f"{i}.jpg": jpeg(i) for i in range(4)})
    (tmp_path / "train.txt").write_text("set.tar/0.jpg 0\nset.tar/1.jpg 1\n")
    for name in ("val", "test"):
        (tmp_path / f"{name}.txt").write_text("set.tar/2.jpg 0\nset.tar/9.jpg 1\n")
    images = scanned(tmp_path)
    assert images.splits["val"].paths == ("set.tar/2.jpg",)
    assert len(batches(images, "torch", "test")) == 2


def test_the_images_of_tars_below_a_folder_are_found(tmp_path):
    tar = tars.write(tmp_path / "deep/set.tar", {"a/0.jpg": JPEG, "b.png": JPEG})
    assert photos.below(tmp_path) == ["deep/set.tar/a/0.jpg", "deep/set.tar/b.png"]
    assert photos.below(tar) == ["set.tar/a/0.jpg", "set.tar/b.png"]
    assert len(scan.scan(tar.parent, photos.below(tar), workers=1).sizes) == 2


@pytest.mark.parametrize("backend", BOTH)
def test_a_tar_truncated_in_the_middle_of_an_epoch_loses_only_what_is_gone(tmp_path, backend):
    tar = tars.write(tmp_path / "set.tar", {f"{'ab'[i % 2]}/{i:02d}.jpg": jpeg(i) for i in range(120)})
    images, told = scanned(tar), {}
    given = {"size": 24, "batch_size": 6, "train": True, "workers": 1, "backend": backend}
    with loader.Loader(images, "train", on_fault=told.__setitem__, **given) as found:
        assert len(list(found.epoch(0))) == len(found)
        assert told == {}
        os.truncate(tar, tar.read_bytes().index(b"b/113.jpg") + 600)
        for epoch in (1, 2):
            assert [len(batch) for batch in found.epoch(epoch)] == [6] * len(found)
    gone = {path for path in images.splits["train"].paths if int(path[10:-4]) >= 113}
    assert gone
    assert set(told) == gone
    assert all("\n" not in reason for reason in told.values())
