"""The study of networks that see fewer channels than in training: its table follows from its rows."""

import csv
import json
import re

import pytest

from bench.studies import filled
from bench.studies.filled import Row
from polychrome.train.run import main
from tests.conftest import write_list_folder
from tests.train.small import QUICK

ABOUT = ("a" * 12, "b" * 12, "1 core of C")


def rows(network, seed, by_absent):
    return [
        Row(network, seed, absent, label, accuracy, 2500, *ABOUT)
        for absent, accuracy in by_absent.items()
        for label in filled.LABELS
    ]


def test_the_table_has_means_over_seeds_for_each_network_and_filling(tmp_path):
    found = rows("cnn", 0, {"zeros": 0.2, "nearest": 0.4}) + rows("cnn", 1, {"zeros": 0.3, "nearest": 0.5})
    filled.runs.write(tmp_path / "mini50/filled.csv", found)
    text = filled.table(tmp_path)
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert lines == [["`cnn`", "zeros", *["25.0"] * 7, "0 1"], ["`cnn`", "nearest", *["45.0"] * 7, "0 1"]]
    said = " ".join(text.split())
    assert "commit bbbbbbbbbbbb, 1 core of C; trained by commit aaaaaaaaaaaa." in said


def test_without_results_nothing_is_claimed(tmp_path):
    assert filled.table(tmp_path) == "Not measured yet."


def test_a_run_is_tested_with_each_combination_and_again_without_a_second_row(tmp_path):
    data = write_list_folder(tmp_path / "data", per_class=(12, 3, 3))
    start = ["task2", "--data", str(data), "--out", str(tmp_path), "--name", "x", "--models", "simple_cnn", *QUICK]
    assert main([*start, "--image-size", "32", "--batch-size", "12", "--epochs", "1", "--holdout", "12"]) == 0
    for _ in range(2):
        assert filled.main([str(tmp_path / "task2/x")], tmp_path) == 0
    found = filled.read(tmp_path)
    assert [(row.absent, row.combination) for row in found] == [
        (absent, label)
        for absent in ("zeros", "nearest", "estimated")
        for label in ("RGB", "RG", "GB", "RB", "R", "G", "B")
    ]
    with (tmp_path / "task2/x/table.csv").open(newline="") as file:
        held = [row for row in csv.DictReader(file) if (row["split"], row["flip_averaging"]) == ("holdout", "no")]
    whole = [row.accuracy for row in found if row.combination == "RGB"]
    assert whole == [pytest.approx(float(held[0]["accuracy"]))] * 3
    assert {row.images for row in found} == {12}
    commit = json.loads((tmp_path / "task2/x/environment.json").read_text())["commit"]
    assert re.match(found[0].trained[:12], commit or "none")
