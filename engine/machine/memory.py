"""The memory available to this process, its peak use of memory, and what becomes of memory that it frees."""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress
from pathlib import Path

import torch

TRIM_FROM, MOST_MAPPED = -1, -4  # options of glibc's mallopt
OF_GLIBC = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")


class PeakMemory:
    """The peak memory of a span of work in MB: the GPU's allocations on CUDA, else the process's resident set."""

    def __init__(self, on: torch.device) -> None:
        self.on = on
        if on.type == "cuda":
            torch.cuda.reset_peak_memory_stats(on)
        else:  # Linux forgets the peak when "5" is written here; elsewhere the peak is the process's whole life
            release_freed()
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def megabytes(self) -> float:
        """Return the peak since this object was made."""
        if self.on.type == "cuda":
            return torch.cuda.max_memory_allocated(self.on) / 1e6
        return _resident_peak_kb() * 1024 / 1e6


def _resident_peak_kb() -> int:
    try:
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def keep_freed(on: torch.device) -> bool:
    """Let this process keep memory that it frees for its next allocations; return whether it does.

    It does not for work on another device than the CPU, where the environment has settings of glibc's allocator, or
    where the system has another library than glibc.

    By itself glibc returns every block of more than 32 MB, and each that is allocated is mapped anew, of pages that the
    system fills with zeros: with images of 256 px that takes up to half of a training's time (docs/engine.md). Where
    memory is kept, the pieces between blocks of other sizes make the peak higher, by 5 to 36% in four networks.
    """
    chosen = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name in os.environ for name in OF_GLIBC)
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if on.type != "cpu" or chosen or set_option is None:
        return False
    return bool(set_option(MOST_MAPPED, 0) and set_option(TRIM_FROM, -1))  # no blocks mapped, none returned


def release_freed() -> None:
    """Return memory that this process has freed to the system, where the allocator is glibc's."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def available(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of memory that this process may still take, within the limits of its control groups.

    Memory that it keeps though it has freed it is returned first, and counts.
    """
    release_freed()
    try:
        fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux: all memory there is
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(0, min([free, *_group_limits(proc, groups)]))


def _group_limits(proc: Path, groups: Path) -> list[int]:
    """Return the bytes left of each limit on this process's control group and on the groups around."""
    try:
        entries = [line.split(":", 2) for line in (proc / "self" / "cgroup").read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in (entry for entry in entries if len(entry) == 3):
        if not controllers:
            top, names = groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = top / path.lstrip("/")
        while folder.is_relative_to(top):
            found += _left(folder, *names)
            folder = folder.parent
    return found


def _left(folder: Path, limit: str, usage: str, reclaimable: str) -> list[int]:
    try:
        used = int((folder / usage).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return [int((folder / limit).read_text()) - used + int(statistics.get(reclaimable, 0))]
    except (OSError, ValueError):  # no such group here, or "max": no limit
        return []
