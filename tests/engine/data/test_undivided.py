"""Data that a network is tested on: whatever part of the classes they have, and wherever, labels are the network's."""

from itertools import chain, combinations, product

import pytest

from polychrome.engine.data.sets import listing
from polychrome.engine.data.sets.layouts.labelled import Known
from polychrome.engine.errors import UserError
from polychrome.train.data import known_classes
from tests.engine.data import tars
from tests.grids import grid

FORMS = ("labels.csv", "train.txt", "a lone folder", "folders")
EACH = 3  # images of a class, in a folder that is divided


def write(folder, form, labels, classes=()):
    """Write files with these labels in a form; the files are named by their places."""
    folder.mkdir(parents=True)
    if form == "folders":
        files = [f"{label}/{place}.png" for place, label in enumerate(labels)]
    else:
        files = [f"{place}.png" for place, _ in enumerate(labels)]
        inside = folder / "set" if form == "a lone folder" else folder
        inside.mkdir(exist_ok=True)
        mark, head = (" ", "") if form == "train.txt" else (",", "file,label\n")
        rows = (f"{file}{mark}{label}\n" for file, label in zip(files, labels, strict=True))
        (inside / ("train.txt" if form == "train.txt" else "labels.csv")).write_text(head + "".join(rows))
        if classes:
            (inside / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
        files = [f"set/{file}" for file in files] if form == "a lone folder" else files
    for number, file in enumerate(files):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(f"{folder} {number}".encode())
    return folder


def trained(folder, form, labels, classes=()):
    """Return the classes of a run on these labels."""
    images = listing.read(write(folder, form, labels * EACH, classes))
    return Known(images.class_names, images.first_label)


def found(folder, known):
    """Return the label of each file, by its place, in a folder without splits."""
    split = listing.undivided(folder, known).splits["test"]
    return {int(path.split("/")[-1][:-4]): label for path, label in zip(split.paths, split.labels, strict=True)}


def parts(labels):
    return chain.from_iterable(combinations(labels, size) for size in range(1, len(labels) + 1))


@grid(form=FORMS[:3], classes=((), ("oak", "ash", "elm", "fir"), ("ash", "ash", "0", "1")), first=(0, 1))
def test_any_part_of_numbered_classes_has_the_runs_labels(tmp_path, form, classes, first):
    for count in (2, 3, 4):
        numbers = [first + place for place in range(count)]
        known = trained(tmp_path / f"run {count}", "labels.csv", numbers, classes[:count])
        assert known == (classes[:count] or tuple(map(str, numbers)), first)
        for part in parts(numbers):
            folder = write(tmp_path / f"{count} {part}", form, part)
            assert found(folder, known) == {place: number - first for place, number in enumerate(part)}
            named = write(tmp_path / f"{count} {part} named", form, part, classes[:count])
            assert found(named, known) == found(folder, known)
        for outside in (first - 1, first + count):
            folder = write(tmp_path / f"{count} {outside}", form, [first, outside])
            with pytest.raises(UserError, match=f"label {outside} is outside {first}..{first + count - 1}, as"):
                listing.undivided(folder, known)


@pytest.mark.parametrize("form", ["folders", "labels.csv", "a lone folder"])
@pytest.mark.parametrize("names", [("elm", "fir", "oak"), ("2020", "2021", "7"), ("1", "2", "3", "x"), ("1", "2", "4")])
def test_any_part_of_named_classes_has_the_runs_labels(tmp_path, form, names):
    numeric = all(name.isdecimal() for name in names)  # of a table these are numbers, not names
    for source in ("folders",) if numeric else ("folders", "labels.csv", "a lone folder"):
        known = trained(tmp_path / f"run {source}", source, list(names))
        assert set(known.names) == set(names)
        assert known.first is None
        for part in parts(names):
            folder = write(tmp_path / f"{source} {part}", form, part)
            assert found(folder, known) == {place: known.names.index(name) for place, name in enumerate(part)}
        folder = write(tmp_path / f"{source} other", form, [names[0], "0"])
        with pytest.raises(UserError, match="class '0'"):
            listing.undivided(folder, known)


@pytest.mark.parametrize("names", [("0", "1", "2"), ("3", "1", "2")])
def test_class_folders_of_a_run_with_labels_from_one_are_refused_where_they_may_be_either(tmp_path, names):
    own = trained(tmp_path / "run", "labels.csv", [1, 2, 3])
    folder = write(tmp_path / "folders", "folders", ["1", "2"])
    assert found(folder, own) == {0: 0, 1: 1}
    known = own._replace(names=names)  # of an earlier version, or of classes.txt
    with pytest.raises(UserError, match="'1' may be the run's label 1, or its class 1, which is label 2: give a table"):
        listing.undivided(folder, known)
    assert found(folder, known._replace(first=0)) == {0: 1, 1: 2}


@pytest.mark.parametrize("form", FORMS)
def test_a_class_name_that_two_classes_have_is_refused(tmp_path, form):
    known = Known(("ash", "oak", "ash"), 0)
    labels, classes = ([0, 1], ("ash", "oak")) if form == "train.txt" else (["ash", "oak"], ())
    folder = write(tmp_path / "folders", form, labels, classes)
    with pytest.raises(UserError, match="2 classes of the run have the name 'ash': wanted their numbers"):
        listing.undivided(folder, known)


def test_runs_of_earlier_versions_tell_of_labels_from_one_in_a_note(tmp_path):
    before = {"class_names": ["0", "1", "2"], "notes": ["labels of t: files in a", "labels are 1..3: taken as 0..2"]}
    for part, (notes, first) in product(parts([1, 2]), [(before["notes"], 1), ([], 0)]):
        folder = write(tmp_path / f"{part} {first}", "labels.csv", part)
        known = known_classes(before | {"notes": notes})
        assert found(folder, known) == {place: number - first for place, number in enumerate(part)}
    assert known_classes(before | {"first_label": 0}).first == 0
    with pytest.raises(UserError, match=r"class '1' is not among those of the run, oak, ash; classes.txt beside"):
        listing.undivided(folder, known_classes({"class_names": ["oak", "ash"]}))


@pytest.mark.parametrize("form", ["lists", "table", "tables", "folders"])
@pytest.mark.parametrize("splits", [("val",), ("test",), ("val", "test")])
@pytest.mark.parametrize("names", [("ant", "bee"), ("1", "2")])
def test_a_folder_without_training_images_is_tested_on_and_not_trained_on(tmp_path, form, splits, names):
    known = Known(names, 1 if form != "folders" and names[0].isdecimal() else None)
    if form == "lists" and known.first is None:
        known = Known(names, 0)
    files = {split: {f"{split}{i}.png": names[i % 2] for i in range(4)} for split in splits}
    rows = {split: [f"x/{file},{label}" for file, label in of.items()] for split, of in files.items()}
    for split, of in files.items():
        for file, label in of.items():
            path = tmp_path / (f"{split}/{label}" if form == "folders" else "x") / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.encode())
        if form == "lists":
            lines = [f"x/{file} {names.index(label) + known.first}" for file, label in of.items()]
            (tmp_path / f"{split}.txt").write_text("\n".join(lines))
        if form == "tables":
            (tmp_path / f"{split}.csv").write_text("\n".join(["file,label", *rows[split]]))
    if form == "table":
        lines = [f"{row},{split}" for split in splits for row in rows[split]]
        (tmp_path / "labels.csv").write_text("\n".join(["file,label,split", *lines]))
    if form != "folders" or len(splits) == 2:
        with pytest.raises(UserError, match=r"wanted images to train on|wanted train"):
            listing.read(tmp_path)
    images = listing.undivided(tmp_path, known)
    (split,) = images.splits.values()
    found = {path.split("/")[-1]: names[label] for path, label in zip(split.paths, split.labels, strict=True)}
    assert found == files[splits[-1]]
    assert images.notes[-1].endswith("are to be tested")


@pytest.mark.parametrize("form", ["train.txt", "labels.csv", "a lone folder"])
@pytest.mark.parametrize("first", [0, 1])
def test_numbers_are_matched_through_classes_txt_with_a_run_on_class_folders(tmp_path, form, first):
    known, own = trained(tmp_path / "run", "folders", ["ash", "elm", "fir"]), ("fir", "ash", "elm")
    folder = write(tmp_path / "all", form, [first, first + 1, first + 2], own)
    assert found(folder, known) == {0: 2, 1: 0, 2: 1}
    folder = write(tmp_path / "part", form, [0, 1], own[:2])
    assert found(folder, known) == {0: 2, 1: 0}
    folder = write(tmp_path / "another", form, [0, 1], ("fir", "oak"))
    with pytest.raises(UserError, match=r"class 'oak' is not among those of the run, ash, elm, fir$"):
        listing.undivided(folder, known)


def divided(folder, form, splits, classes):
    """Write a set of splits, in which every image is called as its label, in a form."""
    folder.mkdir()
    for split, labels in splits.items():
        rows = [(f"{split}{place}_{label}", label) for place, label in enumerate(labels)]
        if form == "tars":
            pairs = [(f"{name}.png", name.encode()) for name, _ in rows]
            pairs += [(f"{name}.cls", str(label).encode()) for name, label in rows]
            tars.write(folder / f"{split}.tar", sorted(pairs))
            continue
        inside = {name: f"{split}/{classes[label]}" if form == "folders" else "x" for name, label in rows}
        for name, place in inside.items():
            (folder / place).mkdir(parents=True, exist_ok=True)
            (folder / place / f"{name}.png").write_bytes(name.encode())
        if form == "lists":
            (folder / f"{split}.txt").write_text("".join(f"x/{name}.png {label}\n" for name, label in rows))
        if form == "tables":
            cells = "".join(f"x/{name}.png,{classes[label]}\n" for name, label in rows)
            (folder / f"{split}.csv").write_text(f"file,label\n{cells}")
    if form in ("lists", "tars"):
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    return folder


@pytest.mark.parametrize("form", ["lists", "tars", "tables", "folders"])
@pytest.mark.parametrize("first", [None, 0])
def test_a_set_for_a_run_may_lack_training_images_of_its_classes(tmp_path, form, first):
    own, names = ("fir", "ash", "elm"), ("ash", "elm", "fir", "oak")
    splits = {"train": [0, 1] * 2, "val": [0, 1, 2], "test": [2, 1, 2]}
    root = divided(tmp_path / "set", form, splits, own)
    with pytest.raises(UserError, match="'elm'"):
        listing.read(root)
    images = listing.read(root, known=Known(names, first))
    assert images.class_names == names
    places = [names.index(name) for name in own]
    for split, labels in splits.items():
        rows = images.splits[split]
        assert sorted(rows.labels) == sorted(places[label] for label in labels)
        called = [int(path.rsplit("_", 1)[1][:-4]) for path in rows.paths]
        assert list(rows.labels) == [places[label] for label in called]


@pytest.mark.parametrize(
    ("first", "labels", "wanted"), [(0, [0, 2], [0, 2]), (1, [1, 3], [0, 2]), (None, [7, 9], [1, 2])]
)
def test_numbers_in_tars_are_the_runs_labels_or_the_names_of_its_classes(tmp_path, first, labels, wanted):
    names = ("5", "7", "9") if first is None else ("ash", "elm", "fir")
    pairs = [(f"{label}{i}.{end}", str(label).encode()) for label in labels for i in range(3) for end in ("cls", "png")]
    images = listing.read(tars.write(tmp_path / "set.tar", pairs), known=Known(names, first))
    assert sorted(set(images.splits["train"].labels)) == wanted
    assert images.class_names == names
    tars.write(tmp_path / "set.tar", [(name, b"4") for name, _ in pairs])
    with pytest.raises(UserError, match=r"label 4 is outside|class '4' is not among those of the run, 5, 7, 9"):
        listing.read(tmp_path / "set.tar", known=Known(names, first))


def test_class_folders_in_tars_that_may_be_labels_from_one_are_refused(tmp_path):
    pairs = [(f"{label}/{i}.png", b"x") for label in "12" for i in range(3)]
    with pytest.raises(UserError, match="'1' may be the run's label 1, or its class 1, which is label 2"):
        listing.read(tars.write(tmp_path / "set.tar", pairs), known=Known(("0", "1", "2"), 1))
