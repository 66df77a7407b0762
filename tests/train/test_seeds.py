"""Runs with several seeds, their table, and its reproduction from the checkpoints."""

import csv
import json
import shutil
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from statistics import fmean, stdev

import pytest
import torch

from polychrome.engine.errors import UserError
from polychrome.engine.history import EpochRow
from polychrome.engine.run_folder import RunFolder
from polychrome.engine.training import checkpoint, trainer
from polychrome.engine.training.hyperparameters import Hyperparameters
from polychrome.engine.training.plan import Plan
from polychrome.train import experiment, networks, seeds
from polychrome.train.run import main
from polychrome.train.settings import changes, variants
from polychrome.train.settings.config import Settings
from tests.train import runner
from tests.train.small import QUICK
from tests.train.test_changed_settings import another

SEEDS = [0, 1]
# One network for all combinations, and one for each that sees zeros in place of the others.
MODELS = ("pool_attention_cnn", "simple_cnn+alone")
ARGUMENTS = [
    *("--image-size", "32", "--batch-size", "24", "--epochs", "2", *QUICK),
    *("--models", ",".join(MODELS), "--channels", "RGB,G", "--lr", "0.01", "--backend", "torch"),
    *("--progressive", "0.5", "--holdout", "15", "--flip-test", "--consistency", "0.5", "--ema", "0.9"),
]


@pytest.fixture(scope="module")
def run(stripes, tmp_path_factory):
    out = tmp_path_factory.mktemp("seeds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "SHOWN_PREDICTIONS", 2)  # drawing more takes longer than all else
        start = ["task1", "--data", str(stripes), "--out", str(out), "--name", "a", *ARGUMENTS, "--seeds", "2"]
        assert main(start) == 0
        yield out / "task1/a"


def table(run, name="table.csv"):
    with open(run / name, newline="") as file:
        return list(csv.DictReader(file))


def test_figures_are_the_means_of_the_seeds_with_their_standard_deviations(run):
    whole, parts = runner.results(run), [runner.results(run / f"seeds/{seed}") for seed in SEEDS]
    assert whole["seeds"] == SEEDS
    assert list(whole["models"]) == list(MODELS)
    for name, entry in whole["models"].items():
        each = [part["models"][name] for part in parts]
        for kind in ("accuracy", "loss"):
            found = [one["splits"]["holdout"]["G"][kind] for one in each]
            assert entry["splits"]["holdout"]["G"][kind] == fmean(found)
            assert entry["spread"]["plain"]["holdout"]["G"][kind] == stdev(found)
        assert entry["train_seconds"] == fmean(one["train_seconds"] for one in each)
        assert [row["seed"] for row in entry["per_seed"]] == entry["seeds"] == SEEDS
    assert parts[0]["models"][MODELS[0]]["test"] != parts[1]["models"][MODELS[0]]["test"]
    assert {row["model"] for row in runner.history(run)} >= {f"{MODELS[0]} seed 0", f"{MODELS[1]} G seed 1"}


def test_the_table_has_a_row_for_each_accuracy(run):
    rows, results = table(run), runner.results(run)
    models, device = results["models"], results["device"]
    key = ("model", "protocol", "split", "combination", "flip_averaging")
    assert [tuple(row[name] for name in key) for row in rows] == [
        (model, protocol, split, combination, flip)
        for model, protocol in zip(MODELS, ("subset", "one-per-combination, zero-pad"), strict=True)
        for split in ("val", "holdout", "test")
        for flip in ("no", "yes")
        for combination in ("RGB", "G")
    ]
    for row in rows:
        entry = models[row["model"]]
        kind = "flipped" if row["flip_averaging"] == "yes" else "plain"
        plain = entry["splits"] | {"test": entry["test"]}
        found = entry["flipped"] if kind == "flipped" else plain
        assert float(row["accuracy"]) == found[row["split"]][row["combination"]]["accuracy"]
        assert float(row["spread"]) == entry["spread"][kind][row["split"]][row["combination"]]["accuracy"]
        assert (row["seeds"], row["params"], row["device"]) == ("0 1", str(entry["params"]), device)
        assert float(row["train_seconds"]) == entry["train_seconds"]


def test_every_figure_follows_from_the_predictions_for_each_image(run):
    for seed in (0, 1):
        found = json.loads((run / f"seeds/{seed}/results.json").read_text())["models"]
        for name, entry in found.items():
            rows = list(csv.DictReader((run / f"seeds/{seed}/predictions/{name}.csv").open()))
            plain = entry["splits"] | {"test": entry["test"]}
            assert {row["split"] for row in rows} == set(plain)
            for split, scores in plain.items():
                own = [row for row in rows if row["split"] == split]
                for label, figures in scores.items():
                    for column, right in ((label, figures), (f"{label} flipped", entry["flipped"][split][label])):
                        hits = sum(row[column] == row["label"] for row in own)
                        assert hits / len(own) == right["accuracy"]


def test_evaluate_reproduces_the_table_to_the_digit(run, capsys):
    assert main(["evaluate", str(run), "--channels", "RGB,G"]) == 0
    assert (run / "evaluation.csv").read_bytes() == (run / "table.csv").read_bytes()
    assert "72 of 72 figures are those of" in capsys.readouterr().out
    for seed in (0, 1):
        for model in MODELS:
            mine, again = (run / f"seeds/{seed}/{by}/{model}.csv" for by in ("predictions", "evaluation"))
            assert again.read_bytes() == mine.read_bytes()
    weights = run / "seeds/1/checkpoints/pool_attention_cnn/best.pt"
    kept = weights.read_bytes()
    shutil.copy(run / "seeds/0/checkpoints/pool_attention_cnn/best.pt", weights)
    assert main(["evaluate", str(run), "--channels", "G", "--split", "holdout"]) == 0
    weights.write_bytes(kept)
    printed = capsys.readouterr().out
    assert "12 of 12 figures" not in printed
    assert "of 12 figures are those of" in printed
    assert json.loads((run / "evaluation.json").read_text())["splits"] == ["holdout"]


def test_the_report_shows_means_and_deviations(run):
    for name in ("report.md", "report.html"):
        page = (run / name).read_text()
        assert "Means of 2 runs, seeds 0, 1." in page
        assert "Held-out accuracy, %, mean ± std" in page
        assert "±" in page
        assert "15 training images held out" in page


def test_seeds_share_one_division_of_the_data(run):
    held = [(run / f"seeds/{seed}/holdout.txt").read_text() for seed in SEEDS]
    assert held[0] == held[1]
    assert len(held[0].splitlines()) == 15
    assert {runner.results(run / f"seeds/{seed}")["data"]["train"] for seed in SEEDS} == {72 - 15}


def test_an_interrupted_run_goes_on_and_computes_no_finished_seed_again(run, tmp_path, monkeypatch):
    half, save = shutil.copytree(run, tmp_path / "task1/a"), checkpoint.save
    shutil.rmtree(half / "seeds/1")
    (half / "report.html").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (half / "seeds/0").rglob("*")}

    def interrupted(path, content):
        save(path, content)
        if path.relative_to(half).parts == ("seeds", "1", "checkpoints", "simple_cnn+alone", "RGB", "next.pt"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", interrupted)
        assert main(["task1", "--out", str(tmp_path), "--resume", "auto"]) == 1
    assert runner.results(half)["seeds"] == [0]
    assert {row["seeds"] for row in table(half)} == {"0"}
    assert {row["model"] for row in table(half / "seeds/1")} == {MODELS[0]}
    assert main(["task1", "--out", str(tmp_path), "--resume", "auto"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (half / "seeds/0").rglob("*")} == kept
    assert (half / "history.csv").read_bytes() == (run / "history.csv").read_bytes()
    for path in ("pool_attention_cnn/last.pt", "simple_cnn+alone/RGB/last.pt"):
        mine, others = (checkpoint.load(each / "seeds/1/checkpoints" / path)["model"] for each in (half, run))
        assert all(torch.equal(value, others[key]) for key, value in mine.items())
    found, wanted = ([row | {"train_seconds": ""} for row in table(each)] for each in (half, run))
    assert found == wanted


def test_a_finished_run_goes_on_to_more_seeds_and_no_other_change(run, tmp_path, capsys):
    more = shutil.copytree(run, tmp_path / "more")
    for arguments, message in (
        (["--lr", "0.5"], "has another --lr: its seeds must agree"),
        (["--seeds", "1"], "has --seeds 2: give as many or more"),
        (["--holdout", "0"], "has another --holdout: its seeds must agree"),
    ):
        assert main(["task1", "--resume", str(more), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert (more / "report.html").exists()
    arguments = ["--resume", str(more), "--seeds", "3", "--models", "pool_attention_cnn"]
    assert main(["task1", *arguments]) == 0
    assert "seed 2" in capsys.readouterr().out
    assert runner.results(more)["seeds"] == [0, 1, 2]
    assert runner.results(more)["models"]["pool_attention_cnn"]["seeds"] == [0, 1, 2]
    page = (more / "report.html").read_text()
    assert page.index("--seeds 2</code>") < page.index("then <code>") < page.index("--seeds 3")
    capsys.readouterr()
    assert main(["task1", "--resume", str(more)]) == 0
    assert "has changed since" not in capsys.readouterr().out


def test_files_that_finished_seeds_lack_are_written_and_nothing_is_trained(run, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.Trainer, "_epoch", lambda self: pytest.fail("trained"))
    more = shutil.copytree(run, tmp_path / "more")
    for _ in range(2):
        assert main(["task1", "--resume", str(more), "--submission", "--models", MODELS[0]]) == 0
        found = sorted(more.rglob("submission-*.csv"))
        assert found == [more / f"seeds/{seed}/submission-{MODELS[0]}.csv" for seed in SEEDS]
        monkeypatch.setattr(experiment.Experiment, "_test", lambda *_: pytest.fail("tested again"))
    same, before = ([row | {"train_seconds": ""} for row in table(each)] for each in (more, run))
    assert [row for row in before if row["model"] == MODELS[0]] == [row for row in same if row["model"] == MODELS[0]]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of two seeds, of which one has been trained; all that is known of it, without a training."""
    root = RunFolder(tmp_path_factory.mktemp("begun") / "a")
    settings = replace(Settings(), **BEGUN, seeds=2)
    models = {"simple_cnn": {"protocol": "zero-pad", "epochs": 2, "val": {}, "scores": {"test": {}}}}
    results = {"task": "task1", "data": {"classes": 2, "class_names": ["a", "b"]}, "models": models}
    for folder, own in ((root, settings), (root.of_seed(0), replace(settings, seeds=1, split_seed=0))):
        folder.root.mkdir(parents=True)
        resolved = variants.resolve(own, "task1").with_whole_paths()
        folder.write(folder.config, resolved.to_toml())
        folder.write_results(results)
    return root


BEGUN = {"data": "x", "models": ("simple_cnn",), "epochs": 2, "image_size": 32, "precision": "fp32", "backend": "torch"}


def going_on(begun, **changed):
    settings = variants.resolve(Settings.of_run(begun.config), "task1")
    return seeds.unchanged("task1", replace(settings, **{"seeds": 3} | changed), begun)


def test_seeds_go_on_by_the_settings_that_they_have(begun):
    assert going_on(begun).seeds == 3
    assert going_on(begun, epochs=3).epochs == 3
    assert going_on(begun, backend="auto").backend == "torch"  # whatever is installed by now


@pytest.mark.parametrize("name", sorted(item.name for item in fields(Settings)))
def test_a_setting_is_the_same_for_all_seeds_or_said_to_change_no_result(begun, name):
    (item,) = (item for item in fields(Settings) if item.name == name)
    others = {
        "model": {"simple_cnn": {"lr": 0.5}},
        "options": {"x": 1},
        "seeds": 4,
        "models": ("simple_cnn", "resnet18"),
    }
    others |= {"lr": 0.5, "batch_size": 4, "compile": True, "channels": ("RG",), "augmentations": ("flip",)}
    others |= {
        "transfer": "frozen",
        "logger": None,
        "backend": "dali",
        "device": "cpu",
        "eval_crop": 0.5,
        "progressive": 0.5,
    }
    value = getattr(Settings.of_run(begun.config), name)
    changed = others[name] if name in others else another(item, value)
    if name in changes.OF_A_SEED:
        assert going_on(begun, **{name: changed})
    else:
        setting = rf"table \[{name}\]" if name in ("model", "options") else f"--{name.replace('_', '-')}"
        with pytest.raises(UserError, match=f"has another {setting}: its seeds must agree"):
            going_on(begun, **{name: changed})


def test_the_folder_of_a_seed_that_went_on_alone_with_other_settings_is_no_seed_of_the_run(begun, tmp_path):
    run = RunFolder(shutil.copytree(begun.root, tmp_path / "a"))
    config = run.of_seed(0).config
    config.write_text(config.read_text().replace("lr = 0.001", "lr = 0.5"))
    with pytest.raises(UserError, match="has another --lr: its seeds must agree"):
        going_on(run)


SCHEDULES = ("constant", "plateau", "cosine", "linear", "onecycle")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("one_at_a_time", [False, True])
@pytest.mark.parametrize("augmentations", [(), ("flip",), ("crop", "flip")])
@pytest.mark.parametrize("progressive", [0.5, 1.0])
def test_more_epochs_are_another_course_where_they_change_an_epoch_before(
    begun, schedule, one_at_a_time, augmentations, progressive
):
    chosen = {"schedule": schedule, "one_at_a_time": one_at_a_time, "progressive": progressive}
    settings = replace(going_on(begun), **chosen, augmentations=augmentations)

    def course(epochs):
        own = replace(settings, epochs=epochs)
        given = {item.name: getattr(own, item.name) for item in fields(Hyperparameters)} | {"channel_sampling": "off"}
        augmented = networks.augmentations(own)
        plan = Plan(**given, num_classes=2, device=torch.device("cpu"), augmentations=augmented)
        rows = [EpochRow("m", number, 0.1, 1.0, 0.5, 1.0, 0.5) for number in range(1, 3)]
        rates = [plan.rates(rows[:done])(share) for done in range(3) for share in (0.0, 0.5)]
        return rates, [(plan.recipe(epoch), augmented.size(epoch, 32)) for epoch in (1, 2, 3)]

    depends = any(course(more) != course(3) for more in (4, 6, 12))
    assert changes.depends_on_epochs(changes.recorded(settings, "simple_cnn")) == depends
    check = partial(seeds._check_epochs, begun, "simple_cnn", 2)
    now = changes.recorded(replace(settings, epochs=2), "simple_cnn")
    check(now)
    with pytest.raises(UserError, match="has simple_cnn with --epochs 2: give as many or more"):
        check(now | {"epochs": 1})
    with pytest.raises(UserError, match="on which its course depends") if depends else nullcontext():
        check(now | {"epochs": 4})


def test_commands_for_one_network_ask_for_one_seed(run, stripes, capsys):
    assert main(["predict", str(run), str(stripes / "images/test 0.jpg")]) == 2
    assert f"give one of them, {run}/seeds/0" in capsys.readouterr().err
    assert main(["predict", str(run / "seeds/0"), str(stripes / "images/test 0.jpg")]) == 0
    assert main(["task1", "--resume", str(run / "seeds/0"), "--seeds", "2"]) == 2
    assert "is a run of one seed" in capsys.readouterr().err
