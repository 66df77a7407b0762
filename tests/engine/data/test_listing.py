import re
import subprocess
import sys

import pytest

from polychrome.engine.data import image_set
from polychrome.engine.data.sets import listing, scan
from polychrome.engine.data.sets.layouts.labelled import Known
from polychrome.engine.errors import UserError
from tests.engine.data import image_kinds, photos
from tests.refusals import refusal

LISTS = {"train.txt": "a.jpg 0\nb.jpg 1\n", "val.txt": "c.jpg 0\n", "test.txt": "d.jpg 1\n"}


def write(folder, **contents):
    for name, text in (LISTS | {f"{name}.txt": text for name, text in contents.items()}).items():
        if text is not None:
            (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def fault(*arguments, **options):
    return refusal(listing.read, *arguments, **options)


def test_list_files_are_read_in_order(tmp_path):
    images = listing.read(write(tmp_path))
    assert images.root == tmp_path
    assert images.splits["train"] == image_set.Split(("a.jpg", "b.jpg"), (0, 1))
    assert images.splits["val"] == image_set.Split(("c.jpg",), (0,))
    assert images.splits["test"] == image_set.Split(("d.jpg",), (1,))
    assert images.class_names == ("0", "1")


def test_spaces_line_ends_marks_and_other_scripts_are_fine(tmp_path):
    text = "\ufeffmy dir/two  spaces.JPEG 0\r\n\r\nnaïve/日本 語.png\t1\r\n  \r\nodd\u2028name 3.jpg   1"
    images = listing.read(write(tmp_path, train=text))
    assert images.splits["train"].paths == ("my dir/two  spaces.JPEG", "naïve/日本 語.png", "odd\u2028name 3.jpg")
    assert images.splits["train"].labels == (0, 1, 1)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("0\tn01\thouse finch, linnet\n1\tn02\ttriceratops\n", ("house finch", "triceratops")),
        ("house finch, linnet\r\ntriceratops\r\n", ("house finch, linnet", "triceratops")),
        ("bear, brown\nbear, black\n", ("bear, brown", "bear, black")),
        ("0\tbear, brown\n1\tbear, black\n", ("bear, brown", "bear, black")),
        ("0\tmaillot\n1\tn02\tmaillot, tank suit\n", ("maillot", "maillot, tank suit")),
        ("0\t, brown\n1\tbear\n", (", brown", "bear")),
    ],
)
def test_class_names_are_whole_lines_or_the_first_of_imagenets_words(tmp_path, text, names):
    images = listing.read(write(tmp_path, classes=text))
    assert images.class_names == names
    assert images.notes == ()


@pytest.mark.parametrize(
    ("text", "count", "told"),
    [
        ("crane\ncrane\n", None, "classes 0 and 1, counted from 0, are both called 'crane'"),
        ("0\tcrane\n1\tn02\tcrane\n", None, "classes 0 and 1, counted from 0, are both called 'crane'"),
        ("3\n2\n", 4, "classes 1 and 2, counted from 0, are both called '2' (and 1 more)"),
    ],
)
def test_classes_of_one_name_are_told(tmp_path, text, count, told):
    images = listing.read(write(tmp_path, classes=text), num_classes=count)
    assert images.notes == (f"{told}: have classes.txt tell them apart",)


def test_a_given_number_of_classes_wins(tmp_path):
    assert listing.read(write(tmp_path, classes="x\ny\n"), num_classes=4).class_names == ("x", "y", "2", "3")


@pytest.mark.parametrize(
    ("lists", "options", "message"),
    [
        ({"train": "a.jpg 0\nb.jpg 2\n"}, {}, r"train.txt:2: label 2 is outside 0..1, as 2 classes are found in train"),
        ({"val": "c.jpg 5\n"}, {}, r"val.txt:1: label 5 is outside 0..1"),
        ({"test": "c.jpg -1\n"}, {}, r"test.txt:1: label -1 is outside 0..1"),
        ({"classes": "only\n"}, {}, r"train.txt:2: label 1 is outside 0..0, as 1 classes are named in classes.txt"),
        ({}, {"num_classes": 1}, r"train.txt:2: label 1 is outside 0..0, as 1 classes are asked for"),
        ({"train": "a.jpg 0\nb.jpg one\n"}, {}, r"train.txt:2: label must be a whole number, got 'one'"),
        ({"train": "a.jpg 0.5\n"}, {}, r"train.txt:1: label must be a whole number, got '0.5'"),
        ({"train": "a.jpg\n"}, {}, r"train.txt:1: wanted `path label`, got 'a.jpg'"),
        ({"train": "a.jpg 0\n\n/etc/x.jpg 0\n"}, {}, r"train.txt:3: path must be relative to .*, got '/etc/x.jpg'"),
        ({"train": "C:\\x.jpg 0\n"}, {}, r"train.txt:1: path must be relative"),
        ({"train": "a/../../x.jpg 0\n"}, {}, r"train.txt:1: path leaves the data folder: 'a/../../x.jpg'"),
        ({"val": "\r\n \n"}, {}, r"val.txt lists no images"),
        ({"train": None}, {}, r"no train.txt in .*: wanted train.txt, val.txt and test.txt"),
        ({"train": b"\xff\xfea"}, {}, r"train.txt is not UTF-8 text: byte 0 is 0xff"),
        ({"classes": "0\ta\tb\n2\tc\td\n"}, {}, r"classes.txt:2: wanted label 1, got '2'"),
        ({"classes": ""}, {}, r"classes.txt names no classes"),
    ],
)
def test_faults_in_lists_name_file_and_line(tmp_path, lists, options, message):
    assert re.search(message, fault(write(tmp_path, **lists), **options))


def test_missing_folder_and_missing_forms_are_faults(tmp_path):
    assert "no data folder at" in fault(tmp_path / "none")
    assert "has neither train.txt, val.txt and test.txt nor train/" in fault(tmp_path)
    (tmp_path / "file").write_text("x")
    assert "no data folder at" in fault(tmp_path / "file")


@pytest.mark.parametrize("name", ["photos.zip", "photos.7Z", "photos.tar.zip"])
def test_archives_are_to_be_unpacked(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\3\4")
    told = f"{tmp_path / name}: it is an archive: unpack it"
    if not name.endswith(".tar.zip"):
        assert fault(tmp_path / name) == f"no data folder at {told}"
    with pytest.raises(UserError, match=re.escape(told)):
        listing.every_image(tmp_path / name)
    report = scan.scan(tmp_path, [name], workers=1, cache=False)
    assert [item.reason for item in report.rejected] == ["an archive, such as .zip or .npz: unpack it"]


@pytest.mark.parametrize("place", ["", "set/"])
@pytest.mark.parametrize("name", ["data.csv", "Index.jsonl"])
def test_a_table_that_is_passed_over_is_named(tmp_path, place, name):
    touch(tmp_path, *(f"{place}images/{i}.png" for i in range(4)))
    names = "; {} is not read: tables are called labels, annotations, metadata, or as a split, such as train"
    for other in ("channels.csv", "notes.md", ".x.csv"):
        (tmp_path / place / other).write_text("images,a\n")
    assert fault(tmp_path) == f"{tmp_path} has one class: wanted at least 2"
    (tmp_path / place / name).write_text("file,label\n0.png,a\n")
    assert fault(tmp_path) == f"{tmp_path} has one class: wanted at least 2{names.format(place + name)}"
    for path in sorted((tmp_path / place / "images").iterdir()):
        path.rename(tmp_path / path.name)
    (tmp_path / place / "images").rmdir()
    if not place:
        assert fault(tmp_path).endswith(f"nor tars nor parquet{names.format(name)}")


@pytest.mark.parametrize(
    ("file", "head", "line"), [("train.txt", "", "{} {}\n"), ("labels.csv", "file,y\n", "{},{}\n")]
)
def test_absolute_paths_within_the_folder_are_read(tmp_path, monkeypatch, file, head, line):
    root, link = tmp_path / "set", tmp_path / "link"
    link.symlink_to(root)
    monkeypatch.chdir(tmp_path)
    touch(root, "x/a.png", "x/b.png")
    for given, base in ((root, root), (link, root), (link, link), ("set", root)):
        rows = (line.format(f"{base}/x/{name}.png", label) for name, label in ("a1", "b0"))
        (root / file).write_text(head + "".join(rows))
        images = listing.undivided(given, Known(("0", "1"), 0))
        assert images.splits["test"] == image_set.Split(("x/a.png", "x/b.png"), (1, 0))
        assert (images.account.missing, len(images.notes)) == (0, 1 + bool(head))
    for path in (f"{root}/../link/x/a.png", f"{tmp_path}/other/a.png", f"{root}x/a.png"):
        (root / file).write_text(head + line.format(path, 0))
        assert re.search(":[12]: path (must be relative to|leaves the data folder)", fault(root))


def test_a_path_within_the_folder_may_turn_back(tmp_path):
    assert listing.read(write(tmp_path, train="x/../a.jpg 0\nb.jpg 1\n")).splits["train"].paths[0] == "x/../a.jpg"


def test_split_folders_are_sorted_and_known_suffixes_listed(tmp_path):
    touch(tmp_path, "train/dog/2.JPG", "train/dog/1.gif", "train/dog/notes.txt", "train/ant/ü x.webp")
    touch(tmp_path, "train/dog/._2.JPG", "val/dog/1.png", "test/ant/1.Tiff")
    images = listing.read(tmp_path)
    assert images.class_names == ("ant", "dog")
    paths = ("train/ant/ü x.webp", "train/dog/1.gif", "train/dog/2.JPG")
    assert images.splits["train"] == image_set.Split(paths, (0, 1, 1))
    assert images.splits["val"] == image_set.Split(("val/dog/1.png",), (1,))


def test_faults_in_split_folders(tmp_path):
    touch(tmp_path, "train/ant/1.jpg", "train/dog/1.jpg", "val/ant/1.jpg", "test/ant/1.jpg")
    assert "2 class folders in" in fault(tmp_path, num_classes=3)
    (tmp_path / "train/cow").mkdir()
    assert "no images of class 'cow' in" in fault(tmp_path)
    touch(tmp_path, "train/cow/1.jpg", "val/elk/1.jpg")
    assert re.search("class 'elk' is in .*val but not in .*train", fault(tmp_path))
    (tmp_path / "val/elk/1.jpg").unlink()
    (tmp_path / "val/elk").rmdir()
    (tmp_path / "val/ant/1.jpg").unlink()
    assert "no images in the class folders of" in fault(tmp_path)


def test_without_a_train_folder_there_is_nothing_to_train_on(tmp_path):
    touch(tmp_path, "test/ant/1.jpg", "val/ant/1.jpg")
    assert re.search("no train/ in .*: wanted train/, val/ and test/", fault(tmp_path))


def test_class_folders_are_split_eight_to_one_to_one_by_seed(tmp_path):
    touch(tmp_path, *(f"{name}/{i:02d}.jpg" for name in ("b", "a") for i in range(20)))
    images = listing.read(tmp_path, seed=3)
    assert images.class_names == ("a", "b")
    assert {name: len(split.paths) for name, split in images.splits.items()} == {"train": 32, "val": 4, "test": 4}
    assert images.splits["val"].labels == (0, 0, 1, 1)
    every = sorted(path for split in images.splits.values() for path in split.paths)
    assert every == sorted(f"{name}/{i:02d}.jpg" for name in "ab" for i in range(20))
    assert listing.read(tmp_path, seed=3) == images
    assert listing.read(tmp_path, seed=4) != images


def test_a_class_too_small_to_split_is_a_fault(tmp_path):
    touch(tmp_path, "a/1.jpg", "a/2.jpg")
    assert re.search("2 images of class 'a' in .*: wanted at least 3", fault(tmp_path))


def test_a_class_folder_without_images_is_a_fault(tmp_path):
    touch(tmp_path, *(f"a/{i}.jpg" for i in range(5)), "b/notes.txt")
    assert re.search("0 images of class 'b' in .*: wanted at least 3", fault(tmp_path))
    for number, suffix in enumerate(("npz", "npz", "dcm")):
        (tmp_path / f"b/{number}.{suffix}").write_bytes(b"data")
    assert fault(tmp_path).endswith(
        "wanted at least 3, for train, val and test; not read are 2 .npz, 1 .dcm, 1 .txt in b/"
    )


def test_arrays_are_listed_as_images_are(tmp_path):
    touch(tmp_path, *(f"{name}/{i}.npy" for name in ("a", "b") for i in range(3)))
    assert listing.read(tmp_path).splits["train"].paths[0].endswith(".npy")
    assert len(photos.below(tmp_path)) == 6


def test_listing_and_scanning_need_no_torch():
    code = "import sys; from engine.data.sets import scan; print({'torch', 'nvidia', 'PIL'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_every_image_is_one_with_the_suffix_or_the_first_bytes_of_an_image(tmp_path):
    touch(tmp_path, "a.jpg", "deep/x.PNG", "deep/notes.md", "deep/.hidden/y.png", "Thumbs.db")
    (tmp_path / "deep/scan_0007").write_bytes(image_kinds.encoded(image_kinds.picture(), "PNG"))
    (tmp_path / "deep/set.tar").write_bytes(b"P5 1 is the name of its first member")
    assert photos.below(tmp_path) == ["a.jpg", "deep/scan_0007", "deep/x.PNG"]


def test_files_that_are_no_images_are_counted_where_there_is_no_image(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.mat").write_bytes(b"MATLAB 5.0")
    (tmp_path / "x.hdr").write_text("ENVI")
    with pytest.raises(UserError, match=r"has no images: wanted .*; not read are 3 \.mat, 1 \.hdr$"):
        listing.every_image(tmp_path)


@pytest.mark.parametrize(("folder", "message"), [("none", "no such folder"), ("", "has no images: wanted .apng .avif")])
def test_every_image_needs_a_folder_with_images(tmp_path, folder, message):
    with pytest.raises(UserError, match=message):
        photos.below(tmp_path / folder)
