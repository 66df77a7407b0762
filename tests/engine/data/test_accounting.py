"""Every file that is there is used, rejected or ignored, in any folder."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polychrome.engine.data import opening
from polychrome.engine.data.accounting import Account
from polychrome.engine.data.opening import Wanted
from polychrome.engine.data.sets import listing, scan
from polychrome.engine.errors import UserError
from tests.engine.data import image_kinds, photos, tars

GOOD = image_kinds.encoded(image_kinds.picture(9, 8), "PNG")
CONTENTS = {
    "x.png": GOOD,
    "x.PNG": GOOD,
    "x.jfif": GOOD,  # decided by content
    "scan": GOOD,
    "x.dat": GOOD,
    "damaged.jpg": GOOD[:40],
    "empty.png": b"",
    "notes.txt": b"label it later",
    "x.xml": b"<annotation/>",
    ".hidden.png": GOOD,
    "._x.jpg": b"\0\5\x16\7",
    "Thumbs.db": b"x",
    "pack.tar": b"P5 1 is the name of a member",
}
SPECIAL = ["fifo.png", "link.png", "broken.png", "broken", "loop", "linked folder"]
FOLDERS = ["", "cat", "dog", "cat/batch2", "dog/.ipynb_checkpoints", "__MACOSX", "train/cat", "Training/dog", "val"]


def counted(root):
    """Return how many files are below a folder, with those that links lead to and links back to a folder above."""

    def below(folder, above):
        count = 0
        for name in os.listdir(folder):
            path = Path(folder, name)
            if not path.is_dir() or (real := path.resolve()) in above:
                count += 1
            else:
                count += below(path, (*above, real))
        return count

    return below(root, (Path(root).resolve(),))


def build(root, entries):
    outside = root.parent / "outside"
    (outside / "more").mkdir(parents=True)
    (outside / "a.png").write_bytes(GOOD)
    (outside / "more/b.png").write_bytes(GOOD)
    root.mkdir()
    for number, (folder, kind) in enumerate(entries):
        target = root / folder
        target.mkdir(parents=True, exist_ok=True)
        match kind:
            case "fifo.png":
                os.mkfifo(target / f"{number}.png")
            case "link.png":
                (target / f"{number}.png").symlink_to(outside / "a.png")
            case "broken.png" | "broken":
                (target / f"{number}{Path(kind).suffix}").symlink_to(outside / "nothing")
            case "loop":
                (target / f"loop{number}").symlink_to(root, target_is_directory=True)
            case "linked folder":
                (target / f"linked{number}").symlink_to(outside, target_is_directory=True)
            case "Thumbs.db":
                (target / kind).write_bytes(CONTENTS[kind])
            case _:
                stem, _, suffix = kind.rpartition(".")
                name = f"{stem}{number}.{suffix}" if stem else f"{kind}{number}"
                (target / name).write_bytes(CONTENTS[kind])


def opened(root):
    """Return the set that a run would open, else all images below the folder, opened in the same way."""
    try:
        images = listing.read(root)
    except UserError:
        images = listing.every_image(root)
    return opening.open_set(images, Wanted("torch", photos.CPU, workers=1))


def holds(opened):
    """Check the identity of an opened set's account, with the counts that the set itself tells."""
    account = opened.account
    used = set(opened.images.paths)
    rejected = {item["path"] for item in opened.rejected}
    assert (account.used, account.rejected) == (len(used), len(rejected))
    assert account.used + account.rejected + sum(account.ignored.values()) == account.present + account.missing
    return account


entries = st.lists(st.tuples(st.sampled_from(FOLDERS), st.sampled_from([*CONTENTS, *SPECIAL])), max_size=25)
classes = [(folder, "x.png") for folder in ("cat", "dog") for _ in range(4)]
splits = [(f"{split}/{name}", "x.png") for split in ("train", "valid", "Testing") for name in ("cat", "dog")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    numbers = iter(range(10**6))
    return lambda: tmp_path / f"{next(numbers)}/data"


@pytest.mark.parametrize("base", [[], classes, splits], ids=["any", "class folders", "split folders"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(more=entries)
def test_used_rejected_and_ignored_are_all_files_of_any_folder(folder, base, more):
    root = folder()
    build(root, base + more)
    try:
        found = opened(root)
    except UserError:
        assert not base or more  # a folder without images, or with a class that has too few
        return
    account = holds(found)
    assert account.present == counted(root)
    assert account.missing == 0


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(more=entries, gone=st.integers(0, 3))
def test_files_that_lists_name_and_that_are_not_there_are_counted_apart(folder, more, gone):
    root = folder()
    build(root, classes + more)
    every = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.png") if path.is_file())
    lines = [f"{path} {number % 2}" for number, path in enumerate(every)]
    lines += [f"cat/../gone {number}.png 0" for number in range(gone)]
    for split, part in (("train", lines), ("val", ["cat/x0.png 0"]), ("test", ["dog/x4.png 1"])):
        (root / f"{split}.txt").write_text("\n".join(part))
    account = holds(opened(root))
    assert account.missing == gone
    assert account.present == counted(root) + sum(path.startswith("loop") or "/loop" in path for path in every)
    assert account.ignored["lists and names"] == 3
    assert account.rejected >= gone


def test_an_account_is_told_in_one_line(tmp_path, capsys):
    build(
        tmp_path / "data",
        [*classes, ("cat", "notes.txt"), ("dog", ".hidden.png"), ("cat", "damaged.jpg"), ("", "scan")],
    )
    found = opened(tmp_path / "data")
    expected = "12 files: 8 used, 1 rejected, 3 ignored (1 .txt, 1 hidden or of the system, 1 in no split)"
    assert str(holds(found)) == expected
    assert capsys.readouterr().out.splitlines()[-1] == expected


def test_splits_that_are_not_opened_are_accounted_for(tmp_path):
    build(tmp_path / "data", splits)
    images = listing.read(tmp_path / "data")
    found = opening.open_set(images, Wanted("torch", photos.CPU, workers=1, splits=("test",)))
    assert holds(found) == Account(6, 2, ignored={"of splits not used": 4})


def test_members_of_tars_are_accounted_for(tmp_path):
    members = {f"{i}.png": GOOD for i in range(8)} | {f"{i}.cls": b"%d" % (i % 2) for i in range(8)}
    members |= {"0.txt": b"a caption", "1.mask.png": GOOD, ".hidden/9.png": GOOD, "readme": b"x", "8.img": GOOD}
    members |= {"8.cls": b"1", "9.cls": b"0", "7.json": b"{}"}
    (tmp_path / "notes.md").write_text("x")
    tars.write(tmp_path / "set.tar", members)
    found = opened(tmp_path)
    assert [item["path"] for item in found.rejected] == ["set.tar/9.cls"]
    ignored = {"labels": 10, ".txt": 1, ".mask.png": 1, "hidden or of the system": 1, "without a suffix": 1, ".md": 1}
    assert holds(found) == Account(len(members) + 1, 9, 1, 0, ignored)
    assert "set.tar/8.img" in set(found.images.paths)


def test_a_damaged_tar_that_lists_name_costs_its_own_files_alone(tmp_path):
    build(tmp_path / "data", classes)
    (tmp_path / "data/set.tar").write_bytes(b"no tar" * 1000)
    lists = {"train": "cat/x0.png 0\ndog/x4.png 1\nset.tar/a.png 1", "val": "cat/x1.png 0", "test": "dog/x5.png 1"}
    for split, text in lists.items():
        (tmp_path / f"data/{split}.txt").write_text(text)
    found = opened(tmp_path / "data")
    assert [item["path"] for item in found.rejected] == ["set.tar/a.png"]
    assert holds(found) == Account(12, 4, 1, 1, {"in no split": 4, "lists and names": 3, ".tar": 1})


def test_images_in_folders_below_a_class_belong_to_it_and_a_line_says_so(tmp_path, capsys):
    build(tmp_path / "data", [*classes, *[("cat/batch2", "x.png")] * 4])
    found = opened(tmp_path / "data")
    assert found.account == Account(12, 12)
    note = (
        "4 images are in folders below those of the classes, such as cat/batch2/x10.png: the upper folder is the class"
    )
    assert capsys.readouterr().out.splitlines()[0] == note
    labels = dict(
        pair for split in found.images.splits.values() for pair in zip(split.paths, split.labels, strict=True)
    )
    assert labels["cat/batch2/x8.png"] == labels["cat/x0.png"] == 0


@pytest.mark.parametrize(
    "names", [("Train", "VALID", "Testing"), ("training", "validation", "TEST"), ("train", "dev", "test")]
)
def test_folders_of_splits_go_by_their_usual_names(tmp_path, names):
    build(tmp_path / "data", [(f"{split}/{name}", "x.png") for split in names for name in ("cat", "dog")])
    images = listing.read(tmp_path / "data")
    assert {name: split.paths[0].split("/")[0] for name, split in images.splits.items()} == dict(
        zip(("train", "val", "test"), names, strict=True)
    )
    assert images.class_names == ("cat", "dog")


def test_two_folders_for_one_split_and_splits_without_training_are_refused(tmp_path):
    build(tmp_path / "a/data", [*splits, ("val/cat", "x.png")])
    with pytest.raises(UserError, match=r"has val/ and valid/: which of them is the split val\?"):
        listing.read(tmp_path / "a/data")
    build(tmp_path / "b/data", splits[2:])
    with pytest.raises(UserError, match=r"no train/ in .*: wanted train/, val/ and test/"):
        listing.read(tmp_path / "b/data")


def test_one_file_by_two_names_is_one_file(tmp_path):
    build(tmp_path / "data", [*classes, ("cat", "damaged.jpg")])
    lists = {
        "train": "cat/x0.png 0\ndog/x4.png 1\n",
        "val": "dog/../cat/x0.png 0\ncat/damaged8.jpg 0\n",
        "test": "dog/x4.png 1\ndog/../cat/damaged8.jpg 0\n",
    }
    for split, text in lists.items():
        (tmp_path / f"data/{split}.txt").write_text(text)
    account = opened(tmp_path / "data").account
    assert account == Account(12, 2, 1, 0, {"in no split": 6, "lists and names": 3})


def test_what_scan_decodes_is_what_training_uses(tmp_path):
    build(tmp_path / "data", [*classes, ("", "x.png"), ("cat/batch2", "x.png")])
    images = listing.read(tmp_path / "data")
    paths = [path for split in images.splits.values() for path in split.paths]
    assert len(paths) == 9
    assert len(scan.scan(images.root, paths, workers=1).sizes) == 9
