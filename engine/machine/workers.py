"""The number of usable cores, and a function mapped over jobs in several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def cpus() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel(function: Callable, jobs: Sequence, workers: int) -> Iterator:
    """Yield `function(job)` for each job, in order, from `workers` processes or, with fewer than two, from this one.

    Processes are spawned: forking is unsafe once torch or DALI run threads.
    """
    if min(workers, len(jobs)) < 2:
        yield from map(function, jobs)
        return
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn"))
    try:
        yield from pool.map(function, jobs)
    finally:
        pool.shutdown(cancel_futures=True)
