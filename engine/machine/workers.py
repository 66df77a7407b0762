"""The number of usable cores, and a function mapped over jobs in several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from threading import Thread

from polychrome.engine.errors import RunError, one_line
from polychrome.engine.machine import interruption

# What to do where there is too little shared memory, such as the 64 MB of a Docker container.
ROOM = "enlarge /dev/shm (docker run --shm-size 8g), or take fewer --workers"


def cpus() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def attend(*_: object) -> None:
    """Make this process a worker: it leaves signals to its parent, and ends as soon as the parent is gone.

    A parent that is killed cannot end its workers, and they would wait for work for ever.
    """
    interruption.ignore()
    parent = parent_process()
    if parent is not None:
        Thread(target=_end_with, args=(parent.sentinel,), name="end with the parent", daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


@contextmanager
def starting() -> Iterator[None]:
    """Raise RunError where the system has no room for the worker processes that the block starts."""
    try:
        yield
    except OSError as error:
        raise RunError(f"no worker process can be started: {one_line(error)}; {ROOM}") from error


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=attend)


def parallel(function: Callable, jobs: Sequence, workers: int) -> Iterator:
    """Yield `function(job)` for each job, in order, from `workers` processes or, with fewer than two, from this one.

    Processes are spawned: forking is unsafe once torch or DALI run threads.

    Raises RunError where the system has no room for a process, and RuntimeError where no process starts, as from a
    script that does not guard its calls.
    """
    if min(workers, len(jobs)) < 2:
        yield from map(function, jobs)
        return
    with starting():
        pool = _pool(min(workers, len(jobs)))
    try:
        try:
            with starting():
                started = [pool.submit(os.getpid) for _ in range(min(workers, len(jobs)))]  # all at once
            started[0].result()
        except BrokenProcessPool as error:
            guard = 'if __name__ == "__main__":'
            raise RuntimeError(f"no worker process starts: a script's calls have to stand below {guard}") from error
        yield from pool.map(function, jobs)
    except BaseException:  # such as Ctrl-C: nobody waits for what the processes are at, which may be long
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def parallel_chunks(function: Callable, chunks: Sequence[Sequence], workers: int, died: object) -> Iterator[list]:
    """Yield `function(chunk)`, a list of a result for each item, for each chunk, in order, computed as by `parallel`.

    The result of an item that kills its process is `died`: a decoder's segmentation fault, or memory that the system
    took away. With fewer than two workers or chunks there is no process of its own to be killed.

    Raises as `parallel` does.
    """
    waiting = list(chunks)
    while waiting:
        count = 0
        try:
            for found in parallel(function, waiting, workers):
                count += 1
                yield found
            return
        except BrokenProcessPool:  # by an item of any chunk that was begun, most likely of the first ones
            suspects, waiting = waiting[count : count + workers + 1], waiting[count + workers + 1 :]
        for chunk in suspects:
            yield _one_by_one(function, chunk, died)


def _one_by_one(function: Callable, chunk: Sequence, died: object) -> list:
    found, pool = [], None
    for item in chunk:
        pool = pool or _pool(1)
        try:
            found += pool.submit(function, [item]).result()
        except BrokenProcessPool:
            found.append(died)
            pool = None
    if pool is not None:
        pool.shutdown()
    return found
