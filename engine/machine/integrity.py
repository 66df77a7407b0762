"""Checksums of files, by which damage is noticed before a file is used."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

ARCHIVE = b"PK\3\4"  # begins a zip archive
SEAL = b"polychrome blake2b "  # begins the comment at the end of an archive; the digest of all before it follows
DIGEST = 32  # bytes, written as twice as many letters
END = 2**12  # bytes in which the seal is looked for
BLOCK = 2**20
KEY = "sha256"  # of a file's digest in its description


def seal(archive: io.BytesIO) -> None:
    """Append a digest of all its bytes to a zip archive without a comment, such as `torch.save` writes.

    The archive stays a zip archive, which `torch.load` reads.
    """
    archive.seek(-2, os.SEEK_END)  # the length of the comment, the last field of an archive
    archive.write(struct.pack("<H", len(SEAL) + 2 * DIGEST) + SEAL)
    with archive.getbuffer() as content:
        digest = hashlib.blake2b(content, digest_size=DIGEST).hexdigest()
    archive.write(digest.encode())


def fault(archive: BinaryIO) -> str | None:
    """Return in words how a file differs from the archive that was written; None where nothing is wrong.

    A sealed archive is compared with its digest, another zip archive with the checksums of its records. Files of other
    kinds, and archives that were written without checksums, have nothing to be compared with.
    """
    size = archive.seek(0, os.SEEK_END)
    archive.seek(max(0, size - END))
    _, sealed, wanted = archive.read().rpartition(SEAL)
    if sealed:
        archive.seek(0)
        return None if _digest(archive, size - len(wanted)).encode() == wanted else "its checksum is wrong"
    if zipfile.is_zipfile(archive):
        return _fault_of_records(archive)
    archive.seek(0)
    head = archive.read(len(ARCHIVE))
    return "its end is missing" if head == ARCHIVE or len(head) < len(ARCHIVE) else None


def fault_of_described(path: Path) -> str | None:
    """Return in words how a file differs from its digest in the description `<path>.json`; None where nothing does.

    A file without a description, or with one that has no digest, has nothing to be compared with. Raises OSError.
    """
    try:
        wanted = json.loads(description_of(path).read_text(encoding="utf-8")).get(KEY)
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError, RecursionError):
        return f"{description_of(path).name}, which has its checksum, is damaged"
    return None if wanted in (None, file_digest(path)) else f"its checksum is not that of {description_of(path).name}"


def description_of(path: Path) -> Path:
    """Return the path of the JSON file that describes a file, and stands beside it."""
    return path.with_name(path.name + ".json")


def file_digest(path: Path) -> str:
    """Return the SHA-256 digest of a file, as programs such as sha256sum print it. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fault_of_records(file: BinaryIO) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            if not any(record.CRC for record in archive.infolist()):
                return None
            damaged = archive.testzip()
    except Exception as error:  # the reader answers damaged bytes with errors of every kind
        return str(error) or type(error).__name__
    return damaged and f"the checksum of {damaged} in it is wrong"


def _digest(file: BinaryIO, count: int) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST)
    while count and (block := file.read(min(count, BLOCK))):
        digest.update(block)
        count -= len(block)
    return digest.hexdigest()
