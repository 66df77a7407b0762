"""A run that is killed and goes on equals one that was never interrupted."""

import random

import pytest
import torch

from polychrome.engine.training import checkpoint
from polychrome.train.run import main
from tests.train import runner

# 72 images: 5 steps of 16 an epoch, the last one of 8. The second model has dropout and draws channels.
ARGUMENTS = [
    *("--image-size", "32", "--batch-size", "16", "--epochs", "3", "--workers", "1", "--precision", "fp32"),
    *("--models", "pool_attention_cnn", "--backend", "torch", "--no-tensorboard", "--no-plots"),
]
STEPS = 15


@pytest.fixture(scope="module")
def unbroken(stripes, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    assert main(["task1", "--data", str(stripes), "--out", str(out), "--name", "a", *ARGUMENTS]) == 0
    return out / "task1/a"


def killed(stripes, out, step, *more):
    """Return the folder of a run that was killed before an optimiser step."""
    script = out / "killed.py"
    script.write_text(runner.KILLED)
    start = ["task1", "--data", str(stripes), "--out", str(out), "--name", "a", *ARGUMENTS, *more]
    done = runner.train(*start, script=script, KILL_AT=str(step))
    assert runner.was_killed(done), done.stderr
    return out / "task1/a"


def assert_equal_runs(run, other):
    assert (run / "history.csv").read_bytes() == (other / "history.csv").read_bytes()
    for name in ("last", "best"):
        path = f"checkpoints/pool_attention_cnn/{name}.pt"
        mine, others = checkpoint.load(run / path)["model"], checkpoint.load(other / path)["model"]
        assert mine.keys() == others.keys()
        assert all(torch.equal(value, others[key]) for key, value in mine.items())
    found, wanted = (runner.results(each)["models"]["pool_attention_cnn"] for each in (run, other))
    assert found["test"] == wanted["test"]


def check(stripes, tmp_path, unbroken, step, *more):
    run = killed(stripes, tmp_path, step, *more)
    assert main(["task1", "--out", str(tmp_path), "--resume", "auto"]) == 0
    assert_equal_runs(run, unbroken)


def test_a_run_killed_within_an_epoch_goes_on_from_the_step_before(stripes, tmp_path, unbroken, capsys):
    run = killed(stripes, tmp_path, 9, "--save-every", "0.000001")
    position = checkpoint.load(run / "checkpoints/pool_attention_cnn/step.pt")["position"]
    assert position == {"epoch": 2, "turn": 0, "batch": 3}  # the 9th step is the 4th of the second epoch
    assert main(["task1", "--out", str(tmp_path), "--resume", "auto"]) == 0
    assert_equal_runs(run, unbroken)


@pytest.mark.parametrize("keep", ["last", "loss"])
def test_a_training_does_not_end_where_the_weights_to_keep_are_in_no_file(stripes, tmp_path, capsys, keep):
    """As where it is stopped in its third epoch, within which alone it was saved, and two epochs will do."""
    run = killed(stripes, tmp_path, 13, "--save-every", "0.000001", "--keep", keep)
    step = run / "checkpoints/pool_attention_cnn/step.pt"
    for path in step.parent.iterdir():
        if path != step:
            path.unlink()
    content = checkpoint.load(step)
    first, second = content["course"]["history"]
    second["val_loss"] = 2 * first["val_loss"]
    checkpoint.save(step, {key: value for key, value in content.items() if key != "format"})
    before = runner.files_of(run)
    for fewer, more in ((["--epochs", "2"], ""), (["--patience", "1"], " and --patience 0")):
        assert main(["task1", "--resume", str(run), *fewer]) == 2
        told = (
            f"{step.parent} stands within epoch 3, and no file has the weights after epoch 2: give --epochs 3 or more"
        )
        assert f"{told}{more}\n" in capsys.readouterr().err
    assert runner.files_of(run) == before
    assert main(["task1", "--resume", str(run)]) == 0
    assert len(runner.history(run)) == 3


@pytest.mark.slow
def test_a_run_killed_in_its_first_epoch_without_a_checkpoint_starts_again(stripes, tmp_path, unbroken):
    check(stripes, tmp_path, unbroken, 3, "--save-every", "0")


@pytest.mark.slow
@pytest.mark.parametrize("step", sorted(random.Random(6).sample(range(1, STEPS + 1), 10)))
@pytest.mark.parametrize("seconds", ["0.000001", "0"])
def test_runs_killed_anywhere_equal_the_unbroken_one(stripes, tmp_path, unbroken, step, seconds):
    check(stripes, tmp_path, unbroken, step, "--save-every", seconds)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--ema", "0.9", "--schedule", "cosine", "--warmup", "1"),
        ("--optimizer", "muon", "--mixup", "0.2", "--cutmix", "1"),
        ("--accumulate", "2", "--clip-norm", "1", "--schedule", "onecycle", "--channel-sampling", "drop"),
        ("--progressive", "0.5", "--consistency", "0.5", "--channel-sampling", "on", "--holdout", "12"),
        ("--channel-sampling", "cycle", "--augmentations", "all", "--one-at-a-time"),
    ],
    ids=lambda options: options[0],
)
def test_every_state_is_in_the_checkpoint(stripes, tmp_path, options):
    whole = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "whole", *ARGUMENTS, *options]
    assert main(whole) == 0
    run = killed(stripes, tmp_path, 8, "--save-every", "0.000001", *options)
    assert main(["task1", "--out", str(tmp_path), "--resume", str(run)]) == 0
    assert_equal_runs(run, tmp_path / "task1/whole")
