"""The engine on a CUDA device, with small models: `pytest -m gpu`."""

import copy
import gc
import json
import os
import signal
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from polychrome import models
from polychrome.engine.channels.combinations import every
from polychrome.engine.channels.masks import present, select
from polychrome.engine.channels.names import RGB
from polychrome.engine.data import loader
from polychrome.engine.data.arrangement import Arrangement
from polychrome.engine.data.augmentation import NAMES, Augmentations
from polychrome.engine.data.image_set import ImageSet, Split
from polychrome.engine.data.sets import listing, scan
from polychrome.engine.data.stores.uniform import UniformImages
from polychrome.engine.errors import Interrupted, NotFiniteError, OutOfMemoryError
from polychrome.engine.evaluation import evaluate
from polychrome.engine.training.batch_size import MOST, largest_batch, step_on_random
from polychrome.engine.training.plan import Plan
from polychrome.engine.training.trainer import Hooks, fit
from polychrome.engine.watch.idle import Idle
from polychrome.train.run import main
from tests.engine.data.stores import squeezed

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICE = torch.device("cuda")
SIZE = 32
PLAN = Plan(
    epochs=2, lr=0.01, patience=0, num_classes=3, precision="fp32", compile=False, device=DEVICE, seed=0, save_every=0
)
# Adam moves a parameter whose gradient is rounding alone, such as a bias before BatchNorm, by the whole rate. Training
# does not see that, but validation does: with its running means losses of equal trainings differ by some percent.
SGD = {"optimizer": "sgd", "lr": 0.03}
ANY_CHANNELS = ("adaptive_channel_cnn", "dwg_densenet121", "dynamic_cnn_v1", "dynamic_cnn_v2", "pool_attention_cnn")


@pytest.fixture(autouse=True)
def comparable():
    """Full float32 arithmetic, algorithms that do not vary, and nothing compiled before."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.compiler.reset()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
    torch.backends.cudnn.deterministic = False


@pytest.fixture(scope="module")
def striped(stripes):
    """72 training and 18 validation images of three classes, scanned."""
    found = listing.read(stripes)
    paths = [path for split in found.splits.values() for path in split.paths]
    return scan.apply(found, scan.scan(found.root, paths, 1))


@pytest.fixture(scope="module")
def stored(striped):
    """These images decoded, in host memory."""
    return squeezed(striped, 40)


@pytest.fixture(scope="module")
def lacking(striped):
    """The same images, of which a third has red and green alone, and a third blue."""
    sources = ((0, 1, 2), (0, 1, -1), (-1, -1, 2))
    paths = striped.paths
    arrangements = {path: Arrangement(sources[number % 3]) for number, path in enumerate(paths)}
    return replace(striped, channels=replace(RGB, sensors=((0, 1, 2), (0, 1), (2,))), arrangements=arrangements)


@contextmanager
def opened(images, pixels=None, batch_size=10, augmentations=None, **options):
    options = {"size": SIZE, "batch_size": batch_size, "backend": "torch", "workers": 1, "device": DEVICE} | options
    with (
        loader.Loader(images, "train", train=True, store=pixels, augmentations=augmentations, **options) as train,
        loader.Loader(images, "val", train=False, store=pixels, **options) as val,
    ):
        yield train, val


def kept(stored, where):
    """Return the images as they are kept on the device, in host memory, or not at all."""
    if where == "none":
        return None
    moved = copy.copy(stored)
    moved.values = stored.values.to(DEVICE) if where == "device" else stored.values
    return moved


def made(name="simple_cnn", size=SIZE):
    torch.manual_seed(0)
    return models.create(name, 3, 3, size)


def noise(count):
    """A set whose images the synthetic backend makes."""
    splits = {
        name: Split(tuple(f"{name}{i}" for i in range(n)), tuple(i % 3 for i in range(n)), ((SIZE, SIZE),) * n)
        for name, n in (("train", count), ("val", 8))
    }
    return ImageSet(root=None, class_names=("a", "b", "c"), splits=splits)


class Net(nn.Sequential):
    """A network without dropout, whose numbers do not depend on how it is compiled."""

    def __init__(self, width=8):
        torch.manual_seed(0)
        convolutions = (nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU())
        super().__init__(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


class Guard:
    """Hooks under which whatever makes the host wait raises, in the second epoch, between its first step and its last,
    and likewise in its validation: constants have then been copied to the device, and everything is compiled."""

    def __init__(self, train, val, plan):
        self.steps, self.validations = -(-len(train) // plan.accumulate) * plan.passes, len(val)
        self.stepped = self.validated = self.guarded = 0
        self.hooks = Hooks(step=self._step, validated=self._validate)

    def _step(self):
        self.stepped += 1
        self._watch(self.stepped - self.steps, self.steps)

    def _validate(self):
        self.validated += 1
        self._watch(self.validated - self.validations, self.validations)

    def _watch(self, number, last):
        self.guarded += 1 < number <= last
        watch("error" if 1 <= number < last else "default")


def watch(mode):
    if DEVICE.type == "cuda":
        torch.cuda.set_sync_debug_mode(mode)


EVERYTHING = {"ema": 0.9, "clip_norm": 1.0, "accumulate": 2}
CASES = [
    ("simple_cnn", "device", {}),
    ("simple_cnn", "host", {"precision": "bf16", "optimizer": "nesterov", "mixup": 0.2, "cutmix": 0.2}),
    ("simple_cnn", "none", {"precision": "bf16", "optimizer": "adamw", "label_smoothing": 0.1}),
    ("simple_cnn", "device", {"precision": "fp16", "clip_norm": 1.0}),
    ("pool_attention_cnn", "device", {"channel_sampling": "on", **EVERYTHING}),
    ("pool_attention_cnn", "host", {"precision": "bf16", "channel_sampling": "drop", "optimizer": "muon"}),
    ("pool_attention_cnn", "none", {"channel_sampling": "shuffle", "ema": 0.9}),
    ("simple_cnn", "device", {"compile": True, "precision": "bf16", **EVERYTHING}),
    ("pool_attention_cnn", "device", {"compile": True, "channel_sampling": "on", **EVERYTHING}),
    ("pool_attention_cnn", "host", {"compile": True, "precision": "bf16", "channel_sampling": "on"}),
    ("simple_cnn", "device", {"compile": True, "compile_mode": "reduce-overhead", "precision": "bf16", **EVERYTHING}),
]


@pytest.mark.parametrize("batchwise", [False, True], ids=["", "all augmentations"])
@pytest.mark.parametrize(("name", "where", "changes"), CASES, ids=lambda value: str(value))
def test_nothing_in_an_epoch_makes_the_host_wait(striped, stored, tmp_path, name, where, changes, batchwise):
    augmentations = Augmentations(NAMES) if batchwise else Augmentations()
    plan = replace(PLAN, augmentations=augmentations, **changes)
    with opened(striped, kept(stored, where), augmentations=augmentations) as (train, val):
        guard = Guard(train, val, plan)
        try:
            history = fit("m", made(name), train, val, plan, tmp_path / "m", guard.hooks)
        finally:
            watch("default")
        assert guard.guarded == guard.steps - 1 + guard.validations - 1
        assert len(history.epochs) == 2


def test_nothing_in_an_epoch_makes_the_host_wait_where_images_lack_channels(lacking, stored, tmp_path):
    options = {"precision": "fp32", "channel_sampling": "on", "compile": DEVICE.type == "cuda"}
    case = "pool_attention_cnn", "device", options
    test_nothing_in_an_epoch_makes_the_host_wait(lacking, stored, tmp_path, *case, batchwise=False)


def test_evaluation_does_not_make_the_host_wait_where_images_lack_channels(lacking, stored):
    test_evaluation_of_all_combinations_does_not_make_the_host_wait(lacking, stored)


def test_evaluation_of_all_combinations_does_not_make_the_host_wait(striped, stored):
    model = made("pool_attention_cnn").to(DEVICE)
    combinations = every(sensors=striped.channels.sensors) | {"shuffled": ()}

    with opened(striped, kept(stored, "device"), batch_size=6) as (_, val):
        evaluate(model, val, combinations, 3, nullcontext())
        batches = len(val)
        seen = []

        def count(images):
            seen.append(images)
            watch("error" if len(seen) < batches else "default")

        try:
            found = evaluate(model, val, combinations, 3, nullcontext(), count)
        finally:
            watch("default")
    assert len(seen) == batches == 3
    assert list(found.scores) == list(combinations)


def test_stored_images_make_the_batches_that_the_cpu_makes(striped, stored):
    augmentations = Augmentations(NAMES)
    options = {"batch_size": 10, "augmentations": augmentations}
    with (
        opened(striped, kept(stored, "device"), **options) as (ours, _),
        opened(striped, stored, device="cpu", **options) as (theirs, _),
    ):
        recipe = augmentations.recipe(1)
        for pair in zip(ours.epoch(1, recipe=recipe), theirs.epoch(1, recipe=recipe), strict=True):
            results = [one.standardised(RGB, **one.drawn) for one in pair]
            assert results[0].device.type == DEVICE.type
            assert results[0].is_contiguous(memory_format=torch.channels_last)
            # Both go by the definition here, as the images are turned and jittered.
            torch.testing.assert_close(results[0].cpu(), results[1], atol=1e-3, rtol=0)


def test_images_beyond_two_gigabytes_are_found():
    side, few = 1000, 4
    count = 2**31 // (side * side * 3) + few + 1
    values = torch.empty(count, side, side, 3, dtype=torch.uint8, device=DEVICE)
    torch.manual_seed(0)
    last = torch.randint(256, (few, 20, 20, 3), dtype=torch.uint8).repeat_interleave(50, 1).repeat_interleave(50, 2)
    values[-few:] = last.to(DEVICE)
    assert (count - few) * values[0].numel() > 2**31
    paths = [f"{number}.jpg" for number in range(count)]
    split = Split(tuple(paths[-few:]), (0, 1, 2, 0), ((side, side),) * few)
    images = ImageSet(root=None, class_names=("a", "b", "c"), splits={"val": split})
    options = {"size": SIZE, "batch_size": few, "train": False}
    whole, part = UniformImages(values, paths), UniformImages(last, paths[-few:])
    with (
        loader.Loader(images, "val", store=whole, device=DEVICE, **options) as ours,
        loader.Loader(images, "val", store=part, device="cpu", **options) as theirs,
    ):
        (batch,), (expected,) = ours.epoch(0), theirs.epoch(0)
        torch.testing.assert_close(batch.standardised(RGB).cpu(), expected.standardised(RGB), atol=0.03, rtol=0)


@pytest.mark.usefixtures("signals_heard")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_stopped_training_goes_on_within_its_epoch(striped, stored, tmp_path, compiled):
    """Channels are drawn on the device and its dropout too: with other states of the generators the losses differ."""
    plan = replace(PLAN, compile=compiled, channel_sampling="on", ema=0.9, **SGD)
    done = []

    def stop():
        done.append(1)
        if len(done) == 11:
            os.kill(os.getpid(), signal.SIGTERM)

    with opened(striped, kept(stored, "device")) as loaders:
        unbroken = fit("m", made("pool_attention_cnn"), *loaders, plan, tmp_path / "whole")
        with pytest.raises(Interrupted, match="in epoch 2 after batch 3 of 8"):
            fit("m", made("pool_attention_cnn"), *loaders, plan, tmp_path / "parts", Hooks(step=stop))
        resumed = fit("m", made("pool_attention_cnn"), *loaders, plan, tmp_path / "parts")
    assert len(done) == 11
    for row, expected in zip(resumed.epochs, unbroken.epochs, strict=True):
        assert row.train_loss == pytest.approx(expected.train_loss, rel=1e-3)
        assert row.val_loss == pytest.approx(expected.val_loss, rel=1e-3)


@pytest.mark.parametrize("name", ANY_CHANNELS)
def test_channels_left_out_by_a_mask_are_as_channels_that_are_not_there(name):
    size = 64
    model = made(name, size).to(DEVICE, memory_format=torch.channels_last)
    images = torch.randn(6, 3, size, size, device=DEVICE).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for _ in range(3):
            model(images)  # statistics of the batches
        model.eval()
        for chosen in every().values():
            masked = model(select(images, chosen, "zero-pad"), present(chosen, 3, images.device).expand(6, -1))
            torch.testing.assert_close(masked, model(select(images, chosen, "subset")), atol=1e-4, rtol=1e-3)


def test_a_loss_that_is_not_finite_is_found_within_the_epoch(striped, stored, tmp_path):
    steps = []
    plan = replace(PLAN, optimizer="sgd", lr=1e30)
    with opened(striped, kept(stored, "device"), batch_size=4) as (train, val):
        with pytest.raises(NotFiniteError, match="the loss of batch 2 of epoch 1 is not finite"):
            fit("m", Net(), train, val, plan, tmp_path / "m", Hooks(step=lambda: steps.append(1)))
        assert len(steps) < len(train) == 18


@contextmanager
def limited(megabytes):
    """Let this process take so much more of the device's memory."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + megabytes * 2**20) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("changes", [{}, {"compile": True, "compile_mode": "reduce-overhead"}], ids=str)
def test_out_of_memory_says_which_batch_size_fits(tmp_path, changes):
    plan = replace(PLAN, **changes)
    with opened(noise(2100), batch_size=2048, backend="synthetic") as loaders, limited(1024):
        with pytest.raises(OutOfMemoryError, match="out of memory at batch size 2048; ") as found:
            fit("m", Net(256), *loaders, plan, tmp_path / "m")  # takes some 9 GB, whatever earlier tests kept
        fits = int(str(found.value).split("; ")[1].split()[0])
        assert 64 <= fits < 2048
        step_on_random(Net(256), (3, SIZE, SIZE), plan)(fits)


def test_the_largest_batch_that_is_found_fits():
    shape = (3, 128, 128)
    with limited(1024):
        found = largest_batch(Net(64), shape, PLAN, 10**6)
        assert 8 <= found < MOST
        step_on_random(Net(64), shape, PLAN)(found)
        with pytest.raises(torch.OutOfMemoryError):
            step_on_random(Net(64), shape, PLAN)(2 * found)


def test_batch_size_auto_trains(stripes, tmp_path):
    flags = ["--models", "simple_cnn", "--epochs", "1", "--image-size", str(SIZE), "--batch-size", "auto"]
    flags += ["--no-compile", "--no-tensorboard", "--workers", "1", "--backend", "torch", "--device", DEVICE.type]
    assert main(["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "auto", *flags]) == 0
    found = json.loads((tmp_path / "task1/auto/results.json").read_text())["models"]["simple_cnn"]
    assert found["batch_size"] == 72 // 16


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"ema": 0.9, "clip_norm": 0.5}], ids=str)
def test_compiler_modes_train_to_the_same_losses(striped, stored, tmp_path, changes):
    histories = {}
    for mode in ("eager", "default", "reduce-overhead"):
        plan = replace(PLAN, epochs=3, compile=mode != "eager", **SGD, **changes)
        plan = replace(plan, compile_mode=mode) if plan.compile else plan
        with opened(striped, kept(stored, "device")) as loaders:
            histories[mode] = fit("m", Net(), *loaders, plan, tmp_path / mode).epochs
    for mode in ("default", "reduce-overhead"):
        for row, expected in zip(histories[mode], histories["eager"], strict=True):
            assert row.train_loss == pytest.approx(expected.train_loss, rel=1e-2), mode
            assert row.val_loss == pytest.approx(expected.val_loss, rel=1e-2), mode


def test_the_idle_share_is_measured(striped, stored, tmp_path):
    with opened(striped, kept(stored, "device"), batch_size=4) as loaders, Idle(DEVICE) as idle:
        hooks = Hooks(step=idle.step, epoch=idle.epoch, waiting=idle.waiting)
        fit("m", made(), *loaders, PLAN, tmp_path / "m", hooks)
    assert idle.share is not None, str(idle)
    assert 0 <= idle.share <= 1
    assert 0 <= idle.waited <= 1


def test_a_profile_and_the_idle_share_are_both_had(stripes, tmp_path):
    flags = ["--models", "simple_cnn", "--epochs", "3", "--image-size", str(SIZE), "--batch-size", "4", "--profile"]
    flags += ["--no-compile", "--no-tensorboard", "--workers", "1", "--backend", "torch", "--device", DEVICE.type]
    assert main(["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "both", *flags]) == 0
    found = json.loads((tmp_path / "task1/both/results.json").read_text())["models"]["simple_cnn"]
    assert len(list((tmp_path / "task1/both/trace").glob("simple_cnn*.json"))) == 2
    assert found["kernels"]
    if DEVICE.type == "cuda":
        assert 0 <= found["gpu_idle"] <= 1
