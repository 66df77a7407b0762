import os

import numpy as np
import pytest

from polychrome.engine.data import image_set
from polychrome.engine.data.sets import listing, patches, scan
from polychrome.engine.data.stores.whole import WholeImages
from polychrome.engine.errors import UserError
from tests.engine.data import photos
from tests.refusals import refusal

HEIGHT, WIDTH, CHANNELS = 60, 70, 4
REAL = os.environ.get("POLYCHROME_SCENE", "")  # an .npz file with cube and labels


def field(seed=0):
    """Return a cube whose first channel is unlike in every pixel, and labels: bands of 1 to 3, spots of 4 and 5."""
    rng = np.random.default_rng(seed)
    cube = rng.integers(0, 9999, (HEIGHT, WIDTH, CHANNELS)).astype(np.uint16)
    cube[..., 0] = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    labels = (np.arange(WIDTH)[None] // 9 % 4) * np.ones((HEIGHT, 1), int)
    labels[rng.random((HEIGHT, WIDTH)) < 0.4] = 0
    labels[10:12, 20:22] = labels[40:42, 50:52] = 4  # can be in two splits
    labels[30:32, 60:62] = 5  # cannot
    return {"cube": cube, "labels": labels.astype(np.uint8)}


def cut(folder, scene=None, size=5, **options):
    np.savez(folder / "scene.npz", **(field() if scene is None else scene))
    return patches.cut(folder / "scene.npz", folder / "out", size, **options)


def fault(folder, scene=None, **options):
    message = refusal(cut, folder, scene, **options)
    assert not (folder / "out").exists()
    assert [path.name for path in folder.iterdir() if path.name.startswith("out.")] == []
    return message


@pytest.fixture(autouse=True)
def short_search(monkeypatch):
    monkeypatch.setattr(patches, "DRAWS", 30)
    monkeypatch.setattr(patches, "MOVES", 30)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    return cut(folder), folder / "out"


def test_patches_are_centred_on_pixels_of_their_class_and_mirrored_at_the_edge(made):
    _, out = made
    scene, names = field(), listing.read(out).class_names
    padded = np.pad(scene["cube"], ((2, 2), (2, 2), (0, 0)), mode="reflect")
    seen = 0
    for split in listing.read(out).splits.values():
        for path, label in zip(split.paths, split.labels, strict=True):
            row, column = map(int, path.removeprefix("patches/").removesuffix(".npy").split("_"))
            assert str(scene["labels"][row, column]) == names[label]
            np.testing.assert_array_equal(np.load(out / path), padded[row : row + 5, column : column + 5])
            seen += row < 2 or column < 2
    assert seen > 20


def test_no_pixel_is_in_two_splits_and_each_patch_in_one(made):
    _, out = made
    splits = listing.read(out).splits.values()
    pixels = [{value for path in split.paths for value in np.load(out / path)[..., 0].ravel()} for split in splits]
    for i, one in enumerate(pixels):
        for other in pixels[:i]:
            assert not one & other
    assert min(map(len, pixels)) > 100
    paths = [path for split in splits for path in split.paths]
    assert sorted(paths) == sorted(path.relative_to(out).as_posix() for path in (out / "patches").iterdir())


def test_every_class_that_can_be_is_in_train_and_test(made):
    lines, out = made
    images = listing.read(out)
    assert {"1", "2", "3", "4"} <= set(images.class_names)
    for split in ("train", "test"):
        found = {images.class_names[label] for label in images.splits[split].labels}
        assert {"1", "2", "3", "4"} <= found
    counts = [len(images.splits[split].paths) for split in image_set.SPLITS]
    assert lines[0] == f"{counts[0]} train, {counts[1]} val, {counts[2]} test patches of 5 x 5 x 4 in {out}"
    assert counts[0] > counts[2] > 0
    assert [line for line in lines if line.startswith("class 5 ")]
    total = (field()["labels"] > 0).sum()
    assert lines[-1] == f"{total - sum(counts)} of {total} labelled pixels are not used"


def test_a_class_that_train_cannot_have_is_left_out_with_a_line(tmp_path, monkeypatch):
    scene = field()
    parts = np.where(scene["labels"] > 0, 0, -1).astype(np.int8)
    parts[:, 30:] = np.where(scene["labels"][:, 30:] > 0, 2, -1)
    parts[:, :12] = np.where(scene["labels"][:, :12] > 0, 1, -1)
    monkeypatch.setattr(patches, "divide", lambda *_: parts.copy())
    lines = cut(tmp_path, scene)
    images = listing.read(tmp_path / "out")
    assert images.class_names == ("1", "2", "3", "4")
    assert "class 5 is left out: none of its 4 pixels can be in train" in lines
    assert "class 4 has no patch in val" in lines
    labels = scene["labels"]
    assert len(images.splits["test"].paths) == ((parts == 2) & (labels != 5)).sum()


def test_the_seed_decides(tmp_path):
    labels = field()["labels"].astype(np.int64)
    first, again, other = (patches.divide(labels, 9, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("reach", [0, 1, 4, 30])
def test_within_is_the_distance_in_rows_and_columns(reach):
    mask = np.random.default_rng(0).random((12, 17)) < 0.02
    rows, columns = np.mgrid[:12, :17]
    near = [np.maximum(abs(rows - row), abs(columns - column)) <= reach for row, column in np.argwhere(mask)]
    np.testing.assert_array_equal(patches._within(mask, reach), np.any(near, 0))


@pytest.mark.parametrize("size", [1, 7])
def test_splits_lie_apart_by_the_size_of_a_patch(size):
    drawn = np.random.default_rng(size).integers(0, 4, (40, 50))
    parts = patches.divide(drawn, size, 0)
    assert (parts[drawn == 0] == -1).all()
    places = [np.argwhere(parts == place) for place in range(3)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert len(places[one])
        assert np.abs(places[one][:, None] - places[other][None]).max(2).min() >= size


def test_the_folder_trains_as_any_other(made):
    _, out = made
    images = listing.read(out)
    images = scan.apply(images, scan.scan(out, photos.below(out), workers=1))
    assert images.channels.names == ("0", "1", "2", "3")
    assert set(images.splits["train"].sizes) == {(5, 5)}
    assert images.dtype == "float32"
    assert WholeImages.load(images, 1)[images.splits["test"].paths[0]].shape == (5, 5, 4)


def test_more_channels_than_the_patch_is_wide_are_still_channels(tmp_path):
    scene = field()
    scene["cube"] = scene["cube"].repeat(3, 2)
    cut(tmp_path, scene, size=3)
    out = tmp_path / "out"
    images = scan.apply(listing.read(out), scan.scan(out, photos.below(out), workers=1))
    assert len(images.channels) == 12
    assert images.splits["val"].sizes[0] == (3, 3)


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("bands", np.array([450, 550, 650, 860])),
        pytest.param("names", np.array(list("RGBN")), marks=pytest.mark.slow),
    ],
)
def test_channels_have_the_scenes_names(tmp_path, key, named):
    cut(tmp_path, field() | {key: named})
    assert (tmp_path / "out" / "channels.txt").read_text().split() == [str(name) for name in named]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cube": None}, "scene.npz has no cube: wanted cube [height, width, channels] and labels [height, width]"),
        ({"labels": None}, "scene.npz has no labels: wanted cube"),
        ({"labels": np.zeros((5, 6), int)}, "has cube [60, 70, 4] and labels [5, 6]: wanted"),
        ({"labels": np.zeros((60, 70), int)}, "no pixel has a label"),
        ({"labels": np.zeros((60, 70))}, "labels must be whole numbers from 0, which stands for none"),
        ({"labels": np.full((60, 70), -1)}, "labels must be whole numbers from 0"),
        ({"cube": np.zeros((60, 70, 4), complex)}, "cube is complex128, wanted uint8 int8 uint16 int16"),
        ({"bands": np.arange(5)}, "bands names 5 channels, cube has 4"),
        ({"names": np.array(["a", "b", "a", "c"])}, "names 2: channel 'a' is named twice"),
        ({"names": np.array(["a", "b+c", "d", "e"])}, "names 1: a channel cannot be named 'b+c'"),
        ({"cube": np.array([{}])}, "scene.npz is not an .npz file of numbers: Object arrays cannot be loaded"),
        ({"labels": np.eye(60, 70, dtype=int)}, "is too small for three splits apart, with patches of 5: "),
    ],
)
def test_faults_of_a_scene_are_named(tmp_path, changes, message):
    scene = {key: value for key, value in (field() | changes).items() if value is not None}
    assert message in fault(tmp_path, scene)


def test_faults_of_size_and_folder_are_named(tmp_path):
    assert "the size of a patch must be odd, so that it has a centre; got 4" in fault(tmp_path, size=4)
    assert "patches of 61 pixels are larger than the scene, [60, 70]" in fault(tmp_path, size=61)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(UserError, match="full exists already: wanted a new or an empty folder"):
        patches.cut(tmp_path / "scene.npz", tmp_path / "full")
    with pytest.raises(UserError, match=r"none\.npz cannot be read: No such file"):
        patches.cut(tmp_path / "none.npz", tmp_path / "new")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match=r"text\.npz is not an \.npz file of numbers"):
        patches.cut(tmp_path / "text.npz", tmp_path / "new")
    (tmp_path / "scene.mat").write_bytes(b"MATLAB 5.0 MAT-file" * 9)
    with pytest.raises(UserError, match=r"scene\.mat is not an \.npz file: write its arrays as one, by numpy\.savez"):
        patches.cut(tmp_path / "scene.mat", tmp_path / "new")
    np.save(tmp_path / "array.npy", np.zeros((3, 3)))
    with pytest.raises(
        UserError, match=r"array\.npy is not an \.npz file of numbers: a single array, wanted one of cube"
    ):
        patches.cut(tmp_path / "array.npy", tmp_path / "new")


@pytest.mark.skipif(not REAL, reason="POLYCHROME_SCENE names no scene")
def test_a_real_scene(tmp_path):
    patches.cut(REAL, tmp_path / "out")
    images = listing.read(tmp_path / "out")
    with np.load(REAL) as scene:
        labels, channels = scene["labels"], scene["cube"].shape[2]
    large = {str(label) for label in np.unique(labels[labels > 0]) if (labels == label).sum() >= 100}
    for split in ("train", "test"):
        assert large <= {images.class_names[label] for label in images.splits[split].labels}
    images = scan.apply(images, scan.scan(tmp_path / "out", photos.below(tmp_path / "out"), workers=1))
    assert len(images.channels) == channels
    assert min(images.channels.std) > 0
