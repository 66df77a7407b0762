"""Task transfer: from a run of ours to other classes, and from a file of weights."""

import json
import os
import re
import shutil
import signal

import pytest
import torch

from polychrome import models
from polychrome.engine.training import checkpoint, transfer
from polychrome.engine.training.trainer import Trainer
from polychrome.train.run import main
from tests.conftest import write_list_folder
from tests.train import runner
from tests.train.small import QUICK

SMALL = ["--image-size", "32", "--batch-size", "12", *QUICK]


@pytest.fixture(scope="module")
def source(stripes, tmp_path_factory):
    """A run that trained attention_cnn to tell stripes apart."""
    out = tmp_path_factory.mktemp("source")
    start = ["task2", "--data", str(stripes), "--out", str(out), "--name", "s", "--models", "attention_cnn", *SMALL]
    assert main([*start, "--epochs", "12", "--augmentations", "none", "--lr", "0.003"]) == 0
    return out / "task2/s"


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The same three classes and a fourth name without an image, with few images to learn them from."""
    root = write_list_folder(tmp_path_factory.mktemp("few") / "data", per_class=(6, 12, 12))
    (root / "classes.txt").write_text("level\nupright\nslanted\nnone\n")
    return root


def on(data, out):
    """Return the options for a folder that has no image of its fourth class."""
    return ["--data", str(data), "--num-classes", "4", "--out", str(out)]


def test_trained_weights_beat_fresh_ones_and_every_mode_is_printed(source, few, tmp_path, capsys):
    arguments = [*on(few, tmp_path), "--name", "t", *SMALL, "--epochs", "3"]
    options = ["--models", "attention_cnn", "--weights", str(source), "--augmentations", "none"]
    assert main(["transfer", *arguments, *options]) == 0
    found = json.loads((tmp_path / "transfer/t/results.json").read_text())["models"]
    assert list(found) == [f"attention_cnn+{mode}" for mode in ("frozen", "finetuned", "scratch")]
    tested = {name.partition("+")[2]: entry["test"]["RGB"] for name, entry in found.items()}
    for mode in ("frozen", "finetuned"):
        assert tested[mode]["loss"] < 0.5 * tested["scratch"]["loss"]
        assert tested[mode]["accuracy"] >= tested["scratch"]["accuracy"]
    printed = capsys.readouterr().out
    for wanted in (*found, "level", "upright", "slanted"):
        assert wanted in printed
    said = " ".join(printed.split())
    for mode in ("frozen", "finetuned"):
        assert len(re.findall(rf"attention_cnn\+{mode} starts from \d+ tensors of --weights", said)) == 1
    assert said.count("starts fresh, as its weight is [3, ") == 2
    assert "attention_cnn+scratch starts from" not in said
    start = checkpoint.load(source / "checkpoints/attention_cnn/best.pt")["model"]
    frozen = checkpoint.load(tmp_path / "transfer/t/checkpoints/attention_cnn+frozen/best.pt")["model"]
    head = transfer.head_of(models.create("attention_cnn"))[0] + "."
    assert all(torch.equal(frozen[key], start[key]) for key in start if not key.startswith(head))
    assert frozen[head + "weight"].shape[0] == 4


def test_weights_from_a_file_and_a_single_mode(source, few, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(checkpoint.load(source / "checkpoints/attention_cnn/best.pt")["model"], file)
    arguments = [*on(few, tmp_path), "--name", "t", *SMALL, "--epochs", "1"]
    assert main(["transfer", *arguments, "--models", "attention_cnn+frozen", "--weights", str(file)]) == 0
    assert list(json.loads((tmp_path / "transfer/t/results.json").read_text())["models"]) == ["attention_cnn+frozen"]


def test_a_run_without_the_model_is_refused(source, few, tmp_path, capsys):
    arguments = [*on(few, tmp_path), *SMALL, "--models", "simple_cnn"]
    assert main(["transfer", *arguments, "--weights", str(source)]) == 2
    assert "that run trained attention_cnn, no simple_cnn" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "transfer", ignore_errors=True)
    assert main(["transfer", *arguments, "--weights", str(few)]) == 2
    assert "is not a run folder" in capsys.readouterr().err


@pytest.mark.usefixtures("signals_heard")
@pytest.mark.parametrize(
    "entry", ["attention_cnn+frozen", pytest.param("attention_cnn+finetuned", marks=pytest.mark.slow)]
)
def test_a_training_that_begins_again_begins_with_the_trained_weights(
    source, few, tmp_path, monkeypatch, capsys, entry
):
    """As where it was stopped in its first epoch and goes on with other batches, which fit no middle of an epoch."""
    start = ["transfer", *on(few, tmp_path), *SMALL, "--epochs", "2", "--models", entry, "--weights", str(source)]
    assert main([*start, "--name", "whole", "--batch-size", "6"]) == 0
    with monkeypatch.context() as patch:
        update = Trainer._update
        patch.setattr(Trainer, "_update", lambda self: update(self) or os.kill(os.getpid(), signal.SIGTERM))
        assert main([*start, "--name", "parts"]) != 0
    run = tmp_path / "transfer/parts"
    assert [path.name for path in (run / "checkpoints" / entry).iterdir()] == ["step.pt"]
    for resumed, said in (["--batch-size", "6"], 1), ([], 0):
        capsys.readouterr()
        copy = shutil.copytree(run, tmp_path / f"transfer/{said}")
        assert main(["transfer", "--resume", str(copy), *resumed]) == 0
        assert " ".join(capsys.readouterr().out.split()).count(f"{entry} starts from") == said
    assert runner.history(tmp_path / "transfer/1") == runner.history(tmp_path / "transfer/whole")
    # Weights that are gone are missed before anything is trained, and only where they are needed.
    source.rename(source.with_name("moved"))
    try:
        assert main(["transfer", "--resume", str(run), "--batch-size", "6"]) == 2
        assert main(["transfer", "--resume", str(run)]) == 0
    finally:
        source.with_name("moved").rename(source)
