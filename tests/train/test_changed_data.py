"""Data that changed since a run began: told before it is used, never trained on without a word."""

import json
import re
import shutil
from pathlib import Path

import pytest

from polychrome.engine.run_folder import RunFolder
from polychrome.train.run import main
from polychrome.train.settings.config import Settings
from tests.train import runner
from tests.train.runner import files_of
from tests.train.test_killed_runs import ARGUMENTS, assert_equal_runs

FILE = "images/train 3.jpg"
FINISHED = ("--epochs", "3")


@pytest.fixture(scope="module")
def unbroken(stripes, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    assert main(["task1", "--data", str(stripes), "--out", str(out), "--name", "a", *ARGUMENTS]) == 0
    return out / "task1/a"


@pytest.fixture(scope="module")
def two_epochs(stripes, tmp_path_factory):
    """A run with two of its three epochs, and the copy of the data that it is on."""
    out = tmp_path_factory.mktemp("begun")
    data = Path(shutil.copytree(stripes, out / "data"))
    start = ["task1", "--data", str(data), "--out", str(out), "--name", "a", *ARGUMENTS, "--epochs", "2"]
    assert main(start) == 0
    (out / "task1/a/report.html").unlink()
    return out / "task1/a", data


@pytest.fixture
def data(stripes, two_epochs):
    """The data of the run, for a test to change."""
    yield two_epochs[1]
    shutil.rmtree(two_epochs[1])
    shutil.copytree(stripes, two_epochs[1])


@pytest.fixture
def begun(two_epochs, data, tmp_path):
    """A run with two of its three epochs, on `data`."""
    return Path(shutil.copytree(two_epochs[0], tmp_path / "task1/a"))


def go_on(run, *arguments):
    return main(["task1", "--out", str(run.parents[1]), "--resume", "auto", *FINISHED, *arguments])


def other_content(data):
    shutil.copy(data / "images/train 4.jpg", data / FILE)


def damage(data):
    (data / FILE).write_bytes((data / FILE).read_bytes()[:200])


def removal(data):
    (data / FILE).unlink()


def edited(split, change):
    def edit(data):
        lines = (data / f"{split}.txt").read_text().splitlines()
        (data / f"{split}.txt").write_text("\n".join(change(lines)))

    return edit


CHANGES = {
    "content": (other_content, "train"),
    "damage": (damage, "train"),
    "removal": (removal, "train"),
    "label": (edited("train", lambda lines: [lines[0].replace(".jpg 0", ".jpg 1"), *lines[1:]]), "train"),
    "order": (edited("train", lambda lines: lines[::-1]), "train"),
    "less": (edited("train", lambda lines: lines[:-3]), "train"),
    "validation": (lambda data: shutil.copy(data / "images/val 1.jpg", data / "images/val 2.jpg"), "val"),
    "test": (lambda data: shutil.copy(data / "images/test 1.jpg", data / "images/test 2.jpg"), "test"),
}


@pytest.mark.parametrize(
    "change",
    [each if each in ("content", "order", "test") else pytest.param(each, marks=pytest.mark.slow) for each in CHANGES],
)
def test_a_run_does_not_go_on_with_other_data_and_goes_on_equal_where_they_are_put_back(
    begun, data, unbroken, stripes, capsys, change
):
    how, split = CHANGES[change]
    how(data)
    before = files_of(begun)
    assert go_on(begun) == 2
    error = capsys.readouterr().err
    assert f"{begun} cannot go on: {split} of {data} changed since the run began: files have other content" in error
    assert error.count("\n") == 1
    assert files_of(begun) == before
    shutil.copytree(stripes, data, dirs_exist_ok=True)
    assert go_on(begun) == 0
    assert_equal_runs(begun, unbroken)
    assert runner.results(begun)["data"]["changes"] == []


def test_the_file_that_was_modified_last_is_named(begun, data, capsys):
    damage(data)
    assert go_on(begun) == 2
    assert f"; {FILE} was modified last, 20" in capsys.readouterr().err


def test_changed_data_are_used_where_that_is_asked_for_and_the_report_says_so(begun, data, capsys):
    other_content(data)
    trained_on = RunFolder(begun).read_trained_on()
    assert len(trained_on) == 72
    assert go_on(begun, "--changed-data") == 0
    assert list(RunFolder(begun).read_trained_on()) == list(trained_on)  # with the image that is gone
    (line,) = runner.results(begun)["data"]["changes"]
    assert f"train of {data} changed since the run began" in line
    assert line.endswith("Epochs before: pool_attention_cnn had 2")
    assert line in " ".join(capsys.readouterr().out.split())
    assert "changed since the run began" in (begun / "report.md").read_text()
    assert "changed since the run began" in (begun / "report.html").read_text()
    assert Settings.of_run(begun / "config.toml").changed_data is False


def test_where_changed_images_of_an_earlier_version_are_not_known_none_are_said_to_be(begun, data):
    RunFolder(begun).trained_on.unlink()
    other_content(data)
    assert go_on(begun, "--changed-data") == 0
    assert RunFolder(begun).read_trained_on() is None


def test_a_change_that_was_accepted_stays_in_the_results_and_the_next_is_asked_for_again(begun, data, capsys):
    other_content(data)
    assert go_on(begun, "--changed-data") == 0
    accepted = runner.results(begun)["data"]["changes"]
    assert main(["task1", "--resume", str(begun), "--epochs", "4"]) == 0
    assert runner.results(begun)["data"]["changes"] == accepted
    removal(data)
    assert main(["task1", "--resume", str(begun), "--epochs", "5"]) == 2
    assert main(["task1", "--resume", str(begun), "--epochs", "5", "--changed-data"]) == 0
    changes = runner.results(begun)["data"]["changes"]
    assert changes[:1] == accepted
    assert changes[1].endswith("Epochs before: pool_attention_cnn had 4")


def test_test_images_that_moved_to_training_are_refused_even_then(begun, data, capsys):
    edited("test", lambda lines: lines[:-3])(data)
    assert go_on(begun, "--changed-data") == 2
    assert f"cannot go on: test of {data} are other images" in capsys.readouterr().err


def test_results_of_earlier_versions_have_nothing_to_compare(begun, data):
    folder = RunFolder(begun)
    results = folder.read_results()
    del results["data"]["contents"], results["data"]["changes"]
    folder.write_results(results)
    other_content(data)
    assert go_on(begun) == 0
    assert runner.results(begun)["data"]["contents"].keys() == {"train", "val", "test"}


def test_an_evaluation_of_other_pixels_or_labels_is_told(unbroken, data, tmp_path, capsys):
    run = Path(shutil.copytree(unbroken, tmp_path / "run"))

    def told(*arguments):
        assert main(["evaluate", str(run), "--data", str(data), "--channels", "RGB", *arguments]) == 0
        return " ".join(capsys.readouterr().out.split())

    assert "not the run's figures" not in told()
    CHANGES["test"][0](data)
    assert f"not the run's figures: test of {data} changed since the run began" in told()
    assert "not the run's figures" not in told("--split", "val")
    other_content(data)
    assert f"not the run's figures: train of {data} changed since the run began" in told("--split", "train")


def test_seeds_are_trained_on_the_same_data_or_not_at_all(data, tmp_path, capsys):
    start = ["task1", "--data", str(data), "--out", str(tmp_path), "--name", "a", *ARGUMENTS, "--epochs", "1"]
    assert main([*start, "--seeds", "2"]) == 0
    run = tmp_path / "task1/a"
    capsys.readouterr()
    before = (run / "table.csv").read_bytes()
    other_content(data)
    for more in ((), ("--changed-data",)):
        assert main(["task1", "--resume", str(run), "--seeds", "3", *more]) == 2
        error = capsys.readouterr().err
        assert f"{run} cannot go on: its seeds must agree, and seed 0 is done, but train of {data} changed" in error
        assert not (run / "seeds/2").exists()
    assert (run / "table.csv").read_bytes() == before


def test_only_figures_of_the_runs_own_images_are_compared_with_its_table(unbroken, data, tmp_path, capsys):
    run = Path(shutil.copytree(unbroken, tmp_path / "run"))
    alone = tmp_path / "alone"  # without splits, its images are all tested
    for number, row in enumerate((data / "test.txt").read_text().splitlines()):
        path, label = row.rsplit(" ", 1)
        (alone / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(data / path, alone / label / f"{number}.png")

    def told(folder):
        assert main(["evaluate", str(run), "--data", str(folder), "--channels", "RGB", "--split", "test"]) == 0
        assert json.loads((run / "evaluation.json").read_text())["data"] == str(folder)
        return " ".join(capsys.readouterr().out.split())

    same = Path(shutil.copytree(data, tmp_path / "same"))
    for folder in (data, same):
        assert re.search(r"(\d+) of \1 figures are those of", told(folder))
    CHANGES["test"][0](same)
    for folder in (alone, same):
        said = told(folder)
        assert "figures are those of" not in said
        assert f"these are figures of {folder}, other images than the run's, and not of" in said
