"""Whole runs on a small data folder, through the command line."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polychrome.engine.data.files import decode
from polychrome.engine.run_folder import RunFolder
from polychrome.engine.training import checkpoint, trainer
from polychrome.kernels import use_backend
from polychrome.kernels.launch import record_launches
from polychrome.train import experiment, systems
from polychrome.train.run import main
from polychrome.train.trained import load
from tests.conftest import write_list_folder
from tests.train.runner import results
from tests.train.small import QUICK

COMBINATIONS = ["RGB", "RG", "GB", "RB", "R", "G", "B"]
SMALL = ["--image-size", "32", "--batch-size", "24", "--epochs", "3", *QUICK]
WHOLE = ["--plots", "--tensorboard"]


@pytest.fixture(scope="module")
def task1(stripes, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    assert main(["task1", "--data", os.path.relpath(stripes), "--out", str(out), "--name", "a", *SMALL, *WHOLE]) == 0
    return out / "task1/a"


def test_task1_leaves_a_whole_run_folder(task1):
    names = {str(path.relative_to(task1)) for path in task1.rglob("*") if path.is_file()}
    names = {re.sub(r"/events\.out\..*", "/events", name) for name in names}
    models = ("simple_cnn", "pool_attention_cnn")
    assert names == {
        "config.toml", "environment.json", "history.csv", "results.json", "table.csv", "report.md", "report.html",
        "trained-on.npz",
        *(f"plots/{chart}.{form}" for chart in ("curves", "combinations", "tradeoff") for form in ("png", "svg")),
        *(f"predictions-{model}.csv" for model in models), *(f"predictions/{model}.csv" for model in models),
        *(f"plots/{kind}-{model}.png" for kind in ("confusion", "predictions") for model in models),
        *(f"tensorboard/{model}/events" for model in models),
        *(f"checkpoints/{model}/{kind}.pt" for kind in ("best", "last") for model in models),
    }  # fmt: skip


def test_results_hold_every_figure_for_every_combination(task1):
    found = results(task1)
    data = found["data"]
    assert [data[key] for key in ("classes", "train", "val", "test", "rejected")] == [3, 72, 18, 18, 0]
    assert {name: entry["protocol"] for name, entry in found["models"].items()} == {
        "simple_cnn": "zero-pad",
        "pool_attention_cnn": "subset",
    }
    for entry in found["models"].values():
        assert list(entry["test"]) == COMBINATIONS
        figures = {"loss", "accuracy", "balanced_accuracy", "precision", "recall", "f1", "images"}
        figures |= {"guessed", "largest_class", "no_class", "calibration_error"}
        assert all(set(row) == figures for row in entry["test"].values())
        assert {row["images"] for row in entry["test"].values()} == {18}
        assert entry["macs"] * 2 == entry["flops"]
        assert 1 <= entry["best_epoch"] <= entry["epochs"] == 3
        assert min(entry[key] for key in ("train_seconds", "images_per_second", "peak_memory_mb", "activation_mb")) > 0


def test_history_has_a_row_per_model_and_epoch_and_the_best_epoch_is_its_least_validation_loss(task1):
    rows = list(csv.DictReader((task1 / "history.csv").open()))
    assert [(row["model"], row["epoch"]) for row in rows] == [
        (model, str(epoch)) for model in ("simple_cnn", "pool_attention_cnn") for epoch in (1, 2, 3)
    ]
    for name, entry in results(task1)["models"].items():
        best = min((row for row in rows if row["model"] == name), key=lambda row: float(row["val_loss"]))
        assert entry["best_epoch"] == int(best["epoch"])
        assert entry["val"]["loss"] == float(best["val_loss"])
        assert checkpoint.load(task1 / f"checkpoints/{name}/best.pt")["epoch"] == entry["best_epoch"]


def test_pictures_are_not_empty(task1):
    for path in (task1 / "plots").glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 200
            assert len(image.convert("RGB").getcolors(1 << 20)) > 50


def test_report_html_is_self_contained(task1):
    page = (task1 / "report.html").read_text()

    class Sources(HTMLParser):
        found: list = []  # noqa: RUF012

        def handle_starttag(self, tag, attributes):
            self.found += [value for key, value in attributes if key in ("src", "href", "xlink:href")]

    Sources().feed(page)
    within = [source for source in Sources.found if source.startswith("#")]  # of the charts
    assert sum(source.startswith("data:image/png;base64,") for source in Sources.found) == 4
    assert len(Sources.found) == len(within) + 4
    assert all(page.count(f'id="{source[1:]}"') >= 1 for source in within)


def test_evaluate_repeats_the_runs_figures_from_the_folder_alone(task1, tmp_path, monkeypatch, capsys):
    moved = shutil.copytree(task1, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(moved), "--channels", "all"]) == 0
    again = json.loads((moved / "evaluation.json").read_text())["models"]
    for name, entry in results(task1)["models"].items():
        assert again[name]["test"] == entry["test"]
    printed = capsys.readouterr().out
    assert all(re.search(rf"^ +{combination} +[0-9.]+%", printed, re.M) for combination in COMBINATIONS)


def test_predict_prints_the_likeliest_class_of_each_image(task1, stripes, capsys):
    images = [str(stripes / f"images/test {number}.jpg") for number in range(6)]
    assert main(["predict", str(task1), *images, "--model", "pool_attention_cnn", "--channels", "G"]) == 0
    out, err = capsys.readouterr()
    assert "pool_attention_cnn, channels G" in err
    with open(task1 / "predictions/pool_attention_cnn.csv", newline="") as file:
        tested = {row["image"]: row["G"] for row in csv.DictReader(file) if row["split"] == "test"}
    rows = list(csv.DictReader(out.splitlines()))
    assert [row["class"] for row in rows] == [tested[f"images/test {number}.jpg"] for number in range(6)]


def test_the_same_seed_gives_the_same_history_and_another_seed_does_not(task1, stripes, tmp_path):
    def history(name, *arguments):
        run = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", name, *SMALL]
        assert main([*run, "--models", "simple_cnn", *arguments]) == 0
        return (tmp_path / "task1" / name / "history.csv").read_text()

    first = history("first")
    assert history("again") == first
    assert (task1 / "history.csv").read_text().startswith(first)
    assert history("other", "--seed", "1") != first


@pytest.mark.parametrize("backend", [pytest.param("dali", marks=pytest.mark.slow), "torch"])
def test_a_resumed_run_equals_an_unbroken_one(stripes, tmp_path, monkeypatch, backend):
    if backend == "dali":
        pytest.importorskip("nvidia.dali")
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--backend", backend, *SMALL]
    start += ["--save-every", "0"]
    assert main([*start, "--name", "whole"]) == 0
    saved, save = [], checkpoint.save

    def killed_after(path, content):
        save(path, content)
        saved.append(path)
        if saved.count(path) == 2 and path.parts[-2:] == ("pool_attention_cnn", "next.pt"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed_after)
        assert main([*start, "--name", "broken"]) == 1
    whole, broken = tmp_path / "task1/whole", tmp_path / "task1/broken"
    assert list(results(broken)["models"]) == ["simple_cnn"]
    assert len((broken / "history.csv").read_text().splitlines()) == 1 + 3 + 1
    assert main(["task1", "--out", str(tmp_path), "--resume", "auto"]) == 0
    assert (broken / "history.csv").read_text() == (whole / "history.csv").read_text()
    for name, entry in results(whole)["models"].items():
        assert results(broken)["models"][name]["test"] == entry["test"]


def test_a_finished_run_goes_on_when_asked_for_more_epochs(task1, tmp_path):
    shutil.copytree(task1, tmp_path / "run")
    assert main(["task1", "--resume", str(tmp_path / "run"), "--epochs", "4", "--no-plots"]) == 0
    before, after = ((run / "history.csv").read_text().splitlines() for run in (task1, tmp_path / "run"))
    assert after[:4] == before[:4]
    assert len(after) == 1 + 2 * 4
    assert {entry["epochs"] for entry in results(tmp_path / "run")["models"].values()} == {4}


def test_a_run_without_plots_has_a_report_without_pictures_and_none_of_an_earlier_start(task1, tmp_path):
    run = shutil.copytree(task1, tmp_path / "run")
    assert main(["task1", "--resume", str(run), "--epochs", "4", "--no-plots"]) == 0
    assert not list((run / "plots").iterdir())
    page = (run / "report.html").read_text()
    assert "data:image" not in page
    assert "Loss and accuracy by epoch" not in page
    assert results(run)["models"]["simple_cnn"]["epochs"] == 4


def test_a_resumed_run_trains_at_the_learning_rate_asked_for(task1, tmp_path):
    shutil.copytree(task1, tmp_path / "run")
    again = ["--resume", str(tmp_path / "run"), "--no-plots"]
    arguments = [*again, "--epochs", "4", "--lr", "1e-5", "--models", "simple_cnn"]
    assert main(["task1", *arguments]) == 0
    (group,) = checkpoint.load(tmp_path / "run/checkpoints/simple_cnn/last.pt")["optimizer"]["param_groups"]
    assert group["lr"] == 1e-5
    rows = list(csv.DictReader((tmp_path / "run/history.csv").open()))
    assert [row["lr"] for row in rows if row["model"] == "simple_cnn"] == ["0.001"] * 3 + ["1e-05"]


def test_a_flag_changes_what_a_resumed_run_has_for_one_model(stripes, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text("[model.simple_cnn]\nepochs = 1\nweight_decay = 0.1\n")
    small = ["--models", "simple_cnn", *(SMALL[place] for place in range(len(SMALL)) if place not in (4, 5))]
    start = ["--data", str(stripes), "--out", str(tmp_path), "--name", "a", *small]
    assert main(["task1", *start, "--config", str(config)]) == 0
    run = tmp_path / "task1/a"
    assert main(["task1", "--resume", str(run), "--epochs", "2"]) == 0
    assert [row["epoch"] for row in csv.DictReader((run / "history.csv").open())] == ["1", "2"]
    assert tomllib.loads((run / "config.toml").read_text())["model"] == {"simple_cnn": {"weight_decay": 0.1}}


def test_auto_resumes_a_run_that_was_killed_before_its_report(task1, tmp_path):
    run = tmp_path / "task1/a"
    shutil.copytree(task1, run)
    (run / "report.html").unlink()
    (tmp_path / "task1/damaged").mkdir()
    (tmp_path / "task1/damaged/config.toml").write_text("models = 3")
    assert main(["task1", "--out", str(tmp_path), "--resume", "auto", "--no-plots"]) == 0
    assert (run / "history.csv").read_text() == (task1 / "history.csv").read_text()
    assert sorted(path.name for path in (tmp_path / "task1").iterdir()) == ["a", "damaged"]
    first, again = (json.loads((folder / "environment.json").read_text())["began"] for folder in (task1, run))
    assert again[:-1] == first
    assert again[-1]["command"] == f"python -m train.run task1 --out {tmp_path} --resume auto --no-plots"
    assert f"<code>{first[0]['command']}</code>" in (run / "report.html").read_text()
    assert f"\n    {first[0]['command']}\n" in (run / "report.md").read_text()


def test_auto_goes_on_with_no_run_of_another_name_data_or_models(task1, stripes, tmp_path, capsys):
    run = tmp_path / "task1/a"
    shutil.copytree(task1, run)
    (run / "report.html").unlink()
    before = (run / "config.toml").read_bytes()
    other = tmp_path / "other"
    shutil.copytree(stripes, other)
    small = ["--models", "simple_cnn", *SMALL, "--epochs", "1"]
    for number, changed in enumerate((["--name", "b"], ["--data", str(other)], [])):
        data = ["--data", str(stripes)] if changed[:1] != ["--data"] else []
        assert main(["task1", *data, "--out", str(tmp_path), "--resume", "auto", *small, *changed]) == 0
        assert "no unfinished run to go on with; starting one" in capsys.readouterr().out
        assert len(list((tmp_path / "task1").iterdir())) == 2 + number
        assert (run / "config.toml").read_bytes() == before
        assert not (run / "report.html").exists()
    same = ["--data", os.path.relpath(stripes), "--name", "a", "--models", "simple_cnn,pool_attention_cnn"]
    assert main(["task1", "--out", str(tmp_path), "--resume", "auto", *same, "--no-plots"]) == 0
    assert f"going on with {run}\n" in capsys.readouterr().out
    assert (run / "report.html").exists()


def test_a_run_at_which_another_process_is_at_work_is_left_to_it(task1, tmp_path, capsys):
    run = tmp_path / "task1/a"
    shutil.copytree(task1, run)
    (run / "report.html").unlink()
    holding = (
        "import sys, pathlib, engine.machine.files as f; print(f.hold(pathlib.Path(sys.argv[1])), flush=True); input()"
    )
    other = subprocess.Popen([sys.executable, "-c", holding, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"True\n"
        assert main(["task1", "--resume", str(run)]) == 2
        assert "another process is training there" in capsys.readouterr().err
        assert main(["task1", "--out", str(tmp_path), "--resume", "auto", "--print-config"]) == 0
        assert tomllib.loads(capsys.readouterr().out).get("name") is None
    finally:
        other.kill()
        other.wait()
    assert main(["task1", "--out", str(tmp_path), "--resume", "auto", "--no-plots"]) == 0
    assert f"going on with {run}\n" in capsys.readouterr().out


def test_a_run_does_not_go_on_where_a_file_less_has_moved_others_between_training_and_test(stripes, tmp_path, capsys):
    data = tmp_path / "classes"
    for line in (stripes / "train.txt").read_text().splitlines():
        path, label = line.rsplit(maxsplit=1)
        (data / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(stripes / path, data / label)
    start = ["--data", str(data), "--out", str(tmp_path), "--name", "a", "--models", "simple_cnn", *SMALL]
    assert main(["task1", *start, "--holdout", "6", "--epochs", "1"]) == 0
    run = tmp_path / "task1/a"
    capsys.readouterr()
    assert main(["evaluate", str(run), "--channels", "RGB"]) == 0
    assert "not the run's figures" not in capsys.readouterr().out
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    sorted((data / "0").iterdir())[0].unlink()
    assert main(["task1", "--resume", str(run), "--epochs", "2"]) == 2
    told = capsys.readouterr().err
    assert f"cannot go on: val, test, holdout of {data} are other images" in told
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert main(["evaluate", str(run), "--split", "test"]) == 0
    assert f"not the run's figures: test of {data} are other images" in " ".join(capsys.readouterr().out.split())
    assert main(["evaluate", str(run), "--split", "train"]) == 0
    assert f"not the run's figures: train of {data} changed since" in " ".join(capsys.readouterr().out.split())


def test_a_labelled_folder_alone_is_evaluated_whole(stripes, task1, tmp_path, capsys):
    run, data = tmp_path / "run", tmp_path / "alone"
    shutil.copytree(task1, run)
    for line in (stripes / "test.txt").read_text().splitlines():
        path, label = line.rsplit(maxsplit=1)
        if label != "1":
            (data / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(stripes / path, data / label)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--data", str(data), "--channels", "RGB"]) == 0
    assert f"{data} has no splits: all 12 labelled images are to be tested" in " ".join(capsys.readouterr().out.split())
    content = json.loads((run / "evaluation.json").read_text())
    assert content["splits"] == ["test"]
    found = content["models"]["simple_cnn"]["test"]["RGB"]
    # The test split has six more images, of class 1.
    whole = results(task1)["models"]["simple_cnn"]["test"]["RGB"]
    assert round(found["accuracy"] * 12) <= round(whole["accuracy"] * 18)
    assert abs(found["accuracy"] * 12 - round(found["accuracy"] * 12)) < 1e-6
    assert results(run)["data"]["first_label"] == 0
    rows = [f"{path.relative_to(data)},{path.parent.name}\n" for path in data.rglob("*.*")]
    for label in ("2", "0"):
        (data / "labels.csv").write_text("".join(["file,label\n", *(row for row in rows if row[0] == label)]))
        assert main(["evaluate", str(run), "--data", str(data), "--channels", "RGB"]) == 0
        split = json.loads((run / "evaluation.json").read_text())["models"]["simple_cnn"]["test"]["RGB"]
        found["accuracy"] -= split["accuracy"] / 2
    assert abs(found["accuracy"]) < 1e-6
    (data / "labels.csv").unlink()
    (data / "other").mkdir()
    shutil.copy(next((data / "0").iterdir()), data / "other")
    assert main(["evaluate", str(run), "--data", str(data)]) == 2
    assert "class 'other' is not among those of the run, 0, 1, 2" in capsys.readouterr().err


def class_folders(root, seed, changed=()):
    """Write 12 images in each of two class folders; those of the numbers `changed` have another seed."""
    for number in range(24):
        file = root / "ab"[number % 2] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng([seed + (number in changed), number]).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(values).save(file)
    return root


@pytest.fixture(scope="module")
def on_folders(tmp_path_factory):
    """A run on class folders, and these."""
    out = tmp_path_factory.mktemp("on folders")
    data = class_folders(out / "data", 0)
    start = ["task1", "--data", str(data), "--out", str(out), "--name", "a", "--models", "simple_cnn", *SMALL]
    assert main([*start, "--image-size", "16"]) == 0
    return out / "task1/a", data


def evaluated(run, data, capsys):
    """Return the splits that `evaluate` tests, and what it says."""
    capsys.readouterr()
    assert main(["evaluate", str(run), "--data", str(data), "--channels", "RGB"]) == 0
    return json.loads((run / "evaluation.json").read_text())["splits"], " ".join(capsys.readouterr().out.split())


def test_evaluate_counts_the_images_that_the_run_was_trained_on_wherever_they_lie(on_folders, tmp_path, capsys):
    run, own = Path(shutil.copytree(on_folders[0], tmp_path / "run")), on_folders[1]
    trained = results(run)["data"]["train"]
    fewer = Path(shutil.copytree(own, tmp_path / "fewer"))
    (fewer / next(csv.DictReader((run / "predictions-simple_cnn.csv").open()))["path"]).unlink()  # a test image
    splits, said = evaluated(run, fewer, capsys)
    assert splits == ["test"]
    assert f"{trained} of 23 images of test are among those that {run} was trained on" in said
    assert f"these are figures of {fewer} and not of" in said
    assert "these are figures of" not in evaluated(run, own, capsys)[1]
    other = class_folders(tmp_path / "other", 1)
    said = evaluated(run, other, capsys)[1]
    assert f"these are figures of {other}, other images than the run's, and not of" in said
    assert "are among those" not in said
    for damage in (b"", b"\0" * 99, None):
        RunFolder(run).trained_on.unlink() if damage is None else RunFolder(run).trained_on.write_bytes(damage)
        said = evaluated(run, other, capsys)[1]
        assert f"{other}, of which some may be among those the run was trained on, and not of" in said


def test_a_folder_of_the_same_names_and_other_content_is_another_folder(on_folders, tmp_path, capsys):
    run, own = Path(shutil.copytree(on_folders[0], tmp_path / "run")), on_folders[1]
    splits, said = evaluated(run, class_folders(tmp_path / "other", 1), capsys)
    assert splits == ["test"]
    assert "but of other content in every split" in said
    assert "has no splits: all 24 labelled images are to be tested" in said
    splits, said = evaluated(run, Path(shutil.copytree(own, tmp_path / "moved")), capsys)
    assert splits != ["test"]
    assert "not the run's figures" not in said
    splits, said = evaluated(run, class_folders(tmp_path / "a changed file", 0, [5]), capsys)
    assert splits != ["test"]
    kept = json.loads((run / "results.json").read_text())
    del kept["data"]["contents"], kept["checksum"]  # as of an earlier version
    (run / "results.json").write_text(json.dumps(kept))
    splits, said = evaluated(run, tmp_path / "other", capsys)
    assert splits != ["test"]
    assert "is taken for the run's data, as its files have the same names and labels" in said


@pytest.mark.usefixtures("signals_heard")
def test_the_same_command_with_its_files_goes_on_until_it_is_done(stripes, tmp_path, monkeypatch, capsys):
    recipe, config = tmp_path / "recipe.toml", tmp_path / "config.toml"
    recipe.write_text('[task1]\nmodels = ["simple_cnn"]\nlr = 0.01\n[task1.model.simple_cnn]\nweight_decay = 0.1\n')
    monkeypatch.chdir(stripes.parent)
    own = f'data = "{stripes.name}"\nbackend = "auto"\nchanged_data = true\n'  # as a run has them otherwise
    config.write_text(f'augmentations = ["flip"]\n{own}')
    files = ["--recipe", str(recipe), "--config", str(config), "--resume", "auto"]
    command = ["task1", "--out", str(tmp_path), "--name", "a", *SMALL, *files]
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "evaluate", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert main(command) == 1
    recipe.write_text(recipe.read_text().replace("0.1", "0.2"))
    assert main(command) == 2
    assert "--config or --recipe has another model: leave them out" in capsys.readouterr().err
    recipe.write_text(recipe.read_text().replace("0.2", "0.1"))
    assert main(command) == 0
    assert results(tmp_path / "task1/a")["models"]["simple_cnn"]["epochs"] == 3


@pytest.mark.usefixtures("signals_heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_while_testing_says_how_to_go_on(stripes, tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(experiment, "evaluate", lambda *_: os.kill(os.getpid(), number))
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "a", "--models", "simple_cnn", *SMALL]
    assert main(start) == 1
    again = f"python -m train.run task1 --resume {tmp_path / 'task1/a'}"
    message = f"error: stopped; go on from the last checkpoint: {again}\n"
    assert capsys.readouterr().err == message
    monkeypatch.undo()
    assert main(["task1", "--out", str(tmp_path), "--resume", "auto"]) == 0
    assert results(tmp_path / "task1/a")["models"]["simple_cnn"]["epochs"] == 3


def test_a_refused_resume_leaves_the_run_as_it_was(task1, stripes, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(task1, run)
    data = tmp_path / "data"
    shutil.copytree(stripes, data)
    (data / "classes.txt").write_text("a\nb\nc\n")
    path = run / "checkpoints/simple_cnn/last.pt"
    path.write_bytes(path.read_bytes()[:5000])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for arguments, message in (
        (["--data", str(data)], "was trained on other classes than"),
        (["--epochs", "9"], "last.pt is damaged or is not a checkpoint"),
        (["--channels", "RG"], "was tested on channels RGB,RG,GB,RB,R,G,B: leave --channels as it was"),
        (["--image-size", "40"], "has simple_cnn with --image-size 32: leave it so, or start another run"),
        (["--optimizer", "sgd"], "has simple_cnn with --optimizer adam: leave it so"),
        (["--recipe", "report_a"], "goes on with its own settings, and --config or --recipe has another "),
    ):
        assert main(["task1", "--resume", str(run), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["evaluate", str(run), "--data", str(data)]) == 2
    assert f"{data}: class 'a' is not among those of the run, 0, 1, 2" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.toml", "epochs = 3\n", "config.toml is damaged: it lacks image_size, precision or workers"),
        ("config.toml", "image_size = true\n", "image_size must be a whole number, got True"),
        ("results.json", "{", "results.json is damaged"),
        ("results.json", '{"task": "task1", "data": {}, "models": {}}', "it lacks class_names, classes"),
        (
            "results.json",
            '{"task": 1, "data": {"classes": 3, "class_names": []}, "models": {}}',
            "has no trained model",
        ),
        ("checkpoints/simple_cnn/best.pt", "hello", "best.pt is damaged or is not a checkpoint"),
    ],
)
def test_damaged_runs_are_refused_in_one_line(task1, stripes, tmp_path, capsys, name, content, message):
    run = tmp_path / "run"
    shutil.copytree(task1, run)
    (run / name).write_text(content)
    image = str(stripes / "images/test 0.jpg")
    for command in (["evaluate", str(run)], ["predict", str(run), image, "--model", "simple_cnn"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--channels", "RG,B"], "no channel ','"),
        (["--channels", "all"], "an image has one combination of channels, not 'all'"),
        (["--model", "resnet34"], "the run has no model 'resnet34'; it trained simple_cnn, pool_attention_cnn"),
    ],
)
def test_predict_refuses_other_models_and_several_combinations(task1, stripes, capsys, arguments, message):
    assert main(["predict", str(task1), str(stripes / "images/test 0.jpg"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_task2_prints_accuracy_ratio_and_cost(tmp_path, capsys):
    few = write_list_folder(tmp_path / "few", per_class=(8, 6, 6))
    place = ["--data", str(few), "--out", str(tmp_path), "--name", "b"]
    arguments = [*place, *SMALL, "--epochs", "2", "--batch-size", "8", "--profile"]
    assert main(["task2", *arguments, "--channels", "RGB,G"]) == 0
    entries = results(tmp_path / "task2/b")["models"]
    assert list(entries) == ["resnet34", "attention_cnn"]
    accuracy = {name: entry["test"]["RGB"]["accuracy"] for name, entry in entries.items()}
    assert accuracy["resnet34"] > 0
    assert entries["attention_cnn"]["ratio_to_resnet34"] == accuracy["attention_cnn"] / accuracy["resnet34"]
    assert entries["resnet34"]["ratio_to_resnet34"] == 1
    assert list(entries["resnet34"]["test"]) == ["RGB", "G"]
    printed = capsys.readouterr().out
    for wanted in ("ResNet34's", "mult-adds", "params", f"{entries['resnet34']['params']:,}"):
        assert wanted in printed
    (path,) = (tmp_path / "task2/b/trace").glob("resnet34.*.pt.trace.json")
    names = {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}
    assert names >= {"aten::conv2d", "decode", "augment", "forward", "backward", "optimizer"}


def test_a_sweep_survives_a_models_failure_and_says_so_at_the_end(stripes, tmp_path, monkeypatch, capsys):
    fit = trainer.fit

    def failing(name, *arguments, **options):
        if name == "pool_attention_cnn":
            raise RuntimeError("out of memory\nhere")
        return fit(name, *arguments, **options)

    monkeypatch.setattr(trainer, "fit", failing)
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "s", *SMALL, "--epochs", "1"]
    assert main([*start, "--models", "simple_cnn,pool_attention_cnn,baseline_cnn"]) == 1
    printed = capsys.readouterr()
    assert printed.err == "error: 1 of 3 models failed: pool_attention_cnn: out of memory here\n"
    assert "pool_attention_cnn failed, going on" in printed.out
    assert "RuntimeError: out of memory" in (tmp_path / "task1/s/failed-pool_attention_cnn.txt").read_text()
    found = results(tmp_path / "task1/s")
    assert list(found["models"]) == ["simple_cnn", "baseline_cnn"]
    assert found["failed"] == {"pool_attention_cnn": "out of memory here"}
    assert "out of memory here" in (tmp_path / "task1/s/report.html").read_text()
    monkeypatch.undo()
    assert main(["task1", "--out", str(tmp_path), "--resume", str(tmp_path / "task1/s")]) == 0
    assert set(results(tmp_path / "task1/s")["models"]) == {"simple_cnn", "pool_attention_cnn", "baseline_cnn"}
    assert results(tmp_path / "task1/s")["failed"] == {}


def test_all_leaves_out_what_cannot_take_the_images(stripes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(systems, "names", lambda task: ("simple_cnn", "adaptive_channel_cnn"))
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "s", *SMALL, "--epochs", "1"]
    assert main([*start, "--models", "all"]) == 1
    message = "adaptive_channel_cnn cannot take 32 px images; it needs at least 64 px: --image-size 64"
    assert message in capsys.readouterr().err
    assert list(results(tmp_path / "task1/s")["models"]) == ["simple_cnn"]


def test_one_network_per_combination(stripes, tmp_path, capsys):
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "n", *SMALL, "--epochs", "1"]
    assert main([*start, "--models", "naive_cnn", "--channels", "RGB,RB,G,shuffled"]) == 0
    run = tmp_path / "task1/n"
    found = results(run)["models"]["naive_cnn"]
    assert found["protocol"] == "one-per-combination"
    assert list(found["test"]) == ["RGB", "RB", "G"]
    first = {name: checkpoint.load(run / f"checkpoints/naive_cnn/{name}/best.pt")["model"] for name in found["test"]}
    assert {name: weights["features.0.0.weight"].shape[1] for name, weights in first.items()} == {
        "RGB": 3,
        "RB": 2,
        "G": 1,
    }
    assert main(["evaluate", str(run), "--channels", "G,RB"]) == 0
    again = json.loads((run / "evaluation.json").read_text())["models"]["naive_cnn"]["test"]
    assert again == {name: found["test"][name] for name in ("G", "RB")}
    image = str(stripes / "images/test 0.jpg")
    assert main(["predict", str(run), image, "--channels", "RB"]) == 0
    capsys.readouterr()
    assert main(["predict", str(run), image, "--channels", "RG"]) == 2
    assert "has a network for each of RGB, RB, G, none for RG" in capsys.readouterr().err


def test_a_network_for_the_combination_of_all_channels_is_the_plain_one(stripes, tmp_path):
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "a", *SMALL, "--channels", "RGB"]
    flags = ["--models", "simple_cnn,simple_cnn+alone", "--progressive", "0.5", "--holdout", "15", "--ema", "0.9"]
    assert main([*start, *flags]) == 0
    run = tmp_path / "task1/a"
    plain, alone = results(run)["models"].values()
    assert (alone["protocol"], alone["splits"], alone["test"]) == (
        "one-per-combination, zero-pad",
        plain["splits"],
        plain["test"],
    )
    places = ("simple_cnn/best.pt", "simple_cnn+alone/RGB/best.pt")
    first, second = (checkpoint.load(run / "checkpoints" / place)["model"] for place in places)
    assert first.keys() == second.keys()
    assert all(torch.equal(weights, second[name]) for name, weights in first.items())


def test_shuffled_channels_alone_can_be_tested(stripes, tmp_path):
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "s", *SMALL, "--epochs", "1"]
    assert main([*start, "--models", "baseline_cnn,dynamic_cnn_v2+shuffle", "--channels", "shuffled"]) == 0
    found = results(tmp_path / "task1/s")["models"]
    assert [list(entry["test"]) for entry in found.values()] == [["shuffled"], ["shuffled"]]


def test_a_single_network_is_shown_its_channels_in_its_own_order(stripes, tmp_path, capsys):
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "n", *SMALL, "--epochs", "1"]
    assert main([*start, "--models", "naive_cnn", "--channels", "RB"]) == 0
    image, printed = str(stripes / "images/test 0.jpg"), []
    for channels in ("RB", "BR"):
        capsys.readouterr()
        assert main(["predict", str(tmp_path / "task1/n"), image, "--channels", channels]) == 0
        printed.append(re.findall(r"[0-9.]+%", capsys.readouterr().out))
    assert printed[0] == printed[1]


def test_predictions_are_numbered_by_the_test_list_even_where_a_file_is_left_out(stripes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(stripes, data)
    (data / "images/test 1.jpg").write_bytes(b"")
    start = ["task1", "--data", str(data), "--out", str(tmp_path), "--name", "p", *SMALL, "--epochs", "1"]
    assert main([*start, "--models", "simple_cnn", "--submission"]) == 0
    run = tmp_path / "task1/p"
    rows = list(csv.reader((run / "submission-simple_cnn.csv").open()))
    assert rows[0] == ["ID", "Category"]
    assert [int(number) for number, _ in rows[1:]] == [0, *range(2, 18)]
    named = list(csv.DictReader((run / "predictions-simple_cnn.csv").open()))
    assert [row["path"] for row in named] == [f"images/test {number}.jpg" for number, _ in rows[1:]]
    assert [row["predicted"] for row in named] == [label for _, label in rows[1:]]


def test_a_sweep_decodes_each_image_once(stripes, tmp_path, monkeypatch):
    decoded = []
    rgb = decode.rgb

    def counted(file):
        decoded.append(str(file))
        return rgb(file)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), *SMALL, "--models", "simple_cnn,baseline_cnn"]
    start += ["--epochs", "1", "--channels", "RGB"]
    assert main([*start, "--name", "scanned", "--cache", "none"]) == 0  # its verdicts are kept
    monkeypatch.setattr(decode, "rgb", counted)
    assert main([*start, "--name", "kept"]) == 0
    assert len(decoded) == len(set(decoded)) == 72 + 18 + 18
    assert main([*start, "--name", "again"]) == 0
    assert len(decoded) == 72 + 18 + 18  # the images are kept on disk, too
    for option in (["--cache", "none", "--backend", "torch", "--name", "read"], ["--cache", "host", "--name", "host"]):
        assert main([*start, *option]) == 0
    histories = [(tmp_path / f"task1/{name}/history.csv").read_text() for name in ("kept", "read", "host")]
    assert histories[0] == histories[1] == histories[2]


def test_test_predictions_are_written_by_file_with_names_and_probabilities(task1, stripes):
    rows = list(csv.DictReader((task1 / "predictions-simple_cnn.csv").open()))
    assert list(rows[0]) == ["path", "true", "predicted", "probability"]
    assert [f"{row['path']} {row['true']}" for row in rows] == (stripes / "test.txt").read_text().splitlines()
    right = sum(row["predicted"] == row["true"] for row in rows)
    assert right / 18 == pytest.approx(results(task1)["models"]["simple_cnn"]["test"]["RGB"]["accuracy"])
    found = load(task1, "simple_cnn").predict([stripes / row["path"] for row in rows])
    assert [float(row["probability"]) for row in rows] == pytest.approx([each.probability for each in found], abs=1e-3)


def test_checkpoints_of_another_model_and_damaged_ones_are_refused(task1, tmp_path, capsys):
    run = shutil.copytree(task1, tmp_path / "run")
    best = run / "checkpoints/simple_cnn/best.pt"
    shutil.copy(run / "checkpoints/pool_attention_cnn/best.pt", best)
    for damage, message in ((lambda: None, "is a checkpoint of another model"),
                            (lambda: best.write_bytes(best.read_bytes()[:1000]), "is damaged or is not a checkpoint"),
                            (best.unlink, "no such checkpoint")):  # fmt: skip
        damage()
        assert main(["evaluate", str(run)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (run / "evaluation.json").exists()


def test_a_loss_that_is_not_finite_stops_the_run_with_status_1(stripes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        torch.nn.functional, "cross_entropy", lambda *_, **__: torch.tensor(float("nan")).requires_grad_()
    )
    assert main(["task1", "--data", str(stripes), "--out", str(tmp_path), *SMALL, "--models", "simple_cnn"]) == 1
    assert "simple_cnn: the loss of batch 1 of epoch 1 is not finite (images: images/train " in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_a_folder_with_every_fault_trains_and_names_what_it_left_out(stripes, tmp_path, backend, capsys):
    if backend == "dali":
        pytest.importorskip("nvidia.dali")
    data = tmp_path / "data"
    shutil.copytree(stripes, data)
    images = data / "images"
    whole = (images / "train 0.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "empty.jpg").write_bytes(b"")
    (images / "page.jpg").write_text("<!doctype html><title>404</title>")
    picture = Image.open(images / "train 1.jpg")
    picture.save(images / "moving.gif")
    picture.save(images / "icon.ico")
    picture.convert("CMYK").save(images / "cmyk.jpg")
    picture.convert("L").save(images / "grau — façade.jpg")
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(images / "deep.png")
    names = ["cut.jpg", "empty.jpg", "page.jpg", "gone.jpg", "icon.ico"]
    names += ["moving.gif", "cmyk.jpg", "grau — façade.jpg", "deep.png"]
    with open(data / "train.txt", "a", encoding="utf-8", newline="") as file:
        file.writelines(f"images/{name} 1\r\n" for name in names)
    arguments = ["--data", str(data), "--out", str(tmp_path), "--name", "c", *SMALL, "--epochs", "1"]
    assert main(["task1", *arguments, "--models", "simple_cnn", "--backend", backend]) == 0
    found = results(tmp_path / "task1/c")["data"]
    assert (found["train"], found["rejected"]) == (72 + 4, 5)
    counts = {"present": 119, "used": 112, "rejected": 5, "missing": 1, "ignored": {"lists and names": 3}}
    assert found["files"] == counts
    reasons = {item["path"]: item["reason"] for item in found["rejected_files"]}
    wanted = {
        "images/cut.jpg": "truncated",
        "images/empty.jpg": "empty file",
        "images/page.jpg": "not an image",
        "images/gone.jpg": "missing file",
        "images/icon.ico": "ICO is not supported",
    }
    assert reasons.keys() == wanted.keys()
    printed = capsys.readouterr().out
    for path, reason in wanted.items():
        assert reason in reasons[path]
        assert f"left out: {path} (train): {reasons[path]}" in printed
        assert path in (tmp_path / "task1/c/report.html").read_text()


def test_report_html_escapes_names(stripes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(stripes, data)
    (data / "classes.txt").write_text("<script>alert(1)</script>\n$x_{2}$\nc & d\n")
    (data / "images/<b>.jpg").write_bytes(b"")
    with open(data / "train.txt", "a") as file:
        file.write("images/<b>.jpg 0\n")
    arguments = ["--data", str(data), "--out", str(tmp_path), "--name", "e", *SMALL, "--epochs", "1"]
    assert main(["task1", *arguments, "--models", "simple_cnn"]) == 0
    page = (tmp_path / "task1/e/report.html").read_text()
    assert "&lt;b&gt;.jpg" in page
    assert "<b>" not in page
    assert "<script" not in page
    assert "&lt;b&gt;.jpg" in (tmp_path / "task1/e/report.md").read_text()


def test_the_ops_train_alike_whatever_computes_them(tmp_path):
    """attention_cnn in float32 for two steps, with each implementation of the ops and each loader of the images."""
    losses, data = {}, str(write_list_folder(tmp_path / "data", per_class=(4, 1, 1)))
    small = [*SMALL, "--image-size", "16", "--batch-size", "6", "--epochs", "1", "--channels", "RGB"]

    def first_loss(name, *options):
        common = ["task2", "--models", "attention_cnn", "--data", data, "--out", str(tmp_path), "--name", name]
        assert main([*common, *small, *options]) == 0
        with (tmp_path / "task2" / name / "history.csv").open() as file:
            losses[name] = float(next(csv.DictReader(file))["train_loss"])

    first_loss("auto")
    first_loss("torch", "--backend", "torch")
    with use_backend("reference"):
        first_loss("reference")
    if not torch.cuda.is_available():
        pytest.importorskip("triton")
        with use_backend("triton"), record_launches() as launches:
            first_loss("triton")
        launched = {launch.kernel.__name__.removesuffix("_kernel") for launch in launches}
        assert launched == {"augment_flat", "attend_sample", "maps", "sum"}
    for name, loss in losses.items():
        assert loss == pytest.approx(losses["auto"], abs=1e-3), name
