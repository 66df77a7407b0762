"""Which files are images, by their names and by the bytes that they begin with."""

from __future__ import annotations

import re

ARRAY = ".npy"
SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".webp", ".tif", ".tiff", ".gif"]
    + [".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ARRAY]
)
OVERVIEWS = ".ovr"  # smaller copies of an image, beside it: TIFF files
_OF_THE_SYSTEM = frozenset(
    ["thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin", "lost+found"]
    + ["system volume information", "__pycache__"]
)
HIDDEN, SPECIAL = "hidden or of the system", "no regular file"
FRAMES = "the first frame of"  # in the encoding of a photo of several frames
SCALED = "more than 8 bits"  # in the encoding of a photo that is scaled to 8
TRANSPARENT = "transparent"  # in the encoding of a photo with some transparency
UNHEARD = "names or nodata"  # in the encoding of a photo whose file has names of channels or a nodata value
HEAD = 32  # bytes that tell the kind

# By kind the bytes that a file of it begins with.
_KINDS = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{4}\0{4}",
    "WEBP": rb"RIFF.{4}WEBP",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "PPM": rb"P[1-6][ \t\r\n]+[#0-9]|P7\n|P[fF]\r?\n[0-9]",
    "JPEG 2000": rb"\0\0\0\x0cjP {2}\r\n\x87\n|\xff\x4f\xff\x51",
    "AVIF": rb".{4}ftypavi[fs]",
    "HEIC": rb".{4}ftyp(?:hei|hev|mif|msf)",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "array": rb"\x93NUMPY",
}
_PATTERN = re.compile(b"|".join(b"(" + pattern + b")" for pattern in _KINDS.values()), re.DOTALL)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or made by an operating system or a notebook."""
    return name.startswith(".") or name.lower() in _OF_THE_SYSTEM


def of(head: bytes) -> str:
    """Return the kind of image, such as "PNG" or "array", that begins with the bytes `head`; empty for other files."""
    found = _PATTERN.match(head)
    return list(_KINDS)[found.lastindex - 1] if found else ""


def by_suffix(suffix: str) -> str:
    """Return the kind of a file that is no image in words: its suffix, which may be empty."""
    return suffix.lower() or "without a suffix"
