"""Several processes under torchrun, with Gloo on the CPU."""

import shutil
from pathlib import Path

import pytest
import torch

from polychrome.engine.training import checkpoint
from polychrome.models.any_channels import AnyChannels
from polychrome.train.run import main
from tests.train import runner
from tests.train.small import QUICK

pytestmark = pytest.mark.dist

# 72 images: 9 steps of 8 an epoch; 3 epochs are 27. The model has batch normalisation and no dropout, whose masks are
# each process's own. SGD and a network that is not deep, as rounding grows with Adam, which divides by it, and depth;
# and with some seeds: losses are 1.7e-5 apart with seed 0, 1.5e-5 with 1.
MODEL, FILLED = "baseline_cnn", "baseline_cnn+estimated"
ARGUMENTS = [
    *("--image-size", "32", "--batch-size", "8", "--epochs", "3", *QUICK),
    *("--backend", "torch", "--optimizer", "sgd", "--lr", "0.001", "--sync-bn"),
    *("--seed", "2", "--models", MODEL),
]
BOTH = [*ARGUMENTS[:-1], f"{MODEL},{FILLED}"]  # in one start, which takes longer than the training


@pytest.fixture(scope="module")
def alone(stripes, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    assert main(["task1", "--data", str(stripes), "--out", str(out), "--name", "a", *BOTH]) == 0
    return out / "task1/a"


@pytest.fixture(scope="module")
def pair(stripes, tmp_path_factory):
    out = tmp_path_factory.mktemp("pair")
    done = runner.torchrun(2, "task1", "--data", str(stripes), "--out", str(out), "--name", "a", *BOTH)
    assert done.returncode == 0, done.stderr
    return out / "task1/a", done.stdout


def epochs_of(run, model=MODEL):
    return [row for row in runner.history(run) if row["model"] == model]


def assert_close_runs(run, other, within):
    for mine, others in zip(*map(epochs_of, (run, other)), strict=True):
        for key in ("train_loss", "val_loss"):
            assert float(mine[key]) == pytest.approx(float(others[key]), rel=within), (mine, others)
    found, wanted = (runner.results(each)["models"][MODEL]["test"] for each in (run, other))
    for name, scores in wanted.items():
        assert found[name]["loss"] == pytest.approx(scores["loss"], rel=10 * within), name


def test_two_processes_equal_one_at_the_same_global_batch(alone, pair):
    run, _ = pair
    assert_close_runs(run, alone, 1e-5)  # over 27 steps
    mine, others = (checkpoint.load(each / f"checkpoints/{MODEL}/last.pt")["model"] for each in (run, alone))
    for key, value in others.items():
        torch.testing.assert_close(mine[key], value, rtol=1e-4, atol=1e-5)


def test_every_process_fills_in_channels_alike(alone, pair):
    """The first process measures how channels vary together, by the images that one process does."""
    run, _ = pair
    one, two = (checkpoint.load(each / f"checkpoints/{FILLED}/last.pt")["model"] for each in (alone, run))
    for key in AnyChannels.MEASURED:
        assert torch.equal(one[key], two[key])
        assert one[key].any()
    assert runner.results(run)["models"][FILLED]["protocol"] == "mask"


def test_the_first_process_alone_speaks_and_writes(pair):
    run, printed = pair
    assert printed.count(f"{MODEL} epoch 1/3") == 1
    assert [len(epochs_of(run, model)) for model in (MODEL, FILLED)] == [3, 3]
    assert (run / "report.html").exists()
    division = checkpoint.load(run / f"checkpoints/{MODEL}/last.pt")["division"]
    assert division == {"samples": 72, "batch_size": 8, "accumulate": 1, "world_size": 2, "device": "cpu"}


@pytest.mark.slow
def test_a_killed_worker_is_restarted_and_the_run_ends_the_same(stripes, tmp_path, pair):
    run, _ = pair
    script = tmp_path / "killed.py"
    script.write_text(runner.KILLED)
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "a", *ARGUMENTS]
    done = runner.torchrun(
        2, *start, "--save-every", "0.000001", script=script, restarts=1, KILL_AT="14", KILL_RANK="1"
    )
    assert done.returncode == 0, done.stderr
    assert_close_runs(tmp_path / "task1/a", run, 1e-6)


@pytest.mark.slow
def test_another_number_of_processes_goes_on_at_the_end_of_an_epoch(stripes, tmp_path, alone, capsys):
    script = tmp_path / "killed.py"
    script.write_text(runner.KILLED)
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "a", *ARGUMENTS]
    done = runner.torchrun(2, *start, "--save-every", "0.000001", script=script, KILL_AT="14")
    assert done.returncode != 0
    assert main(["task1", "--out", str(tmp_path), "--resume", "auto"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "was saved with world size 2 (now 1): going on from the end of epoch 1" in said
    assert_close_runs(tmp_path / "task1/a", alone, 1e-5)


@pytest.mark.slow
def test_an_error_of_the_users_is_said_once(tmp_path):
    done = runner.torchrun(2, "task1", "--data", str(tmp_path / "none"), "--out", str(tmp_path))
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr


def test_sync_bn_equals_batch_normalisation_of_one_process():
    """The layer by itself, in a world of one: the definition, forward and backward."""
    import torch.distributed as dist
    from torch import nn

    from polychrome.engine.training.sync_batch_norm import synchronised

    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        x = (3 * torch.randn(6, 4, 5, 5) + 2).requires_grad_()
        plain = nn.Sequential(nn.BatchNorm2d(4))
        with torch.no_grad():
            plain[0].weight.uniform_(0.5, 2)
            plain[0].bias.uniform_(-1, 1)
        ours = synchronised(nn.Sequential(nn.BatchNorm2d(4)), torch.device("cpu"))
        ours.load_state_dict(plain.state_dict())
        weights = torch.randn(6, 4, 5, 5)
        found = []
        for model in (plain, ours):
            y = model(x)
            found.append((y, *torch.autograd.grad((y * weights).sum(), [x, *model.parameters()])))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-5, atol=1e-6)
    finally:
        dist.destroy_process_group()


# What the second process alone meets, in the second epoch, as where only files of its share are gone.
MISSING = """
import os, sys
from polychrome.engine.training.trainer import Trainer
from polychrome.engine.errors import UserError
begin = Trainer._begin
def missing(self, epoch):
    if epoch == 2 and os.environ["RANK"] == "1":
        raise UserError("8 of 8 images could not be read")
    begin(self, epoch)
Trainer._begin = missing
from polychrome.train.run import main
if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.mark.slow
def test_what_only_another_process_meets_is_told(stripes, tmp_path):
    script = tmp_path / "missing.py"
    script.write_text(MISSING)
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "a", *ARGUMENTS]
    done = runner.torchrun(2, *start, script=script)
    assert done.returncode == 1
    assert "error: process 1: 8 of 8 images could not be read\n" in done.stderr


# The second process finds another copy of the data at the same path, as on another machine.
COPY = """
import os, sys
from pathlib import Path
from polychrome.train import data
read = data._read
def other(settings, root, known):
    return read(settings, Path(os.environ["COPY"]) if os.environ["RANK"] == "1" else root, known)
data._read = other
from polychrome.train.run import main
if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.mark.slow
def test_processes_with_other_copies_of_the_data_do_not_train(stripes, tmp_path):
    script, copy = tmp_path / "other_copy.py", Path(shutil.copytree(stripes, tmp_path / "copy"))
    script.write_text(COPY)
    lines = (copy / "train.txt").read_text().splitlines()
    (copy / "train.txt").write_text("\n".join([lines[0][:-1] + "2", *lines[1:]]))
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "a", *ARGUMENTS]
    done = runner.torchrun(2, *start, script=script, COPY=str(copy))
    assert done.returncode != 0, done.stderr
    assert done.stderr.count("is not the same everywhere: process 1, on ") == 1
    assert not (tmp_path / "task1").exists()
