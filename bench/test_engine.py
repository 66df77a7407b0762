"""Benchmark of the engine: training against two baselines, input alone, start-up, and two processes against one.

pytest bench/test_engine.py --benchmark-only [--save-results]
"""

import itertools
import json
import math
import os
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest
import torch

from bench.measuring import measure, photographs
from bench.measuring.measure import DEVICE, Measured, Stopwatch
from bench.measuring.replay import clock
from bench.ops.trainings import Reports, Timm
from polychrome.engine.data import batches, loader, opening
from polychrome.engine.data.batches import normalise
from polychrome.engine.data.files import dali_check
from polychrome.engine.data.image_set import ImageSet, Split
from polychrome.engine.data.stores import placement
from polychrome.engine.machine.workers import cpus
from polychrome.engine.training import trainer
from polychrome.engine.watch.idle import Idle
from polychrome.train import networks
from polychrome.train.data import make_loader, open_data
from polychrome.train.settings import variants
from polychrome.train.settings.config import Settings

ROOT = Path(__file__).resolve().parents[1]
ON_GPU = DEVICE == "cuda"
FILES = {"train": 20_000, "val": 500, "test": 500} if ON_GPU else {"train": 400, "val": 8, "test": 8}
SIZE, BATCH = 256, 64
# The baselines of a training.
OTHERS = ("reports", "timm")
PACKAGES = ("torchvision", "timm", *filter(None, [dali_check.package()]))

# Epochs of a training, the first a warm-up; SHORT: of the runs that compare numbers of processes.
EPOCHS, SHORT = 4 if ON_GPU else 3, 3
# Input alone: seconds for each source, and repetitions of the list of files, so that an epoch does not end meanwhile.
SECONDS, REPEATS = (6, 10) if ON_GPU else (2, 50)
WORKERS = 16 if ON_GPU else cpus()
SOURCES = ("torch", "dali cpu", "dali gpu", "host cache", "device cache", "synthetic")
# The largest relative RMS difference from the torch backend's batch. Images squeezed to the stored size lose some of
# their grain, and DALI's filter on a GPU differs from torch's.
DECODED, RESAMPLED = 0.03, 0.15
RESAMPLED_SOURCES = ("dali gpu", "device cache", *(["host cache"] if ON_GPU else []))


class Case(NamedTuple):
    """A model, the side and number of the images in a batch, and the batches of an epoch (None: all files)."""

    model: str
    size: int
    batch: int
    steps: int | None

    @property
    def key(self) -> str:
        """The case's name in the results."""
        return f"{self.model} {self.size} px"


MODELS = ("simple_cnn", "pool_attention_cnn", "adaptive_channel_cnn", "attention_cnn", "resnet34")
CASES = (
    [Case(model, SIZE, BATCH, None) for model in MODELS]
    if ON_GPU
    else [Case("resnet34", 84, BATCH, 2), *(Case(model, SIZE, 4, 2) for model in MODELS)]
)


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory):
    """Keep scans and decoded images out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return photographs.write(tmp_path_factory.mktemp("data") / "photographs", FILES)


@pytest.fixture(scope="session")
def starts(folder, tmp_path_factory):
    """The milliseconds to the first step of a job with an empty cache, then of two jobs with a full cache."""
    out = tmp_path_factory.mktemp("start")
    return [1e3 * seconds_to_first_step(folder, out) for _ in range(3)]


@pytest.fixture(scope="session")
def few_files(tmp_path_factory):
    """Photographs for three batches."""
    return photographs.write(tmp_path_factory.mktemp("data") / "few", {"train": 3 * BATCH, "val": 8, "test": 8})


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("way", ["ours", "reports", "timm"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_training(compare, folder, tmp_path, case, way):
    """Times of an epoch; the entry also has times of a step."""
    compare("training", case.key, way, lambda: trained(folder, case, tmp_path), PACKAGES)


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("source", SOURCES)
def test_input(compare, benchmark, folder, source):
    """Times of a batch."""
    if source == "dali gpu" and not ON_GPU:
        pytest.skip("no GPU")
    if source.startswith("dali") and not dali_check.is_installed():
        pytest.skip("NVIDIA DALI is not installed")
    compare("input", source, "ours", lambda: beside_torch(folder, source), PACKAGES, group="input")


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("start", ["first start", "second start"])
def test_start(compare, folder, start, starts):
    """Starts of the same job; after the first start, the images are decoded."""
    times = starts[:1] if start == "first start" else starts[1:]
    compare("start", start, "ours", lambda: measure.of_times(times, images=sum(FILES.values())), PACKAGES, "start")


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("way", ["ours", "one"])
@pytest.mark.skipif(ON_GPU or cpus() < 2, reason="for two cores of a CPU")
def test_processes(compare, few_files, tmp_path, way):
    """Two processes of one thread against one process of two threads, on two cores."""
    compare("processes", "two", way, lambda: by_processes(few_files, tmp_path), PACKAGES)


def beside_torch(folder: Path, source: str) -> Measured:
    """Measure a source of batches, with the torch backend's time for comparison."""
    entry, times, _ = read_alone(folder, source)
    usual = read_alone(folder, "torch").entry["ms"]["ours"]
    return Measured(entry | {"ms": entry["ms"] | {"torch": usual}}, times, {})


def by_processes(folder: Path, out: Path) -> Measured:
    """Measure a training batch by one process and by two."""
    ms = {name: milliseconds_by(count, folder, out / name) for name, count in {"one": 1, "ours": 2}.items()}
    entry = {"batch": BATCH, "images": BATCH, "runs": SHORT - 1, "ms": ms, "skipped": {}}
    return Measured(entry, {name: [taken["both"]] for name, taken in ms.items()}, {})


def trained(folder: Path, case: Case, out: Path) -> Measured:
    """Measure a model's training by the engine, by `Reports` and by `Timm`, an epoch of each in turn."""
    sizes = {"image_size": case.size, "batch_size": case.batch, "epochs": EPOCHS, "patience": 0}
    # The compile mode is fixed, as choosing it by measurement takes minutes.
    settings = Settings(data=str(folder), models=(case.model,), compile_mode="default", **sizes)
    settings = variants.resolve(settings, "task1")
    data = open_data(settings, "task1")
    if case.steps is not None:
        data = replace(data, images=few(data.images, case.batch * case.steps))
    images = data.images
    model, *others = (networks.initialised(case.model, settings, photographs.CLASSES, 3) for _ in range(3))
    plan = networks.plan(model, settings, images)
    ours, steps_of, epochs = Stopwatch(), {way: Stopwatch() for way in OTHERS}, {way: [] for way in OTHERS}
    with (
        make_loader(data, "train", settings, plan.augmentations) as train,
        make_loader(data, "val", settings) as val,
        Reports(others[0], images, "train", case.size, case.batch, DEVICE) as reports,
        Timm(others[1], images, "train", case.size, case.batch, DEVICE, settings.precision) as timm,
        Idle(plan.device) as idle,
    ):

        @contextmanager
        def waiting():
            with idle.waiting():
                yield
            ours.start()

        def on_step() -> None:
            ours.stop()
            idle.step()

        def on_epoch(_) -> None:
            idle.epoch()
            for way, training in zip(OTHERS, (reports, timm), strict=True):
                epochs[way].append(1e3 * training.epoch(steps_of[way]))

        hooks = trainer.Hooks(step=on_step, epoch=on_epoch, waiting=waiting)
        history = trainer.fit(case.model, model, train, val, plan, out, hooks)
        alone, steps = median(input_times(train)), len(train)
    times = {"ours": [1e3 * train.samples / speed for speed in history.speeds[1:]]}
    times |= {way: taken[1:] for way, taken in epochs.items()}
    ms = {
        way: {"step": median(each.times()[steps:]), "epoch": median(times[way])}
        for way, each in {"ours": ours, **steps_of}.items()
    }
    ms["ours"]["input"] = alone
    entry = {
        "dtype": {"bf16": "bfloat16", "fp32": "float32"}[settings.precision],
        "layout": "channels_last",
        "batch": case.batch,
        "images": train.samples,
        "runs": EPOCHS - 1,
        "ms": ms,
        "compiled": plan.compile_mode if plan.compile else None,
        **idle.figures(),
        "skipped": {},
    }
    return Measured(entry, times, {})


def few(images: ImageSet, count: int, split: str = "train") -> ImageSet:
    """Return the set with the first `count` images of a split, repeated if the split has fewer."""
    chosen = images.splits[split]
    times = math.ceil(count / len(chosen.paths))
    columns = (column and (column * times)[:count] for column in (chosen.paths, chosen.labels, chosen.sizes))
    return replace(images, splits=images.splits | {split: Split(*columns)})


def input_times(loader_: loader.Loader) -> list[float]:
    """Return the milliseconds per batch of model input, for each epoch of a loader after the first."""
    found = []
    for epoch in range(EPOCHS):
        started = time.perf_counter()
        for batch in loader_.epoch(epoch):
            model_input(batch, loader_)
        finish()
        found.append((time.perf_counter() - started) * 1e3 / len(loader_))
    return found[1:]


def model_input(batch: batches.Batch, loader_: loader.Loader) -> torch.Tensor:
    """Return a batch as a model reads it, on the device."""
    if batch.device.type == DEVICE:
        return batch.standardised(loader_.channels)
    return normalise(batch.images.to(DEVICE), loader_.channels)


def finish() -> None:
    """Wait for the GPU, if there is any."""
    if ON_GPU:
        torch.cuda.synchronize()


@cache
def read_alone(folder: Path, source: str) -> Measured:
    """Measure a source of batches with nothing else running."""
    images = listed(folder)
    with source_loader(few(images, REPEATS * FILES["train"]), source) as batches:
        # Cached images can make more than an epoch of batches within the seconds.
        inputs = (model_input(batch, batches) for epoch in itertools.count(1) for batch in batches.epoch(epoch))
        first = next(inputs)
        described = measure.described(first)
        if source != "synthetic":
            error = ((first.cpu() - first_batch(folder)).norm() / first_batch(folder).norm()).item()
            assert error < (RESAMPLED if source in RESAMPLED_SOURCES else DECODED), error
        times = measure.steady_times(lambda: next(inputs), max(4, WORKERS), SECONDS)
    taken = [time for (time,) in times]
    workers = None if source in ("synthetic", "device cache") else WORKERS
    return measure.of_times(taken, **described, batch=BATCH, images=BATCH, workers=workers)


@cache
def first_batch(folder: Path) -> torch.Tensor:
    """Return the first batch of an epoch by the torch backend, the reference."""
    images = few(listed(folder), REPEATS * FILES["train"])
    with (
        loader.Loader(images, "train", size=SIZE, batch_size=BATCH, train=True, backend="torch", workers=0) as batches,
        closing(batches.epoch(1)) as epoch,
    ):
        return model_input(next(epoch), batches).cpu()


@cache
def listed(folder: Path) -> ImageSet:
    """Return the photographs, checked and not cached."""
    return open_data(variants.resolve(Settings(data=str(folder), cache="none"), "task1"), "task1").images


def source_loader(images: ImageSet, source: str) -> loader.Loader:
    """Return a training loader that reads images by one of `SOURCES`."""
    backend, _, where = source.partition(" ")
    device = torch.device("cpu" if source == "dali cpu" else DEVICE)
    store = None
    if where == "cache":
        stored = math.ceil(SIZE / Settings().eval_crop)
        place = placement.choose_placement(images, backend, device, stored)
        store = opening.decode(images, place, "auto", device, WORKERS)
        backend = "auto"
    how = {"backend": backend, "device": device, "workers": WORKERS, "store": store}
    return loader.Loader(images, "train", size=SIZE, batch_size=BATCH, train=True, **how)


def seconds_to_first_step(folder: Path, out: Path) -> float:
    """Return the seconds from the start of a process to the first step of its training; its cache is in `out`."""
    job = ("task1", "--data", str(folder), "--models", "simple_cnn", "--compile-mode", "default", "--out", str(out))
    started = time.time()
    done = run("-m", "bench.measuring.first_step", *job, XDG_CACHE_HOME=str(out / "cache"))
    return float(done.splitlines()[-1]) - started


def milliseconds_by(processes: int, folder: Path, out: Path) -> dict[str, float]:
    """Return the milliseconds of a training batch by one or two processes on two cores of the CPU."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2") if processes == 2 else ()
    options = {"models": "resnet34", "image-size": 84, "batch-size": BATCH, "epochs": SHORT, "device": "cpu"}
    options |= {"data": folder, "channels": "RGB", "workers": 2 // processes, "out": out, "name": "bench"}
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    cores = sorted(os.sched_getaffinity(0))[:2]
    command = (*launcher, "-m", "train.run", "task1", "--no-tensorboard", *flags)
    run(*command, cores=cores, OMP_NUM_THREADS=str(2 // processes))
    results = json.loads((out / "task1" / "bench" / "results.json").read_text(encoding="utf-8"))
    rate = results["models"]["resnet34"]["images_per_second"]
    return {"both": 1e3 * BATCH / rate}


def run(*arguments: str, cores: list[int] | None = None, **environment: str) -> str:
    """Run a Python command, only on `cores` if given, and return its standard output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
