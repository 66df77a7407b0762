"""Equal files in two splits, or with two labels, are counted and named."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from polychrome.engine.data.opening import Wanted, open_set
from polychrome.engine.data.sets import listing, repeats, scan
from polychrome.engine.errors import UserError
from polychrome.train.run import main
from tests.engine.data import image_kinds, measured, photos


def photo(seed):
    return image_kinds.encoded(image_kinds.picture(9, 8, seed=seed), "PNG")


def told(root, **lists):
    for name in ("train", "val", "test"):
        (root / f"{name}.txt").write_text("".join(f"{row}\n" for row in lists[name]))
    images = listing.read(root)
    paths = images.paths
    first = scan.scan(root, paths, workers=1)
    again = scan.scan(root, paths, workers=1)
    assert again.decoded == 0
    assert again.digests == first.digests
    return repeats.notes(images, first.digests)


@pytest.fixture
def files(tmp_path):
    image_kinds.write(tmp_path, {f"{i}.png": photo(i) for i in range(6)} | {"copy.png": photo(0)})
    return tmp_path


def test_different_files_are_no_repeats(files):
    assert told(files, train=["0.png 0", "1.png 1"], val=["2.png 0", "3.png 1"], test=["4.png 0", "5.png 1"]) == ()


def test_a_copy_of_the_training_list_as_test_list_is_told(files):
    rows = ["0.png 0", "1.png 1", "2.png 0"]
    assert told(files, train=rows, val=["3.png 1"], test=rows) == (
        "3 of 3 images of test are in train too, such as 0.png (itself): accuracy on test says less about new images",
    )


def test_a_copied_file_under_another_name_is_told_with_its_twin(files):
    found = told(files, train=["0.png 0", "1.png 1"], val=["2.png 0", "4.png 1"], test=["copy.png 0", "4.png 1"])
    tail = "accuracy on test says less about new images"
    assert found == (
        f"1 of 2 images of test are in train too, such as copy.png (0.png): {tail}",
        f"1 of 2 images of test are in val too, such as 4.png (itself): {tail}",
    )


def test_an_image_with_two_labels_is_told_once(files):
    found = told(files, train=["0.png 0", "copy.png 1", "1.png 1"], val=["2.png 0", "2.png 1"], test=["4.png 0"])
    assert found == ("2 images have two labels, such as 0.png (0) and copy.png (1)",)


@pytest.mark.parametrize("name", ["13 bands", "PNG RGB", "OME"])
def test_measured_data_and_arrays_are_compared_too(tmp_path, name):
    content, stream = measured.kinds()[name], io.BytesIO()
    np.save(stream, content.values)
    files = {"a.tif": content.content, "b.tif": content.content, "c.npy": stream.getvalue(), "d.npy": stream.getvalue()}
    image_kinds.write(tmp_path, files)
    report = scan.scan(tmp_path, list(files), workers=1)
    assert report.digests["a.tif"] == report.digests["b.tif"] != report.digests["c.npy"] == report.digests["d.npy"]


def test_scan_tells_of_repeats(files, capsys):
    told(files, train=["0.png 0", "1.png 1"], val=["2.png 0"], test=["copy.png 0"])
    assert main(["scan", str(files)]) == 0
    assert "1 of 1 images of test are in train too, such as copy.png (0.png)" in " ".join(
        capsys.readouterr().out.split()
    )


def classes(root, groups, **contents):
    """Write class folders a and b with a photo for each name, and copies by `contents`, name to seed."""
    files = {name: photo(seed) for seed, name in enumerate(groups)} | {n: photo(s) for n, s in contents.items()}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def split_of(images):
    return {path: name for name, split in images.splits.items() for path in split.paths}


@pytest.mark.parametrize("seed", range(5))
def test_equal_files_stay_in_one_split_where_a_set_is_divided(tmp_path, seed):
    names = [f"{c}/{i:02d}.png" for c in "ab" for i in range(12)]
    copies = {f"a/copy{i}.png": i for i in range(6)}
    images = listing.read(classes(tmp_path, names, **copies), seed=seed)
    found = split_of(images)
    assert len(found) == 30
    assert all(found[copy] == found[names[i]] for copy, i in copies.items())
    report = scan.scan(tmp_path, list(found), workers=1, cache=False)
    assert repeats.notes(images, report.digests) == ()


def test_without_repeats_the_division_is_by_class_and_seed_alone(tmp_path):
    names = [f"{c}/{i:02d}.png" for c in "ab" for i in range(20)]
    images = listing.read(classes(tmp_path, names), seed=3)
    order = np.random.default_rng([3, 1]).permutation(20)
    val = sorted(f"b/{i:02d}.png" for i in order[:2])
    assert [path for path in images.splits["val"].paths if path.startswith("b/")] == val
    assert {name: len(split.paths) for name, split in images.splits.items()} == {"train": 32, "val": 4, "test": 4}


def test_equal_files_of_a_class_with_too_few_others_are_divided_nevertheless_and_told(tmp_path):
    copies = {f"a/{i}.png": 50 for i in range(9)}
    images = listing.read(classes(tmp_path, [f"b/{i}.png" for i in range(9)], **copies))
    assert all(0 in split.labels for split in images.splits.values())
    report = scan.scan(tmp_path, list(split_of(images)), workers=1, cache=False)
    assert len(repeats.notes(images, report.digests)) == 2


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4))])
@pytest.mark.parametrize("form", ["classes", "train and val", "train and test"])
def test_files_of_a_group_stay_in_one_split(tmp_path, form, seed):
    """Each patient has four images of each class, so that groups reach across classes."""
    folder = "" if form == "classes" else "train/"
    names = [f"{folder}{c}/patient{p:02d}_{i}.png" for c in "ab" for p in range(10) for i in range(4)]
    if form == "train and val":
        names += [f"val/{c}/patient{p:02d}_{i}.png" for c in "ab" for p in range(20, 26) for i in range(4)]
    if form == "train and test":
        names += [f"test/{c}/other{i}.png" for c in "ab" for i in range(3)]
    images = listing.read(classes(tmp_path, names), seed=seed, group_by="(patient[0-9]+)_")
    of_patient = {}
    for path, name in split_of(images).items():
        if "patient" in path:
            of_patient.setdefault(path[path.index("patient") :][:9], set()).add(name)
    assert len(of_patient) == (16 if form == "train and val" else 10)
    assert all(len(splits) == 1 for splits in of_patient.values())
    assert all(split.paths for split in images.splits.values())


def test_groups_that_given_splits_share_are_told(tmp_path):
    names = [
        f"{split}/{c}/p{p}_{i}.png" for split, p in (("train", 0), ("val", 1), ("test", 0)) for c in "ab" for i in "01"
    ]
    images = listing.read(classes(tmp_path, names), group_by="(p[0-9])_")
    assert repeats.notes(images, {}, "(p[0-9])_") == (
        "4 of 4 images of test are of groups of --group-by that an earlier split has too, such as p0",
    )
    assert repeats.notes(images, {}) == ()
    assert images.notes == ("2 groups by --group-by",)


def test_a_pattern_that_finds_nothing_or_a_part_is_told(tmp_path):
    root = classes(tmp_path, [f"{c}/Plate{p}_{i}.png" for c in "ab" for p in range(6) for i in range(2)])
    with pytest.raises(UserError, match=r"--group-by '\(plate\)' finds nothing in any path, such as a/Plate0_0.png"):
        listing.read(root, group_by="(plate)")
    divided = "no split is given: 24 images are split 80/10/10 per class"
    found = listing.read(root, group_by="(Plate[0-9])")
    assert found.notes == (divided, "6 groups by --group-by, each in one split")
    said = "12 of 24 images are in no group by --group-by, such as a/Plate3_0.png"
    assert said in listing.read(root, group_by="(Plate[0-2])").notes
    given = classes(
        tmp_path / "given",
        [f"{split}/{c}/p{i}.png" for split in ("train", "val", "test") for c in "ab" for i in range(2)],
    )
    with pytest.raises(UserError, match=r"--group-by '\(plate\)' finds nothing in any path, such as train/a/p0.png"):
        listing.read(given, group_by="(plate)")
    lacking = "6 of 12 images are in no group by --group-by, such as train/a/p0.png"
    assert listing.read(given, group_by="(p1)").notes == ("1 group by --group-by", lacking)


def test_scan_tells_groups_and_refuses_a_pattern_that_finds_none(tmp_path, capsys):
    classes(tmp_path, [f"{split}/{c}/p{i}.png" for split in ("train", "val", "test") for c in "ab" for i in range(2)])
    assert main(["scan", str(tmp_path), "--workers", "1", "--group-by", "(p[0-9])"]) == 0
    out = capsys.readouterr().out
    assert "2 groups by --group-by\n" in out
    assert "4 of 4 images of val are of groups of --group-by that an earlier split has too, such as p0\n" in out
    for pattern, why in (("(plate)", "finds nothing in any path"), ("(", "is no regular expression")):
        assert main(["scan", str(tmp_path), "--workers", "1", "--group-by", pattern]) == 2
        assert why in capsys.readouterr().err


def test_groups_cannot_be_held_out_image_by_image(tmp_path):
    images = listing.read(classes(tmp_path, [f"{c}/p{i}_0.png" for c in "ab" for i in range(9)]))
    with pytest.raises(UserError, match="--holdout draws single images, and --group-by keeps groups together"):
        open_set(images, Wanted("torch", photos.CPU, workers=1, holdout=2, group_by="(p[0-9])_"))


def test_too_few_groups_are_a_fault(tmp_path):
    names = [f"{c}/{p}_{i}.png" for c in "ab" for p in range(2) for i in range(4)]
    with pytest.raises(UserError, match=r"8 images of class 'a' in .* in 2 groups: wanted"):
        listing.read(classes(tmp_path, names), group_by="([0-9])_")


def test_a_run_takes_a_pattern_and_refuses_what_is_none(tmp_path, capsys):
    assert main(["task1", "--group-by", "(", "--print-config"]) == 2
    assert "'(' is no regular expression" in capsys.readouterr().err
    assert main(["task1", "--group-by", "(p[0-9]+)_", "--print-config"]) == 0
    assert 'group_by = "(p[0-9]+)_"' in capsys.readouterr().out


def test_images_that_a_run_was_trained_on_are_counted_by_content_whatever_their_names(tmp_path):
    """The run of `first` is trained on pictures 0 to 5, the `second` set has 4 of them, in two splits."""
    for root, numbers in (("first", range(8)), ("second", (0, 9, 3, 10, 1, 5, 11))):
        image_kinds.write(tmp_path / root, {f"{place}.png": photo(number) for place, number in enumerate(numbers)})
    lists = {"first": ("012345", "6", "7"), "second": ("056", "123", "4")}
    opened = {}
    for root, splits in lists.items():
        for name, places in zip(("train", "val", "test"), splits, strict=True):
            rows = (f"{place}.png {number % 2}\n" for number, place in enumerate(places))
            (tmp_path / root / f"{name}.txt").write_text("".join(rows))
        opened[root] = open_set(listing.read(tmp_path / root), Wanted("torch", torch.device("cpu"), 1)).images
    known = repeats.fingerprints(opened["first"], "train")
    assert (known.dtype, len({*known})) == (np.uint64, 6)
    told = repeats.trained_on(opened["second"], ("val", "test"), known, "X")
    which = "1 of 3 images of val and 1 of 1 images of test are among those that X was trained on"
    assert told == f"{which}: accuracy there says less about new images"
    assert repeats.trained_on(opened["first"], ("val", "test"), known, "X") == ""
    undigested = replace(opened["second"], digests={})
    assert repeats.trained_on(undigested, ("val", "test"), known, "X") == ""
    assert len(repeats.fingerprints(undigested, "train")) == 0
