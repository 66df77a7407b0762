"""Files and folders that are whole or not there, whoever writes and whatever ends it."""

import errno
import os
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from polychrome.engine.errors import StorageError, UserError
from polychrome.engine.machine import files


class Broken(Exception):
    """Ends a block."""


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("umask")
def test_files_and_folders_have_the_mode_of_new_ones(tmp_path):
    with files.new_file(tmp_path / "file") as stream:
        stream.write(b"content")
    with files.new_folder(tmp_path / "folder") as folder:
        (folder / "inside").write_bytes(b"content")
    files.write_atomically(tmp_path / "text", "Ä")
    assert [mode(tmp_path / name) for name in ("file", "text", "folder", "folder/inside")] == [
        *(0o640, 0o640, 0o750, 0o640)
    ]
    assert (tmp_path / "text").read_bytes() == "Ä".encode()
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "text"]


def test_where_the_block_raises_all_is_as_before(tmp_path):
    def break_a_file():
        with files.new_file(tmp_path / "file") as stream:
            stream.write(b"half")
            raise Broken

    def break_a_folder():
        with files.new_folder(tmp_path / "folder") as folder:
            (folder / "half").write_bytes(b"half")
            raise Broken

    (tmp_path / "file").write_bytes(b"before")
    for write in (break_a_file, break_a_folder):
        with pytest.raises(Broken):
            write()
    assert (tmp_path / "file").read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


def test_what_stood_there_stays_until_the_end(tmp_path):
    (tmp_path / "file").write_bytes(b"before")
    with files.new_file(tmp_path / "file") as stream:
        stream.write(b"after")
        stream.flush()
        assert (tmp_path / "file").read_bytes() == b"before"
    assert (tmp_path / "file").read_bytes() == b"after"


def test_writers_at_once_leave_one_of_their_files_whole(tmp_path):
    contents = [bytes([number]) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            list(pool.map(lambda content: files.write_atomically(tmp_path / "file", content), contents))
            assert (tmp_path / "file").read_bytes() in contents
    assert os.listdir(tmp_path) == ["file"]


def test_what_killed_writers_left_is_removed_but_not_what_others_write(tmp_path):
    for name, age in (("old", files.STALE + 60), ("young", 0)):
        for content in (tmp_path / f"a[1].{name}.partial", tmp_path / f"b.{name}.partial"):
            content.write_bytes(b"half")
            os.utime(content, (content.stat().st_mtime - age,) * 2)
    folder = tmp_path / "a[1].older.partial"
    folder.mkdir()
    os.utime(folder, (1, 1))
    files.write_atomically(tmp_path / "a[1]", b"whole")
    assert sorted(os.listdir(tmp_path)) == ["a[1]", "a[1].young.partial", "b.old.partial", "b.young.partial"]


def test_names_as_long_as_a_disk_has_them_can_be_written(tmp_path):
    path = tmp_path / ("n" * 255)
    files.write_atomically(path, b"whole")
    assert path.read_bytes() == b"whole"


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"none/file cannot be written: No such file.*an earlier file is intact"):
        files.write_atomically(tmp_path / "none/file", b"")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/a", "a/..", "nul\0", "\ud800", "n" * 256, "日" * 86])
def test_a_name_that_leads_elsewhere_or_has_no_place_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="the name of a file"):
        files.within(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "a b", "-", "...", "日" * 85, "\udcff", "$x$", "a\\b", "line\nend"])
def test_any_other_name_can_be_written(tmp_path, name):
    files.write_atomically(files.within(tmp_path, name), name)
    assert os.listdir(tmp_path) == [name]


def test_where_a_file_system_flushes_no_folders_files_are_written(tmp_path, monkeypatch):
    flush = os.fsync

    def files_alone(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", files_alone)
    files.write_atomically(tmp_path / "a", "there")
    with files.new_folder(tmp_path / "b") as draft:
        (draft / "c").write_text("too")
    assert ((tmp_path / "a").read_text(), (tmp_path / "b/c").read_text()) == ("there", "too")


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"of somebody")
    (tmp_path / "file").symlink_to("elsewhere")
    files.write_atomically(tmp_path / "file", b"ours")
    assert (tmp_path / "elsewhere").read_bytes() == b"of somebody"
    assert not (tmp_path / "file").is_symlink()


@pytest.fixture
def read_only(tmp_path):
    """A folder that nobody can write to, not even root."""
    folder = tmp_path / "read only"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, read_only):
    files.check_writable(tmp_path / "new/folder")
    assert os.listdir(tmp_path) == ["read only"]
    for folder in (read_only, read_only / "new/folder"):
        with pytest.raises(UserError, match=r"cannot be written: Read-only file system \(.*read only\)"):
            files.check_writable(folder)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"file/new cannot be written: Not a directory \(.*file\)"):
        files.check_writable(tmp_path / "file/new")
