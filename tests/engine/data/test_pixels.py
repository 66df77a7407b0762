import dataclasses
import re

import numpy as np
import pytest
import torch

from polychrome.engine.channels.names import Channels
from polychrome.engine.data import image_set, loader
from polychrome.engine.data.files import decode
from polychrome.engine.data.readers import choice
from polychrome.engine.data.readers import whole as cached
from polychrome.engine.data.sets import scan
from polychrome.engine.data.stores.whole import WholeImages
from polychrome.engine.machine import memory
from tests.engine.data import image_kinds

BACKENDS = [choice.resolve("auto"), "torch"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Photos of many kinds and sizes, some of them in two splits."""
    root = tmp_path_factory.mktemp("photos")
    files = {name.replace(" ", "_"): content for name, content in image_kinds.accepted().items()}
    files |= {f"{side}.png": image_kinds.encoded(image_kinds.picture(side, 48), "PNG") for side in range(40, 60)}
    paths = image_kinds.write(root, files)
    splits = {
        name: image_set.Split(tuple(part), tuple(i % 2 for i in range(len(part))))
        for name, part in (("train", paths), ("val", paths[:5]), ("test", paths[-20:]))
    }
    return scan.apply(image_set.ImageSet(root, ("a", "b"), splits), scan.scan(root, paths, workers=1, cache=False))


@pytest.fixture(scope="module")
def decoded(images):
    return WholeImages.load(images, 2)


def create(images, backend, **options):
    defaults = {"split": "train", "size": 48, "batch_size": 8, "train": True, "workers": 1, "seed": 3}
    options = defaults | options
    return loader.Loader(images, options.pop("split"), backend=backend, **options)


def test_pixels_are_the_decoded_files_each_held_once(images, decoded):
    paths = images.splits["train"].paths
    assert len(decoded) == len(paths)
    for path in paths:
        np.testing.assert_array_equal(decoded[path], decode.rgb(images.root / path))
    assert decoded.values.nbytes == sum(3 * height * width for height, width in images.splits["train"].sizes)
    assert decoded.values.nbytes == WholeImages.bytes_needed(images)
    assert (decoded.channels, decoded.values.dtype) == (3, np.uint8)
    assert decoded[paths[0]].base is decoded[paths[1]].base


def test_bytes_needed_counts_channels_and_width_of_the_values(images):
    five = dataclasses.replace(images, dtype="float32", channels=Channels(tuple("abcde"), (0.0,) * 5, (1.0,) * 5))
    assert WholeImages.bytes_needed(five) == WholeImages.bytes_needed(images) // 3 * 5 * 4
    split = image_set.Split(("a.jpg",), (0,))
    with pytest.raises(ValueError, match="has no image sizes"):
        WholeImages.bytes_needed(image_set.ImageSet(images.root, ("a", "b"), {"train": split}))


@pytest.mark.parametrize("backend", sorted(set(BACKENDS)))
@pytest.mark.parametrize(("train", "size"), [(True, 48), (True, 17), (False, 48)])
def test_cached_batches_equal_the_other_backends_to_the_bit(images, decoded, backend, train, size):
    exact = [path for path in images.splits["train"].paths if not path.startswith(("png_16", "tiff_palette"))]
    split = images.splits["train"]
    keep = [split.paths.index(path) for path in exact]
    columns = (tuple(column[i] for i in keep) for column in (split.paths, split.labels, split.sizes))
    images = dataclasses.replace(images, splits={"train": image_set.Split(*columns)})
    options = {"train": train, "size": size}
    with create(images, backend, **options) as theirs, create(images, "dali", store=decoded, **options) as ours:
        for a, b in zip(ours.epoch(2), theirs.epoch(2), strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.labels, b.labels)
            assert a.images.stride() == b.images.stride()


def test_threads_change_nothing_and_kept_batches_are_not_overwritten(images, decoded):
    with create(images, "auto", store=decoded) as one, create(images, "auto", store=decoded, workers=3) as three:
        kept = [batch.images for batch in one.epoch(1)]
        copies = [batch.clone() for batch in kept]
        list(one.epoch(2))
        for a, b, c in zip(kept, copies, three.epoch(1), strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c.images)


def test_an_epoch_can_be_left_and_entered_in_the_middle(images, decoded):
    with create(images, "auto", store=decoded) as batches:
        whole = [batch.images for batch in batches.epoch(5)]
        next(batches.epoch(4))
        for a, b in zip(batches.epoch(5, start=2), whole[2:], strict=True):
            assert torch.equal(a.images, b)


def test_an_image_of_the_size_wanted_is_not_resized(images, decoded, monkeypatch):
    split = images.splits["train"]
    index = split.paths.index("48.png")
    only = dataclasses.replace(images, splits={"test": image_set.Split(("48.png",), (0,), (split.sizes[index],))})
    monkeypatch.setattr("polychrome.engine.data.readers.resizing.F.interpolate", None)
    with create(only, "auto", split="test", train=False, eval_crop=1.0, store=decoded) as batches:
        (batch,) = batches.epoch(0)
    np.testing.assert_array_equal(batch.images[0].permute(1, 2, 0).numpy(), decoded["48.png"])


def test_a_fault_in_a_thread_is_raised_where_the_batch_is_read(images, decoded, monkeypatch):
    monkeypatch.setattr(cached, "cropped", lambda *_: 1 / 0)
    with create(images, "auto", store=decoded) as batches, pytest.raises(ZeroDivisionError):
        next(batches.epoch(0))


def test_images_that_were_not_loaded_are_refused(images, decoded):
    few = dataclasses.replace(
        images, splits={"train": image_set.Split(("new.png", "48.png"), (0, 1), ((9, 9), (48, 48)))}
    )
    with pytest.raises(ValueError, match=r"1 of 2 images are not in the store, such as new\.png"):
        create(few, "auto", store=decoded)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "can no longer be read: .*No such file"),
        (b"x", "can no longer be read: cannot identify"),
        (image_kinds.encoded(image_kinds.picture(9, 9), "PNG"), r"has changed: wanted \[8, 9, 3\], got \[9, 9, 3\]"),
    ],
)
def test_a_file_that_changed_since_the_scan_is_left_out(tmp_path, content, reason):
    (tmp_path / "b.png").write_bytes(image_kinds.encoded(image_kinds.picture(8, 9), "PNG"))
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    split = image_set.Split(("a.png", "b.png"), (0, 1), ((8, 9), (8, 9)))
    found = WholeImages.load(image_set.ImageSet(tmp_path, ("a", "b"), {"train": split}), 1)
    assert list(found.faults) == ["a.png"]
    assert re.match(reason, found.faults["a.png"])
    assert "\n" not in found.faults["a.png"]
    assert "a.png" not in found
    np.testing.assert_array_equal(found["b.png"], decode.rgb(tmp_path / "b.png"))


def test_progress_counts_images(images):
    calls = []
    WholeImages.load(images, 2, lambda *now: calls.append(now))
    total = len(images.splits["train"].paths)
    assert calls == [*((done, total) for done in range(64, total, 64)), (total, total)]


def group(folder, **files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def machine(tmp_path, cgroup):
    group(tmp_path / "proc" / "self", cgroup=cgroup)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:       9000 kB\nMemAvailable:       4000 kB\n")
    return tmp_path / "proc", tmp_path / "sys"


def test_memory_is_what_the_machine_has_where_no_group_limits_it(tmp_path):
    proc, groups = machine(tmp_path, "0::/a\n")
    assert memory.available(proc, groups) == 4000 * 1024
    group(groups / "a", memory__max="max\n", memory__current="5\n", memory__stat="inactive_file 0\n")
    assert memory.available(proc, groups) == 4000 * 1024


def test_the_tightest_group_counts_without_what_it_can_give_back(tmp_path):
    proc, groups = machine(tmp_path, "0::/a/b\n")
    group(groups / "a" / "b", memory__max="max\n", memory__current="5\n", memory__stat="inactive_file 0\n")
    for name, content in {"max": "100000", "current": "70000", "stat": "anon 9\ninactive_file 20000\n"}.items():
        (groups / "a" / f"memory.{name}").write_text(content)
    assert memory.available(proc, groups) == 50000


def test_groups_of_the_first_version_count_too(tmp_path):
    proc, groups = machine(tmp_path, "3:cpuset:/\n4:memory:/job\n0::/\n")
    names = {"limit_in_bytes": "90000", "usage_in_bytes": "95000", "stat": "total_inactive_file 1000\n"}
    group(groups / "memory" / "job", **{f"memory__{name}": content for name, content in names.items()})
    assert memory.available(proc, groups) == 0


def test_this_machine_has_some_memory(tmp_path):
    assert memory.available() > 2**20
    assert memory.available(tmp_path, tmp_path) > 2**20  # no /proc here: all that is built in


@pytest.mark.gpu
def test_batches_on_the_gpu_equal_those_on_the_cpu(images, decoded):
    with (
        create(images, "auto", store=decoded, device="cuda") as ours,
        create(images, "auto", store=decoded) as theirs,
    ):
        kept = list(ours.epoch(1))
        for a, b in zip(kept, theirs.epoch(1), strict=True):
            assert a.images.is_cuda
            assert a.images.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(a.images.cpu(), b.images)
