"""The digest of what is read of each split: equal where all is equal, another wherever something differs."""

import random

import numpy as np
import pytest
from PIL import Image

from polychrome.engine.data.conventions import Trained
from polychrome.engine.data.opening import open_set
from polychrome.engine.data.sets import listing
from tests.engine.data import image_kinds, tars
from tests.engine.data.test_sensors import HOW, npy, pixels, png

SPLITS = {"train": 6, "val": 4, "test": 4}
CHANNELS = ("dna", "er")
WHOLE = {split: list(range(10 * place, 10 * place + count)) for place, (split, count) in enumerate(SPLITS.items())}


def photo(seed):
    return image_kinds.encoded(image_kinds.picture(20, 24, seed=seed), "PNG")


def in_lists(root, drawn, content=photo, suffix=".png"):
    """Write files and the lists that have them; the number of a file is its place, not what is drawn in it."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    for split, seeds in drawn.items():
        names = [f"images/{split} {number}{suffix}" for number in range(len(seeds))]
        for name, seed in zip(names, seeds, strict=True):
            (root / name).write_bytes(content(seed))
        (root / f"{split}.txt").write_text("".join(f"{name} {place % 2}\n" for place, name in enumerate(names)))
    return root


def in_folders(root, drawn):
    for split, seeds in drawn.items():
        for number, seed in enumerate(seeds):
            path = root / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo(seed))
    return root


def in_shards(root, drawn):
    for split, seeds in drawn.items():
        members = {f"{'ab'[number % 2]}/{number}.png": photo(seed) for number, seed in enumerate(seeds)}
        tars.write(root / f"{split}-0.tar", members)
    return root


def of_arrays(root, drawn):
    root = in_lists(root, drawn, lambda seed: npy(pixels(CHANNELS, seed, np.uint16)), ".npy")
    (root / "channels.txt").write_text("\n".join(CHANNELS))
    return root


def of_described_files(root, drawn):
    root = in_lists(root, drawn, lambda seed: npy(pixels(CHANNELS, seed)), ".npy")
    (root / "channels.csv").write_text("images,dna+er\n")
    return root


def of_channel_files(root, drawn):
    """Write an image of two channels as two files, of which the lists name the first."""
    in_lists(root, drawn, lambda seed: png(pixels(CHANNELS, seed)[..., :1]), "_dna.png")
    for split, seeds in drawn.items():
        for number, seed in enumerate(seeds):
            (root / f"images/{split} {number}_er.png").write_bytes(png(pixels(CHANNELS, seed)[..., 1:]))
    return root


WAYS = [in_lists, in_folders, in_shards, of_arrays, of_described_files, of_channel_files]


def opened(root, **options):
    regex = "_([a-z]+)[.]png" if any(root.glob("images/*_er.png")) else None
    return open_set(listing.read(root, channel_files=regex), HOW._replace(**options))


def contents(root):
    return opened(root).contents


def differing(before, after):
    assert before.keys() == after.keys() == SPLITS.keys()
    return {split for split in before if before[split] != after[split]}


@pytest.mark.parametrize("write", WAYS, ids=lambda way: way.__name__)
def test_files_that_are_written_again_are_the_same_and_one_other_image_is_not(tmp_path, write):
    rng = random.Random(0)
    before = contents(write(tmp_path / "before", WHOLE))
    assert differing(before, contents(write(tmp_path / "elsewhere", WHOLE))) == set()
    for split, seeds in WHOLE.items():
        place = rng.randrange(len(seeds))
        other = WHOLE | {split: [*seeds[:place], 99, *seeds[place + 1 :]]}
        assert differing(before, contents(write(tmp_path / split, other))) == {split}
        swapped = WHOLE | {split: [seeds[1], seeds[0], *seeds[2:]]}  # of two classes
        assert differing(before, contents(write(tmp_path / f"{split} swapped", swapped))) == {split}


@pytest.mark.parametrize("write", WAYS, ids=lambda way: way.__name__)
def test_a_split_that_is_opened_alone_for_a_trained_model_is_the_same(tmp_path, write):
    root = write(tmp_path, WHOLE)
    if (root / "channels.csv").exists():
        (root / "channels.csv").write_text("images,dna+er\nimages/train 0.npy,rna+dna\nimages/test 1.npy,er+dna\n")
    whole = opened(root)
    trained = Trained(whole.images.channels, whole.images.dtype, whole.images.conventions, root)
    assert opened(root, splits=("test",), trained=trained).contents == {"test": whole.contents["test"]}


def test_one_other_channel_of_an_image_is_another_image(tmp_path):
    root = of_channel_files(tmp_path, WHOLE)
    before = contents(root)
    (root / "images/val 2_er.png").write_bytes(png(pixels(CHANNELS, 99)[..., 1:]))
    assert differing(before, contents(root)) == {"val"}


def test_other_labels_another_order_and_files_more_or_less_are_others(tmp_path):
    root = in_lists(tmp_path, WHOLE)
    before, lines = contents(root), (root / "train.txt").read_text().splitlines(keepends=True)
    changes = {
        "a label": [lines[0].replace(" 0\n", " 1\n"), *lines[1:]],
        "order": [*lines[2:], *lines[:2]],
        "less": lines[1:],
        "twice": [*lines, lines[0]],
    }
    for change in changes.values():
        (root / "train.txt").write_text("".join(change))
        assert differing(before, contents(root)) == {"train"}
    (root / "train.txt").write_text("".join(lines))
    assert differing(before, contents(root)) == set()


def test_other_channels_of_the_same_values_are_others(tmp_path):
    root = of_described_files(tmp_path, WHOLE)
    (root / "channels.csv").write_text("images,dna+er\nimages/val 0.npy,er+dna\n")
    before = contents(root)
    (root / "channels.csv").write_text("images,dna+er\nimages/val 1.npy,er+dna\n")
    assert differing(before, contents(root)) == {"val"}


def test_a_file_that_is_damaged_or_repaired_changes_its_split(tmp_path):
    root = in_lists(tmp_path, WHOLE)
    before, file = contents(root), root / "images/train 3.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    damaged = contents(root)
    assert differing(before, damaged) == {"train"}
    file.write_bytes(whole[:90])  # just as unusable
    assert differing(damaged, contents(root)) == set()
    file.write_bytes(whole)
    assert differing(before, contents(root)) == set()


def test_an_array_of_the_same_values_in_another_shape_is_another(tmp_path):
    root = of_arrays(tmp_path, WHOLE)
    before, values = contents(root), pixels(CHANNELS, 0, np.uint16)
    (root / "images/train 0.npy").write_bytes(npy(values.reshape(8, 10, 2)))
    assert differing(before, contents(root)) == {"train"}


def test_a_photo_of_the_same_pixels_in_another_file_is_told_as_another(tmp_path):
    """Its bytes are compared: decoders may differ in how they read another encoding."""
    root = in_lists(tmp_path, WHOLE)
    before, file = contents(root), root / "images/test 1.png"
    Image.open(file).save(file, "PNG", compress_level=1)
    assert differing(before, contents(root)) == {"test"}
