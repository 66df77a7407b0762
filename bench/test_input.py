"""Images per second of the input backends: photograph-like JPEGs, random resized crop to 224, equal worker counts.

"pixels" reads images that were decoded before, as a run does where they fit in memory.

pytest bench/test_input.py --benchmark-only
"""

import statistics
import time

import numpy as np
import pytest
from PIL import Image

from engine.data import listing, loader, scan
from engine.data.cache import cpus
from engine.data.pixels import Pixels

FILES, REPEATS, HEIGHT, WIDTH = 384, 4, 375, 500
SIZE, BATCH, ROUNDS = 224, 64, 7


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Smooth random scenes with grain, 60 to 100 KB each."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i in range(FILES):
        scene = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((WIDTH, HEIGHT), Image.BICUBIC)
        grain = rng.normal(0, 9, (HEIGHT, WIDTH, 1)) + rng.normal(0, 4, (HEIGHT, WIDTH, 3))
        image = (np.asarray(scene) + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / f"{i}.jpg", quality=90)
    paths = [f"{i}.jpg" for i in range(FILES)]
    split = listing.Split(tuple(paths) * REPEATS, (0,) * FILES * REPEATS)
    images = listing.ImageSet(root, ("scene",), {"train": split})
    return scan.apply(images, scan.scan(root, paths, cache=False))


@pytest.fixture(scope="session")
def loaders(photographs):
    made = {
        backend: loader.create(
            photographs, "train", size=SIZE, batch_size=BATCH, train=True, backend=backend, workers=cpus()
        )
        for backend in ("dali", "torch", "synthetic")
        if backend != "dali" or loader.resolve("auto") == "dali"
    }
    pixels = Pixels.load(photographs, cpus())
    made["pixels"] = loader.create(
        photographs, "train", size=SIZE, batch_size=BATCH, train=True, pixels=pixels, workers=cpus()
    )
    yield made
    for each in made.values():
        each.close()


@pytest.fixture(scope="session")
def rates(loaders):
    """Return the median images per second of each backend over rounds taken in turn, once their pixels agree."""
    if "dali" in loaders:
        for ours, theirs in zip(loaders["dali"].epoch(0), loaders["torch"].epoch(0), strict=True):
            assert (ours.images.int() - theirs.images.int()).abs().float().mean() < 2
    seconds = {backend: [] for backend in loaders}
    for epoch in range(ROUNDS):
        for backend, batches in loaders.items():
            seconds[backend].append(_epoch(batches, epoch))
    return {backend: FILES * REPEATS / statistics.median(taken) for backend, taken in seconds.items()}


@pytest.mark.parametrize("backend", ["dali", "torch", "pixels", "synthetic"])
def test_input(benchmark, photographs, loaders, rates, backend):
    if backend not in loaders:
        pytest.skip("NVIDIA DALI is not installed")
    files = [photographs.root / path for path in photographs.splits["train"].paths]
    benchmark.extra_info |= {
        "workers": cpus(),
        "kilobytes": round(statistics.mean(file.stat().st_size for file in files) / 1000),
        "images_per_second": {name: round(rate) for name, rate in rates.items()},
        "to_torch": round(rates[backend] / rates["torch"], 2),
    }
    print(f"\n{backend}: {benchmark.extra_info}")
    benchmark.pedantic(_epoch, args=(loaders[backend], 0), rounds=ROUNDS, warmup_rounds=1)


def _epoch(batches, epoch):
    start = time.perf_counter()
    seen = sum(len(batch.labels) for batch in batches.epoch(epoch))
    assert seen == FILES * REPEATS
    return time.perf_counter() - start
