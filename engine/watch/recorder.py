"""A recording of a few steps by torch's profiler, of which one runs at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import ClassVar

import torch
from torch.profiler import ProfilerActivity, profile, schedule

if not torch.cuda.is_available():
    # Without a driver libkineto prints an error at each start, which says nothing that matters on a CPU.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


class Recorder:
    """One torch profiler over a few steps of a loop, at a time when no other profiler runs.

    It starts once enough steps have passed, and waits while another profiler runs. Errors of the profiler are not
    raised, so that profiling never ends a run: `failure` has the message.

    Args:
        skipped: the steps left out before the recording, at least two; in the last of them the profiler warms up.
        recorded: the steps wanted after them; `close` makes do with fewer.
        read: called with the profiler when its recording has ended.

    Attributes:
        steps: how many steps have ended.
        marks: when each step since the start of the profiler ended, in ns since 1970.
        failure: why there is no recording; None without a failure.
    """

    running: ClassVar[Recorder | None] = None

    def __init__(
        self, activities: list[ProfilerActivity], skipped: int, recorded: int, read: Callable[[profile], None]
    ) -> None:
        self.activities, self.skipped, self.recorded, self.read = activities, skipped, recorded, read
        self.steps, self.marks = 0, []
        # CUPTI serves one listener at a time.
        self._done = ProfilerActivity.CUDA in activities and "NSYS_PROFILING_SESSION_ID" in os.environ
        self.failure: str | None = "nsys records" if self._done else None
        self._profiler: profile | None = None

    def step(self) -> None:
        """Note the end of a step."""
        self.steps += 1
        if self._done or self.steps < self.skipped - 1:
            return
        if self._profiler is None:
            self._attempt(self._start)
            return
        self.marks.append(time.time_ns())
        self._attempt(self._profiler.step)
        if len(self.marks) > self.recorded:
            self.close()

    def close(self) -> None:
        """End the recording, if it has started, with the steps recorded so far."""
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            self._done, Recorder.running = True, None
            self._attempt(profiler.stop)

    def _start(self) -> None:
        # Torch does not say of a profiler that warms up that it runs, and another that is started then ends it.
        if Recorder.running is not None or torch.autograd._profiler_enabled():
            self.failure = "another profiler runs"
            return
        self.failure, first = None, self.steps
        planned = schedule(wait=0, warmup=1, active=self.recorded, repeat=1)
        profiler = profile(
            activities=self.activities,
            schedule=lambda step: planned(max(step - first, 0)),
            on_trace_ready=lambda profiler: self.failure or self.read(profiler),
            acc_events=True,
        )
        # Recordings name each step by its number in the loop.
        profiler.step_num = first
        self._profiler, Recorder.running = profiler, self
        profiler.start()

    def _attempt(self, action: Callable[[], None]) -> None:
        """Call a method of the profiler; after an error note the reason and stop the profiler."""
        try:
            action()
        except Exception as error:
            self.failure = self.failure or " ".join(f"{type(error).__name__}: {error}".split())
            self._done = True
            self.close()
