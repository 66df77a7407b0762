"""Labels 1, 2, ...: whatever answers with a class, by a file or in Python, answers with the user's label."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import polychrome
from polychrome.engine.run_folder import RunFolder
from polychrome.train.commands.export import first_tested
from polychrome.train.finished import Run
from polychrome.train.run import main
from tests.train.small import QUICK

MODEL = "simple_cnn"


@pytest.fixture(scope="module")
def data(stripes, tmp_path_factory):
    """The stripes with labels 1, 2 and 3, in list files."""
    root = shutil.copytree(stripes, tmp_path_factory.mktemp("data") / "from one")
    for split in ("train", "val", "test"):
        rows = (line.rsplit(" ", 1) for line in (root / f"{split}.txt").read_text().splitlines())
        (root / f"{split}.txt").write_text("".join(f"{path} {int(label) + 1}\n" for path, label in rows))
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    small = ["--image-size", "24", "--batch-size", "24", "--epochs", "1", "--backend", "torch", *QUICK]
    start = ["task1", "--data", str(data), "--out", str(out), "--name", "a", "--models", MODEL]
    assert main([*start, *small, "--submission"]) == 0
    return out / "task1/a"


@pytest.fixture
def before(run, tmp_path):
    """The run as an earlier version left it: its classes are called 0, 1 and 2."""
    folder = RunFolder(shutil.copytree(run, tmp_path / "before"))
    results = folder.read_results()
    notes = ["labels are 1..3: taken as 0..2"]
    folder.write_results(results | {"data": results["data"] | {"class_names": ["0", "1", "2"], "notes": notes}})
    return folder.root


def rows_of(text):
    return list(csv.DictReader(text.splitlines()))


def labels(data):
    """Return the user's label of each test image, by its path."""
    return dict(line.rsplit(" ", 1) for line in (data / "test.txt").read_text().splitlines())


def test_every_answer_is_the_users_label(data, run, capsys):
    rows = rows_of((run / f"predictions-{MODEL}.csv").read_text())
    assert {row["path"]: row["true"] for row in rows} == labels(data)
    predicted = {row["path"]: row["predicted"] for row in rows}
    submitted = rows_of((run / f"submission-{MODEL}.csv").read_text())
    assert [row["Category"] for row in submitted] == list(predicted.values())
    trained = polychrome.load(run)
    assert trained.classes == ("1", "2", "3")
    for path, wanted in predicted.items():
        found = trained.predict(data / path)
        assert found.name == wanted
        assert found.probabilities.keys() == {"1", "2", "3"}
    capsys.readouterr()
    assert main(["predict", str(run), *(str(data / path) for path in predicted)]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert {row["path"]: row["class"] for row in rows} == {str(data / path): name for path, name in predicted.items()}
    assert {"1", "2", "3"} < rows[0].keys()


@pytest.mark.parametrize("given", ["the run's data", "a part", "class folders"])
def test_other_data_is_evaluated_by_the_users_labels(data, run, tmp_path, given):
    chosen = {path: label for path, label in labels(data).items() if given != "a part" or label != "1"}
    folder = tmp_path / "other"
    for path, label in chosen.items():
        file = folder / label / Path(path).name if given == "class folders" else folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / path, file)
    if given != "class folders":
        (folder / "test.txt").write_text("".join(f"{path} {label}\n" for path, label in chosen.items()))
    assert main(["evaluate", str(run), "--data", str(folder)]) == 0
    rows = rows_of((run / f"evaluation/{MODEL}.csv").read_text())  # the classes by their numbers
    tested = {Path(row["image"]).name: str(int(row["label"]) + 1) for row in rows}
    assert tested == {Path(path).name: label for path, label in chosen.items()}


@pytest.mark.parametrize("given", [False, True])
def test_a_run_of_an_earlier_version_is_evaluated_as_it_was(data, run, before, capsys, given):
    capsys.readouterr()
    assert main(["evaluate", str(before), *["--data", str(data)] * given]) == 0
    equal, every = re.search(r"(\d+) of (\d+) figures are those of", capsys.readouterr().out).groups()
    assert equal == every
    tested = json.loads((before / "evaluation.json").read_text())["models"][MODEL]["test"]
    assert tested == RunFolder(run).read_results()["models"][MODEL]["scores"]["test"]


def test_a_run_of_an_earlier_version_goes_on_with_its_own_names(before, tmp_path):
    run = tmp_path / "again"
    shutil.copytree(before, run)
    assert main(["task1", "--resume", str(run), "--epochs", "2"]) == 0
    results = RunFolder(run).read_results()
    assert (results["data"]["class_names"], results["models"][MODEL]["epochs"]) == (["0", "1", "2"], 2)


def test_a_run_of_an_earlier_version_finds_its_images_and_answers_with_its_own_names(run, before):
    images, _ = first_tested(Run(before, "cpu"), MODEL, None)
    assert torch.equal(images, first_tested(Run(run, "cpu"), MODEL, None)[0])
    assert polychrome.load(before).classes == ("0", "1", "2")
