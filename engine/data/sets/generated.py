"""A small set of JPEG files for trials: 50 classes that differ in texture and shape, not in colour."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from polychrome.engine.machine.files import cache_folder, new_folder
from polychrome.engine.machine.workers import cpus, parallel

VERSION = 1  # raise this number when any pixel may change
SEED = 50
PER_CLASS = {"train": 50, "val": 9, "test": 9}
GRAY_SHARE = 0.08
SIDES = (72, 160)  # pixels

TEXTURES = {
    "level": lambda u, v, _: _wave(v),
    "upright": lambda u, v, _: _wave(u),
    "slanted": lambda u, v, rng: _wave(0.7 * u + rng.choice([-0.7, 0.7]) * v),
    "checked": lambda u, v, _: (_wave(u / 1.4) > 0.5) != (_wave(v / 1.4) > 0.5),
    "dotted": lambda u, v, _: np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.28,
    "gridded": lambda u, v, _: np.maximum(abs(u % 1 - 0.5), abs(v % 1 - 0.5)) > 0.37,
    "zigzag": lambda u, v, _: _wave(v + 1.2 * abs(u / 2 % 1 - 0.5)),
    "ringed": lambda u, v, rng: _wave(np.hypot(u - rng.uniform(2, 6), v - rng.uniform(2, 6))),
    "blotched": lambda u, v, rng: _blobs(u, v, rng) > 0.5,
    "speckled": lambda u, v, rng: rng.random(u.shape) < 0.5,
}
SHAPES = {
    "disc": lambda x, y: np.hypot(x, y) < 0.95,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.85,
    "triangle": lambda x, y: (y < 0.8) & (1.8 * abs(x) - y < 0.9),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1),
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.72) < 0.25,
}
NAMES = tuple(f"{texture} {shape}" for texture in TEXTURES for shape in SHAPES)


def ensure(cache_dir: str | Path | None = None) -> Path:
    """Return the folder of the generated set, written to the user's cache folder if need be.

    The folder holds images/, train.txt, val.txt, test.txt and classes.txt. The folder is written whole or not at all,
    also by several processes at once.

    Raises:
        UserError: there is no cache folder.
    """
    base = Path(cache_dir) if cache_dir is not None else cache_folder()
    final = base / f"generated-v{VERSION}"
    if final.is_dir():
        return final
    base.mkdir(parents=True, exist_ok=True)
    try:
        with new_folder(final) as work:
            _write(work)
    except OSError:
        if not final.is_dir():  # else another process was first
            raise
    return final


def draw(label: int, rng: np.random.Generator) -> np.ndarray:
    """Return an image of a class, uint8 [height, width, 3]; sides in pixels and all colours come from `rng`."""
    texture, shape = NAMES[label].split()
    height, width = rng.integers(SIDES[0], SIDES[1] + 1, 2)
    height, width = (max(side, 2 * max(height, width) // 3) for side in (height, width))
    short = min(height, width)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    period = np.float32(short * rng.uniform(0.10, 0.15))
    ground = np.float32(TEXTURES[texture](x / period + rng.random(), y / period + rng.random(), rng))[..., None]
    dark = rng.uniform(40, 110, 3).astype(np.float32)
    light = dark + rng.uniform(45, 90, 3).astype(np.float32)
    image = dark + (light - dark) * ground
    for mask, edge in _figures(SHAPES[shape], x, y, short, rng):
        ends = (rng.uniform(0, 30, 3), rng.uniform(225, 255, 3))
        inside, outside = ends if rng.random() < 0.5 else ends[::-1]
        image[edge] = outside
        image[mask] = inside
    image += np.float32(rng.uniform(4, 16)) * rng.standard_normal(image.shape, dtype=np.float32)
    return image.clip(0, 255).astype(np.uint8)


def _figures(shape, x, y, short, rng):
    """Yield the masks of a few figures, [height, width] each, and of the same figures with a rim, corner to corner."""
    height, width = x.shape
    corners = [(a, b) for a in (0.27, 0.73) for b in (0.27, 0.73)]
    for across, down in rng.permutation(corners)[: rng.integers(2, 4)]:
        radius = short * rng.uniform(0.15, 0.22)
        angle = rng.uniform(-0.25, 0.25)
        dx = (x - width * (across + rng.uniform(-0.06, 0.06))) / radius
        dy = (y - height * (down + rng.uniform(-0.06, 0.06))) / radius
        dx, dy = dx * np.cos(angle) - dy * np.sin(angle), dx * np.sin(angle) + dy * np.cos(angle)
        yield shape(dx, dy), shape(dx / 1.15, dy / 1.15)


def _wave(phase: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(2 * np.pi * phase)


def _blobs(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return smooth noise in 0..1 with blobs about one period wide."""
    height, width = u.shape
    coarse = rng.random((int(np.ptp(v)) * 2 + 2, int(np.ptp(u)) * 2 + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _write(folder: Path) -> None:
    (folder / "images").mkdir()
    labels = list(range(len(NAMES)))
    list(parallel(partial(_write_class, folder), labels, min(cpus(), 8)))
    for split in PER_CLASS:
        lines = [f"images/{_file(split, label, i)} {label}\n" for label in labels for i in range(PER_CLASS[split])]
        (folder / f"{split}.txt").write_text("".join(lines))
    (folder / "classes.txt").write_text("".join(f"{label}\tg{label:02d}\t{name}\n" for label, name in enumerate(NAMES)))


def _write_class(folder: Path, label: int) -> None:
    rng = np.random.default_rng([SEED, label])
    for split, count in PER_CLASS.items():
        for i in range(count):
            image = Image.fromarray(draw(label, rng))
            if rng.random() < GRAY_SHARE:
                image = image.convert("L")
            image.save(folder / "images" / _file(split, label, i), quality=int(rng.integers(80, 93)))


def _file(split: str, label: int, i: int) -> str:
    return f"{split}_{label:02d}_{i:03d}.jpg"
