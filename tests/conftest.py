"""Fixtures that several test folders share."""

import fcntl
import gc
import os
import random
import shutil
import signal

# One thread a process, read when torch and NumPy are imported: threads that wait for a busy core take many times as
# long, and how they divide a sum is not the same everywhere.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)  # a plugin may have imported it before
if not torch.cuda.is_available():
    # Read when Triton is imported, which nothing has done yet: its kernels then run on CPU tensors.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_finish():
    """Keep what was imported out of every later garbage collection, of which the search for a batch size has many."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Keep what is scanned, generated and compiled out of the folders of the user and of other test processes."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        for name, folder in (("TRITON_CACHE_DIR", "triton"), ("TORCHINDUCTOR_CACHE_DIR", "inductor")):
            patch.setenv(name, os.environ.get(name, str(cache / folder)))  # a folder that was named is meant
        yield


@pytest.fixture(autouse=True, scope="session")
def one_generated_set(tmp_path_factory):
    """Draw the generated set once for all workers of pytest-xdist; the cache of each has links to its files."""
    from polychrome.engine.data.sets import generated

    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "generated"
    draw_all = generated._write

    def linked(folder):
        with open(shared.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not shared.exists():
                drawn = shared.with_suffix(".part")
                drawn.mkdir()
                draw_all(drawn)
                drawn.rename(shared)
        shutil.copytree(shared, folder, copy_function=os.link, dirs_exist_ok=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generated, "_write", linked)
        yield


@pytest.fixture(autouse=True)
def seeded():
    """Draw the same numbers whatever ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def signals_heard():
    """Hear signals as a process does that a terminal started: a shell's background jobs ignore Ctrl-C."""
    from polychrome.engine.machine.interruption import SIGNALS

    handlers = dict.fromkeys(SIGNALS, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def draw(label: int, seed: int) -> np.ndarray:
    """Return an image [48, 56, 3] of stripes whose direction is the class; every channel shows them."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:48, :56]
    wave = np.sin((rows, columns, rows + columns)[label] * 0.8 + rng.uniform(0, 6))
    return (128 + 90 * wave[..., None] + rng.normal(0, 12, (48, 56, 3))).clip(0, 255).astype(np.uint8)


def write_list_folder(root, per_class=(24, 6, 6)):
    """Write a data folder of three classes with list files."""
    (root / "images").mkdir(parents=True)
    for split, count in zip(("train", "val", "test"), per_class, strict=True):
        lines = []
        for number in range(3 * count):
            path = f"images/{split} {number}.jpg"
            Image.fromarray(draw(number % 3, 1000 * len(split) + number)).save(root / path, quality=92)
            lines.append(f"{path} {number % 3}\n")
        (root / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def stripes(tmp_path_factory):
    """A data folder with list files: three classes of striped images, 72 / 18 / 18."""
    return write_list_folder(tmp_path_factory.mktemp("data") / "stripes")
