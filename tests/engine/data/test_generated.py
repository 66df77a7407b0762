import threading

import numpy as np
import pytest
from PIL import Image

from polychrome.engine.data.files import decode
from polychrome.engine.data.sets import generated, listing, scan

DRAW = generated._write  # in tests a fixture has the set drawn once, for all
FEW = {"train": 8, "val": 2, "test": 4}


@pytest.fixture(
    scope="module",
    params=[pytest.param(FEW, id="few"), pytest.param(generated.PER_CLASS, id="whole", marks=pytest.mark.slow)],
)
def per_class(request):
    """The images of each class, by split, with which the set is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generated, "PER_CLASS", request.param)
        if request.param is FEW:
            patch.setattr(generated, "_write", DRAW)
            patch.setattr(generated, "cpus", lambda: 1)  # other processes would draw the whole set
        yield request.param


@pytest.fixture(scope="module")
def root(per_class, tmp_path_factory):
    return generated.ensure(tmp_path_factory.mktemp("generated"))


def test_the_set_is_listed_scanned_and_balanced(root, per_class):
    images = listing.read(root)
    assert images.class_names[:2] == ("level disc", "level square")
    assert len(set(images.class_names)) == 50
    for name, count in per_class.items():
        assert np.bincount(images.splits[name].labels).tolist() == [count] * 50
    paths = [path for split in images.splits.values() for path in split.paths]
    assert len(set(paths)) == len(paths) == 50 * sum(per_class.values())
    report = scan.scan(root, paths, cache=False)
    assert report.rejected == ()
    sizes = np.array(list(report.sizes.values()))
    assert sizes.min() >= 72
    assert sizes.max() <= 160
    assert len(np.unique(sizes, axis=0)) > 0.3 * len(paths)
    assert (sizes[:, 0] != sizes[:, 1]).mean() > 0.8


def test_about_a_twelfth_is_stored_gray(root):
    modes = []
    for file in (root / "images").iterdir():
        with Image.open(file) as image:
            modes.append(image.mode)
    assert set(modes) == {"L", "RGB"}
    assert modes.count("L") / len(modes) == pytest.approx(generated.GRAY_SHARE, abs=0.02)


def test_mean_colour_tells_nothing_and_each_channel_has_contrast(root):
    images = listing.read(root)
    means, spreads = {}, []
    for name in ("train", "test"):
        decoded = [decode.rgb(root / path) for path in images.splits[name].paths]
        means[name] = np.array([pixels.mean((0, 1)) for pixels in decoded])
        spreads += [pixels.std((0, 1)).min() for pixels in decoded]
    labels = {name: np.array(images.splits[name].labels) for name in means}
    centres = np.array([means["train"][labels["train"] == label].mean(0) for label in range(50)])
    nearest = np.linalg.norm(means["test"][:, None] - centres, axis=2).argmin(1)
    assert (nearest == labels["test"]).mean() < 0.1
    assert min(spreads) > 12


def test_a_second_call_writes_nothing(root):
    before = {file.name: file.stat().st_mtime_ns for file in root.iterdir()}
    assert generated.ensure(root.parent) == root
    assert {file.name: file.stat().st_mtime_ns for file in root.iterdir()} == before
    assert [path.name for path in root.parent.iterdir()] == [root.name]


def test_racing_writers_leave_one_whole_set(tmp_path, monkeypatch):
    monkeypatch.setattr(generated, "_write", DRAW)
    monkeypatch.setattr(generated, "PER_CLASS", {"train": 1, "val": 1, "test": 1})
    monkeypatch.setattr(generated, "cpus", lambda: 1)
    threads = [threading.Thread(target=generated.ensure, args=(tmp_path,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (folder,) = tmp_path.iterdir()
    assert len(list((folder / "images").iterdir())) == 150


def test_an_interrupted_writer_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(generated, "_write", lambda folder: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        generated.ensure(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_default_place_is_the_users_cache(cache_home, monkeypatch):
    monkeypatch.setattr(generated, "_write", lambda folder: None)
    assert generated.ensure() == cache_home / f"generated-v{generated.VERSION}"
