"""What is said of several models, which may not all have been tested on the same channels."""

from statistics import fmean, stdev
from types import SimpleNamespace

import numpy as np
import pytest

from polychrome.engine.report import pages, plots, scores, seeds, tables, verdict
from polychrome.train import messages
from polychrome.train.results import add_ratio, best
from tests.engine.test_report import entry, figure_of, results_of

NAMES = ("simple_cnn", "prism4_small", "prism4_small+alone", "resnet34", "resnet34+drop", "vgg_slim")
COMBINATIONS = {
    "all": [], "a+b+c": ["a", "b", "c"], "b+c": ["b", "c"], "a+b": ["a", "b"], "b": ["b"], "shuffled": [],
}  # fmt: skip
SHARED = [label for label in COMBINATIONS if label != "shuffled"]


def row(accuracy, images=400):
    return {"loss": 1.0, "accuracy": accuracy, "balanced_accuracy": accuracy - 0.125, "images": images}


def planted(number, elsewhere, seed=0):
    """Return a run of several models, and the combinations that all have; `elsewhere` are all accuracies on others."""
    rng = np.random.default_rng(number)
    names = [str(name) for name in rng.permutation(NAMES[: rng.integers(2, len(NAMES) + 1)])]
    common = [label for label in SHARED if rng.random() < 0.5] or ["b"]
    narrow, models = names[rng.integers(len(names))], {}  # one model has no other
    for name in names:
        own = [label for label in COMBINATIONS if label in common or (name != narrow and rng.random() < 0.5)]
        others = dict.fromkeys(COMBINATIONS, elsewhere) | {"shuffled": 0.5}
        drawn = {split: dict(zip(COMBINATIONS, rng.uniform(0.2, 0.8, 6), strict=True)) for split in ("val", "test")}
        found = {
            split: {label: row(float(each[label]) + 0.03 * seed if label in common else others[label]) for label in own}
            for split, each in drawn.items()
        }
        protocol = "one-per-combination" if "alone" in name else ("subset", "zero-pad")[len(name) % 2]
        models[name] = entry({}, protocol=protocol) | {"scores": found}
    results = results_of(models, COMBINATIONS, seed=seed)
    add_ratio(results)
    return results, common


def said(results, folder):
    """Return all that is said of several models at once."""
    run = SimpleNamespace(root=folder, html=folder / "report.html", seeds={})
    makes = (tables.protocols, tables.variants, tables.channels_kept, tables.channels_kept_in_short)
    return [
        verdict.sentences(results),
        verdict.ranking(results),
        [[bar for bar in panel.bars if bar.is_summary] for panel in verdict.chart(results).panels],
        *(make(results) for make in (tables.systems, tables.models, tables.ablation)),
        *(make(results, kind=kind) for make in makes for kind in scores.kinds(results)),
        [(section.title, section.note) for section in pages.sections(results, folder)],
        messages.at_end(results, run),
        best(results["models"]),
    ]


@pytest.mark.parametrize("number", range(40))
def test_scores_on_channels_that_a_model_lacks_change_nothing_that_is_said_of_several(number, tmp_path):
    least, greatest = (said(planted(number, accuracy)[0], tmp_path) for accuracy in (0.125, 1.0))
    assert least == greatest


@pytest.mark.parametrize("number", range(40))
def test_means_and_ranks_are_over_the_combinations_that_all_models_have(number):
    results, common = planted(number, 1.0)
    means = {
        name: fmean(found["scores"]["test"][label]["accuracy"] for label in common)
        for name, found in results["models"].items()
    }
    assert scores.shared(results) == common
    assert scores.full_set(results) == common[0]
    assert scores.ranked(results) == pytest.approx(means)
    order = sorted(means, key=means.get, reverse=True)
    assert [line[0] for line in verdict.ranking(results).rows] == order
    assert verdict.sentences(results).startswith(f"{order[0]} is right on {100 * means[order[0]]:.1f}% of 400 test")
    turned = results | {"models": dict(reversed(results["models"].items()))}
    assert verdict.sentences(turned) == verdict.sentences(results)
    assert sorted(tables.variants(turned).rows) == sorted(tables.variants(results).rows)


@pytest.mark.parametrize("number", range(10))
def test_the_deviation_of_a_mean_over_seeds_is_of_the_same_mean(number):
    runs = [planted(number, (0.1, 0.9, 0.2)[seed], seed)[0] for seed in range(3)]
    for found in seeds.combined(runs)["models"].values():
        assert found["spread"]["mean"] == pytest.approx(stdev([0.0, 0.03, 0.06]))


LACKING = {"simple_cnn": {"all": 0.99}, "prism4_small": {"all": 0.9}, "prism4_small+alone": {}}


@pytest.fixture
def sensors():
    """Models of which the first is best on all channels, that of single networks on all that these have."""
    level = {"simple_cnn": 0.6, "prism4_small": 0.5, "prism4_small+alone": 0.61}
    models = {}
    for name, first in LACKING.items():
        accuracies = first | dict.fromkeys(("a+b+c", "b+c", "b"), level[name])
        rows = {label: row(accuracy, 9 if label == "all" else 4) for label, accuracy in accuracies.items()}
        models[name] = entry({}) | {"scores": {"val": rows, "test": rows}}
    return results_of(models, COMBINATIONS)


def test_the_verdict_says_on_how_many_of_the_choices_models_are_compared(sensors):
    assert verdict.sentences(sensors).startswith(
        "prism4_small+alone is right on 61.0% of 4 test images, on average over the 3 of 4 choices of channels that "
        "all models were tested on: 61.0% with a+b+c, at worst 61.0% (a+b+c). Next is simple_cnn with 60.0%"
    )
    assert verdict.ranking(sensors).columns == ("system", "a+b+c", "worst of 3", "mean of 3", "95% interval")
    assert tables.systems(sensors).title == "Systems, tested on a+b+c"
    assert tables.models(sensors).title == "Models, tested on a+b+c"


def test_variants_and_steps_of_an_ablation_are_compared_on_the_same_channels(sensors):
    table = tables.variants(sensors)
    assert table.columns[2:] == ("base a+b+c", "a+b+c", "points", "base mean of 3", "mean of 3", "points")
    assert table.rows == (("prism4_small+alone", "prism4_small", *("50.0%", "61.0%", "+11.0") * 2),)
    table = tables.ablation(sensors)
    assert table.title == "Ablation: validation accuracy on a+b+c"
    assert table.rows == (("1", "prism4_small: +alone", "50.0%", "61.0%"),)


def test_a_single_combination_in_common_is_told_as_one():
    models = {"a": {"all": 0.9, "b": 0.25}, "b": {"b": 0.5}}
    results = results_of({name: entry(accuracies) for name, accuracies in models.items()}, COMBINATIONS)
    assert verdict.sentences(results) == (
        "b is right on 50.0% of 450 test images (95% interval 45.4-54.6), shown b, the only one of 2 choices of "
        "channels with all models. Next is a with 25.0%."
    )


def test_models_without_a_combination_in_common_are_not_compared(tmp_path):
    models = {"a": entry({"all": 0.9}), "a+b": entry({"b": 0.5})}
    results = results_of(models, COMBINATIONS)
    assert verdict.sentences(results) == "No choice of channels was tested with all models."
    assert verdict.chart(results).panels == verdict.ranking(results).rows == ()
    assert tables.variants(results).rows[0][2:] == ("-",) * 6
    assert tables.systems(results).title == "Systems, tested on no channels in common"
    assert messages.at_end(results, SimpleNamespace(html="report.html")) == ["report:    report.html"]


def test_the_end_of_a_run_names_the_models_that_it_does_not_rank(sensors, tmp_path):
    sensors["models"]["prism4_small"]["scores"]["test"]["a+b+c"]["accuracy"] = None
    lines = messages.at_end(sensors, SimpleNamespace(root=tmp_path, html=tmp_path / "report.html", seeds={}))
    assert lines[0].startswith("test accuracy on a+b+c, which all were tested on: 1. prism4_small+alone 61.0% (95% ")
    assert lines[1] == "no test accuracy on a+b+c: prism4_small"


@pytest.mark.parametrize(("mean", "validated"), [(0.5, 0.5), (0.9, 0.5), (0.5, 0.9), (0.9, 0.9)])
def test_the_end_of_a_run_says_why_others_are_first_in_the_report_and_in_use(tmp_path, mean, validated):
    models = {"a": entry({"a+b+c": 0.8, "b": 0.6}), "b": entry({"a+b+c": 0.75, "b": mean})}
    for name, accuracy in (("a", 0.7), ("b", validated)):
        models[name]["scores"]["val"] = {"a+b+c": row(accuracy)}
    run = SimpleNamespace(root=tmp_path, html=tmp_path / "report.html", seeds={})
    lines = messages.at_end(results_of(models, COMBINATIONS), run)
    assert lines[0].startswith("test accuracy on a+b+c: 1. a 80.0%")
    by_mean = "b is first in the report, which goes by the mean over 2 choices of channels: 82.5%, a 70.0%"
    assert (by_mean in lines) == (mean == 0.9)
    by_validation = "b is used below, the best on validation images: test images are not for choosing a model"
    assert (by_validation in lines) == (validated == 0.9)
    assert len(lines) == 6 + (mean == 0.9) + (validated == 0.9)


def test_validation_figures_are_of_the_combination_asked_for_or_none():
    found = entry({"all": 0.5, "b": 0.4})
    assert scores.validation(found, "all") == found["val"]  # an earlier version's
    assert scores.validation(found, "b") == {}
    found["scores"]["val"] = {"b": row(0.25)}
    assert scores.validation(found, "b")["accuracy"] == 0.25
    assert scores.validation(found, "all") == {}


def test_the_ratio_to_resnet34_is_on_the_channels_that_the_report_names():
    models = {"resnet34": entry({"all": 0.8, "b": 0.5}), "simple_cnn": entry({"all": 0.4, "b": 0.5})}
    results = results_of(models, COMBINATIONS)
    add_ratio(results)
    assert verdict.sentences(results).endswith(
        "simple_cnn has 50.0% of the accuracy of resnet34 on all channels, with 100.0% of its parameters."
    )
    results["models"]["vgg_slim"] = entry({"b": 0.25})
    add_ratio(results)
    assert [found["ratio_to_resnet34"] for found in results["models"].values()] == [1.0, 1.0, 0.5]


def test_the_curve_by_the_number_of_channels_is_of_the_combinations_that_all_models_have(monkeypatch):
    models = {"a": entry({"a+b": 0.9, "b+c": 0.5, "b": 0.25}), "b": entry({"b+c": 0.625, "b": 0.375})}
    figure = figure_of(monkeypatch, lambda: plots.channels_kept(results_of(models, COMBINATIONS), None))
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert (lines["a"], lines["b"]) == ([50.0, 25.0], [62.5, 37.5])
