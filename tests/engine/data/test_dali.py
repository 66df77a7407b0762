"""Files that can no longer be decoded in the middle of an epoch, in the DALI backend."""

import io
import tarfile

import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali")

from polychrome.engine.data.batches import BatchRequest
from polychrome.engine.data.readers import dali
from tests.engine.data import image_kinds, photos

BATCH, BATCHES, SIZE = 4, 7, 24
COUNT = BATCH * BATCHES


def file_name(i):
    return f"{i:02d}.jpg"


def work(indices):
    indices = np.array(indices)
    crops = np.stack([indices % 5, indices % 7, 40 + indices % 3, 50 - indices % 4], 1)
    return BatchRequest(indices, crops, indices % 2 == 0)


PLAN = [work(range(start, start + BATCH)) for start in range(0, COUNT, BATCH)]


@pytest.fixture
def root(tmp_path):
    pictures = {
        file_name(i): image_kinds.encoded(image_kinds.picture(60, 70, seed=i), "JPEG", quality=90) for i in range(COUNT)
    }
    image_kinds.write(tmp_path, pictures)
    return tmp_path


@pytest.fixture
def reader(root):
    reader = make(root)
    yield reader
    reader.close()


def make(root, paths=None, workers=2):
    paths = paths or [file_name(i) for i in range(COUNT)]
    return dali.DaliReader(photos.reading(root, paths, SIZE, BATCH, workers))


def whole(root):
    reader = make(root)
    images = torch.cat([source.images for source, _ in reader.read(PLAN)])
    reader.close()
    return images


def spoil(root, i):
    """Truncate an even file, delete an odd one."""
    file = root / file_name(i)
    if i % 2:
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])


def check(batches, expected, bad):
    """Assert that the batches are those requested, each once, with faults at `bad` and the other images unharmed."""
    assert [source.shape[0] for source, _ in batches] == [BATCH] * BATCHES
    found = {number * BATCH + i: reason for number, (_, faults) in enumerate(batches) for i, reason in faults.items()}
    assert sorted(found) == sorted(bad)
    assert all("\n" not in reason for reason in found.values())
    good = [i for i in range(COUNT) if i not in bad]
    assert torch.equal(torch.cat([source.images for source, _ in batches])[good], expected[good])
    return found


@pytest.mark.parametrize(
    "bad",
    [[0], [COUNT - 1], [0, 3, COUNT - 4, COUNT - 1], [4, 9, 10, 13, 18], [8, 9, 10, 11], list(range(0, COUNT, 2))],
)
def test_spoilt_files_are_faults_and_all_other_images_stay_what_they_were(root, reader, bad):
    expected = whole(root)
    for i in bad:
        spoil(root, i)
    for _ in range(3):  # the same faults come back in every epoch
        found = check(list(reader.read(PLAN)), expected, bad)
    assert all(("No such file" if i % 2 else "truncated") in reason for i, reason in found.items())


def test_files_spoilt_between_batches(root, reader):
    expected, batches = whole(root), []
    for number, batch in enumerate(reader.read(PLAN)):
        batches.append(batch)
        if number == 0:
            spoil(root, COUNT - 2)
        if number == 1:
            spoil(root, COUNT - 9)
    check(batches, expected, [COUNT - 9, COUNT - 2])


def test_a_batch_after_a_known_fault_needs_no_new_pipeline(root, reader):
    spoil(root, 5)
    list(reader.read(PLAN))
    pipeline = reader._pipeline
    assert [sorted(faults) for _, faults in reader.read(PLAN)] == [[], [1], *[[]] * 5]
    assert reader._pipeline is pipeline


def test_a_repaired_file_is_read_again(root, reader):
    expected, content = whole(root), (root / file_name(6)).read_bytes()
    spoil(root, 6)
    check(list(reader.read(PLAN)), expected, [6])
    (root / file_name(6)).write_bytes(content)
    for _ in range(2):
        check(list(reader.read(PLAN)), expected, [])


def test_an_epoch_left_before_a_fault_it_had_prefetched_does_no_harm(root, reader):
    expected = whole(root)
    spoil(root, BATCH)
    left = reader.read(PLAN)
    next(left)
    left.close()
    check(list(reader.read(PLAN)), expected, [BATCH])


def test_a_smaller_image_in_a_files_place_is_a_fault(root, reader):
    expected = whole(root)
    image_kinds.write(root, {file_name(9): image_kinds.encoded(image_kinds.picture(20, 20), "JPEG")})
    found = check(list(reader.read(PLAN)), expected, [9])
    assert found[9] == "has changed: wanted at least [44, 51], got [20, 20]"


def test_whole_files_that_the_pipeline_fails_at_are_its_own_fault(root, reader):
    too_large = [work(range(BATCH + 1))] * 12
    with pytest.raises(RuntimeError, match="batch"):
        list(reader.read(too_large))


@pytest.mark.parametrize("bad", [[], [0, 3, COUNT - 1], [8, 9, 10, 11]])
def test_files_in_a_tar_give_the_same_images_and_faults(root, tmp_path, bad):
    expected, rng = whole(root), np.random.default_rng(0)
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for i in range(COUNT):
            content = (root / file_name(i)).read_bytes()
            if i in bad:
                content = content[: len(content) // 2] + rng.bytes(50)
            member = tarfile.TarInfo(file_name(i))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    reader = make(tmp_path, [f"set.tar/{file_name(i)}" for i in range(COUNT)])
    for _ in range(2):
        check(list(reader.read(PLAN)), expected, bad)
    reader.close()


def test_faults_in_the_pipeline_that_a_gpu_runs(root, reader):
    """Built on the CPU: a batch with a fault is Pillow's when the fault is met, later only the image with the fault."""

    def on_the_cpu():
        return dali.resized(lambda: next(reader._inputs), SIZE, "cpu", device_id=None, **reader._options)

    reader._built, reader._pipeline, reader._on_cpu = on_the_cpu, None, reader._on_cuda
    expected, bad = torch.cat([source.images for source, _ in reader.read(PLAN)]), [5, COUNT - 1]
    for i in bad:
        spoil(root, i)
    first, second = list(reader.read(PLAN)), list(reader.read(PLAN))
    for batches in (first, second):
        assert {4 * number + i for number, (_, faults) in enumerate(batches) for i in faults} == set(bad)
        assert all(source.images.is_contiguous(memory_format=torch.channels_last) for source, _ in batches)
    good = [i for i in range(COUNT) if i not in bad]
    ours = torch.cat([source.images for source, _ in first])[good].int()
    assert (ours - expected[good].int()).abs().float().mean((1, 2, 3)).max() < 1
    assert torch.equal(torch.cat([source.images for source, _ in second])[good], expected[good])


def of_all_kinds(root):
    """Return a split of every accepted kind of photo twice, scanned, and the positions that EXIF data rotates."""
    files = image_kinds.accepted()
    images = photos.scanned(
        root, image_kinds.write(root, {f"{name} {i}": files[name] for i in range(2) for name in files})
    )
    paths = images.splits["train"].paths
    rotated = {i for i, path in enumerate(paths) if "exif" in path and "exif 1 " not in path}
    return photos.reading_of(images, 24, 8), rotated


@pytest.fixture
def nothing_known(monkeypatch):
    """Let no encoding have been tried before."""
    monkeypatch.setattr(dali, "_agrees", {})


@pytest.mark.usefixtures("nothing_known")
def test_photos_of_every_kind_come_out_of_the_pipeline_that_a_gpu_runs_as_pillow_decodes_them(tmp_path):
    reading, _ = of_all_kinds(tmp_path)
    assert dali.decoded_otherwise(reading) == set()


@pytest.mark.usefixtures("nothing_known")
def test_kinds_that_come_out_otherwise_are_found_and_told_once(tmp_path, monkeypatch):
    """As on an H200 with DALI 2.4, whose decoder took orientation 7 for another."""
    reading, rotated = of_all_kinds(tmp_path)
    decoder = dali.fn.decoders.image_slice
    with monkeypatch.context() as patch:
        patch.setattr(dali.fn.decoders, "image_slice", lambda *a, **how: decoder(*a, **how, adjust_orientation=False))
        said = []
        patch.setattr(dali.console, "say", said.append)
        found = dali.decoded_otherwise(reading)
    paths = reading.chosen.paths
    # as an MPO or a TIFF, DALI rotates it whatever it is told
    assert {paths[i] for i in rotated - found} <= {"tiff exif 0", "tiff exif 1"}
    assert found <= rotated
    kinds = {reading.images.encodings[paths[i]] for i in found}
    assert len(said) == len(kinds) >= 8
    assert all(any(line.endswith(kind) for line in said) for kind in kinds)
    assert dali.decoded_otherwise(reading) == found


@pytest.mark.usefixtures("nothing_known")
def test_photos_that_tell_nothing_are_no_evidence(tmp_path):
    """A file that is gone beside whole ones of its kind does not count; photos of one colour alone are not enough."""
    flat = np.full((60, 70, 3), 77, np.uint8)
    pictures = {f"{i}.jpg": image_kinds.encoded(image_kinds.picture(60, 70, seed=i), "JPEG") for i in range(4)}
    pictures |= {f"{i}.png": image_kinds.encoded(flat, "PNG") for i in range(2)}
    reading = photos.reading_of(photos.scanned(tmp_path, image_kinds.write(tmp_path, pictures)), 24, 8)
    (tmp_path / "0.jpg").unlink()
    assert {reading.chosen.paths[i] for i in dali.decoded_otherwise(reading)} == {"0.png", "1.png"}


@pytest.mark.parametrize("on_gpu", [False, True], ids=["cpu", "the pipeline that a GPU runs"])
def test_photos_for_pillow_are_never_taken_from_dali(root, reader, on_gpu, monkeypatch):
    """A single one, some of a batch, and a whole batch."""
    if on_gpu:

        def on_the_cpu():
            return dali.resized(lambda: next(reader._inputs), SIZE, "cpu", device_id=None, **reader._options)

        reader._built, reader._pipeline, reader._on_cpu = on_the_cpu, None, reader._on_cuda
    expected = whole(root)
    reader._by_hand, by_pillow, decoded = frozenset([2, 5, 6, 12, 13, 14, 15]), [], reader._by_pillow

    def noted(request, i, faults):
        by_pillow.append(int(request.indices[i]))
        return decoded(request, i, faults)

    monkeypatch.setattr(reader, "_by_pillow", noted)
    for _ in range(2):
        by_pillow.clear()
        batches = list(reader.read(PLAN))
        assert sorted(by_pillow) == sorted(reader._by_hand)
        assert not any(faults for _, faults in batches)
        images = torch.cat([source.images for source, _ in batches])
        left_out = sorted(reader._by_hand)
        assert torch.equal(images[left_out], expected[left_out])
        assert (images.int() - expected.int()).abs().float().mean((1, 2, 3)).max() < 1
