import gzip
import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR100, cifar

from polychrome.engine.data import loader
from polychrome.engine.data.sets import cifar100
from tests.refusals import refusal

CLASSES = ("apple", "bear", "cloud")
PER_CLASS = {"train": 20, "test": 4}
FOLDER, ARCHIVE = "cifar-100-python", "cifar-100-python.tar.gz"
REAL = {"tgz_md5": CIFAR100.tgz_md5, "train_list": CIFAR100.train_list}


def planes(part):
    """Return uint8 [images, 3, 32, 32], as the official files store them."""
    count = len(CLASSES) * PER_CLASS[part]
    return np.random.default_rng(len(part)).integers(0, 256, (count, 3, 32, 32)).astype(np.uint8)


def labels(part):
    return [i % len(CLASSES) for i in range(len(CLASSES) * PER_CLASS[part])]


@pytest.fixture
def contents(monkeypatch):
    """A small set in the official layout, with the checksums of its files in place of the official ones."""
    files = {"meta": pickle.dumps({"fine_label_names": list(CLASSES), "coarse_label_names": ["x"]})}
    for part in ("train", "test"):
        data = planes(part).reshape(-1, 3072)
        entry = {"data": data, "fine_labels": labels(part), "coarse_labels": [0] * len(data), "filenames": []}
        files[part] = pickle.dumps(entry, protocol=2)
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": sums["meta"]})
    monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5(archived(files)).hexdigest())
    return files


def archived(files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(stream.getvalue(), mtime=0)


def unpacked(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def fault(*arguments, **options):
    return refusal(cifar100.read, *arguments, **options)


FORMS = ["folder around", "folder itself", "folder by another name", "archive in folder", "archive by another name"]


@pytest.mark.parametrize("form", FORMS)
def test_official_files_are_read_in_each_form(tmp_path, contents, form):
    kind, _, way = form.partition(" ")
    place = tmp_path / ("other" if way == "by another name" else {"folder": FOLDER, "archive": ARCHIVE}[kind])
    if kind == "folder":
        unpacked(place, contents)
    else:
        place.write_bytes(archived(contents))
    root = tmp_path if way in ("around", "in folder") else place
    before = sorted(tmp_path.rglob("*"))
    images, pixels = cifar100.read(root)
    assert images.class_names == CLASSES
    assert len(pixels) == 72
    for part in ("train", "test"):
        for i, expected in enumerate(planes(part)):
            np.testing.assert_array_equal(pixels[f"{part}/{i:05d}"].transpose(2, 0, 1), expected)
    assert images.splits["test"].paths == tuple(f"test/{i:05d}" for i in range(12))
    assert images.splits["test"].labels == tuple(labels("test"))
    assert sorted(tmp_path.rglob("*")) == before
    assert images.root == place


def test_a_tenth_of_each_class_is_held_out_by_the_seed(tmp_path, contents):
    unpacked(tmp_path / "cifar-100-python", contents)
    (images, _), (again, _), (other, _) = (cifar100.read(tmp_path, seed) for seed in (0, 0, 1))
    assert images == again
    assert images.splits["val"] != other.splits["val"]
    assert images.splits["test"] == other.splits["test"]
    train, val = images.splits["train"], images.splits["val"]
    assert sorted(train.paths + val.paths) == [f"train/{i:05d}" for i in range(60)]
    for split, count in ((train, 18), (val, 2)):
        assert np.bincount(split.labels).tolist() == [count] * 3
        assert list(split.labels) == [labels("train")[int(path[6:])] for path in split.paths]
        assert split.sizes == ((32, 32),) * 3 * count


def test_batches_have_the_official_pixels(tmp_path, contents):
    unpacked(tmp_path / "cifar-100-python", contents)
    images, decoded = cifar100.read(tmp_path)
    options = {"size": 32, "batch_size": 12, "train": False, "eval_crop": 1.0, "store": decoded}
    with loader.Loader(images, "test", **options) as batches:
        (batch,) = batches.epoch(0)
    assert torch.equal(batch.images, torch.from_numpy(planes("test")))
    assert batch.labels.tolist() == labels("test")


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_wrong_checksum_names_the_file_and_nothing_is_unpickled(tmp_path, contents, monkeypatch, name):
    folder = unpacked(tmp_path / "cifar-100-python", contents)
    (folder / name).write_bytes(contents[name] + b"x")
    monkeypatch.setattr(cifar.pickle, "load", None)
    message = fault(tmp_path)
    assert message.startswith(f"{folder / name} is not the official file (MD5 ")
    assert message.endswith(": unpack cifar-100-python.tar.gz again")


def test_other_files_than_the_official_ones_are_refused_by_the_real_checksums(tmp_path, contents, monkeypatch):
    unpacked(tmp_path / "a" / "cifar-100-python", contents)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "cifar-100-python.tar.gz").write_bytes(archived(contents))
    for name, value in REAL.items():
        monkeypatch.setattr(CIFAR100, name, value)
    assert "train is not the official file (MD5 " in fault(tmp_path / "a")
    assert "wanted 16019d7e3df5f24257cddd939b257f8d" in fault(tmp_path / "a")
    message = fault(tmp_path / "b")
    assert "cifar-100-python.tar.gz is not the official file (MD5 " in message
    assert f"wanted eb9058c3a382ffc7106e4002c42a8d85): download it again, from {CIFAR100.url}" in message


def test_a_folder_without_the_files_is_the_users_fault(tmp_path, contents):
    assert "no CIFAR-100 in" in fault(tmp_path)
    folder = unpacked(tmp_path / "cifar-100-python", contents)
    (folder / "test").unlink()
    assert f"{folder / 'test'} cannot be read: No such file" in fault(tmp_path)


@pytest.fixture
def download(monkeypatch):
    """Have `torchvision` download what a test says: bytes that it puts in place, and an error after them."""

    def arrange(content, error=None):
        asked = []

        def download(url, root, filename, md5):
            asked.append((url, md5))
            Path(root, filename).write_bytes(content)
            if error is not None:
                raise error

        monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
        return asked

    return arrange


def test_a_download_goes_into_the_cache_once(contents, cache_home, download):
    asked = download(archived(contents))
    for _ in range(2):
        images, _ = cifar100.read()
        assert images.root == cache_home / FOLDER
    assert asked == [(CIFAR100.url, CIFAR100.tgz_md5)]
    assert os.listdir(cache_home) == [FOLDER]


def test_an_archive_in_the_cache_is_not_downloaded_again(contents, cache_home, download):
    asked = download(b"")
    cache_home.mkdir(parents=True, exist_ok=True)
    (cache_home / ARCHIVE).write_bytes(archived(contents))
    images, _ = cifar100.read()
    assert images.root == cache_home / ARCHIVE
    assert asked == []


def test_of_two_downloads_at_once_the_first_stays(contents, cache_home, monkeypatch, download):
    download(archived(contents))
    real = os.rename

    def late(source, target):
        unpacked(target, contents)
        real(source, target)

    monkeypatch.setattr(os, "rename", late)
    images, _ = cifar100.read()
    assert len(images.splits["test"].paths) == 12
    assert os.listdir(cache_home) == [FOLDER]


@pytest.mark.parametrize("error", [URLError("no route"), RuntimeError("File not found or corrupted."), OSError("full")])
def test_a_failed_download_names_both_ways_out_and_leaves_nothing(cache_home, download, error):
    download(b"part of it", error)
    message = fault()
    assert message.startswith("CIFAR-100 could not be downloaded (")
    assert f"put the official cifar-100-python.tar.gz into {cache_home}, or give --data a folder" in message
    assert os.listdir(cache_home) == []


def test_a_download_of_other_files_is_not_unpickled_and_leaves_nothing(contents, cache_home, download, monkeypatch):
    download(archived(contents | {"train": contents["test"]}))
    monkeypatch.setattr(cifar.pickle, "load", None)
    assert fault().startswith("CIFAR-100 could not be downloaded (Dataset not found or corrupted.")
    assert os.listdir(cache_home) == []


def test_an_archive_that_cannot_be_unpacked_says_where_room_is_wanted(tmp_path, contents, monkeypatch):
    (tmp_path / ARCHIVE).write_bytes(archived(contents))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    message = fault(tmp_path)
    assert message.startswith(f"{tmp_path / ARCHIVE} cannot be unpacked ([Errno 2] No such file or directory: ")
    assert message.endswith(": let TMPDIR name a folder with 200 MB free")


def test_without_a_download_both_ways_out_are_named(cache_home):
    assert fault(download=False) == (
        f"no CIFAR-100 in {cache_home}: put the official cifar-100-python.tar.gz into {cache_home}, "
        "or give --data a folder with list files"
    )


def test_find_tells_whether_a_folder_is_cifar100(tmp_path, contents):
    assert cifar100.find(tmp_path) is None
    folder = unpacked(tmp_path / "cifar-100-python", contents)
    assert cifar100.find(tmp_path) == cifar100.find(folder) == folder
