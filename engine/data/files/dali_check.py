"""How DALI decodes a file on the CPU, asked of a process of its own, which a damaged file may crash."""

from __future__ import annotations

import functools
import importlib.util
import select
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import numpy as np

PROGRAM = Path(__file__).with_name("dali_process.py")
START, PATIENCE = 120.0, 60.0  # seconds until a process is ready, and for each answer
READY = b"ready"
MOST = 16  # files at once, as the program takes them
CRASHED, UNAVAILABLE = "DALI crashes over it", "DALI does not start"


class _Process:
    """A process that decodes a few files at a time."""

    def __init__(self):
        # -P: modules of this folder must not stand in for the standard library's
        command = [sys.executable, "-P", str(PROGRAM)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._ready = False

    def decoded(self, files: Sequence[bytes]) -> list[np.ndarray]:
        """Return pixels [height, width, 3] of at most `MOST` files, all empty where DALI refuses one of them.

        Raises EOFError or OSError where DALI crashes or hangs, ImportError where it does not start.
        """
        if not self._ready:
            self._begin()
        request = struct.pack(f"<{1 + len(files)}q", len(files), *map(len, files))
        self._process.stdin.write(request + b"".join(files))
        self._process.stdin.flush()
        self._wait(PATIENCE)  # for the first answer; the others follow at once, and may be in the stream's buffer
        return [self._pixels() for _ in files]

    def _pixels(self) -> np.ndarray:
        height, width = struct.unpack("<qq", self._read(16))
        return np.frombuffer(self._read(3 * height * width), np.uint8).reshape(height, width, 3)

    def _begin(self) -> None:
        try:
            self._wait(START)
            self._ready = self._read(len(READY)) == READY
        except (OSError, EOFError) as error:
            raise ImportError(UNAVAILABLE) from error

    def _wait(self, patience: float) -> None:
        if not select.select([self._process.stdout], [], [], patience)[0]:
            raise TimeoutError

    def _read(self, count: int) -> bytes:
        content = self._process.stdout.read(count)
        if len(content) != count:
            raise EOFError
        return content

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # of bytes that were not sent
                stream.close()


_processes: list[_Process] = []
_unavailable: list[str] = []  # why no process is started again


def start() -> None:
    """Start the process that decodes, if there is none; it needs most of a second until it can."""
    if not _processes and not _unavailable:
        try:
            _processes.append(_Process())
        except OSError:
            _unavailable.append(UNAVAILABLE)


def differences(files: Sequence[tuple[bytes, np.ndarray]], tolerance: int) -> list[str]:
    """Return for each file in words how DALI decodes its bytes otherwise than to its pixels; empty where it does not.

    Pixels [height, width, 3], uint8, may differ by `tolerance`. The files are decoded at once, as many as `MOST`.
    """
    found: list[str] = []
    for start in range(0, len(files), MOST):
        batch = files[start : start + MOST]
        decoded = _asked([content for content, _ in batch])
        if isinstance(decoded, str) or not all(pixels.size for pixels in decoded):
            found += [difference(content, pixels, tolerance) for content, pixels in batch]
        else:
            found += [_compared(*pair, tolerance) for pair in zip(decoded, (item[1] for item in batch), strict=True)]
    return found


def difference(encoded: bytes, pixels: np.ndarray, tolerance: int) -> str:
    """Return in words how DALI decodes a file as `differences` does; a file over which it crashes is found so."""
    decoded = _asked([encoded])
    return decoded if isinstance(decoded, str) else _compared(decoded[0], pixels, tolerance)


def _asked(files: Sequence[bytes]) -> list[np.ndarray] | str:
    """Return what DALI decodes files to, or why it does not."""
    start()
    if _unavailable:
        return _unavailable[0]
    try:
        return _processes[0].decoded(files)
    except ImportError:
        _processes.pop().end()
        _unavailable.append(UNAVAILABLE)
        return UNAVAILABLE
    except (OSError, EOFError):
        _processes.pop().end()
        return CRASHED


def _compared(theirs: np.ndarray, pixels: np.ndarray, tolerance: int) -> str:
    if not theirs.size:
        return "DALI cannot decode it"
    if theirs.shape != pixels.shape:
        return f"DALI sees it as {theirs.shape[0]} x {theirs.shape[1]}, not {pixels.shape[0]} x {pixels.shape[1]}"
    if np.array_equal(theirs, pixels):
        return ""
    largest = int(np.abs(theirs.astype(np.int16) - pixels).max())
    return f"DALI's pixels differ by up to {largest}" if largest > tolerance else ""


def is_installed() -> bool:
    """Return whether DALI can be imported."""
    # Other packages of NVIDIA's make the outer one.
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


@functools.cache
def package() -> str | None:
    """Return the name of DALI's distribution, which tells its CUDA version; None where it is not installed."""
    names = metadata.packages_distributions().get("nvidia", ()) if is_installed() else ()
    return min((name for name in names if "dali" in name), default=None)


@functools.cache
def version() -> str | None:
    """Return the version of DALI, None where it is not installed."""
    if not is_installed():
        return None
    return metadata.version(package()) if package() else "unknown"
