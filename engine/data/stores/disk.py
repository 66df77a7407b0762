"""A cache of decoded images on disk, so that the next run decodes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from polychrome.engine.data.files import shards
from polychrome.engine.data.image_set import sizes_of
from polychrome.engine.data.stores.placement import amount
from polychrome.engine.errors import one_line
from polychrome.engine.machine.files import PARTIAL, STALE, Stamps, cache_folder, last_written, new_folder

if TYPE_CHECKING:
    from torch import Tensor

    from polychrome.engine.data.image_set import ImageSet

RULES = 6  # raise this number when a decoder, or the resizing to a stored size, gives other values
CHUNK = 2**24  # bytes of a checksum's block
HEADER, VALUES = "header.json", "values"


class StoredValues(NamedTuple):
    """The values in a cache, uint8 [bytes], mapped read-only from the file, and the files that could not be decoded."""

    values: np.ndarray
    faults: dict[str, str]


class ImageCache:
    """The decoded images of one set in one form, in a folder named by a hash of all that the pixels depend on.

    A file that cannot be read or written is not an error: a line is given to `say`.
    """

    def __init__(
        self,
        images: ImageSet,
        form: str,
        decoder: str,
        say: Callable[[str], None],
        workers: int = 1,
        regions: np.ndarray | None = None,
    ):
        """Name the folder of a scanned set; `form` is "whole" or the stored size, `decoder` what decodes the files.

        `regions`, int64 [images, 4], are the parts (top, left, height, width) of the images that are kept.

        Raises:
            ValueError: the set has not been scanned.
            UserError: there is no cache folder.
        """
        paths = images.paths
        self._root = os.path.realpath(images.root)
        about = [self._root, sorted(images.splits), form, decoder, list(images.channels.names), images.dtype]
        group = _digest(about)
        self._images, self._stamps, sizes = images, Stamps(), sizes_of(images)
        # Of a file too large for a digest its stamp tells whether it is the same.
        files = [(path, sizes[path], images.digests.get(path) or self._stamp(path)) for path in paths]
        arranged = [(path, *astuple(images.arrangements[path])) for path in paths if path in images.arrangements]
        kept = None if regions is None else hashlib.sha256(regions.tobytes()).hexdigest()
        self.key = _digest([RULES, about, images.channels.mean, files, arranged, kept])
        self.folder = cache_folder() / "images" / f"{group[:16]}-{self.key[:16]}"
        self._group, self._say, self._workers = group[:16], say, max(1, workers)

    def load(self) -> StoredValues | None:
        """Return the cached images, or None if there are none; a damaged cache is removed.

        One with a file that could not be decoded is removed, too, once that file has changed.
        """
        if not self.folder.exists():
            return None
        try:
            if (found := self._checked()) is None:
                shutil.rmtree(self.folder, ignore_errors=True)
            return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = one_line(error)
            self._say(f"{self.folder} is damaged ({why}): decoding again")
            shutil.rmtree(self.folder, ignore_errors=True)
            return None

    def save(self, values: np.ndarray | Tensor, faults: dict[str, str]) -> None:
        """Write `values`, an array or a tensor on any device; replaces older caches of the same set and form."""
        if self.folder.exists():  # another process has just written the same
            return
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self._clear()
            free = shutil.disk_usage(self.folder.parent).free
            if free < 2 * values.nbytes:
                wanted = f"{amount(free)} are free there, wanted twice {amount(values.nbytes)}"
                self._say(f"decoded images are not kept in {self.folder.parent}: {wanted}")
                return
            with new_folder(self.folder) as partial:
                self._write(partial, values, faults)
        except OSError as error:
            if not self.folder.exists():
                self._say(f"decoded images are not kept in {self.folder.parent}: {error.strerror or error}")

    def _checked(self) -> StoredValues | None:
        header = json.loads((self.folder / HEADER).read_text(encoding="utf-8"))
        if header["key"] != self.key:
            raise ValueError("it belongs to another set")
        if any(stamp != self._stamp(path) for path, (_, stamp) in header["faults"].items()):
            return None
        size = (self.folder / VALUES).stat().st_size
        if size != header["bytes"]:
            raise ValueError(f"{size:,} bytes, wanted {header['bytes']:,}")
        values = np.memmap(self.folder / VALUES, np.uint8, mode="r")
        with ThreadPoolExecutor(self._workers, "checksum") as pool:
            found = list(pool.map(zlib.crc32, _chunks(values)))
        if found != header["checksums"]:
            raise ValueError("a checksum is wrong")
        return StoredValues(np.asarray(values), {path: reason for path, (reason, _) in header["faults"].items()})

    def _write(self, folder: Path, values: np.ndarray | Tensor, faults: dict[str, str]) -> None:
        checksums = []
        with open(folder / VALUES, "wb") as file, ThreadPoolExecutor(1, "checksum") as pool:
            for chunk in _chunks(values):
                checksum = pool.submit(zlib.crc32, chunk)
                file.write(chunk)
                checksums.append(checksum.result())
        stamped = {path: [reason, self._stamp(path)] for path, reason in faults.items()}
        header = {"key": self.key, "bytes": values.nbytes, "checksums": checksums, "faults": stamped}
        (folder / HEADER).write_text(json.dumps(header), encoding="utf-8")

    def _stamp(self, path: str) -> list[list[int | str]]:
        return [_stamp(self._stamps, self._root, file) for file in self._images.files(path)]

    def _clear(self) -> None:
        """Remove caches that this cache replaces, and the leftovers of writers that were killed."""
        for folder in self.folder.parent.glob(f"{self._group}-*"):
            partial = folder.name.endswith(PARTIAL)
            if not partial or time.time() - last_written(folder) > STALE:
                shutil.rmtree(folder, ignore_errors=True)


def _chunks(values: np.ndarray | Tensor) -> Iterator[np.ndarray]:
    """Yield the bytes of an array or tensor, in host memory, a chunk at a time."""
    flat = values.reshape(-1)
    step = CHUNK // flat.itemsize
    for start in range(0, len(flat), step):
        part = flat[start : start + step]
        part = part if isinstance(part, np.ndarray) else part.cpu().numpy()
        yield part.view(np.uint8)


def _stamp(stamps: Stamps, root: str, path: str) -> list[int | str]:
    try:
        return stamps.of(shards.container(os.path.join(root, path)))
    except OSError:  # gone since the scan: decoding will say so
        return []


def _digest(values: Sequence) -> str:
    # Names of files may not be valid text: json writes what is not ASCII as escapes.
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
