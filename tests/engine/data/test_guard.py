"""No file that others wrote ends a run: whatever it holds, there is a verdict in bounded time and memory."""

import os
import resource
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from polychrome.engine.channels.names import RGB
from polychrome.engine.data.arrangement import Form
from polychrome.engine.data.conventions import Trained
from polychrome.engine.data.files import dali_check, decode, guard, stacks
from polychrome.engine.data.given import image_sets
from polychrome.engine.data.image_set import ImageSet, Split
from polychrome.engine.data.sets import inspection, listing, scan
from polychrome.engine.errors import Unsupported, UserError
from polychrome.engine.machine.workers import parallel_chunks
from polychrome.train.settings.config import read_toml
from tests.engine.data import crashing, image_kinds, mutations, tars


def verdict(file):
    return inspection.of_all([(str(file), Form())], dali_check.version() is not None)[0]


def large_png(height, width):
    """Return a small file of a PNG with so many black pixels of one bit."""
    rows = zlib.compress((b"\0" + bytes(-(-width // 8))) * height, 9)
    return image_kinds.png(width, height, 1, 0, rows)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [2000, pytest.param(20000, marks=pytest.mark.slow)])
def test_mutated_files_always_get_a_verdict_and_readers_agree(tmp_path, count):
    files, rng = mutations.whole(), np.random.default_rng(count)
    before, slowest, kinds, wrong = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0, set(), []
    file = tmp_path / "x"
    for _ in range(count):
        content = mutations.mutated(files[rng.integers(len(files))], rng)
        file.write_bytes(content)
        start = time.perf_counter()
        found = verdict(file)
        slowest = max(slowest, time.perf_counter() - start)
        kinds.add(type(found))
        if isinstance(found, str):
            assert found
            assert "\n" not in found
            continue
        channels, dtype = (3, "uint8") if isinstance(found, inspection.Photo) else (found.channels, found.dtype)
        image = stacks.read(file) if isinstance(found, inspection.Stack) else decode.rgb(file)
        if isinstance(found, inspection.Stack) and isinstance(photo := found.as_photo, inspection.Photo):
            assert decode.rgb(file).shape == (photo.height, photo.width, 3)
        if image.shape != (found.height, found.width, channels) or image.dtype != dtype:
            wrong.append(found)
    assert wrong == []
    assert kinds == {inspection.Photo, inspection.Stack, str}
    assert slowest < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 3 * 2**20  # kilobytes


def test_a_png_of_few_bytes_and_many_pixels_is_refused_with_what_to_do(tmp_path, monkeypatch):
    file = tmp_path / "x.png"
    file.write_bytes(large_png(14000, 14000))
    assert file.stat().st_size < 40_000
    expected = (
        "196,000,000 pixels, at most 178,956,970 are read: shrink it, cut it into tiles, or set POLYCHROME_MAX_PIXELS"
    )
    assert verdict(file) == expected
    with pytest.raises(UserError, match="196,000,000 pixels, at most"):
        image_sets((file,), Trained(RGB))[0][1]
    with pytest.raises(Unsupported, match="196,000,000 pixels, at most"):
        stacks.opener(ImageSet(tmp_path, ("a",), {}))("x.png")
    monkeypatch.setenv(guard.PIXELS_VARIABLE, "1000")
    file.write_bytes(large_png(50, 40))
    assert verdict(file).startswith("50 x 40 pixels, at most 1,000 are read: shrink it")
    np.save(tmp_path / "x.npy", np.zeros((40, 40, 2), np.uint8))
    assert verdict(tmp_path / "x.npy").startswith("40 x 40 x 2 values, at most 3,000 are read: ")


def test_the_bound_can_be_raised_and_has_to_be_a_number(tmp_path, monkeypatch):
    monkeypatch.setenv(guard.PIXELS_VARIABLE, "200000000")
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)
    (tmp_path / "x.png").write_bytes(large_png(80, 90))
    assert verdict(tmp_path / "x.png")[:2] == (80, 90)
    for text in ("many", "0", "-1", "1e9", "9" * 30):
        monkeypatch.setenv(guard.PIXELS_VARIABLE, text)
        with pytest.raises(UserError, match="POLYCHROME_MAX_PIXELS must be a number of pixels such as 178956970, got"):
            guard.most_pixels()


@pytest.mark.filterwarnings("ignore")
def test_mutated_tars_are_read_or_refused(tmp_path):
    rng, outcomes = np.random.default_rng(0), []
    photo = image_kinds.encoded(image_kinds.picture(9, 8), "PNG")
    members = {f"{i}.png": photo for i in range(6)} | {f"{i}.json": b'{"label": %d}' % (i % 2) for i in range(6)}
    content = tars.write(tmp_path / "whole.tar", members).read_bytes()
    for number in range(300):
        tar = tmp_path / f"{number}.tar"
        tar.write_bytes(mutations.mutated(content, rng))
        try:
            images = listing.read(tar)
            paths = [path for split in images.splits.values() for path in split.paths]
            scan.scan(images.root, paths, workers=1, cache=False)
            assert images.account.used == len(paths)
            outcomes.append("")
        except UserError as error:
            outcomes.append(str(error))
    assert 10 < sum(bool(outcome) for outcome in outcomes) < 290
    assert not any("\n" in outcome for outcome in outcomes)


def test_text_that_is_nested_too_deeply_is_a_fault_of_its_file(tmp_path):
    deep = b"[" * 100_000
    tar = tars.write(tmp_path / "set.tar", {"0.png": b"x", "0.json": b'{"label": ' + deep})
    with pytest.raises(UserError, match=r"0\.json: wanted JSON, got"):
        listing.read(tar)
    (tmp_path / "settings.toml").write_bytes(b"models = " + deep)
    with pytest.raises(UserError, match=r"settings\.toml is not valid TOML"):
        read_toml(tmp_path / "settings.toml")


def test_pipes_devices_and_folders_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "null.png").symlink_to("/dev/zero")
    with ThreadPoolExecutor(1) as pool:  # opening a pipe would wait for a writer
        found = [
            pool.submit(verdict, tmp_path / f"{name}.png").result(timeout=20) for name in ("pipe", "folder", "null")
        ]
    other = "a pipe, a socket or a device, wanted a file"
    assert found == [other, "a folder, wanted a file", other]


def test_whatever_a_decoder_raises_is_a_fault_of_the_file():
    for error, kind, message in (
        (IndexError("list index"), OSError, "damaged: list index"),
        (RecursionError(), OSError, "damaged: RecursionError"),
        (MemoryError(), Unsupported, "it needs more memory than there is"),
        (Unsupported("a kind"), Unsupported, "a kind"),
        (FileNotFoundError(2, "gone"), FileNotFoundError, "gone"),
        (UserError("wrong"), UserError, "wrong"),
    ):
        with pytest.raises(kind, match=message), guard.guarded():
            raise error
    with pytest.raises(KeyboardInterrupt), guard.guarded():
        raise KeyboardInterrupt


def test_an_item_that_kills_its_process_costs_that_item_alone():
    chunks = [list(range(start, start + 4)) for start in range(0, 24, 4)]
    found = [value for chunk in parallel_chunks(crashing.doubled, chunks, 2, "died") for value in chunk]
    assert found == ["died" if item in (5, 13) else 2 * item for item in range(24)]


def test_a_script_that_does_not_guard_its_calls_is_told_so_and_no_file_is_blamed(tmp_path):
    files = {f"{i}.png": image_kinds.encoded(image_kinds.picture(9, 8), "PNG") for i in range(130)}
    image_kinds.write(tmp_path, files)
    script = tmp_path / "script.py"
    script.write_text(
        "from polychrome.engine.data.sets import scan\n"
        f"print(scan.scan({str(tmp_path)!r}, [f'{{i}}.png' for i in range(130)], workers=2, cache=False).rejected)\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "no worker process starts: a script's calls have to stand below if __name__ ==" in ended.stderr


def test_files_decided_by_content_are_read_whatever_their_names(tmp_path):
    values = np.arange(5 * 6 * 4, dtype=np.uint16).reshape(5, 6, 4)
    np.save(tmp_path / "array.npy", values)
    os.rename(tmp_path / "array.npy", tmp_path / "array.png")
    (tmp_path / "photo.npy").write_bytes(image_kinds.encoded(image_kinds.picture(), "JPEG"))
    report = scan.scan(tmp_path, ["array.png", "photo.npy"], workers=1)
    assert report.rejected == ()
    assert report.stacks["array.png"].channels == 4
    assert report.encodings["photo.npy"].startswith("JPEG, RGB")
    assert report.by_pillow == {}
    images = scan.apply(ImageSet(tmp_path, ("a",), {"all": Split(("array.png",), (0,))}), report)
    np.testing.assert_array_equal(stacks.opener(images)("array.png"), values)
