"""How DALI decodes a file on the CPU, asked of a process of its own, which a damaged file may crash."""

from __future__ import annotations

import functools
import importlib.util
import select
import struct
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import numpy as np

PROGRAM = Path(__file__).with_name("dali_process.py")
START, PATIENCE = 120.0, 60.0  # seconds until a process is ready, and for each answer
READY = b"ready"
CRASHED, UNAVAILABLE = "DALI crashes over it", "DALI does not start"


class _Process:
    """A process that decodes one file at a time."""

    def __init__(self):
        # -P: modules of this folder must not stand in for the standard library's
        command = [sys.executable, "-P", str(PROGRAM)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._ready = False

    def decoded(self, encoded: bytes) -> np.ndarray:
        """Return pixels [height, width, 3], empty where DALI refuses.

        Raises EOFError or OSError where DALI crashes or hangs, ImportError where it does not start.
        """
        if not self._ready:
            self._begin()
        self._process.stdin.write(struct.pack("<q", len(encoded)) + encoded)
        self._process.stdin.flush()
        height, width = struct.unpack("<qq", self._answer(16, PATIENCE))
        return np.frombuffer(self._read(3 * height * width), np.uint8).reshape(height, width, 3)

    def _begin(self) -> None:
        try:
            self._ready = self._answer(len(READY), START) == READY
        except (OSError, EOFError) as error:
            raise ImportError(UNAVAILABLE) from error

    def _answer(self, count: int, patience: float) -> bytes:
        """Return the first bytes of an answer, which is waited for."""
        if not select.select([self._process.stdout], [], [], patience)[0]:
            raise TimeoutError
        return self._read(count)

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


def difference(encoded: bytes, pixels: np.ndarray, tolerance: int) -> str:
    """Return in words how DALI decodes a whole file's bytes otherwise than to `pixels`; empty where it does not.

    Pixels [height, width, 3], uint8, may differ by `tolerance`.
    """
    start()
    if _unavailable:
        return _unavailable[0]
    try:
        theirs = _processes[0].decoded(encoded)
    except ImportError:
        _processes.pop().end()
        _unavailable.append(UNAVAILABLE)
        return UNAVAILABLE
    except (OSError, EOFError):
        _processes.pop().end()
        return CRASHED
    if not theirs.size:
        return "DALI cannot decode it"
    if theirs.shape != pixels.shape:
        return f"DALI sees it as {theirs.shape[0]} x {theirs.shape[1]}, not {pixels.shape[0]} x {pixels.shape[1]}"
    if np.array_equal(theirs, pixels):
        return ""
    largest = int(np.abs(theirs.astype(np.int16) - pixels).max())
    return f"DALI's pixels differ by up to {largest}" if largest > tolerance else ""


@functools.cache
def version() -> str | None:
    """Return the version of DALI, None where it is not installed."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return None
    names = {name for name in metadata.packages_distributions().get("nvidia", ()) if "dali" in name}
    return metadata.version(min(names)) if names else "unknown"
