"""The layouts in which people have labelled images: which file is in which split with which label, and what is said."""

import itertools
import json
import re
import unicodedata

import pytest

from polychrome.engine.data.sets import listing
from tests.engine.data import image_kinds
from tests.grids import grid
from tests.refusals import refusal

SEEDS = itertools.count()  # equal files would stay together
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image_kinds.encoded(image_kinds.picture(9, 8, seed=next(SEEDS)), "PNG"))


def text(folder, **contents):
    for name, content in contents.items():
        file = folder / name.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")


def numbered(folder, count, suffix="png"):
    return [f"{folder}/{i:02d}.{suffix}" for i in range(count)]


def named(images, split):
    """Return the class of each image of a split, by path."""
    chosen = images.splits[split]
    return {path: images.class_names[label] for path, label in zip(chosen.paths, chosen.labels, strict=True)}


def sizes(images):
    return {name: len(split.paths) for name, split in images.splits.items()}


def fault(*arguments, **options):
    return refusal(listing.read, *arguments, **options)


def own(images):
    return images.account.ignored.get("lists and names", 0)


@pytest.mark.parametrize("names", [("train", "valid"), ("Training", "Validation"), ("TRAIN", "dev")])
def test_without_test_half_of_each_class_of_val_is_test(tmp_path, names):
    train, val = names
    touch(tmp_path, *numbered(f"{train}/a", 9), *numbered(f"{train}/b", 9))
    touch(tmp_path, *numbered(f"{val}/a", 8), *numbered(f"{val}/b", 4))
    images = listing.read(tmp_path)
    assert sizes(images) == {"train": 18, "val": 6, "test": 6}
    assert list(named(images, "test").values()) == ["a"] * 4 + ["b"] * 2
    assert not set(images.splits["val"].paths) & set(images.splits["test"].paths)
    assert images.notes == ("no test: 6 of 12 images of val, half of each class, are test",)
    assert listing.read(tmp_path) == images
    assert listing.read(tmp_path, seed=1) != images


def test_of_classes_with_one_image_in_val_some_are_test(tmp_path):
    names = "abcdefgh"
    touch(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "val") for name in names))
    images = listing.read(tmp_path)
    assert 0 < len(images.splits["test"].paths) < len(names)


def test_without_val_a_tenth_of_each_class_of_train_is_val(tmp_path):
    touch(tmp_path, *numbered("train/a", 30), *numbered("train/b", 20), *numbered("test/a", 3), *numbered("test/b", 2))
    images = listing.read(tmp_path)
    assert sizes(images) == {"train": 45, "val": 5, "test": 5}
    assert list(named(images, "val").values()) == ["a"] * 3 + ["b"] * 2
    assert images.notes == ("no val: 5 of 50 images of train, a tenth of each class, are val",)


def test_a_class_never_loses_its_only_training_image_to_val(tmp_path):
    names = [f"c{i}" for i in range(40)]
    touch(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "test") for name in names))
    touch(tmp_path, *numbered("train/many", 20), "test/many/1.png")
    images = listing.read(tmp_path)
    assert set(images.splits["train"].labels) == set(range(41))
    assert set(named(images, "val").values()) == {"many"}


def test_train_alone_is_divided_like_class_folders(tmp_path):
    touch(tmp_path, *numbered("train/a", 10), *numbered("train/b", 10))
    assert sizes(listing.read(tmp_path)) == {"train": 16, "val": 2, "test": 2}


def test_too_few_images_to_divide_are_a_fault(tmp_path):
    touch(tmp_path, *numbered("train/a", 9), *numbered("train/b", 9), "val/a/1.png")
    assert f"val of {tmp_path} has too few images, or groups of them, to divide: give it a test" in fault(tmp_path)


def test_lists_without_test_are_completed_too(tmp_path):
    paths = numbered("x", 24)
    touch(tmp_path, *paths)
    rows = [f"{path} {i % 2}\n" for i, path in enumerate(paths)]
    text(tmp_path, train_dot_txt="".join(rows[:16]), val_dot_txt="".join(rows[16:]))
    images = listing.read(tmp_path)
    assert sizes(images) == {"train": 16, "val": 4, "test": 4}
    assert images.account.used == 24
    (tmp_path / "val.txt").unlink()
    assert sizes(listing.read(tmp_path)) == {"train": 12, "val": 2, "test": 2}


def test_a_lone_folder_is_entered_and_said(tmp_path):
    touch(tmp_path, *numbered("101_ObjectCategories/ant", 10), *numbered("101_ObjectCategories/bee", 10))
    (tmp_path / "LICENSE").write_text("free")
    images = listing.read(tmp_path)
    assert images.class_names == ("ant", "bee")
    assert sizes(images) == {"train": 16, "val": 2, "test": 2}
    assert images.notes == (
        f"the set is that in the only folder of {tmp_path}, 101_ObjectCategories/",
        "no split is given: 20 images are split 80/10/10 per class",
    )
    assert (images.account.present, images.account.used) == (21, 20)
    assert all(path.startswith("101_ObjectCategories/") for path in images.splits["test"].paths)


def test_a_lone_folder_within_a_lone_folder_may_have_lists(tmp_path):
    touch(tmp_path, *numbered("a/b/x", 6))
    rows = [f"x/{i:02d}.png {i % 2}\n" for i in range(6)]
    for split, part in zip(("train", "val", "test"), (rows[:2], rows[2:4], rows[4:]), strict=True):
        (tmp_path / f"a/b/{split}.txt").write_text("".join(part))
    images = listing.read(tmp_path)
    assert named(images, "val") == {"a/b/x/02.png": "0", "a/b/x/03.png": "1"}
    assert (images.account.used, own(images)) == (6, 3)


def test_tiny_imagenet_is_read_as_it_comes(tmp_path):
    for name in ("n01443537", "n01629819"):
        touch(tmp_path, *(f"train/{name}/images/{name}_{i}.JPEG" for i in range(5)))
        text(tmp_path, **{f"train__{name}__{name}_boxes_dot_txt": "n01443537_0.JPEG\t0\t10\t63\t58\n"})
    touch(tmp_path, *(f"val/images/val_{i}.JPEG" for i in range(8)), *(f"test/images/test_{i}.JPEG" for i in range(3)))
    rows = [f"val_{i}.JPEG\t{('n01443537', 'n01629819')[i % 2]}\t0\t32\t44\t62\n" for i in range(8)]
    (tmp_path / "val/val_annotations.txt").write_text("".join(rows))
    text(tmp_path, wnids_dot_txt="n01443537\nn01629819\n", words_dot_txt="n01443537\tgoldfish\n")
    images = listing.read(tmp_path)
    assert sizes(images) == {"train": 10, "val": 4, "test": 4}
    found = named(images, "val") | named(images, "test")
    assert found == {f"val/images/val_{i}.JPEG": ("n01443537", "n01629819")[i % 2] for i in range(8)}
    assert images.notes == (
        "labels of val/ are those of val_annotations.txt",
        "test/ has images but no labels: it is not used",
        "no test: 4 of 8 images of val, half of each class, are test",
    )
    assert images.account.ignored == {"in no split": 3, ".txt": 4, "lists and names": 1}


@pytest.mark.parametrize("where", ["", "ILSVRC/Data/CLS-LOC"])
def test_the_flat_val_of_ilsvrc_is_labelled_by_its_solution(tmp_path, where):
    root = tmp_path / where
    touch(root, *numbered("train/n01", 9, "JPEG"), *numbered("train/n02", 9, "JPEG"))
    touch(root, *(f"val/ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 9)))
    rows = [f"ILSVRC2012_val_{i:08d},n0{1 + i % 2} 85 1 499 272 n0{1 + i % 2} 1 1 2 2 \n" for i in range(1, 9)]
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    images = listing.read(root)
    assert sizes(images) == {"train": 18, "val": 4, "test": 4}
    found = named(images, "val") | named(images, "test")
    assert found == {f"val/ILSVRC2012_val_{i:08d}.JPEG": f"n0{1 + i % 2}" for i in range(1, 9)}


def test_a_flat_val_without_annotations_is_a_fault_that_says_what_is_wanted(tmp_path):
    touch(tmp_path, *numbered("train/a", 9), *numbered("train/b", 9), *numbered("val", 4))
    message = "has images but no class folders: wanted these, or val_annotations.txt, or LOC_val_solution.csv"
    assert message in fault(tmp_path)
    (tmp_path / "val/val_annotations.txt").write_text("00.png\ta\n01.png\tc\n")
    assert "class 'c' of 01.png has no folder in train" in fault(tmp_path)
    (tmp_path / "val/val_annotations.txt").write_text("00.png\ta\n01.png\tb\n")
    assert "has no label of 2 images, such as val/02.png" in fault(tmp_path)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("filename,label", "{}.png"),
        ("id,breed", "{}"),
        ("image_path;class", "images/{}.png"),
        ("Image\tSpecies", "{}.png"),
        ("file_name,width,label", "{}.png,8"),
        ("", "{}.png"),
        ("path,anything", "images\\{}.png"),
    ],
)
def test_a_table_beside_a_folder_labels_its_images(tmp_path, header, name):
    touch(tmp_path, *numbered("images", 20))
    mark = next((mark for mark in ";\t" if mark in header), ",")
    rows = [f"{name.format(f'{i:02d}')}{mark}{('ant', 'bee')[i % 2]}" for i in range(20)]
    (tmp_path / "labels.csv").write_text("\ufeff" + "\r\n".join([header, *rows] if header else rows))
    images = listing.read(tmp_path)
    assert sizes(images) == {"train": 16, "val": 2, "test": 2}
    every = {path: label for split in images.splits for path, label in named(images, split).items()}
    assert every == {f"images/{i:02d}.png": ("ant", "bee")[i % 2] for i in range(20)}
    columns = re.split(r"[,;\t]", header) if header else ["0", "1"]
    said = f"labels of labels.csv: files in the column {columns[0]}, classes in {columns[-1]}"
    drawn = "no split is given: 20 images are split 80/10/10 per class"
    assert images.notes == (said + "; not used: width" * ("width" in columns), drawn)
    assert (images.account.used, own(images)) == (20, 1)


def test_tables_of_splits_are_read_beside_their_flat_folders(tmp_path):
    touch(tmp_path, *numbered("train", 20), *numbered("test", 6))
    rows = [f"{i:02d},{i % 3}" for i in range(20)]
    text(tmp_path, train_dot_csv="\n".join(["image_id,label", *rows]), test_dot_csv="image_id\n00\n01\n")
    images = listing.read(tmp_path)
    assert sum(sizes(images).values()) == 20
    assert images.splits["train"].paths[0].startswith("train/")
    assert images.notes[0] == "test.csv has no labels: it is not used"
    text(tmp_path, test_dot_csv="image_id,label\n" + "\n".join(f"{i:02d},{i % 3}" for i in range(6)))
    images = listing.read(tmp_path)
    assert named(images, "test") == {f"test/{i:02d}.png": str(i % 3) for i in range(6)}
    assert sizes(images) == {"train": 20 - len(images.splits["val"].paths), "val": sizes(images)["val"], "test": 6}


@pytest.mark.parametrize("name", ["label", "grade"])
def test_a_column_that_the_training_has_for_something_else_is_no_label_of_the_test_images(tmp_path, name):
    touch(tmp_path, *numbered("train", 20), *numbered("test", 6))
    rows = [f"{i:02d},{i % 3}" for i in range(20)]
    text(tmp_path, train_dot_csv="\n".join([f"image,{name}", *rows]), test_dot_csv="image,fold\n00,0\n01,1\n")
    images = listing.read(tmp_path)
    assert sum(sizes(images).values()) == 20
    assert {path.partition("/")[0] for path in images.paths} == {"train"}
    assert f"test.csv has no column {name}, as train.csv has: it is not used" in images.notes
    text(tmp_path, test_dot_csv=f"{name},image\n" + "\n".join(f"{i % 3},{i:02d}" for i in range(6)))
    assert named(listing.read(tmp_path), "test") == {f"test/{i:02d}.png": str(i % 3) for i in range(6)}


@pytest.mark.parametrize("stem", ["train_labels", "trainLabels", "Train-Annotations", "training_metadata"])
def test_tables_called_after_a_split_and_labels_are_read(tmp_path, stem):
    touch(tmp_path, *numbered("train", 12), *numbered("test", 3))
    (tmp_path / f"{stem}.csv").write_text("id,label\n" + "".join(f"{i:02d},{i % 2}\n" for i in range(12)))
    images = listing.read(tmp_path)
    assert sum(sizes(images).values()) == 12
    assert {path.partition("/")[0] for path in images.paths} == {"train"}


def test_files_are_in_the_column_whose_cells_are_files(tmp_path):
    touch(tmp_path, *numbered("images", 12))
    rows = "".join(f"{100 + i},{i:02d}.png,{i % 2}\n" for i in range(12))
    text(tmp_path, labels_dot_csv=f"id,photo,label\n{rows}")
    images = listing.read(tmp_path)
    assert (images.account.used, images.account.missing) == (12, 0)
    assert images.notes[0] == "labels of labels.csv: files in the column photo, classes in label; not used: id"


def test_a_table_called_after_labels_that_has_none_is_refused_where_folders_would_be_the_classes(tmp_path):
    touch(tmp_path, *numbered("part_1", 6), *numbered("part_2", 6))
    columns = ",".join(["image_id", *(f"pixel{i}" for i in range(9))])
    text(tmp_path, labels_dot_csv=f"{columns}\n" + "00" + ",0" * 9)
    assert (
        "labels.csv has the columns image_id, pixel0, pixel1, pixel2, pixel3, pixel4, pixel5, pixel6 and 2 more: the "
        "files are in image_id, wanted a column of their labels called label"
    ) in fault(tmp_path)


SPLIT_FOLDERS = {
    "images": ("train_images", "test_images"),
    "years": ("train2017", "val2017"),
    "before": ("seg_train", "seg_test", "seg_pred"),
    "capitals": ("Final_Training", "Final_Test"),
}


@pytest.mark.parametrize("form", SPLIT_FOLDERS)
def test_folders_that_are_splits_by_their_names_are_not_taken_for_classes(tmp_path, form):
    names = SPLIT_FOLDERS[form]
    touch(tmp_path, *(path for name in names for path in numbered(name, 6)))
    text(tmp_path, boxes_dot_csv="a,b\n")
    message, first = fault(tmp_path), ", ".join(f"{name}/" for name in sorted(names[:2]))
    assert f"has {first}, which are splits by their names and would be the classes: " in message
    assert message.endswith(
        "; boxes.csv is not read: tables are called labels, annotations, metadata, or as a split, such as train"
    )
    touch(tmp_path, *(path for name in "abcd" for path in numbered(name, 6)))  # most folders are none
    assert names[0] in listing.read(tmp_path).class_names


def test_a_table_that_is_not_read_is_named_where_folders_are_the_classes(tmp_path):
    touch(tmp_path, *numbered("part_1", 6), *numbered("part_2", 6))
    text(tmp_path, HAM10000_metadata_dot_csv="image_id,dx\n")
    said = "HAM10000_metadata.csv is not read: tables are called labels, annotations, metadata, or as a split, such as"
    assert any(note.startswith(said) for note in listing.read(tmp_path).notes)


def test_a_class_called_train_beside_others_is_told_where_to_lie(tmp_path):
    touch(tmp_path, *(path for name in ("bus", "car", "train") for path in numbered(name, 6)))
    hint = "if train is a class as bus is, move the folders of all classes into a folder train/"
    assert fault(tmp_path).endswith(f"wanted one folder per class; {hint}")
    for name in ("bus", "car", "train"):
        (tmp_path / "all" / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / name).rename(tmp_path / "all" / "train" / name)
    assert listing.read(tmp_path / "all").class_names == ("bus", "car", "train")


def test_files_of_kinds_that_are_not_read_are_counted_where_there_is_nothing_else(tmp_path):
    (tmp_path / "scene.mat").write_bytes(b"MATLAB 5.0")
    assert fault(tmp_path).endswith("nor parquet; not read are 1 .mat")


def test_a_column_of_splits_divides_a_table(tmp_path):
    touch(tmp_path, *numbered("images", 12))
    splits = ["train"] * 6 + ["valid"] * 3 + ["test"] * 3
    rows = [f"{i:02d}.png,{'ab'[i % 2]},{split}" for i, split in enumerate(splits)]
    text(tmp_path, metadata_dot_csv="\n".join(["file_name,label,split", *rows]))
    images = listing.read(tmp_path)
    assert sizes(images) == {"train": 6, "val": 3, "test": 3}
    text(tmp_path, metadata_dot_csv="\n".join(["file_name,label,split", *rows, "00.png,a,fold1"]))
    assert "metadata.csv:14: wanted a split such as train, val or test, got 'fold1'" in fault(tmp_path)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_hugging_face_folders_with_metadata_are_read(tmp_path, suffix):
    for split, count in (("train", 8), ("validation", 4), ("test", 4)):
        touch(tmp_path, *numbered(split, count))
        rows = [{"file_name": f"{i:02d}.png", "label": ("cat", "dog")[i % 2]} for i in range(count)]
        lines = [json.dumps(row) for row in rows]
        if suffix == "csv":
            lines = ["file_name,label", *(",".join(row.values()) for row in rows)]
        (tmp_path / split / f"metadata.{suffix}").write_text("\n".join(lines))
    images = listing.read(tmp_path)
    assert sizes(images) == {"train": 8, "val": 4, "test": 4}
    assert named(images, "val") == {f"validation/{i:02d}.png": ("cat", "dog")[i % 2] for i in range(4)}


def test_faults_in_tables_name_file_and_line(tmp_path):
    touch(tmp_path, *numbered("images", 9), "other/00.png")
    for content, message in (
        ("filename,label\n00.png,a\n", "labels.csv:2: '00.png' may be images/00.png or other/00.png: wanted a path"),
        ("filename,label\nimages/00.png,\n", "labels.csv:2: wanted a file and a label, got 'images/00.png,'"),
        ("filename,label\n../00.png,a\n", "labels.csv:2: path leaves the data folder: '../00.png'"),
        ("filename,label\n/etc/x.png,a\n", "labels.csv:2: path must be relative to"),
        ("", "labels.csv is empty: wanted a line of columns such as filename,label"),
    ):
        text(tmp_path, labels_dot_csv=content)
        assert message in fault(tmp_path)


def test_a_table_of_two_columns_of_unknown_names_has_a_header_only_where_its_first_row_names_no_file(tmp_path):
    touch(tmp_path, *numbered("images", 12))
    rows = [f"{i:02d}.png,{'ab'[i % 2]}" for i in range(12)]
    for first in ([], ["picture,kind"]):
        text(tmp_path, labels_dot_csv="\n".join([*first, *rows]))
        images = listing.read(tmp_path)
        assert images.class_names == ("a", "b")
        assert (images.account.used, images.account.missing) == (12, 0)
    drawn = "no split is given: 12 images are split 80/10/10 per class"
    assert images.notes == ("labels of labels.csv: files in the column picture, classes in kind", drawn)
    text(tmp_path, labels_dot_csv="license,author\nfree,me\n")
    assert "labels.csv has the columns license, author: wanted filename and label" in fault(tmp_path)


def test_rows_that_repeat_a_file_and_its_label_are_taken_once_and_said(tmp_path):
    """As in tables of boxes, with a row for each object in an image."""
    touch(tmp_path, *numbered("images", 12))
    rows = [f"{i:02d}.png,{'ab'[i % 2]},{box}" for i in range(12) for box in range(3)]
    text(tmp_path, annotations_dot_csv="\n".join(["filename,class,xmin", *rows]))
    images = listing.read(tmp_path)
    assert sum(sizes(images).values()) == 12
    assert images.notes[1] == "24 rows of annotations.csv repeat a file and its label: taken once"


def test_a_table_without_labels_does_not_hide_the_folders(tmp_path):
    touch(tmp_path, *numbered("ant", 10), *numbered("bee", 10))
    text(tmp_path, metadata_dot_csv="license,author,year\nfree,me,2020\n")
    assert listing.read(tmp_path).class_names == ("ant", "bee")
    for path in numbered("bee", 10):
        (tmp_path / path).unlink()
    (tmp_path / "bee").rmdir()
    assert "metadata.csv has the columns license, author, year: wanted filename and label" in fault(tmp_path)


def test_a_file_that_a_table_names_and_that_is_nowhere_counts_as_missing(tmp_path):
    touch(tmp_path, *numbered("images", 20))
    rows = [f"{i:02d}.png,{'ab'[i % 2]}" for i in range(22)]
    text(tmp_path, labels_dot_csv="\n".join(["filename,label", *rows]))
    assert (listing.read(tmp_path).account.missing, listing.read(tmp_path).account.used) == (2, 22)


def test_lists_with_backslashes_and_other_forms_of_unicode_find_their_files(tmp_path):
    touch(tmp_path, "cats/1.png", f"{DECOMPOSED}/2.png", "cats/3.png")
    text(tmp_path, train_dot_txt=f"cats\\1.png 0\n{COMPOSED}/2.png 1\n", val_dot_txt="cats/3.png 0\n")
    text(tmp_path, test_dot_txt="cats/3.png 0\n")
    images = listing.read(tmp_path)
    assert images.splits["train"].paths == ("cats/1.png", f"{DECOMPOSED}/2.png")
    said = "2 paths of the lists have backslashes or another form of Unicode, such as cats\\1.png"
    assert images.notes == (said,)
    assert (images.account.missing, images.account.used) == (0, 3)


def test_a_table_whose_labels_are_none_is_told_to_go_before_class_folders(tmp_path):
    paths = [*numbered("cat", 6), *numbered("dog", 6)]
    touch(tmp_path, *paths)
    text(tmp_path, metadata_dot_csv="image,target\n" + "".join(f"{path},{10 * i}\n" for i, path in enumerate(paths)))
    assert fault(tmp_path).endswith(
        "as 12 classes are found in metadata.csv, column target; wanted labels without gaps, or names (metadata.csv "
        f"goes before the folders of {tmp_path}: remove it, if these are the classes)"
    )
    (tmp_path / "metadata.csv").unlink()
    assert listing.read(tmp_path).class_names == ("cat", "dog")


@pytest.mark.parametrize("place", ["", "only/", "train/"])
@pytest.mark.parametrize("header", ["file_name,width\n", "picture,caption\n", ""])
def test_a_column_that_is_left_over_does_not_go_before_class_folders(tmp_path, place, header):
    paths = [f"{place}{path}" for path in (*numbered("cat", 6), *numbered("dog", 6))]
    touch(tmp_path, *paths)
    rows = "".join(f"{path},{10 * i}\n" for i, path in enumerate(paths))
    text(tmp_path, metadata_dot_csv=header + rows)
    images = listing.read(tmp_path)
    assert images.class_names == ("cat", "dog")
    assert sum(sizes(images).values()) == 12
    columns = header.strip().replace(",", ", ") or "0, 1"
    said = (
        f"{tmp_path / 'metadata.csv'} has the columns {columns}: wanted filename and label; the folders are the classes"
    )
    assert images.notes[0] == said
    (tmp_path / "metadata.csv").rename(tmp_path / "labels.csv")  # by its name the column has labels
    assert "12 classes are found in labels.csv" in fault(tmp_path)
    (tmp_path / "labels.csv").unlink()
    text(tmp_path, metadata_dot_csv=f"file_name,label\n{rows}")
    assert "12 classes are found in metadata.csv" in fault(tmp_path)


def test_a_column_that_is_left_over_labels_images_that_are_in_no_folders_of_classes(tmp_path):
    """As in competitions: train.csv beside train_images/ and test_images/."""
    touch(tmp_path, *numbered("train_images", 12), *(f"test_images/9{i}.png" for i in range(5)))
    text(tmp_path, train_dot_csv="id_code,diagnosis\n" + "".join(f"{i:02d},{i % 3}\n" for i in range(12)))
    images = listing.read(tmp_path)
    assert images.class_names == ("0", "1", "2")
    assert sum(sizes(images).values()) == 12


def test_labels_from_one_name_their_classes_and_are_said(tmp_path):
    text(tmp_path, train_dot_txt="a.png 1\nb.png 2\nc.png 3\n", val_dot_txt="d.png 1\n", test_dot_txt="e.png 3\n")
    images = listing.read(tmp_path)
    assert images.splits["train"].labels == (0, 1, 2)
    assert (images.splits["val"].labels, images.splits["test"].labels) == ((0,), (2,))
    assert images.class_names == ("1", "2", "3")
    assert images.notes == ("labels are 1..3; predictions/ and evaluation/ number the classes from 0",)
    more = listing.read(tmp_path, num_classes=4)
    assert (more.splits["train"].labels, more.class_names) == ((1, 2, 3), ("0", "1", "2", "3"))
    text(tmp_path, classes_dot_txt="x\ny\n")
    part = listing.read(tmp_path, num_classes=3)
    assert (part.splits["train"].labels, part.class_names) == ((0, 1, 2), ("x", "y", "3"))
    text(tmp_path, classes_dot_txt="x\ny\nz\n")
    named = listing.read(tmp_path)
    assert (named.splits["train"].labels, named.class_names) == ((0, 1, 2), ("x", "y", "z"))


def test_class_names_that_are_numbers_are_in_their_order(tmp_path):
    touch(tmp_path, *(path for i in (10, 9, 2, 1) for path in numbered(str(i), 3)))
    assert listing.read(tmp_path).class_names == ("1", "2", "9", "10")
    touch(tmp_path, *numbered("x", 3))
    assert listing.read(tmp_path).class_names == ("1", "10", "2", "9", "x")


def test_folders_of_one_class_in_two_forms_of_unicode_are_one_class(tmp_path):
    touch(tmp_path, *numbered(f"train/{COMPOSED}", 3), *numbered("train/tea", 3))
    touch(tmp_path, *numbered(f"val/{DECOMPOSED}", 3), *numbered(f"test/{DECOMPOSED}", 3))
    images = listing.read(tmp_path)
    assert images.class_names == (COMPOSED, "tea")
    assert set(images.splits["val"].labels) == {0}
    touch(tmp_path, f"train/{DECOMPOSED}/9.png")
    assert "two folders in" in fault(tmp_path)
    assert "have one name in different forms of Unicode" in fault(tmp_path)


@pytest.mark.parametrize("out", ["runs", "train", "cat", "cat/deeper", "."])
@pytest.mark.parametrize("form", ["folders", "split folders", "a lone folder", "table", "lists"])
def test_runs_within_the_data_are_passed_over_in_every_layout(tmp_path, form, out):
    names = ("cat", "dog")
    inside = {"a lone folder": "set/", "split folders": "train/"}.get(form, "")
    paths = [path for name in names for path in numbered(f"{inside}{name}", 10)]
    touch(tmp_path, *paths)
    if form == "table":
        rows = (f"{path},{path.split('/')[0]}\n" for path in paths)
        (tmp_path / "labels.csv").write_text("file,label\n" + "".join(rows))
    if form == "lists":
        (tmp_path / "train.txt").write_text("".join(f"{path} {number % 2}\n" for number, path in enumerate(paths)))
    before = listing.read(tmp_path)
    for name in ("one", "two"):
        written = (
            "config.toml",
            "results.json",
            "plots/a.png",
            "train.txt",
            "labels.csv",
            "packed.tar",
            "rows.parquet",
        )
        touch(tmp_path / out / "task1" / name, *written)
        after = listing.read(tmp_path)
        assert (after.class_names, after.splits, after.notes) == (before.class_names, before.splits, before.notes)
    assert len(listing.every_image(tmp_path).splits["all"].paths) == 20
    assert after.account.ignored["of a run"] == 2 * len(written)
    assert after.account.present == before.account.present + 2 * len(written)


SPLIT_NAMES = {"train": ("train", "Training", "training_set", "trainset"), "val": ("val", "valid", "dev", "val set")}


def row_of(split, name):
    """Return the cells of the columns `columns_of` that say a row's split."""
    return {
        "is_valid": str(split == "val"),
        "is_test": "01"[split == "test"],
        "is_val": "yes" if split == "val" else "",
    }[name]


@grid(form=("lists", "folders", "table of names", "tables"), train=SPLIT_NAMES["train"], val=SPLIT_NAMES["val"])
def test_a_split_has_the_same_names_in_every_form(tmp_path, form, train, val):
    wanted = {"train": 6, "val": 4, "test": 2}
    names = {"train": train, "val": val, "test": "testing"}
    files = {
        split: [f"{names[split] if form == 'folders' else 'x'}/{'ab'[i % 2]}/{split}{i}.png" for i in range(count)]
        for split, count in wanted.items()
    }
    touch(tmp_path, *(path for paths in files.values() for path in paths))
    rows = {split: [f"{path},{path.split('/')[1]}" for path in paths] for split, paths in files.items()}
    if form == "lists":
        for split, paths in files.items():
            lines = (f"{path} {i % 2}" for i, path in enumerate(paths))
            (tmp_path / f"{names[split]}.txt").write_text("\n".join(lines))
    elif form == "tables":
        for split in files:
            (tmp_path / f"{names[split]}.csv").write_text("\n".join(["file,label", *rows[split]]))
    elif form == "table of names":
        lines = [f"{row},{names[split]}" for split in files for row in rows[split]]
        (tmp_path / "labels.csv").write_text("\n".join(["file,label,split", *lines]))
    images = listing.read(tmp_path)
    assert sizes(images) == wanted
    assert {split: set(images.splits[split].paths) for split in wanted} == {s: set(p) for s, p in files.items()}


@pytest.mark.parametrize("columns", [("is_valid",), ("is_test",), ("is_valid", "is_test"), ("is_val", "is_test")])
@pytest.mark.parametrize("file", ["filename", "fname"])
def test_flags_divide_a_table_and_unused_columns_are_named(tmp_path, columns, file):
    paths = numbered("x", 40)
    touch(tmp_path, *paths)
    places = {path: ("train", "train", "val", "test")[i // 2 % 4] for i, path in enumerate(paths)}
    rows = [
        ",".join([path, "ab"[i % 2], str(i % 5), *(row_of(places[path], column) for column in columns)])
        for i, path in enumerate(paths)
    ]
    text(tmp_path, labels_dot_csv="\n".join([",".join([file, "label", "fold", *columns]), *rows]))
    images = listing.read(tmp_path)
    said = (
        f"labels of labels.csv: files in the column {file}, classes in label, splits in {' and '.join(sorted(columns))}"
    )
    assert images.notes[0] == f"{said}; not used: fold"
    found = {path: split for split, rows in images.splits.items() for path in rows.paths}
    if len(columns) == 2:
        assert found == places
    else:  # what is not there is made of the other
        whole, part = ("test",) * 2 if columns == ("is_test",) else ("val", "test")
        assert {path for path in paths if found[path] in (whole, part)} == {
            path for path in paths if places[path] == whole
        }
    text(tmp_path, labels_dot_csv=f"{file},label,{columns[0]}\nx/00.png,a,maybe\n")
    assert "labels.csv:2: wanted true or false for the split" in fault(tmp_path)


@pytest.mark.parametrize(
    "names", [("train_images", "test_images"), ("training-data", "validation-data"), ("train1", "test1")]
)
def test_folders_that_look_like_splits_of_the_same_classes_are_no_classes(tmp_path, names):
    touch(tmp_path, *(path for name in names for kind in "ab" for path in numbered(f"{name}/{kind}", 4)))
    assert "with the same folders inside: name the splits train/, val/ and test/" in fault(tmp_path)
    touch(tmp_path, *numbered("other/a", 4))
    assert "which are splits by their names and would be the classes" in fault(tmp_path)
    touch(tmp_path, *numbered("another/a", 4), *numbered("third/a", 4))
    assert len(listing.read(tmp_path).class_names) == 5
