"""Photograph-like JPEGs of 500x375 pixels, 60 to 100 KB each, in a data folder with list files."""

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from polychrome.engine.machine.workers import cpus, parallel

HEIGHT, WIDTH, CLASSES = 375, 500, 50
MARGIN = 64  # pixels by which the field of grain is larger than an image


def write(root: Path, counts: Mapping[str, int]) -> Path:
    """Write `counts[split]` photographs of CLASSES classes for each split; return the folder."""
    root.mkdir(parents=True)
    names = [f"{split}-{number}.jpg" for split, count in counts.items() for number in range(count)]
    for _ in parallel(partial(_draw, root), list(enumerate(names)), cpus()):
        pass
    for split, count in counts.items():
        rows = (f"{split}-{number}.jpg {number % CLASSES}\n" for number in range(count))
        (root / f"{split}.txt").write_text("".join(rows), encoding="utf-8")
    return root


def _draw(root: Path, job: tuple[int, str]) -> None:
    """Write a smooth random scene with grain."""
    seed, name = job
    rng = np.random.default_rng(seed)
    scene = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((WIDTH, HEIGHT), Image.BICUBIC)
    top, left = rng.integers(0, MARGIN, 2)
    image = np.asarray(scene) + _grain()[top : top + HEIGHT, left : left + WIDTH]
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / name, quality=90)


@cache
def _grain() -> np.ndarray:
    rng, shape = np.random.default_rng(0), (HEIGHT + MARGIN, WIDTH + MARGIN)
    return (rng.normal(0, 9, (*shape, 1)) + rng.normal(0, 4, (*shape, 3))).astype(np.float32)
