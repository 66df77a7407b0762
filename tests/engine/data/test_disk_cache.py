import json
import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from polychrome.engine.data import image_set, loader, opening
from polychrome.engine.data.arrangement import Arrangement
from polychrome.engine.data.files import decode
from polychrome.engine.data.sets import scan
from polychrome.engine.data.stores import disk
from polychrome.engine.data.stores.placement import choose_placement
from polychrome.engine.errors import StorageError
from tests import disks
from tests.engine.data import image_kinds, photos

CPU = torch.device("cpu")
FORMS = ["host", "device"]  # whole images, and squeezed ones


@pytest.fixture
def images(tmp_path):
    return photos.write(tmp_path / "photos", photos.sizes(20), (("train", 1.0), ("val", 0.5)))


@pytest.fixture
def said():
    return []


@pytest.fixture
def decoded(monkeypatch):
    """The files decoded from here on."""
    calls, rgb = [], decode.rgb
    monkeypatch.setattr(decode, "rgb", lambda file: calls.append(os.path.basename(file)) or rgb(file))
    return calls


def start(images, cache, said):
    """Do what the start of a run does, and return the images kept and their disk cache."""
    chosen = choose_placement(images, cache, CPU, 40)
    entry = opening.disk_cache(images, chosen, "torch", CPU, 2, said.append)
    found = opening.load_store(images, chosen, entry)
    if found is None:
        found = opening.decode(images, chosen, "torch", CPU, 0 if cache == "device" else 1)
        entry.save(found.values, found.faults)
    return found, entry


def again(images):
    return photos.scanned(images.root, list(images.splits["train"].paths), (("train", 1.0), ("val", 0.5)))


def entries(cache_home):
    return sorted((cache_home / "images").iterdir())


@pytest.mark.parametrize("cache", FORMS)
def test_the_second_start_decodes_nothing(images, said, decoded, cache):
    first, _ = start(images, cache, said)
    assert sorted(decoded) == sorted(images.splits["train"].paths)
    decoded.clear()
    second, _ = start(images, cache, said)
    assert decoded == said == []
    assert type(second) is type(first)
    assert (len(second), second.values.nbytes) == (len(first), first.values.nbytes)
    np.testing.assert_array_equal(np.asarray(second.values), np.asarray(first.values))


def test_float_stacks_are_kept_too(tmp_path, said):
    values = np.random.default_rng(0).normal(size=(6, 9, 11, 5)).astype(np.float32)
    for number, image in enumerate(values):
        np.save(tmp_path / f"{number}.npy", image)
    images = photos.scanned(tmp_path, [f"{number}.npy" for number in range(6)])
    start(images, "device", said)
    found, _ = start(images, "device", said)
    for number, image in enumerate(values):
        np.testing.assert_array_equal(found[f"{number}.npy"], image)
    assert not found.values.flags.writeable


def test_both_forms_and_several_backends_are_kept_beside_each_other(images, said, cache_home):
    for cache in FORMS:
        start(images, cache, said)
    chosen = choose_placement(images, "device", CPU, 40)
    keys = {opening.disk_cache(images, chosen, backend, CPU, 1, said.append).key for backend in ("torch", "synthetic")}
    assert len(keys) == len(entries(cache_home)) == 2


@pytest.mark.parametrize("cache", FORMS)
def test_a_changed_file_is_decoded_again_and_the_old_entry_goes(images, said, decoded, cache, cache_home):
    start(images, cache, said)
    (old,) = entries(cache_home)
    changed = images.root / images.splits["train"].paths[3]
    changed.write_bytes((images.root / images.splits["train"].paths[4]).read_bytes())
    decoded.clear()
    found, entry = start(again(images), cache, said)
    assert len(decoded) >= 20
    assert entries(cache_home) == [entry.folder] != [old]
    fresh = opening.decode(
        again(images), choose_placement(again(images), cache, CPU, 40), "torch", CPU, cache == "host"
    )
    np.testing.assert_array_equal(np.asarray(found.values), np.asarray(fresh.values))
    os.utime(changed, ns=(1, 1))  # of equal content
    unchanged = again(images)
    decoded.clear()
    start(unchanged, cache, said)
    assert entries(cache_home) == [entry.folder]
    assert said == decoded == []


WAYS = ["the folder", "a folder in it", "files", "overwritten", "renamed over"]


def put(way, root, version):
    """Have the files of a version, which differ from another's in their content alone, in `root`."""
    other, place = root.with_name(f"version {version}"), root / "set"
    root.mkdir(exist_ok=True)
    if way in ("the folder", "a folder in it"):
        place = place if way == "the folder" else place / "x"
        place.parent.mkdir(exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(other if way == "the folder" else other / "x")
        return
    (place / "x").mkdir(parents=True, exist_ok=True)
    for file in (other / "x").iterdir():
        target = place / "x" / file.name
        if way == "files":
            target.unlink(missing_ok=True)
            target.symlink_to(file)
        elif way == "overwritten":
            shutil.copy2(file, target)
        else:
            os.replace(shutil.copy2(file, root / "draft"), target)


@pytest.mark.parametrize("cache", FORMS)
@pytest.mark.parametrize("way", WAYS)
def test_other_files_of_equal_size_and_time_in_the_place_of_files_are_decoded(tmp_path, said, cache, way):
    paths = tuple(f"x/{number}.bmp" for number in range(6))
    for version in range(2):
        for number, path in enumerate(paths):
            file = tmp_path / f"version {version}" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image_kinds.encoded(image_kinds.picture(9, 8, seed=2 * number + version), "BMP"))
            os.utime(file, (1_600_000_000,) * 2)
    counts = []
    for version in range(2):
        put(way, tmp_path / "data", version)
        expected = [decode.rgb(tmp_path / f"version {version}" / path) for path in paths]
        for _ in range(2):
            images = image_set.ImageSet(tmp_path / "data/set", ("a",), {"train": image_set.Split(paths, (0,) * 6)})
            report = scan.scan(images.root, paths, workers=1)
            found, _ = start(scan.apply(images, report), cache, said)
            counts.append(report.decoded)
            np.testing.assert_array_equal(np.asarray(found.values).reshape(-1), np.concatenate(expected, None))
        time.sleep(0.02)  # a tick of the clock of files
    assert counts == [6, 0, 6, 0]
    assert said == []


def test_a_scanned_set_is_found_without_a_look_at_its_files(images, said, monkeypatch):
    start(images, "host", said)
    monkeypatch.setattr(disk.Stamps, "of", None)
    start(images, "host", said)


def truncate(entry):
    os.truncate(entry / "values", 1000)


def flip_a_bit(entry):
    content = bytearray((entry / "values").read_bytes())
    content[len(content) // 2] ^= 4
    (entry / "values").write_bytes(content)


def lose_the_header(entry):
    (entry / "header.json").unlink()


def lose_the_values(entry):
    (entry / "values").unlink()


def cut_the_header(entry):
    os.truncate(entry / "header.json", 20)


def make_foreign(entry):
    header = json.loads((entry / "header.json").read_text())
    (entry / "header.json").write_text(json.dumps(header | {"key": "0" * 64}))


def write_a_list(entry):
    (entry / "header.json").write_text("[]")


@pytest.mark.parametrize("cache", FORMS)
@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (truncate, "1,000 bytes, wanted "),
        (flip_a_bit, "a checksum is wrong"),
        (lose_the_header, "No such file"),
        (lose_the_values, "No such file"),
        (cut_the_header, "damaged"),
        (make_foreign, "it belongs to another set"),
        (write_a_list, "damaged"),
    ],
)
def test_a_damaged_entry_is_named_and_made_again(images, said, decoded, cache, damage, why):
    first, entry = start(images, cache, said)
    damage(entry.folder)
    decoded.clear()
    second, _ = start(images, cache, said)
    assert len(decoded) == 20
    (line,) = said
    assert line.startswith(f"{entry.folder} is damaged (")
    assert line.endswith("): decoding again")
    assert why in line
    np.testing.assert_array_equal(np.asarray(second.values), np.asarray(first.values))
    decoded.clear()
    start(images, cache, said)
    assert decoded == []


def test_files_left_out_stay_left_out(images, said, decoded):
    (images.root / "7.png").write_bytes(b"no image")
    first, _ = start(images, "host", said)
    decoded.clear()
    second, _ = start(images, "host", said)
    assert decoded == []
    assert second.faults == first.faults
    assert list(second.faults) == ["7.png"]
    assert "7.png" not in second


def test_a_file_that_can_be_read_again_is_decoded(images, said, decoded):
    whole = (images.root / "7.png").read_bytes()
    (images.root / "7.png").write_bytes(b"no image")  # after the scan
    start(images, "host", said)
    (images.root / "7.png").write_bytes(whole)
    decoded.clear()
    found, _ = start(again(images), "host", said)
    assert len(decoded) >= 20
    assert not found.faults
    assert said == []


def test_chunks_do_not_change_what_is_kept(images, said, monkeypatch):
    monkeypatch.setattr(disk, "CHUNK", 1000)
    first, entry = start(images, "device", said)
    header = json.loads((entry.folder / "header.json").read_text())
    assert len(header["checksums"]) == 20 * 40 * 40 * 3 // 1000
    second, _ = start(images, "device", said)
    assert torch.equal(second.values, first.values)
    flip_a_bit(entry.folder)
    start(images, "device", said)
    assert len(said) == 1


def test_nothing_is_written_where_the_disk_has_not_twice_the_room(images, said, cache_home, monkeypatch):
    usage = shutil.disk_usage(images.root)
    needed = 20 * 40 * 40 * 3
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * needed - 1))
    start(images, "device", said)
    (line,) = said
    assert line == f"decoded images are not kept in {cache_home / 'images'}: 0.2 MB are free there, wanted twice 0.1 MB"
    assert entries(cache_home) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * needed))
    _, entry = start(images, "device", said)
    assert entries(cache_home) == [entry.folder]


def test_a_folder_that_cannot_be_written_to_is_no_error(images, said, cache_home):
    cache_home.mkdir(parents=True)
    (cache_home / "images").write_text("a file in the way")
    found, _ = start(images, "device", said)
    assert len(found) == 20
    (line,) = said
    assert line.startswith(f"decoded images are not kept in {cache_home / 'images'}: ")


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A file system of 1 MB that the cache is on."""
    place = tmp_path / "disk"
    with disks.small(place, "1m") as mounted:
        if not mounted:
            pytest.skip("no file system can be mounted here")
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        yield place


def test_a_disk_that_another_process_fills_meanwhile_is_no_error(images, said, small_disk, monkeypatch):
    usage = shutil.disk_usage

    def then_filled(path):
        found = usage(path)
        (small_disk / "other").write_bytes(bytes(found.free - 100_000))
        return found

    monkeypatch.setattr(shutil, "disk_usage", then_filled)
    found, entry = start(images, "device", said)
    assert len(found) == 20
    assert said == [f"decoded images are not kept in {entry.folder.parent}: No space left on device"]
    assert list(entry.folder.parent.iterdir()) == []
    (small_disk / "other").unlink()
    monkeypatch.setattr(shutil, "disk_usage", usage)
    start(images, "device", said)
    assert [path.name for path in entry.folder.parent.iterdir()] == [entry.folder.name]
    assert len(said) == 1


def test_a_disk_that_runs_full_in_the_middle_leaves_nothing_behind(tmp_path, said, cache_home):
    """As far as a process can tell: no file may grow beyond 40,000 bytes."""
    images = photos.write(tmp_path / "photos", [(8, 8)] * 3)
    with disks.quota(40_000):
        entry = disk.ImageCache(images, "whole", "definition", said.append)
        entry.save(np.zeros(100_000, np.uint8), {})
    (line,) = said
    assert line.startswith("decoded images are not kept in ")
    assert line.endswith("File too large")
    assert list(entry.folder.parent.iterdir()) == []


def test_what_a_killed_writer_left_is_removed_once_it_is_old(images, said, cache_home):
    _, entry = start(images, "device", said)
    for name, age in (("old", disk.STALE + 60), ("young", 0)):
        folder = entry.folder.with_name(f"{entry.folder.name}{name}.partial")
        folder.mkdir()
        (folder / "values").write_bytes(b"0")
        for path in (folder / "values", folder):
            os.utime(path, (path.stat().st_mtime - age,) * 2)
    shutil.rmtree(entry.folder)
    start(images, "device", said)
    assert entries(cache_home) == [entry.folder, entry.folder.with_name(f"{entry.folder.name}young.partial")]


def test_bands_that_two_files_have_the_other_way_round_are_other_pixels(tmp_path, said):
    for name in "ab":
        (tmp_path / name).write_bytes(b"1")
    split = image_set.Split(("a", "b"), (0, 1), ((8, 8), (8, 8)))
    images = image_set.ImageSet(tmp_path, ("x", "y"), {"train": split})
    one, other = Arrangement((1, 0)), Arrangement((0, -1))
    keys = {
        disk.ImageCache(replace(images, arrangements=held), "whole", "definition", said.append).key
        for held in ({"a": one}, {"b": one}, {"a": one, "b": other}, {"a": other, "b": one})
    }
    assert len(keys) == 4


def test_members_of_a_changed_tar_are_other_files(tmp_path, said):
    (tmp_path / "a.tar").write_bytes(b"1")
    split = image_set.Split(("a.tar/1.jpg", "a.tar/2.jpg"), (0, 1), ((8, 8), (8, 8)))
    images = image_set.ImageSet(tmp_path, ("a", "b"), {"train": split})
    first = disk.ImageCache(images, "whole", "definition", said.append).key
    assert disk.ImageCache(images, "whole", "definition", said.append).key == first
    (tmp_path / "a.tar").write_bytes(b"22")
    assert disk.ImageCache(images, "whole", "definition", said.append).key != first


@pytest.mark.parametrize("cache", FORMS)
def test_a_cached_file_that_is_cut_short_while_in_use_is_told_before_it_is_read(images, said, cache):
    start(images, cache, said)
    store, entry = start(images, cache, said)
    with loader.Loader(images, "train", train=True, size=24, batch_size=4, store=store) as batches:
        list(batches.epoch(1))
        os.truncate(entry.folder / "values", 100)  # reading on would end this process
        with pytest.raises(StorageError, match=r"values was cut short by another program.*decoded anew"):
            next(iter(batches.epoch(2)))
    again_, _ = start(again(images), cache, said)
    assert len(again_) == len(store)
    assert "is damaged" in said[-1]


def test_a_cached_file_that_is_removed_while_in_use_stays_readable(images, said):
    start(images, "device", said)
    store, entry = start(images, "device", said)
    with loader.Loader(images, "train", train=True, size=24, batch_size=4, store=store) as batches:
        shutil.rmtree(entry.folder)
        assert sum(map(len, batches.epoch(1))) == len(images.splits["train"].paths)
