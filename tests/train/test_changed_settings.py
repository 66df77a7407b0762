"""A run that goes on with other settings: what was trained is never called by settings that it was not trained with."""

import os
import shutil
import signal
from dataclasses import fields, replace
from pathlib import Path

import pytest

from polychrome.engine import console
from polychrome.engine.errors import UserError
from polychrome.engine.history import EpochRow
from polychrome.engine.run_folder import RunFolder
from polychrome.engine.training import checkpoint, state, trainer
from polychrome.engine.training.hyperparameters import Number
from polychrome.engine.watch.remaining import Remaining
from polychrome.train import experiment, preparation
from polychrome.train.run import main
from polychrome.train.settings import changes, variants
from polychrome.train.settings.config import OF_AN_ENTRY, SHARED, NameList, Settings
from tests.conftest import write_list_folder
from tests.train import runner
from tests.train.runner import files_of
from tests.train.small import QUICK

MODELS = ("simple_cnn", "simple_cnn+smoothing")
ARGUMENTS = [
    *("--image-size", "32", "--batch-size", "6", "--epochs", "2", *QUICK),
    *("--backend", "torch", "--channels", "RGB,G", "--save-every", "0", "--holdout", "3"),
]
# Another value of each setting whose kind does not give one.
OTHERS = {
    "lr": 0.5,
    "batch_size": 4,
    "image_size": 40,
    "cache_size": 64,
    "precision": "bf16",
    "augmentations": ("flip",),
    "compile": True,
    "eval_crop": 0.5,
    "progressive": 0.5,
}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write_list_folder(tmp_path_factory.mktemp("few") / "few", (5, 2, 2))


@pytest.fixture(scope="module")
def finished(few, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    start = ["task1", "--data", str(few), "--out", str(out), "--name", "a", *ARGUMENTS]
    assert main([*start, "--models", ",".join(MODELS)]) == 0
    return out / "task1/a"


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "a"))


def another(item, value):
    """Return a value of a setting that it does not have."""
    kind = item.metadata["type"]
    if item.name in OTHERS:
        return OTHERS[item.name]
    if kind is bool:
        return not value
    if isinstance(kind, Number):
        return kind.kind((value or 0) + 1) if kind.kind is int else value / 2 or 0.25
    if not isinstance(kind, tuple):
        return ("b",) if isinstance(kind, NameList) else "b"
    return next(each for each in kind if each not in (value, "auto", "dali", "synthetic", "cuda"))


def prepared(run, **changed):
    settings = variants.resolve(replace(Settings.of_run(run / "config.toml"), **changed), "task1")
    return preparation.prepare("task1", settings, RunFolder(run))


def test_every_setting_is_recorded_or_said_to_need_no_record():
    every = {item.name for item in fields(Settings)}
    groups = (changes.RECORDED, changes.OF_DATA, changes.WITHOUT_EFFECT, changes.IN_PARTS)
    assert sorted(every) == sorted(name for group in groups for name in group)
    assert {*OF_AN_ENTRY, *SHARED} - {"options"} <= set(changes.RECORDED)
    named = {*changes.FIXED, *changes.OF_TESTS, *changes.LENGTHS, *changes.OF_MACHINE}
    assert named - {"weights"} <= set(changes.RECORDED)


@pytest.mark.parametrize("name", sorted({*changes.RECORDED} - {"device", "backend"}))
def test_no_change_of_a_setting_relabels_what_is_trained(finished, name):
    (item,) = (item for item in fields(Settings) if item.name == name)
    value = another(item, getattr(Settings.of_run(finished / "config.toml"), name))
    before = files_of(finished)
    if name in (*changes.OF_TESTS, *changes.LENGTHS, *changes.OF_MACHINE):
        found = prepared(finished, models=MODELS[:1], **{name: value})
        told = changes.told(found.stages[MODELS[0]][MODELS[0]], changes.recorded(found.settings, MODELS[0]))
        assert MODELS[0] not in found.done or name in told
    else:
        with pytest.raises(UserError, match=f"trained with {name} = |--{name.replace('_', '-')} |holdout of"):
            prepared(finished, models=MODELS[:1], **{name: value})
    assert files_of(finished) == before


def test_a_finished_run_is_done_as_it_is(finished):
    assert prepared(finished).done == set(MODELS)
    assert prepared(finished, epochs=3).done == set()
    more = prepared(finished, models=(*MODELS, "simple_cnn+he"))
    assert (more.done, set(more.costs)) == (set(MODELS), {*MODELS, "simple_cnn+he"})


def test_a_training_that_ends_by_its_patience_says_so_and_a_resumed_run_again(few, tmp_path, capsys):
    start = ["task1", "--data", str(few), "--out", str(tmp_path), "--name", "a", *ARGUMENTS, "--models", "simple_cnn"]
    assert main([*start, "--epochs", "9", "--patience", "1", "--lr", "1"]) == 0
    run = tmp_path / "task1/a"
    (count,) = {len(runner.history(run))}
    assert count < 9
    ended = f"ended after epoch {count}, 1 epoch without a better validation loss (--patience 1; 0 never stops)"
    assert f"simple_cnn {ended}" in " ".join(capsys.readouterr().out.split())
    assert main(["task1", "--resume", str(run), "--epochs", "11"]) == 0
    assert f"simple_cnn is not trained further; it {ended}" in " ".join(capsys.readouterr().out.split())
    assert len(runner.history(run)) == count
    assert runner.results(run)["models"]["simple_cnn"]["differs"] == [["simple_cnn", "epochs", "9"]]
    assert main(["task1", "--resume", str(run), "--epochs", str(count + 1), "--patience", "0"]) == 0
    assert len(runner.history(run)) == count + 1
    assert runner.results(run)["models"]["simple_cnn"]["differs"] == []


@pytest.mark.parametrize("patience", [0, 1, 9])
def test_each_network_of_a_model_is_trained_further_whatever_its_siblings_have(patience):
    """Of two networks one has all six epochs; patience ended the other after two, the second without a better loss."""
    entry, settings = "simple_cnn+alone", Settings(epochs=6, patience=patience)
    losses = {f"{entry} RGB": (6, 5, 4, 3, 2, 1), f"{entry} G": (1, 2)}
    history = {
        name: [EpochRow(name, epoch, 0.1, 1.0, 0.5, loss, 0.5) for epoch, loss in enumerate(own, 1)]
        for name, own in losses.items()
    }
    going_on = preparation.GoingOn(RunFolder(Path("a")), entry, settings, {"epochs": 6}, history, {})
    assert going_on.is_done() == (patience == 1)


def test_options_are_compared_one_by_one():
    one, other = (changes.recorded(Settings(options={"width": 8} | more), "simple_cnn") for more in ({}, {"depth": 3}))
    assert changes.differing(one, other) == {"options.depth": (None, 3)}
    assert changes.of_course(changes.differing(other, one), one) == {"options.depth": (3, None)}


def test_a_trained_model_refuses_other_settings_and_a_new_one_beside_it_takes_them(run, capsys):
    before = files_of(run)
    assert main(["task1", "--resume", str(run), "--models", f"{MODELS[0]},simple_cnn+he", "--lr", "0.02"]) == 2
    assert "has simple_cnn trained with lr = 0.001: leave that so, name other models" in capsys.readouterr().err
    assert files_of(run) == before
    assert main(["task1", "--resume", str(run), "--models", "simple_cnn+he", "--lr", "0.02"]) == 0
    printed = capsys.readouterr().out
    assert "simple_cnn stays as it was trained, with lr = 0.001" in printed
    found = runner.results(run)["models"]
    assert [found[name]["differs"] for name in (*MODELS, "simple_cnn+he")] == [
        *([[name, "lr", "0.001"]] for name in MODELS),
        [],
    ]
    for page in ("report.md", "report.html"):
        assert "Trained with other settings" in (run / page).read_text()
    assert "| simple\\_cnn | lr | 0.001 |" in (run / "report.md").read_text()


def test_a_training_that_goes_on_with_other_settings_says_from_when_on(run, capsys):
    assert main(["task1", "--resume", str(run), "--epochs", "3", "--lr", "0.02"]) == 0
    assert "simple_cnn goes on with lr = 0.02; up to here it was lr = 0.001" in capsys.readouterr().out
    for name in MODELS:
        entry = runner.results(run)["models"][name]
        assert entry["differs"] == [[name, "lr", "0.001, from epoch 3 0.02"]]
        assert [stage["epoch"] for stage in entry["settings"][name]] == [1, 3]
    assert main(["task1", "--resume", str(run), "--epochs", "4"]) == 0
    assert runner.results(run)["models"]["simple_cnn"]["differs"] == [["simple_cnn", "lr", "0.001, from epoch 3 0.02"]]


@pytest.mark.usefixtures("signals_heard")
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_that_ended_in_its_second_model_keeps_the_settings_of_its_first(
    few, tmp_path, monkeypatch, capsys, epoch
):
    save = checkpoint.save

    def ending(path, content):
        save(path, content)
        if (path.parent.name, path.name, content["epoch"]) == (MODELS[1], "next.pt", epoch):
            raise KeyboardInterrupt

    start = ["task1", "--data", str(few), "--out", str(tmp_path), "--name", "a", *ARGUMENTS]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", ending)
        assert main([*start, "--models", ",".join(MODELS)]) == 1
    run = tmp_path / "task1/a"
    before = files_of(run)
    assert main(["task1", "--resume", str(run), "--lr", "0.02"]) == 2
    assert "has simple_cnn trained with lr = 0.001" in capsys.readouterr().err
    assert files_of(run) == before
    # The second, too, where it has all its epochs and is not tested yet.
    assert main(["task1", "--resume", str(run), "--models", MODELS[1], "--lr", "0.02"]) == (0 if epoch == 1 else 2)
    if epoch == 1:
        assert runner.results(run)["models"][MODELS[1]]["differs"] == [[MODELS[1], "lr", "0.001, from epoch 2 0.02"]]
    else:
        assert f"has {MODELS[1]} trained with lr = 0.001" in capsys.readouterr().err
    assert main(["task1", "--resume", str(run), "--models", MODELS[0], "--lr", "0.001"]) == 0
    assert runner.results(run)["models"][MODELS[0]]["differs"] == []


@pytest.mark.parametrize("flag", ["--flip-test", "--keep", "--submission", "--keep-holdout"])
def test_another_test_tests_again_and_trains_nothing(run, monkeypatch, flag):
    monkeypatch.setattr(trainer.Trainer, "_epoch", lambda self: pytest.fail("trained"))
    history = (run / "history.csv").read_bytes()
    assert main(["task1", "--resume", str(run), flag, *(["last"] if flag == "--keep" else [])]) == 0
    assert (run / "history.csv").read_bytes() == history
    found = runner.results(run)["models"]
    assert all(entry["differs"] == [] for entry in found.values())
    for name, entry in found.items():
        assert ("flipped" in entry) == (flag == "--flip-test")
        assert ("holdout" in entry["splits"]) == (flag != "--keep-holdout")
        assert (run / f"submission-{name}.csv").exists() == (flag == "--submission")
        if flag == "--keep":
            assert entry["best_epoch"] == checkpoint.load(run / f"checkpoints/{name}/best.pt")["epoch"] == 2
    shutil.rmtree(run / "checkpoints")
    back = {"--flip-test": "--no-flip-test", "--keep": "--keep=loss", "--submission": "--no-submission"}
    assert main(["task1", "--resume", str(run), back.get(flag, "--test-holdout")]) == 2


def test_a_run_of_an_earlier_version_has_the_settings_of_its_folder(run, capsys):
    folder = RunFolder(run)
    results = folder.read_results()
    for entry in results["models"].values():
        del entry["settings"], entry["differs"]
    folder.write_results(results)
    for path in (run / "checkpoints").rglob("*.pt"):
        content = checkpoint.load(path)
        content["run"].pop("settings", None)
        checkpoint.save(path, content)
    assert main(["task1", "--resume", str(run), "--lr", "0.02"]) == 2
    assert "has simple_cnn trained with lr = 0.001" in capsys.readouterr().err
    assert main(["task1", "--resume", str(run)]) == 0


@pytest.fixture
def stopped(few, tmp_path, monkeypatch):
    """A function that returns a run stopped in the middle of its third epoch of four; 12 images in batches of 6.

    Its only checkpoint is step.pt, or last.pt is there too, with the first epochs.
    """

    def run(saved=0):
        steps, update, save = [0], trainer.Trainer._update, state.State.save_epoch

        def stopping(self):
            update(self)
            steps[0] += 1
            if steps[0] == 5:
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(trainer.Trainer, "_update", stopping)
            patch.setattr(state.State, "save_epoch", lambda self, to: self.position.epoch > saved + 1 or save(self, to))
            begun = ["task1", "--data", str(few), "--out", str(tmp_path), "--name", "s", "--models", "simple_cnn"]
            assert main([*begun, *ARGUMENTS, "--epochs", "4"]) != 0
        run = tmp_path / "task1/s"
        assert len(runner.history(run)) == 2
        return run

    return run


@pytest.mark.usefixtures("signals_heard")
@pytest.mark.parametrize("saved", [0, 1, 2])
def test_epochs_that_are_left_are_not_told_among_what_a_network_was_trained_with(stopped, saved):
    """Other batches go on from the last end of an epoch that was saved, and the epochs since then are left."""
    run = stopped(saved=saved)
    assert main(["task1", "--resume", str(run), "--batch-size", "4"]) == 0
    entry = runner.results(run)["models"]["simple_cnn"]
    first, now = {"epoch": 1, "settings": 6}, {"epoch": saved + 1, "settings": 4}
    stages = [{**stage, "settings": stage["settings"]["batch_size"]} for stage in entry["settings"]["simple_cnn"]]
    assert stages == ([first, now] if saved else [now])
    assert entry["differs"] == ([["simple_cnn", "batch_size", f"6, from epoch {saved + 1} 4"]] if saved else [])
    assert (entry["batch_size"], entry["epochs"]) == (4, 4)


@pytest.mark.usefixtures("signals_heard")
def test_settings_that_were_left_and_taken_again_are_those_of_the_checkpoint(stopped, monkeypatch):
    run = stopped(saved=1)
    with monkeypatch.context() as patch:  # killed before it saves
        patch.setattr(trainer.Trainer, "_update", lambda self: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            main(["task1", "--resume", str(run), "--batch-size", "4"])
    assert main(["task1", "--resume", str(run), "--batch-size", "6"]) == 0
    entry = runner.results(run)["models"]["simple_cnn"]
    assert [stage["epoch"] for stage in entry["settings"]["simple_cnn"]] == [1]
    assert entry["differs"] == []


@pytest.mark.usefixtures("signals_heard")
def test_the_time_that_is_left_counts_from_where_a_training_goes_on(stopped, monkeypatch):
    run, begun, advanced = stopped(), [], []
    monkeypatch.setattr(Remaining, "begin", lambda self, *given: begun.append(given))
    monkeypatch.setattr(console.Bar, "advance", lambda self, count: advanced.append(count))
    assert main(["task1", "--resume", str(run)]) == 0
    done = 2 * (12 + 6) + 6
    assert advanced[0] == done
    assert begun == [("simple_cnn", done / (4 * (12 + 6)))]


def test_what_was_seen_of_a_training_stays_where_it_is_tested_again(run):
    folder = RunFolder(run)
    results = folder.read_results()
    seen = {"peak_memory_mb": 98765.4, "input_wait": 0.4321, "gpu_idle": 0.1234, "kernels": []}
    results["models"][MODELS[0]] |= seen
    for name in experiment.OBSERVED:
        results["models"][MODELS[1]].pop(name, None)  # never known
    folder.write_results(results)
    assert main(["task1", "--resume", str(run), "--flip-test"]) == 0
    found = runner.results(run)["models"]
    assert {name: found[MODELS[0]][name] for name in experiment.OBSERVED} == seen
    assert not {*experiment.OBSERVED} & found[MODELS[1]].keys()
    assert main(["task1", "--resume", str(run), "--epochs", "3"]) == 0
    for entry in runner.results(run)["models"].values():
        assert 1 < entry["peak_memory_mb"] < 98765
        assert entry["input_wait"] != 0.4321
