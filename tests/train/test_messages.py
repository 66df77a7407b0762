"""What a run says at its start and at its end, and which of its models is used afterwards."""

import io
import json
import re
from itertools import product
from math import sqrt

import pytest
from rich.console import Console

import polychrome
from polychrome.engine import console
from polychrome.engine.machine import hardware
from polychrome.engine.report import scores, tables
from polychrome.train import messages
from polychrome.train.results import best
from polychrome.train.run import main
from polychrome.train.trained import load

SMALL = ["--image-size", "24", "--batch-size", "24", "--epochs", "2", "--workers", "1"]
SMALL += ["--no-plots", "--no-tensorboard"]


def entry(loss, accuracy, tested=None):
    scores = {"test": {"RGB": {"accuracy": accuracy if tested is None else tested, "loss": loss}}}
    return {"val": {"loss": loss, "accuracy": accuracy}, "protocol": "subset", "scores": scores}


def test_the_most_accurate_model_is_used_whatever_its_loss():
    entries = {"smooth": entry(1.9, 0.8), "sure": entry(0.7, 0.6), "surer": entry(0.6, 0.6)}
    assert best(entries) == "smooth"
    del entries["smooth"]
    assert best(entries) == "surer"


LABELS = ("RGB", "RG", "G")


@pytest.mark.parametrize("tested", list(product(["", "RGB", "RG", "G"], repeat=3)))
def test_models_are_compared_by_the_validation_images_on_the_same_channels(tested):
    """Each model lacks some combination; of those it has the wanted figures are in order, the training's in another."""
    entries = {}
    for number, lacking in enumerate(tested):
        labels = [label for label in LABELS if label != lacking]
        untested = {lacking: {"accuracy": None, "loss": None}} if number else {}  # no image has these channels
        figures = untested | {
            label: {"accuracy": (number + LABELS.index(label)) % 3 / 3, "loss": 1.0} for label in labels
        }
        shuffled = {"shuffled": {"accuracy": 1 - number / 3, "loss": 1.0}}
        entries[str(number)] = entry(1.0, 0.9 - number / 3) | {"scores": {"test": {}, "val": shuffled | figures}}
    common = [label for label in LABELS if label not in tested]
    wanted = "0" if not common else str((2 - LABELS.index(common[0])) % 3)
    assert best(entries) == wanted


def test_the_report_shows_the_figures_that_the_model_is_chosen_by():
    entries = {"m": entry(1.0, 0.25), "m+a": entry(1.0, 0.75)}
    for name, accuracy in (("m", 0.5), ("m+a", 0.125)):
        entries[name]["scores"]["val"] = {"RGB": {"accuracy": accuracy, "loss": 1.0}}
    results = {"models": entries, "combinations": {"RGB": [*"RGB"]}}
    assert best(entries) == "m"
    columns = tables.systems(results).columns
    assert [row[columns.index("val acc.")] for row in tables.systems(results).rows] == ["50.0%", "12.5%"]
    assert tables.ablation(results).rows == (("1", "m: +a", "50.0%", "12.5%"),)


@pytest.mark.parametrize(("share", "count"), [(0.5, 100), (0.9, 10), (0.25, 8), (0.0, 20), (1.0, 18)])
def test_the_ends_of_an_interval_are_as_far_off_as_chance_brings_a_share(share, count):
    """Of an accuracy at either end, the share found is 1.96 standard deviations away (Wilson 1927)."""
    low, high = scores.interval(share, count)
    for end in ({low} - {0.0}) | ({high} - {1.0}):
        assert abs(share - end) == pytest.approx(1.96 * sqrt(end * (1 - end) / count), rel=1e-6)
    assert 0 <= low <= share <= high <= 1
    assert low < high


@pytest.fixture(scope="module")
def said(stripes, tmp_path_factory):
    """What a run of two models printed, its folder, and its lines."""
    out = tmp_path_factory.mktemp("runs")
    shown = Console(file=io.StringIO(), width=140)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "console", shown)
        start = ["task1", "--data", str(stripes), "--out", str(out), "--name", "a b", *SMALL]
        assert main([*start, "--models", "pool_attention_cnn,baseline_cnn"]) == 0
    return out / "task1/a b", shown.file.getvalue().splitlines()


def test_a_run_says_first_what_is_trained_on_what(said, stripes):
    run, lines = said
    start = next(number for number, line in enumerate(lines) if line.startswith("data: "))
    assert lines[start] == (
        f"data: {stripes}: 72 images to train on, 18 to validate on, 18 to test on; 3 classes; channels R, G, B"
    )
    assert re.fullmatch(
        r"models: pool_attention_cnn \([\d,]+ parameters\), baseline_cnn \([\d,]+ parameters\)", lines[start + 1]
    )
    assert lines[start + 2].startswith("2 epochs of 24 px images in batches of 24, ")
    assert lines[start + 2].endswith(f"; results in {run}")
    assert "epoch 1/2" in lines[start + 3]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("train2017", "val2017"), "2 classes (train2017, val2017)"),
        (tuple("abcdefg"), "7 classes (a, b, c, d, e, f, ...)"),
        (("0", "1", "2"), "3 classes"),
    ],
)
def test_classes_are_named_before_they_are_trained(names, words):
    assert messages.in_words(names) == words


def test_a_run_says_last_what_came_of_it_and_the_commands_that_follow(said, stripes, capsys):
    run, lines = said
    ranked = next(line for line in lines if line.startswith("test accuracy on RGB: 1. "))
    assert re.search(r"1\. \w+ [\d.]+% \(95% interval of 18 images: [\d.]+% to [\d.]+%\), 2\. \w+ ", ranked)
    assert lines[-6] == f"report:    {run}/report.html"
    assert lines[-5].endswith(f"(by {load(run).name}, the best on validation images)")
    assert lines[-2].endswith("   (baseline_cnn saw zeros in place of absent channels)")
    for place, more in ((-5, []), (-3, ["--channels", "RG"]), (-2, ["--channels", "G"]), (-1, [])):
        command = re.search(r"train\.run (.*?)(?:   \(|$)", lines[place])[1].replace(f"'{run}'", "RUN").split()
        words = [str(run) if word == "RUN" else word for word in command]
        words = [str(stripes / "images/test 0.jpg") if word == "IMAGES" else word for word in words]
        if words[0] == "export":
            words[-1] = "safetensors"
            pytest.importorskip("safetensors")
        assert main([*words, *more]) == 0
    python = lines[-4].removeprefix("in Python: ").replace("photo.jpg", str(stripes / "images/test 0.jpg"))
    assert eval(python, {"polychrome": polychrome}).name in {"0", "1", "2"}


@pytest.mark.parametrize("native", [True, False])
def test_a_run_and_its_evaluation_say_where_arithmetic_is_emulated(stripes, tmp_path, monkeypatch, capsys, native):
    monkeypatch.setattr(hardware, "native_precision", lambda on: "bf16" if native else "fp32")
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "x", *SMALL, "--models", "baseline_cnn"]
    assert main([*start, "--device", "cpu", "--precision", "bf16"]) == 0
    assert ("bf16 is emulated on " in capsys.readouterr().out) != native
    assert main(["evaluate", str(tmp_path / "task1/x"), "--device", "cpu"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert ("not to the digit the run's figures: in fp32, as bf16 is only emulated here" in printed) != native


def test_several_seeds_name_one_of_them_where_one_is_needed(stripes, tmp_path, capsys):
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "x", *SMALL, "--models", "baseline_cnn"]
    assert main([*start, "--seeds", "2"]) == 0
    printed = capsys.readouterr().out
    run = tmp_path / "task1/x"
    assert f"predict {run}/seeds/0 IMAGES" in printed
    assert f"evaluate {run}\n" in printed
    assert main(["predict", str(run / "seeds/0"), str(stripes / "images/test 0.jpg")]) == 0
    filled = "baseline_cnn+any_channels"
    assert f"evaluate {run} --model {filled} " in printed
    assert main(["evaluate", str(run), "--model", filled]) == 0
    found = json.loads((run / "evaluation.json").read_text())["models"]
    assert {name: len(row["seeds"]) for name, row in found.items()} == {filled: 2}


def test_commands_name_the_first_seed_with_a_trained_model(tmp_path):
    """The first seed has none where all of its models failed."""
    seeds = {seed: Folder(tmp_path / str(seed)) for seed in range(3)}
    for seed, folder in seeds.items():
        folder.read_results = lambda seed=seed: {"models": {"x": entry(1.0, 0.8)} if seed else {}}
    whole = Folder(tmp_path)
    whole.seeds = seeds
    lines = messages.at_end(results(0.8, 500), whole)
    assert any(f"predict {tmp_path / '1'} IMAGES" in line for line in lines)


def test_the_commands_name_the_network_of_a_model_that_has_several(stripes, tmp_path, capsys):
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "x", *SMALL, "--models", "naive_cnn"]
    assert main([*start, "--channels", "RG"]) == 0
    printed, image = capsys.readouterr().out, str(stripes / "images/test 0.jpg")
    run = tmp_path / "task1/x"
    assert f"predict {run} IMAGES --channels RG " in printed
    assert f'polychrome.load("{run}", channels="RG").predict("photo.jpg")' in printed
    assert f"export {run} --format onnx --channels RG\n" in printed
    assert main(["predict", str(run), image, "--channels", "RG"]) == 0
    assert polychrome.load(str(run), channels="RG").predict(image).name in {"0", "1", "2"}


def results(accuracy, images, classes=3):
    found = {"models": {"x": entry(1.0, accuracy, accuracy)}, "data": {"classes": classes, "test": images}}
    return found | {"combinations": {"RGB": ["R", "G", "B"]}}


class Folder:
    """A run's folder without seeds."""

    def __init__(self, root):
        self.root, self.html, self.seeds = root, root / "report.html", {}


@pytest.mark.parametrize(
    ("protocol", "fewer", "told"),
    [("zero-pad", True, True), ("zero-pad", False, False), ("subset", True, False), ("mask", True, False)],
)
def test_the_nearest_channels_are_proposed_to_a_model_that_saw_zeros(tmp_path, protocol, fewer, told):
    found = results(0.8, 500)
    found["combinations"]["RG"] = ["R", "G"]
    if fewer:
        found["models"]["x"]["scores"]["test"]["RG"] = found["models"]["x"]["scores"]["test"]["RGB"]
    found["models"]["x"]["protocol"] = protocol
    lines = [line for line in messages.at_end(found, Folder(tmp_path)) if line.startswith("nearest:")]
    assert [f"evaluate {tmp_path} --model x+any_channels   (x saw zeros" in line for line in lines] == [True] * told


@pytest.mark.parametrize(
    ("accuracy", "images", "told"),
    [(1 / 3, 300, True), (0.45, 18, True), (0.45, 300, False), (0.9, 18, False), (0.1, 3000, True)],
)
def test_a_model_at_chance_is_pointed_out(tmp_path, accuracy, images, told):
    lines = messages.at_end(results(accuracy, images), Folder(tmp_path))
    found = [
        line for line in lines if line.startswith("x is not clearly better than chance, 33.3% for 3 classes: try ")
    ]
    assert len(found) == told


def test_the_balanced_accuracy_is_compared_with_chance_where_classes_differ(tmp_path):
    found = results(0.8, 500)
    found["models"]["x"]["scores"]["test"]["RGB"]["balanced_accuracy"] = 0.34
    assert any("not clearly better" in line for line in messages.at_end(found, Folder(tmp_path)))


@pytest.mark.parametrize("form", ["together", "side by side", "a file for each"])
def test_predict_is_not_proposed_where_it_would_refuse_every_image(tmp_path, form):
    found = results(0.8, 500)
    found["data"]["reading"] = {"scale": "uint8", "taken": [{"own": [], "names": ["a", "b"], "form": form}]}
    lines = messages.at_end(found, Folder(tmp_path))
    for start in ("classify:", "in Python:"):
        assert any(line.startswith(start) for line in lines) == (form != "a file for each")
