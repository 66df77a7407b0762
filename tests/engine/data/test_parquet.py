"""Parquet files with a column of images: rows become images with their bytes and labels, or a message."""

import io
import json
import os

import numpy as np
import pytest

from polychrome.engine.data.files import decode, shards
from polychrome.engine.data.sets import listing, scan
from polychrome.engine.data.sets.layouts.labelled import Known
from tests.engine.data import image_kinds, tars
from tests.refusals import refusal

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def photo(seed, form="PNG"):
    return image_kinds.encoded(image_kinds.picture(9, 8, seed=seed), form)


def described(names):
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def write(file, labels, names=None, image="image", label="label", first=0, struct=True, **more):
    """Write a file with a photo for each label."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = [photo(first + number, "JPEG" if number % 2 else "PNG") for number in range(len(labels))]
    images = [{"bytes": each, "path": f"{number}.png"} for number, each in enumerate(content)] if struct else content
    table = pa.table({image: images, label: labels} | more)
    if names:
        table = table.replace_schema_metadata(described(names))
    parquet.write_table(table, file, row_group_size=5)
    return content


def opened(root, **options):
    images = listing.read(root, **options)
    paths = [path for split in images.splits.values() for path in split.paths]
    return scan.apply(images, scan.scan(images.root, paths, workers=1, cache=False))


def fault(*arguments, **options):
    return refusal(listing.read, *arguments, **options)


def test_splits_classes_bytes_and_labels_of_hugging_faces_files_are_read(tmp_path):
    names = ["zebra, plains", "zebra, mountain"]
    written = {}
    for number, (name, count) in enumerate((("train-00000-of-00002", 7), ("train-00001-of-00002", 6))):
        written[f"train-{name}"] = write(
            tmp_path / f"data/{name}.parquet", [0, 1] * (count // 2) + [1] * (count % 2), names, first=20 * number
        )
    written["val-validation-0"] = write(tmp_path / "data/validation-0.parquet", [1, 0, 0], names, first=50)
    written["test-test-0"] = write(tmp_path / "data/test-0.parquet", [0, 1], names, first=60)
    (tmp_path / "README.md").write_text("a card")
    images = opened(tmp_path)
    assert images.class_names == tuple(names)
    assert [len(split.paths) for split in images.splits.values()] == [13, 3, 2]
    for split in images.splits.values():
        for path, label in zip(split.paths, split.labels, strict=True):
            tar, _, member = path.partition(".tar/")
            number = int(member[:9])
            content = written[tar][number]
            assert shards.read_bytes(images.root / path) == content
            own = {"train-train-00000-of-00002": [0, 1] * 3 + [1], "train-train-00001-of-00002": [0, 1] * 3}
            wanted = own.get(tar, [1, 0, 0] if split.paths == images.splits["val"].paths else [0, 1])
            assert label == wanted[number]
    assert images.account.used == 18
    assert images.account.ignored == {"labels": 18, ".md": 1}
    assert images.notes[0].startswith("parquet files are unpacked in ")


def test_a_single_file_of_plain_bytes_with_named_classes_is_divided(tmp_path):
    content = write(tmp_path / "all.parquet", ["b", "a"] * 10, image="img", struct=False)
    images = opened(tmp_path / "all.parquet")
    assert images.class_names == ("a", "b")
    assert [len(split.paths) for split in images.splits.values()] == [16, 2, 2]
    pixels = {decode.rgb(shards.opened(images.root / path)).tobytes() for path in images.splits["train"].paths}
    assert len(pixels) == 16
    assert len(content) == 20


def test_a_file_is_unpacked_once_until_it_changes(tmp_path, cache_home):
    write(tmp_path / "all.parquet", [0, 1] * 6)
    first = listing.read(tmp_path)
    folders = list((cache_home / "parquet").iterdir())
    stamp = folders[0].stat().st_mtime_ns
    assert listing.read(tmp_path).splits == first.splits
    assert folders[0].stat().st_mtime_ns == stamp
    write(tmp_path / "all.parquet", [0, 1] * 7)
    assert sum(len(split.paths) for split in listing.read(tmp_path).splits.values()) == 14
    assert len(list((cache_home / "parquet").iterdir())) == 2


@pytest.mark.parametrize(
    "names",
    [("train/0", "valid/0", "test/0"), ("cifar10_train", "cifar10_val", "cifar10_test"), ("Train", "Dev", "Test")],
    ids=lambda names: names[0],
)
def test_splits_are_told_by_folders_and_any_word_of_a_name(tmp_path, names):
    for number, name in enumerate(names):
        write(tmp_path / f"{name}.parquet", [0, 1] * (3 + number), first=20 * number)
    assert [len(split.paths) for split in opened(tmp_path).splits.values()] == [6, 8, 10]


def test_a_file_in_the_place_of_another_of_its_size_and_time_is_unpacked(tmp_path):
    file = tmp_path / "all.parquet"
    write(file, [0, 1] * 6)
    before, state = listing.read(tmp_path), file.stat()
    write(tmp_path / "other", [1, 0] * 6)
    os.utime(tmp_path / "other", ns=(state.st_atime_ns, state.st_mtime_ns))
    os.replace(tmp_path / "other", file)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    own, others = (
        {
            path.rpartition("/")[2]: label
            for split in images.splits.values()
            for path, label in zip(split.paths, split.labels, strict=True)
        }
        for images in (before, listing.read(tmp_path))
    )
    assert others == {path: 1 - label for path, label in own.items()}


def test_a_split_without_labels_is_left_out_with_a_line(tmp_path):
    write(tmp_path / "train-0.parquet", [0, 1] * 10)
    write(tmp_path / "test-0.parquet", [-1, -1, -1])
    images = opened(tmp_path)
    assert sum(len(split.paths) for split in images.splits.values()) == 20
    assert any("test-0.parquet has no labels: it is not used" in note for note in images.notes)


def test_rows_without_an_image_are_rejected_by_the_scan(tmp_path):
    images = [{"bytes": photo(number), "path": None} for number in range(9)] + [None, {"bytes": None, "path": "x"}]
    images += [{"bytes": b"no image", "path": "y"}]
    parquet.write_table(pa.table({"image": images, "label": [0, 1] * 6}), tmp_path / "all.parquet")
    found = listing.read(tmp_path)
    paths = [path for split in found.splits.values() for path in split.paths]
    rejected = {item.path[-13:]: item.reason for item in scan.scan(found.root, paths, workers=1, cache=False).rejected}
    assert rejected.keys() == {"000000009.jpg", "000000010.jpg", "000000011.jpg"}
    assert rejected["000000009.jpg"] == "empty file"
    assert rejected["000000011.jpg"].startswith("not an image")


def test_a_file_that_holds_paths_alone_is_refused(tmp_path):
    images = [{"bytes": None, "path": f"/data/{number}.jpg"} for number in range(12)]
    table = pa.table({"image": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()}))})
    parquet.write_table(table.append_column("label", [[0, 1] * 6]), tmp_path / "all.parquet")
    assert fault(tmp_path) == (
        f"{tmp_path / 'all.parquet'}: no row of column image has bytes, maybe paths alone: wanted encoded images"
    )


def test_of_two_columns_of_labels_the_first_is_taken_and_the_other_named(tmp_path):
    names = {"fine": {"names": ["a", "b"]}, "coarse": {"names": ["c", "d"]}}
    table = pa.table({"img": [photo(i) for i in range(12)], "fine": [0, 1] * 6, "coarse": [0] * 12})
    metadata = {b"huggingface": json.dumps({"info": {"features": names}}).encode()}
    parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "train.parquet")
    images = listing.read(tmp_path)
    assert images.class_names == ("a", "b")
    assert "labels are those of the column fine, not of coarse" in images.notes


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": ["a.png"], "label": [0]}, "has columns image, label: wanted one column of encoded images"),
        ({"a": [b"x"], "b": [b"x"], "label": [0]}, "has columns a, b: wanted one column of encoded images"),
        ({"image": [b"x"], "text": ["y"]}, "has columns image, text: wanted one of labels, such as label"),
        ({"image": [b"x"], "label": [0.5]}, "column label has 0.5: wanted whole numbers or names"),
        ({"image": [b"x", b"y"], "label": [0, None]}, "row 1 has no label, or those before have none"),
        ({"image": [b"x"], "label": [-1]}, "has no labels in its column label"),
    ],
)
def test_files_without_such_columns_are_refused(tmp_path, columns, message):
    parquet.write_table(pa.table(columns), tmp_path / "train.parquet")
    assert message in fault(tmp_path)
    assert message in fault(tmp_path)


def test_damaged_and_differing_files_are_named(tmp_path, cache_home):
    write(tmp_path / "a/train-0.parquet", [0, 1] * 6)
    content = (tmp_path / "a/train-0.parquet").read_bytes()
    (tmp_path / "a/train-1.parquet").write_bytes(content[:200])
    assert "train-1.parquet is damaged, or no parquet file: " in fault(tmp_path / "a")
    assert list((cache_home / "parquet").iterdir()) == []
    middle = bytearray(content)
    middle[4:300] = bytes(296)
    (tmp_path / "a/train-1.parquet").write_bytes(middle)
    assert "train-1.parquet is damaged: " in fault(tmp_path / "a")
    write(tmp_path / "b/train-0.parquet", [0, 1], ["a", "b"])
    write(tmp_path / "b/train-1.parquet", [0, 1], ["b", "a"])
    assert "train-1.parquet has other columns or classes than " in fault(tmp_path / "b")


def test_a_folder_of_parquet_files_is_no_labelled_folder_without_splits(tmp_path):
    write(tmp_path / "data/train-0.parquet", [0, 1] * 10)
    assert listing.undivided(tmp_path, Known(("0", "1"), 0)) is None


def test_images_beside_parquet_files_are_the_set(tmp_path):
    for label in range(2):
        (tmp_path / f"class{label}").mkdir()
        for number in range(5):
            (tmp_path / f"class{label}/{number}.png").write_bytes(photo(10 * label + number))
    write(tmp_path / "train.parquet", [0, 1])
    assert sum(len(split.paths) for split in listing.read(tmp_path).splits.values()) == 10


def test_parquet_files_beside_tars_are_their_metadata(tmp_path):
    members = {f"{i:03d}.png": photo(i) for i in range(12)} | {f"{i:03d}.cls": b"%d" % (i % 2) for i in range(12)}
    tars.write(tmp_path / "00000.tar", members)
    parquet.write_table(pa.table({"url": ["a"] * 12, "status": ["success"] * 12}), tmp_path / "00000.parquet")
    images = listing.read(tmp_path)
    assert sum(len(split.paths) for split in images.splits.values()) == 12
    assert all(".tar/" in path for split in images.splits.values() for path in split.paths)


def test_values_of_measured_data_in_parquet_are_read(tmp_path):
    values = np.arange(2 * 3 * 4, dtype=np.uint16).reshape(2, 3, 4)
    stream = io.BytesIO()
    np.save(stream, values)
    parquet.write_table(pa.table({"image": [stream.getvalue()] * 12, "label": [0, 1] * 6}), tmp_path / "t.parquet")
    images = listing.read(tmp_path)
    assert images.splits["train"].paths[0].endswith(".npy")
