"""What can go wrong while a model is trained, made to go wrong."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from polychrome.engine.data import loader
from polychrome.engine.errors import Interrupted, NotFiniteError, OutOfMemoryError, StorageError, UserError
from polychrome.engine.machine import files
from polychrome.engine.machine.interruption import SIGNALS, terminable
from polychrome.engine.training import checkpoint, state
from polychrome.engine.training.state import Division, Position
from polychrome.engine.training.trainer import Hooks, fit
from tests import disks
from tests.engine.small import FALLING, PLAN, Net

pytestmark = pytest.mark.usefixtures("signals_heard")


def at_step(number, action):
    """Return hooks that do something after an optimiser step."""
    done = [0]

    def step():
        done[0] += 1
        if done[0] == number:
            action()

    return Hooks(step=step)


def ask_to_stop(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def test_six_signals_ask_for_an_end():
    wanted = {"SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"}
    assert {number.name for number in SIGNALS} == wanted


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_training_after_its_step_and_loses_nothing(loaders, tmp_path, number):
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    whole, parts = Net(), Net()
    unbroken = fit("m", whole, *loaders, PLAN, tmp_path / "whole")
    with pytest.raises(Interrupted, match=f"m was stopped by {name} in epoch 2 after batch 3 of 5; all is saved"):
        fit("m", parts, *loaders, PLAN, tmp_path / "parts", at_step(8, lambda: ask_to_stop(number)))
    assert checkpoint.load(tmp_path / "parts/step.pt")["position"] == {"epoch": 2, "turn": 0, "batch": 3}
    parts = Net()
    assert fit("m", parts, *loaders, PLAN, tmp_path / "parts").epochs == unbroken.epochs
    assert all(torch.equal(value, parts.state_dict()[key]) for key, value in whole.state_dict().items())
    assert not (tmp_path / "parts/step.pt").exists()


def test_a_second_ctrl_c_stops_at_once(loaders, tmp_path):
    def twice():
        ask_to_stop(signal.SIGINT)
        ask_to_stop(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit("m", Net(), *loaders, PLAN, tmp_path / "m", at_step(2, twice))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_warning_and_the_end_that_follows_save_both(loaders, tmp_path):
    """As Slurm sends SIGUSR1 and then SIGTERM; a Ctrl-C in between is the first."""

    def warned():
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            ask_to_stop(number)

    unbroken = fit("m", Net(), *loaders, PLAN, tmp_path / "whole")
    with pytest.raises(Interrupted, match="m was stopped by SIGUSR1 in epoch 2 after batch 3 of 5; all is saved"):
        fit("m", Net(), *loaders, PLAN, tmp_path / "parts", at_step(8, warned))
    assert fit("m", Net(), *loaders, PLAN, tmp_path / "parts").epochs == unbroken.epochs


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_goes_on_through_a_signal_that_it_was_started_to_ignore(loaders, tmp_path, number):
    """As a background job of a shell ignores Ctrl-C, and what follows `trap '' INT`."""
    signal.signal(number, signal.SIG_IGN)
    unbroken = fit("m", Net(), *loaders, PLAN, tmp_path / "whole")
    parts = fit("m", Net(), *loaders, PLAN, tmp_path / "parts", at_step(8, lambda: ask_to_stop(number)))
    assert parts.epochs == unbroken.epochs
    assert signal.getsignal(number) is signal.SIG_IGN


def test_a_run_that_ignores_ctrl_c_is_stopped_by_sigterm_and_goes_on_from_there(loaders, tmp_path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    unbroken = fit("m", Net(), *loaders, PLAN, tmp_path / "whole")
    with pytest.raises(Interrupted, match="m was stopped by SIGTERM in epoch 2 after batch 3 of 5; all is saved"):
        fit("m", Net(), *loaders, PLAN, tmp_path / "parts", at_step(8, ask_to_stop))
    assert fit("m", Net(), *loaders, PLAN, tmp_path / "parts").epochs == unbroken.epochs


def test_sigterm_in_the_middle_of_a_write_leaves_a_whole_checkpoint(loaders, tmp_path, monkeypatch):
    unbroken = fit("m", Net(), *loaders, PLAN, tmp_path / "whole")
    sync, partials = os.fsync, []

    def interrupted(descriptor):
        partials.extend((tmp_path / "m").glob("*.partial"))
        if len(partials) == 3:  # best, last of the first epoch; best or last of the second
            ask_to_stop()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(Interrupted, match="SIGTERM"):
        fit("m", Net(), *loaders, PLAN, tmp_path / "m")
    monkeypatch.undo()
    for path in (tmp_path / "m").iterdir():
        assert path.suffix == ".pt"
        checkpoint.load(path)
    assert fit("m", Net(), *loaders, PLAN, tmp_path / "m").epochs == unbroken.epochs


def test_a_signal_while_validating_saves_the_trained_epoch(loaders, tmp_path):
    unbroken = fit("m", Net(), *loaders, PLAN, tmp_path / "whole")
    seen = []

    def batch(images):
        seen.append(images)
        if len(seen) == 6:  # five training batches, then one of validation
            ask_to_stop()

    with pytest.raises(Interrupted, match="epoch 1 after batch 5 of 5"):
        fit("m", Net(), *loaders, PLAN, tmp_path / "m", Hooks(batch=batch))
    assert checkpoint.load(tmp_path / "m/step.pt")["position"] == {"epoch": 1, "turn": 1, "batch": 0}
    assert fit("m", Net(), *loaders, PLAN, tmp_path / "m").epochs == unbroken.epochs


def test_a_signal_after_the_last_step_is_not_forgotten(loaders, tmp_path):
    hooks = Hooks(epoch=lambda history: ask_to_stop() if len(history.epochs) == PLAN.epochs else None)
    with pytest.raises(Interrupted, match="m was stopped by SIGTERM after its last epoch; all is saved"):
        fit("m", Net(), *loaders, PLAN, tmp_path / "m", hooks)
    assert len(fit("m", Net(), *loaders, PLAN, tmp_path / "m").epochs) == PLAN.epochs


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_elsewhere_ends_a_run_as_ctrl_c_does(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), terminable():
        ask_to_stop(number)
    assert signal.getsignal(number) is before


def test_signals_that_follow_the_first_do_not_disturb_what_it_began():
    cleaned = []

    def end():
        try:
            ask_to_stop(signal.SIGUSR1)
        finally:
            for number in set(SIGNALS) - {signal.SIGINT}:
                ask_to_stop(number)
            cleaned.append(True)

    with pytest.raises(KeyboardInterrupt), terminable():
        end()
    assert cleaned == [True]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_ignored_stays_so(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with terminable():
            ask_to_stop(number)
            assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def test_a_damaged_newest_checkpoint_is_passed_over(loaders, tmp_path):
    unbroken = fit("m", Net(), *loaders, FALLING, tmp_path / "m")
    cut(tmp_path / "m/last.pt")
    said = []
    again = fit("m", Net(), *loaders, FALLING, tmp_path / "m", Hooks(say=said.append))
    assert again.epochs == unbroken.epochs
    (line,) = said
    assert line.startswith(f"{tmp_path / 'm/last.pt'} is damaged")
    assert line.endswith("going on from previous.pt, the end of epoch 2")


def test_a_damaged_checkpoint_within_an_epoch_gives_way_to_the_one_at_its_start(loaders, tmp_path):
    unbroken = fit("m", Net(), *loaders, PLAN, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit("m", Net(), *loaders, PLAN, tmp_path / "m", at_step(8, ask_to_stop))
    cut(tmp_path / "m/step.pt")
    said = []
    assert fit("m", Net(), *loaders, PLAN, tmp_path / "m", Hooks(say=said.append)).epochs == unbroken.epochs
    assert said[0].endswith("going on from last.pt, the end of epoch 1")


def test_only_damaged_checkpoints_are_an_error(loaders, tmp_path):
    fit("m", Net(), *loaders, PLAN, tmp_path / "m")
    cut(tmp_path / "m/last.pt")
    cut(tmp_path / "m/previous.pt")
    with pytest.raises(UserError, match=r"last\.pt is damaged"):
        fit("m", Net(), *loaders, PLAN, tmp_path / "m")


def test_another_batch_size_goes_on_at_the_end_of_an_epoch_and_says_so(images, loaders, tmp_path):
    with pytest.raises(Interrupted):
        fit("m", Net(), *loaders, PLAN, tmp_path / "m", at_step(8, ask_to_stop))
    said = []
    with loader.Loader(images, "train", train=True, size=16, batch_size=10, backend="synthetic") as train:
        history = fit("m", Net(), train, loaders[1], PLAN, tmp_path / "m", Hooks(say=said.append))
    assert [row.epoch for row in history.epochs] == [1, 2, 3]
    assert said == [
        f"{tmp_path / 'm/step.pt'} stands in the middle of epoch 2 and was saved with batch size 8 (now 10): going on "
        "from the end of epoch 1",
        f"{tmp_path / 'm/last.pt'} was saved with batch size 8 (now 10)",
    ]


BATCHES = {"as before": 8, "others": 10}


@pytest.mark.parametrize("kept", [("last.pt", "step.pt"), ("step.pt",), ("last.pt",), ()], ids=" ".join)
@pytest.mark.parametrize("batches", BATCHES)
def test_where_a_training_begins_is_told_before_it_begins(images, loaders, tmp_path, kept, batches):
    with pytest.raises(Interrupted):
        fit("m", Net(), *loaders, PLAN, tmp_path, at_step(8, ask_to_stop), {"settings": "a"})
    for path in tmp_path.glob("*.pt"):
        if path.name not in kept:
            path.unlink()
    size, done = BATCHES[batches], []
    division = Division.of(40, size, PLAN.accumulate, PLAN.device)
    start = state.start(tmp_path, division)
    with loader.Loader(images, "train", train=True, size=16, batch_size=size, backend="synthetic") as train:
        fit("m", Net(), train, loaders[1], PLAN, tmp_path, Hooks(batch=done.append))
    # A batch, or all that is done already; an epoch has 40 images and 8 to validate.
    assert start.position.images(division, PLAN.passes, 8) == (done[0] if start.goes_on else 0)
    within = "step.pt" in kept and size == 8
    goes_on = within or "last.pt" in kept
    assert (start.goes_on, start.epochs) == (goes_on, int(goes_on))
    assert start.position == (Position(2, 0, 3) if within else Position(1 + goes_on))
    assert start.run == ({"settings": "a"} if goes_on else {})
    assert start.differs == (size != 8 and kept != ())


@pytest.mark.parametrize("name", [item.name for item in fields(Division)])
def test_a_checkpoint_within_an_epoch_of_any_other_division_is_none_to_go_on_from(loaders, tmp_path, name):
    with pytest.raises(Interrupted):
        fit("m", Net(), *loaders, PLAN, tmp_path, at_step(3, ask_to_stop))
    own = Division.of(40, 8, 1, torch.device("cpu"))
    assert state.start(tmp_path, own).goes_on
    other = "cuda" if name == "device" else getattr(own, name) + 1
    found = state.start(tmp_path, replace(own, **{name: other}))
    assert (found.goes_on, found.epochs, found.differs) == (False, 0, True)


def test_a_loss_that_is_not_finite_names_step_and_files_and_keeps_the_checkpoint(loaders, tmp_path):
    model = Net()

    def spoil():
        with torch.no_grad():
            model[-1].bias.fill_(float("nan"))

    train = loaders[0]
    with pytest.raises(NotFiniteError) as caught:
        fit("m", model, *loaders, PLAN, tmp_path / "m", at_step(7, spoil))
    files_ = train.files(train.requests(2, PLAN.draw(2, 0))[2].indices)
    assert str(caught.value) == (
        f"m: the loss of batch 3 of epoch 2 is not finite (images: {', '.join(files_[:3])} and 5 more); the checkpoint "
        "of epoch 1 is kept; try a smaller --lr, --clip-norm 1 or --precision fp32"
    )
    assert checkpoint.load(tmp_path / "m/last.pt")["epoch"] == 1
    assert not (tmp_path / "m/step.pt").exists()


class BrokenInValidation(Net):
    def forward(self, x):
        logits = super().forward(x)
        return logits if self.training else logits.index_fill(0, torch.tensor([1, 6]), float("nan"))


def test_a_validation_loss_that_is_not_finite_names_the_files(loaders, tmp_path):
    with pytest.raises(NotFiniteError, match=r"validation loss nan \(images: val1, val6\); no checkpoint has been"):
        fit("m", BrokenInValidation(), *loaders, PLAN, tmp_path / "m")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB."""
    folder = tmp_path / "disk"
    with disks.small(folder, "300k") as mounted:
        if not mounted:
            pytest.skip("no right to mount a file system")
        yield folder


def test_a_full_disk_keeps_the_checkpoint_before(loaders, small_disk):
    """A checkpoint takes about 50 kB: the disk has room for the first epoch's, then it is filled."""
    folder = small_disk / "m"
    with pytest.raises(StorageError, match="No space left on device; an earlier file is intact"):
        fit("m", Net(), *loaders, PLAN, folder, at_step(7, lambda: disks.fill(small_disk)))
    assert checkpoint.load(folder / "last.pt")["epoch"] == 1
    assert checkpoint.load(folder / "best.pt")["epoch"] == 1
    assert not list(folder.glob("*.partial"))
    (small_disk / "filling").unlink()
    assert len(fit("m", Net(), *loaders, PLAN, folder).epochs) == 3


def test_a_quota_keeps_the_checkpoint_before(tmp_path):
    """The same without the right to mount: the system refuses files above a size."""
    checkpoint.save(tmp_path / "last.pt", {"model": {"w": torch.zeros(10)}})
    said = r"last\.pt cannot be written: File too large; an earlier file is intact"
    with disks.quota(20_000), pytest.raises(StorageError, match=said):
        checkpoint.save(tmp_path / "last.pt", {"model": {"w": torch.zeros(100_000)}})
    assert checkpoint.load(tmp_path / "last.pt")["model"]["w"].tolist() == [0.0] * 10
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


STARVED = """
import resource, sys
from pathlib import Path
from polychrome.engine.data import loader
from polychrome.engine.errors import RunError
from tests.engine.data import photos
if __name__ == "__main__":
    images = photos.write(Path(sys.argv[1]), [(40, 50)] * 8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # of shared memory too
    with loader.Loader(images, "train", train=False, size=32, batch_size=4, backend="torch", workers=1) as batches:
        try:
            print(len(list(batches.epoch(1))))
        except RunError as error:
            print(error)
"""


def test_workers_without_shared_memory_end_a_run_instead_of_halting_it(tmp_path):
    """As in a container whose /dev/shm is full: torch's workers say nothing, and the process waits for ever."""
    before = set(os.listdir("/dev/shm"))
    done = subprocess.run(
        [sys.executable, "-c", STARVED, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert re.fullmatch(
        r"shared memory for a batch of 0\.0 MB cannot be written: .*File too large.*; enlarge /dev/shm \(docker run "
        r"--shm-size 8g\), or take fewer --workers, or a smaller --batch-size\n",
        done.stdout,
    )
    left = set(os.listdir("/dev/shm")) - before
    time.sleep(0.1)  # those of other processes are gone by then
    assert {name for name in left & set(os.listdir("/dev/shm")) if name.startswith("torch_")} == set()


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "history.csv"
    files.write_atomically(path, "a\n")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"history\.csv cannot be written: No space left on device"):
        files.write_atomically(path, "a\nb\n")
    assert path.read_text() == "a\n"
    assert list(tmp_path.iterdir()) == [path]


class Hungry(Net):
    """A network that needs more memory than there is for more than 4 images."""

    def forward(self, x):
        if len(x) > 4:
            torch.empty(2**50)  # the allocator refuses
        return super().forward(x)


def test_out_of_memory_says_which_batch_size_fits(loaders, tmp_path):
    """A tenth of what fits is left free."""
    message = (
        "^out of memory at batch size 8; 3 would fit: --batch-size 3, for steps of as many images with --accumulate 3$"
    )
    with pytest.raises(OutOfMemoryError, match=message):
        fit("m", Hungry(), *loaders, PLAN, tmp_path / "m")


def test_the_average_of_the_weights_is_what_is_validated_and_kept(loaders, tmp_path):
    plan = replace(PLAN, ema=0.99)
    model = Net()
    fit("m", model, *loaders, plan, tmp_path / "m")
    content = checkpoint.load(tmp_path / "m/last.pt")
    best = checkpoint.load(tmp_path / "m/best.pt")
    assert int(content["ema"]["n_averaged"]) == 15
    if best["epoch"] == 3:
        assert all(torch.equal(value, content["ema"][f"module.{key}"]) for key, value in best["model"].items())
    assert not torch.equal(best["model"]["0.weight"], content["model"]["0.weight"])
    assert state.exists(tmp_path / "m")


def test_accumulated_batches_make_the_step_of_one_large_batch(images, tmp_path):
    """Without batch normalisation, whose statistics are each batch's; 40 images make 16 + 16 + 8."""

    def weights(batch_size, accumulate):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
        plan = replace(PLAN, epochs=1, optimizer="sgd", accumulate=accumulate, clip_norm=0.5)
        with (
            loader.Loader(images, "train", train=True, size=16, batch_size=batch_size, backend="synthetic") as train,
            loader.Loader(images, "val", train=False, size=16, batch_size=8, backend="synthetic") as val,
        ):
            fit("m", model, train, val, plan, tmp_path / f"{batch_size} {accumulate}")
        return model.state_dict()

    large, small = weights(16, 1), weights(8, 2)
    for key, value in large.items():
        torch.testing.assert_close(small[key], value, rtol=1e-5, atol=1e-6)


def test_a_run_of_the_first_format_goes_on_and_says_what_changes(loaders, tmp_path):
    with pytest.raises(Interrupted):
        fit("m", Net(), *loaders, PLAN, tmp_path, at_step(8, ask_to_stop))
    content = torch.load(tmp_path / "step.pt")
    del content["format"]
    content["generators"][0]["sampling"] = torch.Generator().get_state()
    torch.save(content, tmp_path / "step.pt")
    said = []
    assert len(fit("m", Net(), *loaders, PLAN, tmp_path, Hooks(say=said.append)).epochs) == PLAN.epochs
    earlier = f"{tmp_path}/step.pt was written by an earlier version"
    assert said == [f"{earlier}: from here on flips and channels are drawn as today"]


def test_another_device_goes_on_at_the_end_of_an_epoch_and_says_so(loaders, tmp_path):
    unbroken = fit("m", Net(), *loaders, PLAN, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit("m", Net(), *loaders, PLAN, tmp_path / "m", at_step(8, ask_to_stop))
    for path in (tmp_path / "m").glob("*.pt"):
        content = checkpoint.load(path)
        if "generators" in content:
            content["division"]["device"] = "cuda"
            content["generators"] = [{"cpu": torch.zeros(16, dtype=torch.uint8)}]  # a GPU's is another kind
            checkpoint.save(path, content)
    said = []
    assert fit("m", Net(), *loaders, PLAN, tmp_path / "m", Hooks(say=said.append)).epochs == unbroken.epochs
    assert said == [
        f"{tmp_path}/m/step.pt stands in the middle of epoch 2 and was saved with device cuda (now cpu): going on "
        "from the end of epoch 1",
        f"{tmp_path}/m/last.pt was saved with device cuda (now cpu)",
    ]
