"""The share of a training in which the device is idle."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from polychrome.engine.watch.recorder import Recorder

# Steps left out at the start of an epoch, and steps whose kernels are looked at.
SKIPPED, STEPS = 3, 6


class Idle:
    """The share of time in which the device has nothing to do; a context manager around one model's training.

    On CUDA: the share of some steps in which no kernel runs, measured in the second trained epoch, or in the only
    epoch; copies do not count as kernels. On a CPU: the share of the last epoch that the loop waits for input.
    Outside of the measured steps the cost is two readings of a clock per batch.

    Attributes:
        waited: the share of the last epoch's training that the loop waited for input; None before its end.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.waited: float | None = None
        self._epochs = 0
        self._seconds, self._started, self._ended = 0.0, None, 0.0
        self._gpu_share: float | None = None
        self._window: Window | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in this context, the wait for a batch, as idle."""
        started = time.perf_counter()
        if self._started is None:
            self._begin(started)
        yield
        self._ended = time.perf_counter()
        self._seconds += self._ended - started

    def step(self, *_) -> None:
        """Note the end of a training step."""
        if self._window is not None and self._epochs < 2:
            self._window.step()

    def epoch(self, *_) -> None:
        """Note the end of an epoch, after its validation, whose time does not count."""
        self.close()
        self._epochs += 1
        if self._started is not None and self._ended > self._started:
            self.waited = self._seconds / (self._ended - self._started)
        self._seconds, self._started = 0.0, None

    def close(self) -> None:
        """End the current measurement of a GPU, if any."""
        if self._window is not None:
            self._window.close()
            if self._window.share is not None:
                self._gpu_share = self._window.share

    def __enter__(self) -> Idle:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _begin(self, now: float) -> None:
        self._started = now
        if self.device.type == "cuda" and self._epochs < 2:
            self._window = Window(ProfilerActivity.CUDA)

    @property
    def share(self) -> float | None:
        """The idle share in 0..1; None where the share is not measured."""
        return self._gpu_share if self.device.type == "cuda" else self.waited

    def figures(self) -> dict[str, float]:
        """Return the measured shares, in 0..1, by their names in `results.json`: "gpu_idle" and "input_wait"."""
        found = {"gpu_idle": self.share if self.device.type == "cuda" else None, "input_wait": self.waited}
        return {name: round(share, 4) for name, share in found.items() if share is not None}

    def __str__(self) -> str:
        waited = "not measured" if self.waited is None else f"{self.waited:.1%} of the epoch"
        if self.device.type != "cuda":
            return f"input waited for: {waited}"
        reason = f" ({self._window.failure or 'too few steps'})" if self._window else ""
        idle = f"not measured{reason}" if self.share is None else f"{self.share:.1%} of a step"
        return f"GPU idle: {idle}; input waited for: {waited}"


class Window(Recorder):
    """The share of a few steps in which nothing of one kind of activity runs: `share` in 0..1, None before its end."""

    def __init__(self, activity: ProfilerActivity) -> None:
        # A step to warm up, and one to get going again after the pause in which the recording starts.
        super().__init__([activity], SKIPPED + 1, STEPS + 1, self._measure)
        self.share: float | None = None

    def _measure(self, profiler: profile) -> None:
        if len(self.marks) < 3:
            return
        start, end = self.marks[1], self.marks[-1]
        busy = covered(intervals(profiler, getattr(DeviceType, self.activities[0].name)), start, end)
        if busy:
            self.share = 1 - busy / (end - start)
        else:
            self.failure = "nothing was recorded"


def intervals(profiler: profile, device_type: DeviceType) -> list[tuple[int, int]]:
    """Return start and end of each event on a kind of device, in ns since 1970; without copies to and from the GPU."""
    return [
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in profiler.profiler.kineto_results.events()
        if event.device_type() == device_type
        and not event.is_user_annotation()
        and not event.name().startswith("Memcpy")
    ]


def covered(found: Iterable[tuple[int, int]], start: int, end: int) -> int:
    """Return how much of [start, end] the union of intervals covers."""
    total, reached = 0, start
    for first, last in sorted(found):
        first, last = max(first, reached), min(last, end)
        if last > first:
            total, reached = total + last - first, last
    return total
