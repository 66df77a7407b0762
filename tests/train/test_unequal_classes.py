"""A run on classes of different sizes."""

import csv
import json
import re

import pytest
from PIL import Image

from polychrome.train.run import main
from tests.conftest import draw
from tests.train.small import QUICK

SMALL = ["--image-size", "32", "--batch-size", "12", "--epochs", "1", *QUICK]
COUNTS = {"train": (18, 6, 3), "val": (6, 3, 3), "test": (12, 3, 3)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with and without class weights on three classes of stripes."""
    root = tmp_path_factory.mktemp("unequal")
    for number, (split, counts) in enumerate(COUNTS.items()):
        for label, count in enumerate(counts):
            folder = root / f"data/{split}/{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(draw(label, 100 * number + i)).save(folder / f"{i}.png")
    start = ["--data", str(root / "data"), "--out", str(root), "--name", "x", *SMALL, "--channels", "RGB,R"]
    assert main(["task1", *start, "--models", "simple_cnn,simple_cnn+balanced"]) == 0
    return root / "task1/x"


def test_balanced_accuracy_is_the_mean_over_classes_in_the_results_the_table_and_the_report(run):
    entry = json.loads((run / "results.json").read_text())["models"]["simple_cnn"]
    with open(run / "predictions-simple_cnn.csv", newline="") as file:
        guesses = [int(row["predicted"]) for row in csv.DictReader(file)]
    labels = [label for label, count in enumerate(COUNTS["test"]) for _ in range(count)]
    right = [guess == label for guess, label in zip(guesses, labels, strict=True)]
    shares = [sum(right[:12]) / 12, sum(right[12:15]) / 3, sum(right[15:]) / 3]
    assert entry["test"]["RGB"]["accuracy"] == pytest.approx(sum(right) / 18)
    assert entry["test"]["RGB"]["balanced_accuracy"] == pytest.approx(sum(shares) / 3)
    with open(run / "table.csv", newline="") as file:
        rows = {(row["model"], row["split"], row["combination"]): row for row in csv.DictReader(file)}
    row = rows["simple_cnn", "test", "RGB"]
    assert float(row["balanced_accuracy"]) == entry["test"]["RGB"]["balanced_accuracy"]
    assert row["images"] == "18"
    assert "Test balanced accuracy, %" in (run / "report.html").read_text()


def test_class_weights_train_another_network_and_an_evaluation_agrees(run, capsys):
    with open(run / "history.csv", newline="") as file:
        losses = {row["model"]: float(row["train_loss"]) for row in csv.DictReader(file)}
    assert abs(losses["simple_cnn"] - losses["simple_cnn+balanced"]) > 1e-3
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0
    printed = capsys.readouterr().out.replace("\n", " ")
    assert re.search(r"(\d+) of \1 figures are those of", printed)
    assert re.search(r"channels +accuracy +balanced", printed)
