"""Where the time of a step goes: named spans, traces of a few steps, and the kernels that take longest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from polychrome.engine import console
from polychrome.engine.watch.recorder import Recorder

# The names of `span` that a step and an evaluation consist of.
SPANS = ("decode", "augment", "forward", "backward", "optimizer", "evaluate")
# Steps left out while compilers and caches warm up, then steps recorded; the same for batches of an evaluation.
SKIPPED, RECORDED = 3, 5
EVALUATIONS_SKIPPED, EVALUATIONS_RECORDED = 2, 2

Item = TypeVar("Item")


@contextmanager
def span(name: str) -> Iterator[None]:
    """Name the work inside, for torch.profiler and, on CUDA, as an NVTX range for Nsight Systems.

    A span has to stand outside compiled code.
    """
    # record_function takes several microseconds with nobody listening, an NVTX range a fraction of one.
    recorded = record_function(name) if torch.autograd._profiler_enabled() else nullcontext()
    ranged = torch.cuda.nvtx.range(name) if torch.cuda.is_initialized() else nullcontext()
    with recorded, ranged:
        yield


def decoded(batches: Iterator[Item], waiting: Callable[[], AbstractContextManager] = nullcontext) -> Iterator[Item]:
    """Yield the batches, the wait for each one in a span "decode" and in the context `waiting`."""
    end = object()
    while True:
        with span("decode"), waiting():
            batch = next(batches, end)
        if batch is end:
            return
        yield batch


class Trace:
    """Traces of some training steps and of some batches of an evaluation; made by `trace`.

    It is called after each training step; `evaluated` is called after each batch of an evaluation.

    Attributes:
        files: the traces written so far.
        kernels: what took longest in the training steps, see `top_kernels`; None before they are recorded.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.files: list[Path] = []
        self.kernels: list[dict] | None = None
        self._training = Recorder(activities(), SKIPPED, RECORDED, self._save)
        self._evaluation = Recorder(activities(), EVALUATIONS_SKIPPED, EVALUATIONS_RECORDED, self._save)

    def __call__(self, *_) -> None:
        # An evaluation of few batches ends before all that are wanted are recorded.
        self._evaluation.close()
        self._training.step()

    def evaluated(self, *_) -> None:
        """Note the end of a batch of an evaluation; the first evaluation has its own trace.

        While training steps are recorded, an evaluation is in their trace; while another profiler runs, a later
        evaluation is recorded.
        """
        if self.files:
            self._evaluation.step()

    def close(self) -> None:
        """Write the traces, and print in a line why a trace is missing."""
        self._training.close()
        self._evaluation.close()
        part, recorder = ("an evaluation", self._evaluation) if self.files else ("its steps", self._training)
        if recorder.failure:
            console.say(f"{self.name}: no trace of {part} ({recorder.failure})")
        elif not self.files:
            console.say(f"{self.name}: no trace, {recorder.steps} steps are too few: the first {SKIPPED} are left out")

    def _save(self, profiler: profile) -> None:
        if not self.files:  # the training steps come first
            self.kernels = top_kernels(profiler)
        self.folder.mkdir(parents=True, exist_ok=True)
        # The name that TensorBoard's plugin looks for; the time keeps the trace of a resumed run.
        path = self.folder / f"{self.name}{' evaluate' if self.files else ''}.{time.time_ns()}.pt.trace.json"
        profiler.export_chrome_trace(str(path))
        if not path.is_file():  # torch raises nothing where it cannot write
            raise OSError(f"{path} cannot be written")
        self.files.append(path)


@contextmanager
def trace(folder: Path, name: str) -> Iterator[Trace]:
    """Record a few steps as chrome traces `<folder>/<name>.<time>.pt.trace.json`, a file for each model.

    Yields the function to be called after every training step. TensorBoard's plugin and Perfetto open the files. A
    training that ends early has a trace of fewer steps; if there is no trace, one line says why.
    """
    with closing(Trace(folder, name)) as recording:
        yield recording


def activities() -> list[ProfilerActivity]:
    """Return the activities that can be recorded here: the CPU's, and with a device CUDA's."""
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]


def top_kernels(profiler: profile, rows: int = 10) -> list[dict]:
    """Return the CUDA kernels and copies, or on a CPU the operators, that took longest in a finished recording.

    Returns: a JSON-ready dict for each: "name", "calls", "ms" in all (of an operator without the operators it calls),
        and "share" of the time of all kernels or operators.
    """
    averages = profiler.key_averages()
    kernels = (event for event in averages if event.device_type == DeviceType.CUDA and not event.is_user_annotation)
    times = {event: event.self_device_time_total for event in kernels}
    if not times:
        # Python's own time is in the spans and steps.
        operators = (event for event in averages if event.key not in (*SPANS, "ProfilerStep*"))
        times = {event: event.self_cpu_time_total for event in operators}
    total = sum(times.values())
    longest = sorted((event for event in times if times[event] > 0), key=times.get, reverse=True)[:rows]
    return [
        {"name": event.key, "calls": event.count, "ms": times[event] / 1e3, "share": times[event] / total}
        for event in longest
    ]
