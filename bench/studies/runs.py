"""Runs of the recipe on single cores of this machine, and the tables that studies keep of them."""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from queue import Queue
from typing import Any, TypeVar

from polychrome.engine.data.image_set import ImageSet, Split
from polychrome.engine.machine.files import write_atomically
from polychrome.engine.run_folder import RunFolder

Row, Result = TypeVar("Row"), TypeVar("Result")
KINDS = {"int": int, "float": float, "str": str}


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
    text = io.StringIO()
    table = csv.DictWriter(text, [item.name for item in fields(rows[0])], lineterminator="\n")
    table.writeheader()
    table.writerows(map(asdict, rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue())


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


def train(name: str, task: str, out: Path, core: int, flags: Mapping[str, Any]) -> RunFolder:
    """Train on one core by the flags of a command, or go on with the run of this name, and return the finished run."""
    folder = RunFolder(out / task / name)
    if folder.root.exists() and folder.finished:
        return folder
    command = [sys.executable, "-m", "train.run", task]
    if folder.begun:
        command += ["--resume", str(folder.root)]
    else:
        command += ["--out", str(out), "--name", name, "--no-tensorboard"]
        command += [part for key, value in flags.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    with (out / f"{name}.log").open("a", encoding="utf-8") as log:
        subprocess.run(
            command,
            check=True,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
    return folder


def on_cores(work: Callable[..., Result], tasks: Iterable[tuple]) -> list[Result]:
    """Return `work(core, *task)` for each task, each on a core of its own, in the order of the tasks."""
    cores: Queue[int] = Queue()
    for core in os.sched_getaffinity(0):
        cores.put(core)

    def on_one(task: tuple) -> Result:
        core = cores.get()
        try:
            return work(core, *task)
        finally:
            cores.put(core)

    with ThreadPoolExecutor(cores.qsize()) as pool:
        return list(pool.map(on_one, tasks))


def parser(name: str, description: str, minutes: float, networks: Iterable[str]) -> argparse.ArgumentParser:
    """Return the parser of a study's command: the data, a folder for runs, minutes of a run, and networks."""
    made = argparse.ArgumentParser(prog=f"python -m bench.studies.{name}", description=description)
    made.add_argument("--data", type=Path, required=True, help="mini50's folder")
    made.add_argument("--out", type=Path, required=True, help="folder for runs")
    made.add_argument("--minutes", type=float, default=minutes, help="minutes of a run on one core")
    made.add_argument("--networks", default=",".join(networks), help="the networks, by name")
    return made
