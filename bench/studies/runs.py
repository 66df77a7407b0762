"""Runs of the recipe, each on a core of its own or on the GPU, and the tables that studies keep of them."""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, fields
from pathlib import Path
from queue import Queue
from threading import Event
from typing import Any, TypeVar

import torch

from polychrome.engine.data.image_set import ImageSet, Split
from polychrome.engine.errors import NotFiniteError, UserError
from polychrome.engine.machine import hardware
from polychrome.engine.machine.files import csv_text, write_atomically
from polychrome.engine.run_folder import RunFolder
from polychrome.train.cli import settings_of
from polychrome.train.settings import changes
from polychrome.train.settings.config import Settings

Row, Result = TypeVar("Row"), TypeVar("Result")
KINDS = {"int": int, "float": float, "str": str}
PRECISION = "bf16"  # of every run whose row is compared with others
_running: set[subprocess.Popen] = set()
_stopped = Event()


class FailedError(Exception):
    """A run's command failed; the message says where its output is."""


class DivergedError(FailedError):
    """A training ended with a loss that is not finite."""


class StoppedError(Exception):
    """The study was asked to stop; what it trained goes on when its command is given again."""


def check_machine() -> None:
    """Raise UserError on a processor that only emulates `PRECISION`: minutes there are not those of the other runs."""
    if not hardware.is_native(PRECISION, hardware.device("auto")):
        raise UserError(f"the studies' runs are in {PRECISION}, which this machine only emulates: minutes become hours")


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM and SIGINT end the runs, which save their state, and then this process with `os.EX_TEMPFAIL`.

    Where runs failed, the process ends with status 1 and a line on each.
    """

    def stop(*_) -> None:
        _stopped.set()
        for each in list(_running):
            each.terminate()

    before = {name: signal.signal(name, stop) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except StoppedError as error:
        print(f"stopped in {error}; the same command goes on from there", file=sys.stderr)
        raise SystemExit(os.EX_TEMPFAIL) from None
    except FailedError as error:
        raise SystemExit(f"error: {error}") from None
    finally:
        _stopped.clear()
        for name, handler in before.items():
            signal.signal(name, handler)


def read(path: Path, kind: type[Row]) -> list[Row]:
    """Return the rows of a CSV file as instances of a dataclass of numbers and text; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return [
            kind(**{item.name: KINDS[item.type](row[item.name]) for item in fields(kind)})
            for row in csv.DictReader(stream)
        ]


def write(path: Path, rows: Sequence[Any]) -> None:
    """Write instances of one dataclass, at least one, as `read` reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, csv_text([item.name for item in fields(rows[0])], map(astuple, rows)))


def write_folder(folder: Path, images: ImageSet, splits: Mapping[str, Split]) -> None:
    """Write a data folder with list files for `splits` and links to the folders of the images of a set."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in {path.partition("/")[0] for split in splits.values() for path in split.paths}:
        if not (folder / name).exists():
            (folder / name).symlink_to((Path(images.root) / name).resolve())
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in images.class_names), encoding="utf-8")
    for name, split in splits.items():
        lines = (f"{path} {label}\n" for path, label in zip(split.paths, split.labels, strict=True))
        (folder / f"{name}.txt").write_text("".join(lines), encoding="utf-8")


def train(name: str, task: str, out: Path, core: int | None, flags: Mapping[str, Any]) -> RunFolder:
    """Train by the flags of a command, or go on with the run of this name, and return the finished run.

    Args:
        core: the CPU core that the run has for itself; None: it takes the whole machine.

    Raises:
        ValueError: the run of this name was begun with other settings than those of the flags and their recipe.
        StoppedError: the process was asked to stop.
        DivergedError: a loss was not finite.
        FailedError: the command failed; `out/name.log` has its output.
    """
    folder, program = RunFolder(out / task / name), [sys.executable, "-m", "train.run", task]
    command = [*program, "--out", str(out), "--name", name, "--no-tensorboard"]
    command += [part for key, value in flags.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    if folder.begun:
        _check_same(folder, task, command[len(program) :])
        command = [*program, "--resume", str(folder.root)]
    if folder.root.exists() and folder.finished:
        return folder
    alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} if core is not None else {}
    if _stopped.is_set():
        raise StoppedError(name)
    with (out / f"{name}.log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | alone,
            preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
        )
        _running.add(process)
        if _stopped.is_set():  # between the look above and now
            process.terminate()
        status = process.wait()
        _running.remove(process)
    if status and _stopped.is_set():
        raise StoppedError(name)
    if status:
        *_, last = "", *(out / f"{name}.log").read_text(encoding="utf-8").splitlines()
        if NotFiniteError.ADVICE in last:
            raise DivergedError(f"{name} ended with a loss that is not finite")
        raise FailedError(f"{name} failed with status {status}: {out / name}.log has its output")
    return folder


def _check_same(folder: RunFolder, task: str, arguments: Sequence[str]) -> None:
    """Raise ValueError where a run was begun with other settings than the arguments give, with recipe and defaults."""
    wanted, has = settings_of(task, arguments).with_whole_paths(), Settings.of_run(folder.config)
    names = ("models", *changes.OF_DATA)
    pairs = {name: (getattr(has, name), getattr(wanted, name)) for name in names}
    for entry in wanted.models:
        pairs |= changes.differing(*(changes.recorded(each, entry) for each in (has, wanted)))
    for name, (before, now) in pairs.items():
        if before != now and name not in changes.OF_MACHINE:
            raise ValueError(f"{folder.root} was trained with {name} {before}, not {now}")


def cores() -> list[int | None]:
    """Return the processor's cores that this process may use; on a machine with a GPU None alone, for all of it."""
    return [None] if torch.cuda.is_available() else sorted(os.sched_getaffinity(0))


def on_cores(work: Callable[..., Result], tasks: Iterable[tuple]) -> list[Result]:
    """Return `work(core, *task)` for each task, each on one of `cores()` of its own, in the order of the tasks.

    An error is printed at once. After another one than `FailedError` no task is begun.

    Raises:
        StoppedError: the process was asked to stop.
        FailedError: some runs failed; `work` was called for all others.
    """
    free: Queue[int | None] = Queue()
    broken = Event()
    for core in cores():
        free.put(core)

    def on_one(task: tuple) -> Result | None:
        core = free.get()
        try:
            return None if broken.is_set() else work(core, *task)
        except StoppedError:
            raise
        except Exception as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            if not isinstance(error, FailedError):
                broken.set()
            raise
        finally:
            free.put(core)

    with ThreadPoolExecutor(free.qsize()) as pool:
        begun = [pool.submit(on_one, task) for task in tasks]
    failed = [error for each in begun if (error := each.exception())]
    for error in failed:
        if not isinstance(error, FailedError):
            raise error
    if failed:
        raise FailedError("; ".join(map(str, failed)))
    return [each.result() for each in begun]


def whole(path: str) -> Path:
    """Return a path as a run's settings have it, absolute."""
    return Path(path).absolute()


def parser(
    name: str, description: str, minutes: float | None = None, networks: Iterable[str] = ()
) -> argparse.ArgumentParser:
    """Return the parser of a study's command, which takes minutes of a run and networks where these are given."""
    made = argparse.ArgumentParser(prog=f"python -m bench.studies.{name}", description=description)
    made.add_argument("--data", type=whole, required=True, help="mini50's folder")
    made.add_argument("--out", type=whole, required=True, help="folder for runs")
    if minutes is not None:
        made.add_argument("--minutes", type=float, default=minutes, help="minutes of a run on one core")
    if networks:
        made.add_argument("--networks", default=",".join(networks), help="the networks, by name")
    return made
