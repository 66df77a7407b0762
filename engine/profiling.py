"""Traces of training steps, for Perfetto or TensorBoard's profiler plugin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

# Steps left out while compilers and caches warm up, then steps recorded.
SKIPPED, RECORDED = 3, 5


@contextmanager
def trace(path: Path) -> Iterator[Callable[[], None]]:
    """Record a few steps into the chrome trace `path`; yields a function to be called after every step."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    path.parent.mkdir(exist_ok=True)
    with profile(
        activities=activities,
        schedule=schedule(wait=SKIPPED - 1, warmup=1, active=RECORDED, repeat=1),
        on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(path)),
    ) as profiler:
        yield profiler.step
