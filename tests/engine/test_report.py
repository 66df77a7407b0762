"""Tables, pictures and pages of a report, from results as `RunFolder.read_results` returns them."""

import csv
import io
import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from rich.console import Console

from polychrome.engine import console
from polychrome.engine.report import comparison, pages, plots, printed, scores, tables
from polychrome.engine.run_folder import RunFolder
from polychrome.train.run import main

RGB = {"RGB": ["R", "G", "B"], "RG": ["R", "G"], "GB": ["G", "B"], "RB": ["R", "B"], "R": ["R"], "G": ["G"], "B": ["B"]}


@dataclass(frozen=True)
class Row:
    """A row of the history, as `engine.training.trainer.EpochRow`."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float


def score(accuracy):
    if accuracy is None:
        return dict.fromkeys(("loss", "accuracy", "precision", "recall", "f1"))
    return {
        "loss": round(4 * (1 - accuracy), 4),
        "accuracy": accuracy,
        "precision": accuracy + 0.01,
        "recall": accuracy,
        "f1": accuracy - 0.01,
    }


def entry(accuracies, macs=71_200_000, params=139_570, **more):
    return {
        "params": params, "macs": macs, "flops": 2 * macs, "activation_mb": 12.5, "depth": 4, "epochs": 25,
        "best_epoch": 19, "train_seconds": 754.2, "images_per_second": 2105.4, "peak_memory_mb": 1830.0,
        "protocol": "subset", "channel_sampling": "on", "augmentations": ["crop", "flip"],
        "val": {"loss": 2.345, "accuracy": 0.3},
        "scores": {"test": {label: score(accuracy) for label, accuracy in accuracies.items()}},
    } | more  # fmt: skip


def results_of(entries, combinations=RGB, **more):
    data = {"root": "/data/mini50", "classes": 50, "train": 63325, "val": 450, "test": 450, "rejected": 0,
            "rejected_files": []}  # fmt: skip
    data["channels"] = next(iter(combinations.values()))
    return {"task": "task1", "seed": 0, "data": data, "models": entries, "combinations": combinations} | more


def task1():
    """Return a sweep of task 1: ten entries, two of them variants with shuffling or drop, and one that failed."""

    def on(*percent):
        return dict(zip(RGB, (share / 100 for share in percent), strict=True))

    reported = {"A": {"RGB": 0.3556, "RG": 0.3111, "GB": 0.0378, "R": 0.0222, "G": 0.0222, "B": 0.02}}
    padded = {"protocol": "zero-pad", "channel_sampling": "off"}
    shuffled = entry(on(68, 65.5, 64, 66, 58, 59.5, 55), 2_870_000_000, 7_012_345, channel_sampling="shuffle")
    shuffled |= {"train_seconds": 9350.0, "val": {"loss": 1.2, "accuracy": 0.69}}
    shuffled["reported"] = {"B": {"shuffled": 0.76, "precision": 0.7661, "recall": 0.76, "f1": 0.752}}
    shuffled["scores"]["test"]["shuffled"] = score(0.61)
    dense = entry(on(65, 30, 28, 31, 12, 14, 11), 2_870_000_000, 7_012_345, train_seconds=9120.0)
    dense |= {"reported": {"B": {"RGB": 0.6578, "precision": 0.6979, "recall": 0.6578, "f1": 0.6547}}}
    dense["scores"]["test"]["shuffled"] = score(0.25)
    dynamic = {"reported": {"D": {"RGB": 0.2422}}}
    return results_of(
        {
            "simple_cnn": entry(on(35, 9, 8.5, 7.6, 6, 3.6, 2.7), reported=reported, **padded),
            "pool_attention_cnn": entry(on(31, 30.3, 30.7, 29.8, 30, 29.3, 27.1), 64_700_000, 139_299),
            "dwg_densenet121": dense | {"channel_sampling": "off"},
            "dwg_densenet121+shuffle": shuffled,
            "naive_cnn": entry(
                on(41, 37, 36, 42, 38, 35, 34), 310_000_000, 9_037_714, protocol="one-per-combination",
                channel_sampling="off"
            ),
            "adaptive_channel_cnn": entry(
                on(45, 41, 42, 42, 37, 38, 37), 960_000_000, 15_353_260, channel_sampling="cycle"
            ),
            "dynamic_cnn_v1": entry(on(23, 15, 14, 16, 9, 10, 8), 1_100_000, 31_570, **dynamic),
            "dynamic_cnn_v1+drop": entry(
                on(21, 18, 17, 18, 13, 13, 12), 1_100_000, 31_570, channel_sampling="drop"
            ),
            "dynamic_cnn_v1+drop+noaug": entry(
                on(19, 16, 16, 16, 12, 12, 10), 1_100_000, 31_570, augmentations=[], channel_sampling="drop",
                val={"loss": 2.9, "accuracy": 0.25}
            ),
            "baseline_cnn": entry(on(28, 12, 11, 13, 5, 6, 4), 3_400_000, 22_834, **padded),
        },
        failed={"dynamic_cnn_v2": "CUDA out of memory: tried to allocate 2.0 GiB"},
    )  # fmt: skip


def task2():
    """Return a run of task 2 with ResNet34 and the reports' figures for it."""
    reported = {"A": {"RGB": 0.5978}, "B": {"RGB": 0.2667, "f1": 0.1583}, "C": {"RGB": 0.5933}, "D": {"RGB": 0.5667}}
    padded = {"protocol": "zero-pad", "channel_sampling": "off"}
    entries = {
        "resnet34": entry({"RGB": 0.5}, 4_790_000_000, 21_310_322, reported=reported, ratio_to_resnet34=1.0, **padded),
        "attention_cnn": entry({"RGB": 0.46}, 1_020_000_000, 446_868, ratio_to_resnet34=0.92, **padded),
        "simple_2layer_cnn": entry({"RGB": 0.38}, 3_400_000_000, 237_746, ratio_to_resnet34=0.76, **padded),
    }
    return results_of(entries, {"RGB": ["R", "G", "B"]}) | {"task": "task2"}


def channels48(models=2):
    """Return a run on 48 channels with the combinations tested by default."""
    names = [str(number) for number in range(48)]
    rng = np.random.default_rng(0)
    combinations = {"all": names}
    for size in range(47, 1, -1):
        for draw in (1, 2, 3):
            combinations[f"{size} of 48 #{draw}"] = [names[i] for i in sorted(rng.choice(48, size, replace=False))]
    combinations |= {name: [name] for name in names}
    entries = {}
    for number in range(models):
        tested = {}
        for label, chosen in combinations.items():
            level = 0.7 - 0.05 * number - (0.5 if number % 2 else 0.3) * (1 - len(chosen) / 48) ** 2
            tested[label] = round(max(0.0, float(level + rng.normal(0, 0.02))), 4)
        entries[f"model_{number}"] = entry(tested, 10 ** (7 + number), protocol=("subset", "zero-pad")[number % 2])
    return results_of(entries, combinations)


def history_of(results, epochs=25):
    rng = np.random.default_rng(1)
    history = {}
    for name, found in results["models"].items():
        reached = next(iter(found["scores"]["test"].values()))["accuracy"]
        history[name] = []
        for epoch in range(1, epochs + 1):
            share = 1 - math.exp(-epoch / 6)
            train, val = reached * 1.3 * share, reached * share + rng.normal(0, 0.01)
            over = 0.02 * max(0, epoch - 15)
            history[name].append(Row(epoch, 3.9 - 4 * train, train, 3.9 - 3.5 * val + over, max(val, 0)))
    return history


def rows_of(table):
    """Return a table's rows as dicts by column head; heads that repeat are numbered."""
    heads = [f"{head} {table.columns[:n].count(head)}" if head in table.columns[:n] else head
             for n, head in enumerate(table.columns)]  # fmt: skip
    return [dict(zip(heads, row, strict=True)) for row in table.rows]


def test_systems_shows_reported_beside_measured_and_the_costs_in_the_runs_order():
    table = tables.systems(task1())
    found = rows_of(table)
    assert table.title == "Systems, tested on RGB"
    assert [row["system"] for row in found] == list(task1()["models"])
    assert found[3] == {
        "system": "dwg_densenet121+shuffle", "reported": "B 76.0% (shuffled)", "acc.": "68.0%", "precision": "69.0%",
        "recall": "68.0%", "F1": "67.0%", "val acc.": "69.0%", "params": "7,012,345", "mult-adds": "2.87 G",
        "FLOPs": "5.74 G", "act. MB": "12.50", "train time": "2.6 h",
    }  # fmt: skip
    assert [row["reported"] for row in found[:2]] == ["A 35.6%", "-"]


def test_systems_shows_every_reports_figure_and_the_ratio_to_resnet34():
    first, second, _ = rows_of(tables.systems(task2()))
    assert first["reported"] == "A 59.8%, B 26.7%, C 59.3%, D 56.7%"
    assert (first["ratio"], second["ratio"]) == ("100.0%", "92.0%")
    assert "ratio" not in tables.systems(task1()).columns


@pytest.mark.parametrize(
    ("accuracies", "ratios"),
    [
        ({"resnet34+smoothing": 0.4, "resnet34": 0.5, "simple_cnn": 0.25}, [0.8, 1.0, 0.5]),
        ({"simple_cnn": 0.25, "resnet34+alone": 0.5}, [0.5, 1.0]),
        ({"resnet34+frozen": 0.4, "resnet34+scratch": 0.5}, [None, None]),
        ({"simple_cnn": 0.25}, [None]),
    ],
)
def test_ratios_are_to_plain_resnet34_or_its_only_variant(accuracies, ratios):
    entries = {name: entry({"RGB": value}) for name, value in accuracies.items()}
    found = results_of(entries, {"RGB": [*"RGB"]})
    rows = [row for row in comparison.rows(found) if row["split"] == "test"]
    assert [row["ratio_to_resnet34"] for row in rows] == ratios


def test_a_reported_range_is_shown_as_one():
    results = results_of({"base_net": entry({"RGB": 0.25}, reported={"E": {"val": [0.24, 0.26]}})}, {"RGB": [*"RGB"]})
    assert rows_of(tables.systems(results))[0]["reported"] == "E 24.0-26.0% (val)"
    assert tables.reported(results).columns == ("system", "figures", "val")
    assert [row[1:] for row in tables.reported(results).rows] == [("report E", "24.0-26.0%"), ("measured", "30.0%")]


def test_reported_puts_the_measured_figure_of_the_same_test_below_each_reported_one():
    table = tables.reported(task1())
    heads = ("RGB", "RG", "GB", "R", "G", "B", "shuffled", "precision", "recall", "F1")
    assert table.columns == ("system", "figures", *heads)
    found = {(row["system"], row["figures"]): row for row in rows_of(table)}
    assert found["simple_cnn", "report A"]["GB"] == "3.8%"
    assert found["simple_cnn", "measured"]["GB"] == "8.5%"
    # Precision is that of the test on shuffled channels, which the report's is of.
    assert found["dwg_densenet121+shuffle", "measured"]["precision"] == "62.0%"
    assert found["dwg_densenet121", "measured"]["precision"] == "66.0%"
    assert not any(system == "pool_attention_cnn" for system, _ in found)
    assert [row[1] for row in tables.reported(task2()).rows] == [*(f"report {key}" for key in "ABCD"), "measured"]


def test_reported_is_empty_where_nothing_of_it_was_measured():
    results = channels48()
    results["models"]["model_0"]["reported"] = {"A": {"RGB": 0.35}}
    assert tables.reported(results).rows == ()


def test_protocols_compares_them_by_model_and_on_average():
    table = tables.protocols(task1())
    assert table.columns == ("protocol", "system", "channel sampling", "RGB", "mean", "worst")
    assert table.rows[:4] == (
        ("zero-pad", "simple_cnn", "off", "35.0%", "10.3%", "2.7% (B)"),
        ("zero-pad", "baseline_cnn", "off", "28.0%", "11.3%", "4.0% (B)"),
        ("zero-pad", "mean of 2 models", "", "31.5%", "10.8%", "3.4%"),
        ("subset", "pool_attention_cnn", "on", "31.0%", "29.7%", "27.1% (B)"),
    )
    assert table.rows[-1] == ("one-per-combination", "naive_cnn", "off", "41.0%", "37.6%", "34.0% (B)")
    assert tables.protocols(task2()).rows == ()


def test_variants_are_compared_with_their_base():
    table = tables.variants(task1())
    means, shuffled = ("base mean", "mean", "points"), ("base shuffled", "shuffled", "points")
    assert table.columns == ("variant", "base", "base RGB", "RGB", "points", *means, *shuffled)
    assert table.rows[0] == (
        "dwg_densenet121+shuffle", "dwg_densenet121", "65.0%", "68.0%", "+3.0", "27.3%", "62.3%", "+35.0",
        "25.0%", "61.0%", "+36.0",
    )  # fmt: skip
    assert table.rows[1][:5] == ("dynamic_cnn_v1+drop", "dynamic_cnn_v1", "23.0%", "21.0%", "-2.0")
    assert table.rows[1][-3:] == ("-", "-", "-")
    assert len(table.rows) == 3
    assert tables.variants(task2()).rows == ()


def test_variants_without_their_base_are_compared_with_the_first_of_them():
    entries = {"resnet50+frozen": entry({"RGB": 0.38}), "resnet50+finetuned": entry({"RGB": 0.64})}
    table = tables.variants(results_of(entries, {"RGB": [*"RGB"]}))
    assert table.rows == (("resnet50+finetuned", "resnet50+frozen", "38.0%", "64.0%", "+26.0"),)


def test_ablation_has_a_row_for_each_step_whose_predecessor_was_trained():
    steps = {"vgg_slim": 0.70, "vgg_slim+crop": 0.72, "vgg_slim+crop+flip": 0.735, "vgg_slim+a+b": 0.6, "vgg19": 0.5}
    entries = {name: entry({"RGB": 0.5}, val={"loss": 1.0, "accuracy": value}) for name, value in steps.items()}
    table = tables.ablation(results_of(entries, {"RGB": [*"RGB"]}))
    assert table.columns == ("step", "change", "before", "after")
    assert table.rows == (
        ("1", "vgg_slim: +crop", "70.0%", "72.0%"),
        ("2", "vgg_slim: +flip", "72.0%", "73.5%"),
    )


def test_accuracies_takes_the_narrower_form():
    table = tables.accuracies(task1()["models"])
    assert table.columns == ("system", *RGB, "shuffled")
    assert table.rows[0] == ("simple_cnn", "35.0", "9.0", "8.5", "7.6", "6.0", "3.6", "2.7", "-")
    few = tables.accuracies({"a": entry({"RGB": 0.5, "RG": 0.25, "B": 0.1})})
    assert (few.columns, few.rows) == (("channels", "a"), (("RGB", "50.0"), ("RG", "25.0"), ("B", "10.0")))


def test_many_combinations_become_a_table_by_the_number_of_channels_kept():
    results = channels48()
    assert scores.is_long(results)
    assert not scores.is_long(task1())
    table = tables.channels_kept(results)
    assert [row[0] for row in table.rows] == ["48", "32", "24", "16", "12", "8", "6", "4", "3", "2", "1"]
    tested = results["models"]["model_1"]["scores"]["test"]
    of_24 = [100 * tested[f"24 of 48 #{draw}"]["accuracy"] for draw in (1, 2, 3)]
    assert table.rows[2][2] == f"{np.mean(of_24):.1f} ({min(of_24):.1f}-{max(of_24):.1f})"
    assert table.rows[0][1] == f"{100 * results['models']['model_0']['scores']['test']['all']['accuracy']:.1f}"


def test_the_five_best_and_the_five_worst_single_channels_are_ranked():
    results = channels48()
    table = tables.single_channels(results)
    assert [row[0] for row in table.rows] == ["1", "2", "3", "4", "5", "44", "45", "46", "47", "48"]
    alone = {str(n): results["models"]["model_0"]["scores"]["test"][str(n)]["accuracy"] for n in range(48)}
    best, worst = max(alone, key=alone.get), min(alone, key=alone.get)
    assert table.rows[0][1] == f"{best} ({100 * alone[best]:.1f}%)"
    assert table.rows[-1][1] == f"{worst} ({100 * alone[worst]:.1f}%)"


@pytest.mark.parametrize("nothing", [None, float("nan"), float("inf")])
def test_figures_that_are_not_there_are_dashes(nothing):
    results = task1()
    first = results["models"]["simple_cnn"]
    first["scores"]["test"]["RGB"] |= {"accuracy": nothing, "loss": nothing, "f1": nothing}
    first |= {"macs": nothing, "train_seconds": nothing, "activation_mb": nothing, "val": {"loss": nothing}}
    row = rows_of(tables.systems(results))[0]
    assert [row[key] for key in ("acc.", "F1", "mult-adds", "act. MB", "val acc.", "train time")] == ["-"] * 6
    assert tables.combinations("simple_cnn", first).rows[0][1:] == ("-", "36.0%", "35.0%", "-", "-")
    assert tables.protocols(results).rows[0][3:] == ("-", "6.2%", "2.7% (B)")
    assert tables.accuracies(results["models"]).rows[0][1] == "-"
    assert rows_of(tables.training(results))[0]["val loss"] == "-"


def unequal():
    """Return a run on classes of different sizes, in which balanced accuracy is below accuracy by a tenth."""
    results = task1()
    for found in results["models"].values():
        for row in found["scores"]["test"].values():
            row["balanced_accuracy"] = row["accuracy"] - 0.02
    return results


def test_every_table_has_balanced_accuracy_beside_accuracy_where_classes_are_unequal(tmp_path):
    results = unequal()
    row = rows_of(tables.systems(results))[0]
    assert (row["acc."], row["balanced"]) == ("35.0%", "33.0%")
    assert rows_of(tables.models(results))[0]["balanced"] == "33.0%"
    first = tables.combinations("simple_cnn", results["models"]["simple_cnn"])
    assert first.columns[:3] == ("channels", "accuracy", "balanced")
    assert first.rows[0][1:3] == ("35.0%", "33.0%")
    both = [tables.accuracies(results["models"], kind=kind) for kind in scores.kinds(results)]
    assert [table.title for table in both] == ["Test accuracy, %", "Test balanced accuracy, %"]
    cells = [float(table.rows[0][1]) for table in both]
    assert cells[0] - cells[1] == pytest.approx(2.0)
    for make in (tables.protocols, tables.variants):
        plain, balanced = make(results, "accuracy"), make(results, "balanced_accuracy")
        assert "balanced accuracy" in balanced.title
        assert plain.rows != balanced.rows
    comparing = [table.title for table in comparison.tables(results)]
    assert comparing == ["Test accuracy, %", "Test balanced accuracy, %"]
    (found,) = [row for row in comparison.rows(results) if (row["model"], row["combination"]) == ("naive_cnn", "G")]
    assert found["accuracy"] - found["balanced_accuracy"] == pytest.approx(0.02)
    kept = tables.channels_kept(results, kind="balanced_accuracy")
    assert kept.title.startswith("Test balanced accuracy, %, by number of channels kept")


def test_nothing_is_said_of_balanced_accuracy_where_it_is_accuracy(tmp_path):
    results = task1()
    for found in results["models"].values():
        for row in found["scores"]["test"].values():
            row["balanced_accuracy"] = row["accuracy"] + 1e-12
    assert scores.kinds(results) == scores.kinds(task1()) == ("accuracy",)
    assert "balanced" not in tables.systems(results).columns
    assert "balanced" not in tables.combinations("simple_cnn", results["models"]["simple_cnn"]).columns


def test_tables_of_before_are_compared_by_the_figures_that_they_have():
    text = comparison.as_csv(task1())
    rows = list(csv.reader(io.StringIO(text)))
    place = rows[0].index("balanced_accuracy")
    before = "\n".join(",".join(cell for i, cell in enumerate(row) if i != place) for row in rows)
    count, equal = comparison.agreement(before, comparison.as_csv(unequal()))
    assert count == equal > 60
    assert comparison.agreement(text, text)[0] == count


def is_drawn(path):
    with Image.open(path) as image:
        return min(image.size) > 200 and len(image.convert("RGB").getcolors(1 << 22)) > 100


@pytest.mark.parametrize(
    ("results", "pictures"),
    [
        (task1(), {"curves", "combinations", "tradeoff"}),
        pytest.param(task2(), {"curves", "combinations", "tradeoff"}, marks=pytest.mark.slow),
        (channels48(), {"curves", "channels_kept", "tradeoff"}),
        pytest.param(channels48(6), {"curves", "channels_kept", "tradeoff"}, marks=pytest.mark.slow),
        (results_of({"one": entry({"RGB": 0.3, "RG": None})}), {"curves", "combinations"}),
        (results_of({}, failed={"one": "no"}), set()),
    ],
    ids=["task1", "task2", "48 channels", "48 channels, 6 models", "one model", "none"],
)
def test_every_picture_that_the_results_allow_is_drawn(results, pictures, tmp_path):
    plots.draw(results, history_of(results, epochs=3) if pictures else {}, tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == pictures
    assert all(map(is_drawn, tmp_path.glob("*.png")))
    for picture in pictures:
        drawn = ElementTree.fromstring(plots.themed(tmp_path / f"{picture}.svg"))
        letters = [text.strip() for element in drawn.iter() if (text := element.text) and element.tag.endswith("text")]
        assert {"tradeoff": "multiply-adds per image", "curves": "epoch"}.get(picture, letters[0]) in letters


def test_a_chart_takes_the_colours_of_its_page(tmp_path):
    plots.tradeoff(task1(), tmp_path / "a.png")
    svg = plots.themed(tmp_path / "a.svg")
    assert svg.startswith("<svg")
    assert not re.findall(r"(?:fill|stroke): #\w+", svg)  # each in a variable, or the page's own
    assert "stroke: currentColor" in svg
    assert {f"var(--c-{colour[1:].lower()}, {colour.lower()})" for colour in plots.LABEL_COLOURS[:4]} <= set(
        re.findall(r"var\(--c-\w+, #\w+\)", svg)
    )


def test_drawing_leaves_matplotlib_to_the_user(tmp_path):
    """In a notebook a run's pictures change neither where later figures appear nor how they look."""
    code = f"""
import matplotlib, sys
matplotlib.use("svg")
from matplotlib import pyplot
before = dict(matplotlib.rcParams)
from pathlib import Path
from polychrome.engine.report import plots
from tests.engine.test_report import task1
plots.tradeoff(task1(), Path({str(tmp_path)!r}, "a.png"))
after = dict(matplotlib.rcParams)
sys.exit(str({{name for name in before if before[name] != after[name]}} or "") or pyplot.get_fignums() or None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert is_drawn(tmp_path / "a.png")


def test_the_same_run_has_the_same_charts(tmp_path):
    for name in ("a", "b"):
        plots.tradeoff(task1(), tmp_path / f"{name}.png")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def backwards(results):
    """Return a run whose models come in the other order, here the least accurate first."""
    return results | {"models": dict(reversed(results["models"].items()))}


OF_ALL_KINDS = [
    pytest.param(task1(), id="task1"),
    pytest.param(task2(), id="task2"),
    pytest.param(channels48(), id="48 channels"),
    pytest.param(channels48(6), id="6 models", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(
    "turned", [pytest.param(lambda results: results, id="as it is", marks=pytest.mark.slow), backwards]
)
@pytest.mark.parametrize("results", OF_ALL_KINDS)
def test_whatever_is_drawn_lies_within_its_axes(results, turned, monkeypatch):
    figures, results = [], turned(results)
    monkeypatch.setattr(plots, "_save", lambda figure, _path, **_: figures.append(figure))
    plots.draw(results, history_of(results, epochs=3), Path())
    assert len(figures) == 3
    for figure in figures:
        figure.draw_without_rendering()
        for axis in figure.axes:
            drawn = [line.get_xydata() for line in axis.lines if line.get_transform().contains_branch(axis.transData)]
            drawn += [path.vertices for each in axis.collections for path in each.get_paths()]
            for points in drawn:
                points = points[np.isfinite(points).all(1)]
                inside = axis.transAxes.inverted().transform(axis.transData.transform(points))
                # Lines across the axes, as for chance, have 0 and 1 for x.
                across = len(points) == 2 and set(points[:, 0]) == {0.0, 1.0}
                assert (inside[:, 1] >= -0.001).all(), figure
                assert (inside[:, 1] <= 1.001).all(), figure
                assert across or ((inside[:, 0] >= -0.001) & (inside[:, 0] <= 1.001)).all()


@pytest.mark.parametrize("results", OF_ALL_KINDS)
def test_the_most_frequent_class_is_named_within_every_picture_where_classes_are_unequal(results, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, _path, **_: figures.append(figure))
    for found in results["models"].values():
        for row in found["scores"]["test"].values():
            row["largest_class"] = 0.25
    plots.draw(results, {}, Path())
    assert len(figures) == 2
    for figure in figures:
        figure.draw_without_rendering()
        named = [text for text in figure.findobj(Text) if "the most frequent class" in text.get_text()]
        assert named
        for text in named:
            box = text.get_window_extent()
            assert box.x0 >= 0 <= box.y0
            assert box.x1 <= figure.bbox.x1
            assert box.y1 <= figure.bbox.y1


def figure_of(monkeypatch, draw):
    kept = []
    monkeypatch.setattr(plots, "_save", lambda figure, _path, **_: kept.append(figure))
    draw()
    return kept[0]


def test_labels_of_the_tradeoff_do_not_overlap(monkeypatch):
    results = task1()
    figure = figure_of(monkeypatch, lambda: plots.tradeoff(results, None))
    figure.draw_without_rendering()
    (axis,) = figure.axes
    assert axis.get_xscale() == "log"
    assert {text.get_text() for text in axis.texts} == set(results["models"])
    boxes = [text.get_window_extent().padded(0, -2) for text in axis.texts]
    assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])


def test_variants_share_the_axes_of_their_model(monkeypatch):
    history = history_of(task1(), epochs=4)
    figure = figure_of(monkeypatch, lambda: plots.curves(history, None))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["simple_cnn", "pool_attention_cnn", "dwg_densenet121", "naive_cnn", "adaptive_channel_cnn",
                      "dynamic_cnn_v1", "baseline_cnn"]  # fmt: skip
    legends = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in figure.axes if axis.get_legend()]
    assert legends == [["base", "+shuffle"], ["base", "+drop", "+drop+noaug"]]
    loss = figure.axes[2 * titles.index("dynamic_cnn_v1")]
    assert [len(line.get_xdata()) for line in loss.lines] == [4, 4, 1] * 3
    assert list(loss.lines[4].get_ydata()) == [row.val_loss for row in history["dynamic_cnn_v1+drop"]]


def test_the_networks_of_one_model_share_its_axes(monkeypatch):
    rows = [Row(1, 3.0, 0.2, 3.1, 0.1), Row(2, 2.5, 0.3, 2.9, 0.2)]
    history = {f"naive_cnn {label}": rows for label in RGB}
    figure = figure_of(monkeypatch, lambda: plots.curves(history, None))
    assert [axis.get_title() for axis in figure.axes] == ["naive_cnn", ""]
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == list(RGB)


def test_images_of_any_channels_and_values_become_pictures():
    bytes_ = torch.arange(2 * 4 * 2 * 2, dtype=torch.uint8).reshape(2, 4, 2, 2)
    assert np.array_equal(plots.as_pictures(bytes_), bytes_[:, :3].permute(0, 2, 3, 1))
    gray = plots.as_pictures(bytes_[:, :2])
    assert np.array_equal(gray, bytes_[:, :1].expand(-1, 3, -1, -1).permute(0, 2, 3, 1))
    values = torch.tensor([[[[-1.0, 0.0], [1.0, 3.0]]], [[[7.0, 7.0], [7.0, 7.0]]]])
    assert plots.as_pictures(values)[..., 0].tolist() == [[[0, 64], [128, 255]], [[0, 0], [0, 0]]]
    images = torch.arange(3 * 5, dtype=torch.uint8).view(3, 5, 1, 1)
    present = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 0, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
    assert plots.as_pictures(images, present)[:, 0, 0].tolist() == [[1, 2, 4], [8, 8, 8], [10, 11, 12]]


def test_predictions_of_several_systems_stand_side_by_side():
    def said(predicted, probability, path="x.png"):
        return plots.Prediction(path, np.zeros((2, 2, 3), np.uint8), "cat", predicted, probability)

    table = tables.predictions({"a": [said("cat", 0.981)], "b": [said("cow", 0.7, "y.png"), said("dog", 0.5)]})
    assert table.columns == ("true class", "a", "b")
    assert table.rows == (("cat", "cat 98%, right", "dog 50%, wrong"),)
    assert tables.predictions({}).rows == ()


def test_a_heatmap_shows_every_accuracy(monkeypatch):
    accuracy = {name: {"RGB": 0.01 * n, "R": None} for n, name in enumerate("abcde", 10)}
    figure = figure_of(monkeypatch, lambda: plots.combinations(accuracy, (0.02, "chance"), None))
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown == [text for n in range(10, 15) for text in (f"{n}.0", "-")]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == list("abcde")


ENVIRONMENT = {"cpu": "a CPU", "cores": 2, "gpu": None, "python": "3.11", "versions": {"torch": "2.11"}}


def report_of(results, tmp_path, history=None):
    folder = RunFolder.create(tmp_path, results["task"], "a")
    folder.begin('models = ["a"]\n', ENVIRONMENT, results)
    plots.draw(results, history or {}, folder.plots)
    pages.write(folder, results, ENVIRONMENT)
    return folder.html.read_text(), (folder.root / "report.md").read_text()


class Page(HTMLParser):
    """The headings, those of collapsed sections, rows of cells, and the descriptions of charts, of a page."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.collapsed, self.rows, self.charts, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if (about := dict(attributes)).get("role") == "img":
            self.charts.append(about["aria-label"])

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:  # some have no end
            pass

    def handle_data(self, data):
        if self.open[-1:] == ["h2"]:
            self.headings.append(data)
            if "summary" in self.open:
                self.collapsed.append(data)
        elif self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def test_both_pages_have_the_sections_tables_and_pictures_of_a_sweep(tmp_path):
    results = task1()
    page, markdown = report_of(results, tmp_path, history_of(results, epochs=3))
    parsed = Page(page)
    sections = [
        "Systems, tested on RGB", "Failed", "Reported and measured", "Test accuracy by channel combination, %",
        "Test scores by channel combination", "Test protocols", "Variants of training", "Ablation: validation accuracy",
        "Training", "Settings",
    ]  # fmt: skip
    assert parsed.headings == sections
    assert [line[3:] for line in markdown.splitlines() if line.startswith("## ")] == sections
    assert parsed.collapsed == ["Test scores by channel combination", "Settings"]
    assert ["dynamic_cnn_v2", "CUDA out of memory: tried to allocate 2.0 GiB"] in parsed.rows
    assert "| dynamic\\_cnn\\_v2 | CUDA out of memory: tried to allocate 2.0 GiB |" in markdown
    for table in (tables.systems(results), tables.reported(results), tables.training(results)):
        assert all(list(filter(None, row)) in parsed.rows for row in table.rows)
    assert parsed.charts == [
        "Test accuracy against multiply-adds", "Test accuracy by channel combination", "Loss and accuracy by epoch",
    ]  # fmt: skip
    assert "<h1>task1: 10 systems</h1>" in page


def test_pages_of_many_channels_show_no_row_per_combination(tmp_path):
    page, markdown = report_of(channels48(), tmp_path)
    parsed = Page(page)
    assert "Test accuracy by number of channels kept" in parsed.headings
    assert "Test scores by channel combination" not in parsed.headings
    assert "187 combinations were tested" in page
    assert len(parsed.rows) < 70
    assert "24 of 48 #1" not in markdown
    assert "tested on all channels" in markdown


def test_results_without_the_newer_fields_are_shown(tmp_path):
    results = json.loads(json.dumps(task1()))
    del results["combinations"], results["failed"], results["data"]["channels"]
    new = ("reported", "augmentations", "channel_sampling")
    results["models"] = {
        name: {key: value for key, value in found.items() if key not in new}
        for name, found in results["models"].items()
        if "+" not in name
    }
    for found in results["models"].values():
        found["channel_sampling"] = True
    page, _ = report_of(results, tmp_path, history_of(results, epochs=2))
    assert Page(page).headings == [
        "Systems, tested on RGB", "Test accuracy by channel combination, %", "Test scores by channel combination",
        "Test protocols", "Training", "Settings",
    ]  # fmt: skip
    assert rows_of(tables.training(results))[0]["sampling"] == "on"


def test_a_run_in_which_every_model_failed_says_so(tmp_path):
    results = results_of({}, failed={"rrdb": "<out> of | memory"})
    page, markdown = report_of(results, tmp_path)
    assert Page(page).headings == ["Failed", "Settings"]
    assert "&lt;out&gt; of | memory" in page
    assert "| rrdb | &lt;out&gt; of \\| memory |" in markdown


@pytest.mark.parametrize("code", [*range(1, 32), 127, 0x9B, 0x2028, 0x202E, 0x2066, 0xDCFF])
def test_no_character_of_a_name_reaches_the_terminal_as_a_command(monkeypatch, capsys, code):
    name = f"a{chr(code)}b"
    recording = Console(width=80, highlight=False, file=io.StringIO())
    monkeypatch.setattr(console, "console", recording)
    console.say(f"left out: {name} (train): é 日本")
    printed.show(tables.Table(name, (name, "y"), ((name, name),)))
    written = recording.file.getvalue()
    assert chr(code) not in written.replace("\n", "" if code == 10 else "\n").replace(" ", "")
    assert written.count("left out: a\\") == 1
    assert "é 日本" in written
    assert main(["evaluate", f"no{name}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert chr(code) not in error.replace("\n", "").replace(" ", "")


def summary(monkeypatch, results, width):
    recording = Console(width=width, highlight=False, record=True, file=io.StringIO())
    monkeypatch.setattr(console, "console", recording)
    printed.summarise(results)
    return recording.export_text()


@pytest.mark.parametrize("results", [task1(), task2(), channels48(), channels48(6)])
def test_the_summary_fits_80_columns(monkeypatch, results):
    text = summary(monkeypatch, results, 80)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    for name, found in results["models"].items():
        params = f"{found['params']:,}"
        assert any(line.split()[:1] == [name] and params in line for line in lines), name
    assert len(lines) < 60


def test_the_summary_prints_what_the_variants_changed_and_what_failed(monkeypatch):
    text = summary(monkeypatch, task1(), 80)
    lines = [line.split() for line in text.splitlines()]
    assert ["dynamic_cnn_v1+drop", "21.0%", "-2.0", "16.0%", "+2.4", "-", "-"] in lines
    assert ["1", "dynamic_cnn_v1:", "+drop", "30.0%", "30.0%"] in lines
    assert any(line[:1] == ["dynamic_cnn_v2"] for line in lines)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
@pytest.mark.parametrize("columns", [1, 5, 12, 30])
def test_however_narrow_a_terminal_is_no_figure_is_cut(monkeypatch, width, columns):
    monkeypatch.setattr(console, "console", Console(width=width, file=io.StringIO()))
    rows = tuple((f"resnet34+small_stem+{row}", *(f"{row}{n:02}.25 ± 1.5" for n in range(columns))) for row in range(3))
    printed.show(tables.Table("held-out accuracy", ("system", *(f"column {n}" for n in range(columns))), rows))
    text = console.console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for row in rows:
        assert all(figure in text for figure in row[1:])
    parts = text.count("─ \n")
    assert "".join(text.split()).count("resnet34+small_s") + text.count("resnet34+small_stem") >= parts
    assert text.count("held-out") == parts


def test_a_long_text_on_the_right_is_folded_and_not_cut(monkeypatch):
    monkeypatch.setattr(console, "console", Console(width=50, file=io.StringIO()))
    reason = "damaged: the file ends after 3 of 900 lines of its first scan, and a second one follows"
    printed.show(
        tables.Table("Files that cannot be used", ("path", "reason"), (("a/rather/long/name/of/a.jpg", reason),))
    )
    words = console.console.file.getvalue().split()
    assert all(word in words for word in reason.split())


def test_a_wide_terminal_shows_all_scores_side_by_side(monkeypatch):
    results = results_of({name: entry({"RGB": 0.5, "R": 0.25}) for name in ("a", "b")})
    lines = [line.split() for line in summary(monkeypatch, results, 140).splitlines()]
    assert ["R", "25.0%", "26.0%", "25.0%", "24.0%", "3.000"] * 2 in lines


def test_top_5_and_calibration_stand_in_the_tables_where_they_are_known_and_fit(monkeypatch):
    results = results_of({name: entry({"RGB": 0.5, "R": 0.25}) for name in ("a", "b")})
    row = results["models"]["a"]["scores"]["test"]["RGB"]
    assert {"top 5", "ECE"}.isdisjoint(tables.systems(results).columns)
    row["calibration_error"] = 0.034
    assert "top 5" not in tables.systems(results).columns
    row["top5_accuracy"] = 0.875
    found = rows_of(tables.systems(results))
    assert [(each["top 5"], each["ECE"]) for each in found] == [("87.5%", "3.4%"), ("-", "-")]
    table = tables.combinations("a", results["models"]["a"])
    assert table.columns[-3:] == ("top 5", "ECE", "loss")
    assert [each[-3:] for each in table.rows] == [("87.5%", "3.4%", "2.000"), ("-", "-", "3.000")]
    shown = {width: summary(monkeypatch, results, width) for width in (140, 120)}
    assert ["ECE" in text for text in shown.values()] == [True, False]
    assert all(text.count("precision") == 2 for text in shown.values())  # none is given up for another
