"""Seeds of a run whose results do not have the same figures."""

from itertools import permutations

import pytest

from polychrome.engine.report import scores, seeds, tables


def runs_of(*entries):
    """Return the runs of as many seeds of one model, given what differs in its entry."""
    every = []
    for seed, own in enumerate(entries):
        accuracies = own.pop("accuracies", {"a+b": 0.5})
        found = {"test": {label: {"accuracy": value, "loss": 1.0} for label, value in accuracies.items()}}
        model = {"epochs": 2, "val": {"loss": 1.0, "accuracy": 0.5}, "scores": found} | own
        data, tested = {"classes": 3, "test": 18}, {label: label.split("+") for label in accuracies}
        every.append({"seed": seed, "data": data, "combinations": tested, "models": {"m": model}})
    return every


PARTS = ({"a+b": 0.5, "a": 0.25}, {"a+b": 0.5, "b": 0.75}, {"a+b": 0.5})


@pytest.mark.parametrize("order", list(permutations(PARTS)))
def test_a_combination_that_some_seed_lacks_is_there_without_a_figure(order):
    results = seeds.combined(runs_of(*({"accuracies": dict(part)} for part in order)))
    found = results["models"]["m"]
    assert {label: row["accuracy"] for label, row in found["scores"]["test"].items()} == {
        "a+b": 0.5, "a": None, "b": None
    }  # fmt: skip
    assert results["combinations"] == {"a+b": ["a", "b"], "a": ["a"], "b": ["b"]}
    assert scores.shared(results) == ["a+b"]
    assert found["spread"]["mean"] == 0
    assert sorted(tables.accuracies(results["models"]).rows) == [("a", "-"), ("a+b", "50.0"), ("b", "-")]


@pytest.mark.parametrize("lacking", [{}, {"peak_memory_mb": None, "train_seconds": None}])
@pytest.mark.parametrize("place", [0, 1])
def test_a_figure_that_some_seed_lacks_is_unknown_and_costs_no_other(lacking, place):
    entries = [{"peak_memory_mb": 800.0, "train_seconds": 2.0}]
    entries.insert(place, dict(lacking))
    found = seeds.combined(runs_of(*entries))["models"]["m"]
    assert (found["peak_memory_mb"], found["train_seconds"]) == (None, None)
    assert (found["epochs"], found["val"]) == (2, {"loss": 1.0, "accuracy": 0.5})


def test_the_peak_of_several_seeds_is_the_greatest():
    found = seeds.combined(runs_of({"peak_memory_mb": 800.0}, {"peak_memory_mb": 900.0, "epochs": 3}))["models"]["m"]
    assert (found["peak_memory_mb"], found["epochs"]) == (900.0, 3)


def test_no_figure_of_a_single_seed_stands_for_all():
    own = [{"gpu_idle": 0.9, "input_wait": 0.5, "best_epoch": 2, "kernels": [1], "batch_size": 32}]
    own += [{"gpu_idle": 0.1, "input_wait": 0.3, "best_epoch": 40, "epochs": 50, "batch_size": 32}]
    results = seeds.combined(runs_of(*map(dict, own)))
    found = results["models"]["m"]
    assert (found["gpu_idle"], found["input_wait"], found["batch_size"]) == (0.5, 0.4, 32)
    assert "kernels" not in found
    assert [row["best_epoch"] for row in found["per_seed"]] == [2, 40]
    assert tables.FIGURES["best"](found, []) == "-/50"


def test_a_split_that_some_seed_was_not_tested_on_is_there_without_figures():
    runs = runs_of({}, {})
    runs[1]["models"]["m"]["scores"]["holdout"] = {"a": {"accuracy": 0.5}}
    found = seeds.combined(runs)["models"]["m"]
    assert found["scores"]["holdout"] == {"a": {"accuracy": None}}
    assert found["spread"]["plain"]["holdout"] == {"a": {"accuracy": None}}
