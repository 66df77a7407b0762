"""The archive of compiled kernels that `bench.warm` makes and `bench.gpu` uses."""

import json
import lzma
import shutil
import tarfile
import tempfile
from pathlib import Path

ARCHIVE = "warm.tar.xz"
# The files of a kernel that a launch needs; sources are not packed.
SUFFIXES = (".cubin", ".json")


def pack(cache: Path, archive: Path) -> int:
    """Write the compiled kernels of a cache as a tar; return their number."""
    files = sorted(path for path in cache.glob("*/*") if path.suffix in SUFFIXES)
    draft = archive.with_name(f"{archive.name}.tmp")
    with tarfile.open(draft, "w:xz") as opened:
        for path in files:
            opened.add(path, str(path.relative_to(cache)))
    draft.replace(archive)
    return sum(path.suffix == ".cubin" for path in files)


def extract(archive: tarfile.TarFile, folder: Path) -> None:
    """Write the files of an open archive below a folder; raises tarfile.TarError where one would lie outside."""
    if hasattr(tarfile, "data_filter"):
        archive.extractall(folder, filter="data")
        return
    for member in archive.getmembers():  # Python 3.11 has the filter from 3.11.4 on
        inside = not member.name.startswith("/") and ".." not in member.name.split("/")
        if not inside or not (member.isreg() or member.isdir()):
            raise tarfile.TarError(f"{member.name!r} is no file below the folder")
    archive.extractall(folder)


def unpack(archive: Path, cache: Path) -> int:
    """Put packed kernels into a folder of Triton's cache; return their number.

    Raises:
        OSError, EOFError, ValueError, tarfile.TarError: the archive cannot be read; the cache is unchanged.
    """
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as draft:
        try:
            with tarfile.open(archive, "r:xz") as opened:
                extract(opened, Path(draft))
        except lzma.LZMAError as error:
            raise ValueError(str(error)) from error
        for group in Path(draft).glob("*/__grp__*.json"):
            # Triton stores absolute paths, here of the folder of `bench.warm`.
            names = json.loads(group.read_text())["child_paths"]
            # From 3.8 on, Triton ignores a group that names a missing file.
            packed = [name for name in names if (group.parent / name).exists()]
            here = {name: str(cache / group.parent.name / name) for name in packed}
            group.write_text(json.dumps({"child_paths": here}))
        shutil.copytree(draft, cache, dirs_exist_ok=True)
        return len(list(Path(draft).glob("*/*.cubin")))
