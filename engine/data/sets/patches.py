"""A data folder of patches cut from one labelled scene; the splits do not overlap in the scene."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polychrome.engine.data.files import stacks
from polychrome.engine.data.files.guard import DAMAGED, guarded
from polychrome.engine.data.files.pixels import DTYPES
from polychrome.engine.data.image_set import SPLITS
from polychrome.engine.errors import Unsupported, UserError, one_line
from polychrome.engine.machine.files import new_folder

SHARES = {"train": 0.6, "val": 0.15, "test": 0.25}  # of the labelled pixels, before the gaps are cut out
BLOCKS = (2, 3, 4, 6, 8)  # sides of the blocks, in patches
DRAWS, STARTS, MOVES = 500, 2, 200
NONE = -1


@dataclass(frozen=True)
class Scene:
    """cube: [height, width, channels]; labels: int64 [height, width], 0 where there is none; names of the channels."""

    cube: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]


def cut(scene: Path, out: Path, size: int = 9, seed: int = 0) -> list[str]:
    """Write a patch [size, size, channels] around every labelled pixel that a split can take; return lines to show.

    `scene` is an .npz file with `cube` [height, width, channels] and `labels` [height, width], 0 for none, and maybe
    `bands` or `names`, the names of the channels. The scene is cut into blocks that are shared out among train, val
    and test; pixels whose patches would overlap with a patch of another split are left out, so that no pixel is in
    two splits. A search, by `seed`, looks for the division with most classes in both train and test. Beyond its edge
    the scene is mirrored.

    `out` becomes a data folder with list files, classes.txt (the labels) and channels.txt, whole or not at all.

    Raises:
        UserError: the file is not such a scene, `out` is not empty, or the scene is too small for three splits.
    """
    scene, out = Path(scene), Path(out)
    if size < 1 or size % 2 == 0:
        raise UserError(f"the size of a patch must be odd, so that it has a centre; got {size}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already: wanted a new or an empty folder")
    read = _read(scene)
    if size > min(read.labels.shape):
        raise UserError(f"{scene}: patches of {size} pixels are larger than the scene, {list(read.labels.shape)}")
    if not read.labels.any():
        raise UserError(f"{scene}: no pixel has a label")
    parts = divide(read.labels, size, seed)
    classes = np.unique(read.labels[parts == SPLITS.index("train")])
    parts[~np.isin(read.labels, classes)] = NONE
    counts = {split: int((parts == index).sum()) for index, split in enumerate(SPLITS)}
    if len(classes) < 2 or not all(counts.values()):
        shares = ", ".join(f"{count} in {split}" for split, count in counts.items())
        raise UserError(f"{scene} is too small for three splits apart, with patches of {size}: {shares}")
    try:
        _write(read, parts, classes, out, size)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
    patches = ", ".join(f"{count} {split}" for split, count in counts.items())
    return [f"{patches} patches of {size} x {size} x {len(read.names)} in {out}", *_missing(read.labels, parts)]


def divide(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return the split of each pixel, int8 [height, width]: its index in train, val, test, or -1.

    Pixels of two splits are at least `size` apart, in rows or in columns.
    """
    generator = np.random.default_rng(seed)
    drawn = [_drawn(labels, size, size * BLOCKS[draw % len(BLOCKS)], generator) for draw in range(DRAWS)]
    drawn.sort(key=lambda division: division.score, reverse=True)
    improved = (_improved(labels, size, division, generator) for division in drawn[:STARTS])
    return max(improved, key=lambda division: division.score).parts


@dataclass(frozen=True)
class Division:
    """A scene in blocks, int64 [height, width], and the split of each block, int8 [blocks].

    `parts` is the split of each pixel, and `score` rates the division: by the number of classes in train and test,
    the number of classes in train and val, and the least share of a split's due.
    """

    blocks: np.ndarray
    split_of: np.ndarray
    parts: np.ndarray
    score: tuple[int, int, float]


def _drawn(labels: np.ndarray, size: int, side: int, generator: np.random.Generator) -> Division:
    """Return a division into blocks of `side` pixels, shared out at random.

    One border of the blocks separates two pixels of one class, so that small classes are divided as often as large
    classes.
    """
    members = np.argwhere(labels == generator.choice(np.unique(labels[labels > 0])))
    pair = members[generator.integers(len(members), size=2)]
    axis = int(np.argmax(np.ptp(pair, 0)))
    border = generator.choice([pair[:, axis].min() + 1, pair[:, axis].max()])
    shifts = generator.integers(side, size=2)
    shifts[axis] = -border % side
    rows, columns = ((np.arange(length) + shift) // side for length, shift in zip(labels.shape, shifts, strict=True))
    blocks = rows[:, None] * (columns[-1] + 1) + columns
    counts = np.bincount(blocks[labels > 0], minlength=blocks.max() + 1)
    order = generator.permutation(len(counts))
    middles = (np.cumsum(counts[order]) - counts[order] / 2) / counts.sum()
    split_of = np.empty(len(counts), np.int8)
    split_of[order] = np.searchsorted(np.cumsum(list(SHARES.values()))[:-1], middles)
    return _division(labels, size, blocks, split_of)


def _improved(labels: np.ndarray, size: int, best: Division, generator: np.random.Generator) -> Division:
    """Return the division after moves of blocks to other splits; a move never worsens the division."""
    used = np.unique(best.blocks[labels > 0])
    for _ in range(MOVES):
        split_of = best.split_of.copy()
        split_of[generator.choice(used)] = generator.integers(len(SPLITS))
        other = _division(labels, size, best.blocks, split_of)
        if other.score >= best.score:
            best = other
    return best


def _division(labels: np.ndarray, size: int, blocks: np.ndarray, split_of: np.ndarray) -> Division:
    parts = np.where(labels > 0, split_of[blocks], np.int8(NONE))
    # Patches of val that overlap with test are dropped, and patches of train that overlap with either.
    for giving in (SPLITS.index("val"), SPLITS.index("train")):
        parts[_within(parts > giving, size - 1) & (parts == giving)] = NONE
    kinds = int(labels.max()) + 1
    found = np.bincount(((parts + 1) * kinds + labels).ravel(), minlength=(len(SPLITS) + 1) * kinds)
    found = found.reshape(-1, kinds)[1:]  # without the row of NONE
    train, val, test = found > 0
    shares = found.sum(1) / list(SHARES.values())
    score = int((train & test).sum()), int((train & val).sum()), float(shares.min())
    return Division(blocks, split_of, parts, score)


def _within(mask: np.ndarray, reach: int) -> np.ndarray:
    """Return whether the mask holds anywhere at most `reach` rows and columns away."""
    window = 2 * reach + 1
    for _ in range(2):  # along the rows, turned, along the other axis, turned back
        mask = np.pad(mask, ((reach, reach), (0, 0)))
        covered = 1
        while covered < window:
            step = min(covered, window - covered)
            mask = mask[:-step] | mask[step:]
            covered += step
        mask = np.ascontiguousarray(mask.T)
    return mask


def _missing(labels: np.ndarray, parts: np.ndarray) -> Iterator[str]:
    for label in np.unique(labels[labels > 0]):
        found = [split for index, split in enumerate(SPLITS) if (labels[parts == index] == label).any()]
        absent = " and ".join(split for split in SPLITS if split not in found)
        if not found:
            yield f"class {label} is left out: none of its {(labels == label).sum()} pixels can be in train"
        elif absent:
            yield f"class {label} has no patch in {absent}"
    yield f"{((labels > 0) & (parts == NONE)).sum()} of {(labels > 0).sum()} labelled pixels are not used"


def _read(file: Path) -> Scene:
    try:
        with guarded():
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                raise Unsupported("a single array, wanted one of cube and one of labels")
            with content:
                arrays = {key: content[key] for key in ("cube", "labels", "bands", "names") if key in content.files}
    except (OSError, Unsupported) as error:
        if why := getattr(error, "strerror", ""):
            raise UserError(f"{file} cannot be read: {why}") from error
        if file.suffix not in (".npz", ".npy"):
            arrays = "numpy.savez('scene.npz', cube=cube, labels=labels)"
            raise UserError(f"{file} is not an .npz file: write its arrays as one, by {arrays}") from error
        raise UserError(f"{file} is not an .npz file of numbers: {one_line(error).removeprefix(DAMAGED)}") from error
    for key in ("cube", "labels"):
        if key not in arrays:
            raise UserError(f"{file} has no {key}: wanted cube [height, width, channels] and labels [height, width]")
    cube, labels = arrays["cube"], arrays["labels"]
    if cube.ndim != 3 or labels.shape != cube.shape[:2] or not cube.size:
        shapes = f"cube {list(cube.shape)} and labels {list(labels.shape)}"
        raise UserError(f"{file} has {shapes}: wanted [height, width, channels] and [height, width]")
    if cube.dtype.name not in DTYPES:
        raise UserError(f"{file}: cube is {cube.dtype.name}, wanted {' '.join(DTYPES)}")
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise UserError(f"{file}: labels must be whole numbers from 0, which stands for none")
    key = next((key for key in ("bands", "names") if key in arrays), None)
    named = arrays[key].ravel().tolist() if key else range(cube.shape[2])
    names = stacks.checked_names((f"{file}: {key} {i}", str(name).strip()) for i, name in enumerate(named))
    if len(names) != cube.shape[2]:
        raise UserError(f"{file}: {key} names {len(names)} channels, cube has {cube.shape[2]}")
    return Scene(cube, labels.astype(np.int64), names)


def _write(scene: Scene, parts: np.ndarray, classes: np.ndarray, out: Path, size: int) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(out) as work:
        (work / "patches").mkdir()
        lists = {split: [] for split in SPLITS}
        for row, column in np.argwhere(parts != NONE).tolist():
            path = f"patches/{row:05d}_{column:05d}.npy"
            np.save(work / path, _patch(scene.cube, row, column, size))
            label = np.searchsorted(classes, scene.labels[row, column])
            lists[SPLITS[parts[row, column]]].append(f"{path} {label}\n")
        for split, rows in lists.items():
            (work / f"{split}.txt").write_text("".join(rows))
        (work / "classes.txt").write_text("".join(f"{label}\n" for label in classes))
        # Always: of a patch as wide as it has channels, or less, the shape does not tell which axis has them.
        (work / stacks.NAMES_FILE).write_text("".join(f"{name}\n" for name in scene.names), encoding="utf-8")


def _patch(cube: np.ndarray, row: int, column: int, size: int) -> np.ndarray:
    rows, columns = (
        _mirrored(centre, size, length) for centre, length in zip((row, column), cube.shape[:2], strict=True)
    )
    return cube[np.ix_(rows, columns)]


def _mirrored(centre: int, size: int, length: int) -> np.ndarray:
    """Return `size` positions around a centre; positions outside 0..length-1 are mirrored at the ends."""
    positions = np.abs(np.arange(size) + centre - size // 2)
    return np.minimum(positions, 2 * (length - 1) - positions)
