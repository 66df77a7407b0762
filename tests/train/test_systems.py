"""The reports' systems as data."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from polychrome import models
from polychrome.train.systems import SYSTEMS, is_on_their_data, names, reported

ROOT = Path(__file__).resolve().parents[2]


def test_every_row_of_the_reports_is_there():
    assert Counter(system.report for system in SYSTEMS) == {"A": 4, "B": 5, "C": 4, "D": 10, "E": 10}
    assert Counter(system.task for system in SYSTEMS) == {"task1": 12, "task2": 11, "cifar100": 8, "transfer": 2}
    assert max(Counter((system.model, system.report) for system in SYSTEMS).values()) == 1


@pytest.mark.parametrize(
    ("task", "wanted"),
    [
        (
            "task1",
            "simple_cnn pool_attention_cnn dwg_densenet121 naive_cnn adaptive_channel_cnn dynamic_cnn_v1 "
            "dynamic_cnn_v2 baseline_cnn",
        ),
        (
            "task2",
            "resnet34 attention_cnn rrdb rrdb_rnn attention_separable_cnn simple_2layer_cnn se_2layer_cnn "
            "simple_4layer_cnn",
        ),
        ("cifar100", "base_net vgg19 resnet18 googlenet vgg_slim vgg_resnet_sum vgg_resnet_concat resnetv2"),
        ("transfer", "resnet50"),
    ],
)
def test_names_gives_each_model_of_a_task_once_in_the_reports_order(task, wanted):
    assert names(task) == tuple(wanted.split())
    assert set(names(task)) <= set(models.names())


def test_a_system_is_found_by_its_name_in_a_run_in_every_report_that_has_it():
    assert [(system.report, system.reported["RGB"]) for system in reported("resnet34", "task2")] == [
        ("A", 0.5978),
        ("B", 0.2667),
        ("C", 0.5933),
        ("D", 0.5667),
    ]
    (system,) = reported("dwg_densenet121+shuffle", "task1")
    assert system.reported == {"shuffled": 0.76, "precision": 0.7661, "recall": 0.76, "f1": 0.752}
    assert [reported(name, "task1")[0].reported["RGB"] for name in ("dynamic_cnn_v1", "dynamic_cnn_v1+drop")] == [
        0.2422,
        0.1244,
    ]
    assert reported("base_net", "cifar100")[0].reported == {"val": (0.24, 0.26)}
    assert reported("resnet34", "task1") == reported("simple_cnn+drop", "task1") == []


def test_figures_are_shares_and_ranges_ascend():
    for system in SYSTEMS:
        for figure in system.reported.values():
            low, high = figure if isinstance(figure, tuple) else (figure, figure)
            assert 0 < low <= high < 1, system


def test_the_results_name_the_same_systems():
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8").split("\n## Systems\n")[1].split("\n## ")[0]
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    found = {name for row in rows for name in re.findall(r"`([a-z0-9_]+)`", row[2])}
    assert found == {system.model.partition("+")[0] for system in SYSTEMS}


def test_it_needs_no_torch():
    code = "import sys, train.systems; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


MINI_IMAGENET = {"classes": 50, "train": 63_325, "val": 450, "test": 450}


@pytest.mark.parametrize(
    ("task", "data", "same"),
    [
        ("task1", MINI_IMAGENET, True),
        ("task2", MINI_IMAGENET | {"train": 63_000}, True),  # some files cannot be read
        ("task2", MINI_IMAGENET | {"train": 60_000}, False),
        ("task1", MINI_IMAGENET | {"train": 11_149}, False),  # a part of the set
        ("task1", MINI_IMAGENET | {"classes": 64}, False),
        ("task1", {"classes": 0}, False),
        ("cifar100", {"classes": 100, "train": 45_000, "val": 5_000, "test": 10_000}, True),
        ("cifar100", MINI_IMAGENET, False),
        ("transfer", MINI_IMAGENET, False),
    ],
)
def test_figures_of_the_reports_are_of_their_data_alone(task, data, same):
    assert is_on_their_data(task, data) == same
