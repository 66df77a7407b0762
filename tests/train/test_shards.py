"""Whole runs on tar shards, through the command line."""

import csv
import io
import json
import tarfile

import pytest
from PIL import Image

from polychrome.train.run import main
from tests.conftest import draw
from tests.train.small import QUICK

SMALL = ["--models", "simple_cnn", "--image-size", "32", "--batch-size", "12", "--epochs", "2", *QUICK]
SMALL += ["--channels", "RGB"]


def picture(number):
    stream = io.BytesIO()
    Image.fromarray(draw(number % 3, number)).save(stream, "JPEG", quality=92)
    return stream.getvalue()


@pytest.fixture(scope="module")
def files():
    """Three classes of twenty striped images, as {name: bytes}."""
    return {f"{'abc'[number % 3]}/{number:02d}.jpg": picture(number) for number in range(60)}


def write_tar(file, members):
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def trained(data, out, *options):
    assert main(["task1", "--data", str(data), "--out", str(out), "--name", "a", *SMALL, *options]) == 0
    return out / "task1/a"


def course(run):
    rows = csv.DictReader((run / "history.csv").open())
    return [(row["train_loss"], row["val_loss"], row["val_accuracy"]) for row in rows]


@pytest.mark.parametrize(
    "options",
    [
        ["--cache", "none"],
        *(pytest.param(row, marks=pytest.mark.slow) for row in ([], ["--cache", "none", "--backend", "torch"])),
    ],
)
def test_a_run_on_a_tar_equals_the_run_on_the_same_files_in_folders(files, tmp_path, options):
    for name, content in files.items():
        (tmp_path / "folders" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folders" / name).write_bytes(content)
    write_tar(tmp_path / "set.tar", files)
    inside = course(trained(tmp_path / "set.tar", tmp_path / "x", *options))
    outside = course(trained(tmp_path / "folders", tmp_path / "y", *options))
    assert inside == outside
    assert len(inside) == 2


def test_a_run_on_several_shards_leaves_out_what_cannot_be_read(files, tmp_path, capsys):
    names = list(files)
    for shard in range(3):
        members = {name: files[name] for name in names[shard::3]}
        write_tar(tmp_path / f"{shard:03d}.tar", members)
    content = (tmp_path / "002.tar").read_bytes()
    last = names[2::3][-1]
    (tmp_path / "002.tar").write_bytes(content[: content.index(last.encode()) + 900])
    run = trained(tmp_path / "{000..002}.tar", tmp_path / "runs")
    data = json.loads((run / "results.json").read_text())["data"]
    assert data["rejected_files"] == [
        {
            "path": f"002.tar/{last}",
            "split": data["rejected_files"][0]["split"],
            "reason": "truncated: 002.tar ends in it or right after it",
        }
    ]
    assert (data["train"] + data["val"] + data["test"], data["class_names"]) == (59, ["a", "b", "c"])
    assert f"left out: 002.tar/{last}" in capsys.readouterr().out


def test_runs_on_shards_can_be_evaluated(files, tmp_path):
    write_tar(tmp_path / "set.tar", files)
    run = trained(tmp_path / "set.tar", tmp_path / "runs")
    assert main(["evaluate", str(run), "--channels", "RGB"]) == 0
    tested = json.loads((run / "evaluation.json").read_text())["models"]["simple_cnn"]["test"]["RGB"]
    assert tested == json.loads((run / "results.json").read_text())["models"]["simple_cnn"]["test"]["RGB"]


def test_shards_that_are_not_there_are_the_users_fault(files, tmp_path, capsys):
    write_tar(tmp_path / "000.tar", files)
    assert main(["task1", "--data", str(tmp_path / "{000..001}.tar"), "--out", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no shard at ")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
