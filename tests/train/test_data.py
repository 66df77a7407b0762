"""The data of a run as it is opened: what is kept of it, and what is left out."""

import os
import platform
import shutil
from pathlib import Path

import pytest

from polychrome.engine.data.files import decode
from polychrome.engine.errors import UserError
from polychrome.engine.machine import distributed
from polychrome.engine.machine.files import Stamps
from polychrome.train.data import open_data, summary
from polychrome.train.settings.config import Settings
from polychrome.train.settings.variants import resolve
from tests.conftest import write_list_folder
from tests.refusals import refusal


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder of 24 / 6 / 6 images, and a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_list_folder(tmp_path / "data", (8, 2, 2))


@pytest.fixture
def decoded(monkeypatch):
    """The files decoded from here on, in this process."""
    calls, rgb = [], decode.rgb
    monkeypatch.setattr(decode, "rgb", lambda file: calls.append(os.path.basename(file)) or rgb(file))
    return calls


def settings(folder, **options):
    defaults = {"device": "cpu", "workers": 1, "backend": "torch", "image_size": 32, "models": ("simple_cnn",)}
    return resolve(Settings(data=str(folder), **defaults | options), "task1")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"cache": "auto"}, "images kept in memory: 0.3 MB"),
        ({"cache": "host"}, "images kept in memory: 0.3 MB"),
        ({"cache": "device"}, "images kept in memory: 0.1 MB, each squeezed to 37 x 37 pixels"),
        ({"cache": "device", "image_size": 42}, "images kept in memory: 0.3 MB"),
        ({"cache": "device", "cache_size": 40}, "images kept in memory: 0.2 MB, each squeezed to 40 x 40 pixels"),
        (
            {"cache": "device", "model": {"simple_cnn": {"image_size": 35}}},
            "images kept in memory: 0.2 MB, each squeezed to 40 x 40 pixels",
        ),
    ],
)
def test_one_line_says_what_is_kept_and_the_second_start_decodes_nothing(folder, decoded, capsys, options, line):
    first = open_data(settings(folder, **options), "task1")
    assert capsys.readouterr().out == f"{line}\n"
    decoded.clear()
    second = open_data(settings(folder, **options), "task1")
    assert decoded == []
    assert capsys.readouterr().out == f"{line}\n"
    assert second.images == first.images
    assert len(second.store) == len(first.store) == 36
    assert not second.store.faults


def test_nothing_is_kept_where_that_is_not_wanted(folder, capsys):
    assert open_data(settings(folder, cache="none"), "task1").store is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("cache", ["host", "device"])
def test_a_file_that_fails_after_the_scan_is_left_out(folder, capsys, cache, monkeypatch):
    monkeypatch.setattr(Stamps, "of", lambda *_: [0, 0, 0, ""])  # the scan does not look at a file again
    open_data(settings(folder, cache="none"), "task1")
    file = folder / "images" / "val 3.jpg"
    file.write_bytes(bytes(file.stat().st_size))
    for _ in range(2):
        found = open_data(settings(folder, cache=cache), "task1")
        kept, line, account = capsys.readouterr().out.splitlines()
        assert account == "39 files: 35 used, 1 rejected, 3 ignored (3 lists and names)"
        assert line.startswith("left out: images/val 3.jpg (val): can no longer be read: cannot identify image file")
        assert kept.startswith("images kept in memory: ")
        assert [(item["path"], item["split"]) for item in found.rejected] == [("images/val 3.jpg", "val")]
        assert summary(found)["rejected"] == 1
        counts = {"present": 39, "used": 35, "rejected": 1, "missing": 0, "ignored": {"lists and names": 3}}
        assert summary(found)["files"] == counts
        assert {name: len(split.paths) for name, split in found.images.splits.items()} == {
            "train": 24,
            "val": 5,
            "test": 6,
        }
        assert found.positions["val"] == (0, 1, 2, 4, 5)
    with pytest.raises(UserError, match=r"--strict: 1 files cannot be used; the first is images/val 3\.jpg: can no lo"):
        open_data(settings(folder, cache=cache, strict=True), "task1")


def damaged(folder):
    (folder / "images/val 1.jpg").write_bytes(b"")


def relabelled(folder):
    lines = (folder / "train.txt").read_text().splitlines()
    (folder / "train.txt").write_text("\n".join([lines[0][:-1] + str(1 - int(lines[0][-1])), *lines[1:]]))


@pytest.mark.parametrize(
    ("change", "other"),
    [
        (lambda folder: None, None),
        (damaged, "images of val"),
        (relabelled, "images of train"),
        (lambda folder: shutil.copy(folder / "images/test 0.jpg", folder / "images/test 1.jpg"), "images of test"),
        (lambda folder: (folder / "classes.txt").write_text("x\ny\nz\n"), "classes"),
    ],
)
def test_processes_that_open_other_data_than_the_first_are_refused(folder, tmp_path, monkeypatch, change, other):
    """As from copies of the data on several machines, of which one is old or was cut short."""
    firsts = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "wait", lambda: None)
    monkeypatch.setattr(distributed, "everyones", lambda value: [firsts.append(value) or value])
    open_data(settings(folder), "task1")
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    change(copy)
    monkeypatch.setattr(distributed, "everyones", lambda value: [*firsts, value])
    if other is None:
        assert open_data(settings(copy), "task1").account.used == 36
    else:
        where = f"{copy} is not the same everywhere: process 1, on {platform.node()}, has other {other} than process 0"
        assert refusal(lambda: open_data(settings(copy), "task1")) == where
