"""Damaged files are noticed before they are used."""

import json
import os
import random
import shutil
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch

from polychrome.engine import export
from polychrome.engine.data import loader
from polychrome.engine.errors import Interrupted, UserError
from polychrome.engine.machine import integrity
from polychrome.engine.run_folder import RunFolder
from polychrome.engine.training import checkpoint, state, transfer
from polychrome.engine.training.trainer import Hooks, fit
from tests.engine import test_export
from tests.engine.small import FALLING, PLAN, RISING, Net
from tests.engine.test_faults import ask_to_stop, at_step

pytestmark = pytest.mark.usefixtures("signals_heard")

PAGE = 4096
KINDS = ("best", "last", "previous", "step")


@pytest.fixture
def checkpoints(loaders, tmp_path):
    """A folder with a checkpoint of every kind."""
    with pytest.raises(Interrupted):
        fit("m", Net(), *loaders, PLAN, tmp_path / "m", at_step(12, ask_to_stop))
    return tmp_path / "m"


def flipped(content, rng):
    damaged = bytearray(content)
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def zeroed(content, rng):
    start = rng.randrange(0, len(content), PAGE)
    return content[:start] + bytes(min(PAGE, len(content) - start)) + content[start + PAGE :]


def cut(content, rng):
    return content[: rng.randrange(len(content))]


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def damages(content, count):
    rng = random.Random(count)
    ways = (flipped, flipped, flipped, zeroed, cut)
    return (ways[number % len(ways)](content, rng) for number in range(count))


def check(path, read, error, count):
    """Damage a file in `count` ways; return how many were noticed. All others must load as the whole file does."""
    whole, wanted, noticed = path.read_bytes(), read(path), []
    for damaged in damages(whole, count):
        path.write_bytes(damaged)
        try:
            assert same(read(path), wanted)
        except error as fault:
            noticed.append(str(fault))
    path.write_bytes(whole)
    assert all("damaged" in line for line in noticed)
    return len(noticed)


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_damage_of_a_checkpoint_is_noticed_or_changes_nothing(checkpoints, kind, count):
    """A flip in the word that says that a digest follows leaves the checksums of the records, which are verified."""
    path = checkpoints / f"{kind}.pt"
    changed = sum(damaged != path.read_bytes() for damaged in damages(path.read_bytes(), count))
    assert check(path, checkpoint.load, UserError, count) > 0.98 * changed > 0.9 * count


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_damage_of_a_file_that_torch_saved_is_noticed_or_changes_nothing(tmp_path, count):
    """Of a checkpoint of an earlier version, and of weights of strangers: a flip in unused bytes changes nothing."""
    torch.save(Net().state_dict(), tmp_path / "w.pt")
    assert check(tmp_path / "w.pt", transfer.read, UserError, count) > 0.6 * count


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_damage_of_exported_weights_is_noticed(tmp_path, count):
    pytest.importorskip("safetensors")
    model, about, images = test_export.made("baseline_cnn")
    path = tmp_path / "m.safetensors"
    export.save(model, about, path, images, "noise")
    content = path.read_bytes()
    check(path, transfer.read, UserError, count)
    for damaged in damages(content, 5):
        path.write_bytes(damaged)
        with pytest.raises(
            UserError, match=r"m\.safetensors is damaged.*its checksum is not that of m\.safetensors\.json"
        ):
            export.load(path)
    path.write_bytes(content)
    (tmp_path / "m.safetensors.json").write_text("{")
    with pytest.raises(UserError, match=r"m\.safetensors\.json, which has its checksum, is damaged"):
        export.load(path)
    (tmp_path / "m.safetensors.json").unlink()
    assert same(transfer.read(path)[0], export.load(path).model.state_dict())


def test_damage_of_what_a_run_was_trained_on_is_noticed_or_changes_nothing(tmp_path):
    folder, wanted = RunFolder(tmp_path), np.arange(2**63, 2**63 + 50, dtype=np.uint64)
    folder.write_trained_on(wanted)
    found = []
    for damaged in damages(folder.trained_on.read_bytes(), 200):
        folder.trained_on.write_bytes(damaged)
        found.append(folder.read_trained_on())
    assert all(each is None or np.array_equal(each, wanted) for each in found)
    assert sum(each is None for each in found) > 100


def test_a_checkpoint_is_an_archive_that_torch_reads(checkpoints):
    path = checkpoints / "last.pt"
    for mmap in (False, True):
        assert same(torch.load(path, weights_only=True, mmap=mmap), checkpoint.load(path))


def test_files_without_checksums_are_read_as_before(tmp_path):
    content = {"model": {"w": torch.arange(3.0)}}
    torch.save(content, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content, tmp_path / "bare.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    for name in ("legacy.pt", "bare.pt"):
        assert same(checkpoint.load(tmp_path / name)["model"], content["model"])


def test_damaged_best_weights_are_written_again_before_training_goes_on(checkpoints, loaders, tmp_path):
    whole = Net()
    unbroken = fit("m", whole, *loaders, PLAN, tmp_path / "whole")
    best = checkpoint.load(checkpoints / "best.pt")
    (checkpoints / "best.pt").write_bytes(flipped((checkpoints / "best.pt").read_bytes(), random.Random(0)))
    said, found = [], []

    def step():
        if not found:
            found.append(checkpoint.load(checkpoints / "best.pt"))

    parts = Net()
    history = fit("m", parts, *loaders, PLAN, checkpoints, Hooks(say=said.append, step=step))
    assert same(found[0], best)
    source = {2: "last.pt", 1: "previous.pt"}[best["epoch"]]
    assert said == [
        f"{checkpoints / 'best.pt'} is damaged or is not a checkpoint (its checksum is wrong): written again from "
        f"{source}"
    ]
    assert history.epochs == unbroken.epochs
    assert same(parts.state_dict(), whole.state_dict())


def test_where_no_checkpoint_has_the_best_weights_the_best_of_the_others_counts_and_is_told(
    loaders, tmp_path, monkeypatch
):
    monkeypatch.setattr(state.TrainingHistory, "best", property(first_is_best))
    folder = tmp_path / "m"
    fit("m", Net(), *loaders, PLAN, folder)
    assert checkpoint.load(folder / "best.pt")["epoch"] == 1
    (folder / "best.pt").unlink()
    said, model = [], Net()
    history = fit("m", model, *loaders, PLAN, folder, Hooks(say=said.append))
    assert said == [
        f"{folder / 'best.pt'}: no such checkpoint; no other checkpoint has epoch 1: the best epoch from 2 on will be "
        "tested"
    ]
    assert history.lost == 1
    assert history.best.epoch == checkpoint.load(folder / "best.pt")["epoch"] == 2
    assert same(checkpoint.load(folder / "previous.pt")["model"], model.state_dict())


def first_is_best(history):
    return history.epochs[history.lost] if len(history.epochs) > history.lost else None


@pytest.mark.parametrize("name", ["next_best.pt", "next.pt"])
def test_a_run_killed_before_it_writes_a_checkpoint_or_its_best_weights_goes_on_equal(
    loaders, tmp_path, monkeypatch, name
):
    unbroken = fit("m", whole := Net(), *loaders, PLAN, tmp_path / "whole")
    save = checkpoint.save

    class Killed(Exception):
        pass

    def killed(path, content):
        if path.name == name and content["epoch"] == unbroken.best.epoch:
            raise Killed
        save(path, content)

    monkeypatch.setattr(checkpoint, "save", killed)
    with pytest.raises(Killed):
        fit("m", Net(), *loaders, PLAN, tmp_path / "m")
    monkeypatch.undo()
    parts, said = Net(), []
    assert fit("m", parts, *loaders, PLAN, tmp_path / "m", Hooks(say=said.append)).epochs == unbroken.epochs
    assert said == []
    assert same(parts.state_dict(), whole.state_dict())


@pytest.mark.parametrize("damaged", [None, "last.pt"])
def test_a_run_killed_beside_any_renaming_of_its_checkpoints_goes_on_equal(loaders, tmp_path, monkeypatch, damaged):
    """Even where the last checkpoint is damaged and takes the place of the whole one before it."""
    unbroken = fit("m", whole := Net(), *loaders, FALLING, tmp_path / "whole")
    fit("m", Net(), *loaders, replace(FALLING, epochs=2), tmp_path / "begun")
    replaced = os.replace

    class Killed(Exception):
        pass

    kills = 0
    for after in (False, True):
        for number in range(12):
            left = [number]

            def replacing(source, target, left=left, after=after):
                left[0] -= 1
                if left[0] == -1 and not after:
                    raise Killed
                replaced(source, target)
                if left[0] == -1 and after:
                    raise Killed

            folder = shutil.copytree(tmp_path / "begun", tmp_path / f"{number} {after}")
            if damaged:
                (folder / damaged).write_bytes(flipped((folder / damaged).read_bytes(), random.Random(number)))
            monkeypatch.setattr(os, "replace", replacing)
            with suppress(Killed):
                fit("m", Net(), *loaders, FALLING, folder)
            monkeypatch.undo()
            kills += left[0] < 0
            parts, said = Net(), []
            assert fit("m", parts, *loaders, FALLING, folder, Hooks(say=said.append)).epochs == unbroken.epochs
            assert said in ([], [line for line in said if "is damaged" in line])
            assert same(parts.state_dict(), whole.state_dict())
            assert {path.name for path in folder.iterdir()} == {"best.pt", "last.pt", "previous.pt"}
    assert kills == (22 if damaged else 10)


def test_what_is_known_of_a_training_is_from_its_newest_checkpoint(loaders, tmp_path):
    """From that within an epoch, where the last one at an epoch's end is older."""
    folder, run = tmp_path / "m", {"config": "old", "results": {}}
    fit("m", Net(), *loaders, PLAN, folder, run=run)
    longer = replace(PLAN, epochs=PLAN.epochs + 4, save_every=1e9)
    with pytest.raises(Interrupted):
        fit("m", Net(), *loaders, longer, folder, at_step(12, ask_to_stop), run=run | {"config": "new"})
    assert {"last.pt", "step.pt"} < {path.name for path in folder.iterdir()}
    assert len(state.course(folder)[1]) == state.epochs(folder) == PLAN.epochs + 2
    assert state.run_of(folder)["config"] == "new"


def test_a_training_that_begins_again_never_ends_with_weights_of_the_one_that_was_left(
    images, loaders, tmp_path, monkeypatch
):
    """Though both have the same best epoch, and wherever among its files the new one is killed."""
    monkeypatch.setattr(state.TrainingHistory, "best", property(first_is_best))
    with pytest.raises(Interrupted):
        fit("m", Net(), *loaders, replace(PLAN, save_every=1e9), tmp_path / "left", at_step(8, ask_to_stop))
    assert {path.name for path in (tmp_path / "left").iterdir()} == {"best.pt", "step.pt"}
    replaced, kills = os.replace, 0

    class Killed(Exception):
        pass

    with loader.Loader(images, "train", train=True, size=16, batch_size=10, backend="synthetic") as train:
        fit("m", whole := Net(), train, loaders[1], PLAN, tmp_path / "whole")
        assert not same(whole.state_dict(), checkpoint.load(tmp_path / "left/best.pt")["model"])
        for number in range(7):
            left = iter(range(number + 1))

            def replacing(source, target, left=left):
                if next(left, None) is None:
                    raise Killed
                replaced(source, target)

            folder = shutil.copytree(tmp_path / "left", tmp_path / f"{number}")
            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", replacing)
                try:
                    fit("m", Net(), train, loaders[1], PLAN, folder)
                except Killed:
                    kills += 1
            fit("m", parts := Net(), train, loaders[1], PLAN, folder)
            assert same(parts.state_dict(), whole.state_dict())
    assert kills == 7


def test_best_weights_of_an_earlier_version_are_known_by_their_epoch(checkpoints, loaders, tmp_path):
    fit("m", whole := Net(), *loaders, PLAN, tmp_path / "whole")
    content = checkpoint.load(checkpoints / "best.pt")
    del content["training"]
    checkpoint.save(checkpoints / "best.pt", content)
    said, parts = [], Net()
    fit("m", parts, *loaders, PLAN, checkpoints, Hooks(say=said.append))
    assert said == []
    assert same(parts.state_dict(), whole.state_dict())


def writes(monkeypatch) -> list[tuple[str, int]]:
    """Return a list that gets the name and the epoch of every checkpoint written from now on."""
    found, save = [], checkpoint.save

    def counted(path, content):
        found.append((path.name, content["epoch"]))
        save(path, content)

    monkeypatch.setattr(checkpoint, "save", counted)
    return found


@pytest.mark.parametrize("keep", ["loss", "last"])
def test_short_epochs_are_not_written_one_by_one(loaders, tmp_path, monkeypatch, keep):
    written = writes(monkeypatch)
    history = fit("m", Net(), *loaders, replace(PLAN, epochs=6, save_every=300.0, keep=keep), tmp_path / "m")
    assert written == [("next_best.pt", history.best.epoch), ("next.pt", 6)]


@pytest.mark.parametrize(("length", "saved"), [(40.0, [2, 4, 5]), (60.0, [1, 2, 3, 4, 5])])
def test_an_epoch_is_written_where_the_next_would_end_too_late(loaders, tmp_path, monkeypatch, length, saved):
    written, seconds = writes(monkeypatch), [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: seconds[0])

    def pass_time(images):
        seconds[0] += length * images / (loaders[0].samples + loaders[1].samples)

    fit("m", Net(), *loaders, replace(PLAN, epochs=5, save_every=100.0), tmp_path / "m", Hooks(batch=pass_time))
    assert [epoch for name, epoch in written if name == "next.pt"] == saved
    assert "step.pt" not in [name for name, _ in written]


@pytest.mark.parametrize("save_every", [0, 300.0])
def test_the_last_weights_are_kept_whatever_their_loss(loaders, tmp_path, save_every):
    plan = replace(RISING, keep="last", save_every=save_every)
    history = fit("m", model := Net(), *loaders, plan, tmp_path / "m")
    assert history.best.epoch == 3
    assert history.epochs[-1].val_loss > min(row.val_loss for row in history.epochs) + 1
    assert same(checkpoint.load(tmp_path / "m/last.pt")["model"], model.state_dict())
    assert checkpoint.load(tmp_path / "m/best.pt")["epoch"] == 3


def test_an_end_by_patience_holds_with_the_last_weights_and_is_told_with_them(loaders, tmp_path):
    said = []
    plan = replace(RISING, epochs=9, keep="last", patience=1)
    history = fit("m", Net(), *loaders, plan, tmp_path / "m", Hooks(say=said.append))
    assert history.best.epoch == len(history.epochs) == 2
    assert checkpoint.load(tmp_path / "m/best.pt")["epoch"] == 2
    told = "m ended after epoch 2, 1 epoch without a better validation loss (--patience 1; 0 never stops)"
    assert said[-1] == f"{told}; --keep last keeps its weights"


def test_a_training_that_keeps_the_last_weights_goes_on_equal(loaders, tmp_path):
    plan, said = replace(PLAN, epochs=4, keep="last", ema=0.9), []
    fit("m", whole := Net(), *loaders, plan, tmp_path / "whole")
    fit("m", Net(), *loaders, replace(plan, epochs=2), tmp_path / "m")
    fit("m", parts := Net(), *loaders, plan, tmp_path / "m", Hooks(say=said.append))
    assert said == []
    assert same(parts.state_dict(), whole.state_dict())


def test_best_weights_of_an_epoch_that_was_not_saved_are_whole(loaders, tmp_path):
    """An earlier version wrote the best weights first: a kill in between left them an epoch ahead."""
    unbroken = fit("m", whole := Net(), *loaders, FALLING, tmp_path / "m")
    (tmp_path / "m/last.pt").unlink()
    parts, said = Net(), []
    assert fit("m", parts, *loaders, FALLING, tmp_path / "m", Hooks(say=said.append)).epochs == unbroken.epochs
    assert said == []
    assert same(parts.state_dict(), whole.state_dict())


def test_averaged_weights_are_found_again(loaders, tmp_path):
    plan = replace(PLAN, ema=0.9)
    fit("m", whole := Net(), *loaders, plan, tmp_path / "m")
    best = checkpoint.load(tmp_path / "m/best.pt")
    (tmp_path / "m/best.pt").write_bytes(b"")
    fit("m", parts := Net(), *loaders, plan, tmp_path / "m")
    assert same(checkpoint.load(tmp_path / "m/best.pt"), best)
    assert same(parts.state_dict(), whole.state_dict())


def test_a_damaged_download_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/resnet18-f37072fd.pth").write_bytes(b"half")
    with pytest.raises(UserError, match=r"resnet18-f37072fd\.pth is damaged: its checksum is not f37072fd; remove it"):
        transfer.of_torchvision("resnet18")


@pytest.mark.slow
def test_checking_takes_at_most_a_second_for_each_gigabyte(tmp_path):
    path = tmp_path / "large.pt"
    checkpoint.save(path, {"model": {str(i): torch.rand(2**24) for i in range(8)}})
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert checkpoint.fault(path) is None
        times.append(time.perf_counter() - start)
    assert sorted(times)[2] < path.stat().st_size / 1e9


def test_a_description_has_the_digest_that_other_programs_compute(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"abc")
    assert integrity.file_digest(tmp_path / "m.onnx").startswith("ba7816bf8f01cfea")
    integrity.description_of(tmp_path / "m.onnx").write_text(json.dumps({"sha256": "ba78"}))
    assert integrity.fault_of_described(tmp_path / "m.onnx") == "its checksum is not that of m.onnx.json"
