"""Benchmark of whole commands: start-up time, and time and peak memory of a new user's first `task1`.

pytest bench/test_commands.py --benchmark-only [--save-results]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from bench.measuring import measure
from bench.measuring.measure import Measured
from bench.measuring.replay import clock

ROOT = Path(__file__).resolve().parents[1]
START_UP = {"import train.run": ("-c", "import train.run"), "--help": ("-m", "train.run", "--help")}


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("command", START_UP)
def test_start_up(compare, command):
    compare("commands", command, "ours", lambda: measured(START_UP[command], 5), (), group="start-up")


@pytest.mark.benchmark(timer=clock)
def test_task1_from_nothing(compare, tmp_path):
    """The job generates and scans the image set, trains and tests both models and writes the report."""
    compare("commands", "task1 from nothing", "ours", lambda: first_task1(tmp_path), (), group="task1 from nothing")


def measured(command: tuple[str, ...], runs: int) -> Measured:
    """Measure a Python command `runs` times after a warm-up run."""
    run(*command)
    return measure.of_times([run(*command)[0] for _ in range(runs)])


def first_task1(folder: Path) -> Measured:
    """Measure `task1` with an empty cache folder."""
    arguments = ("-m", "train.run", "task1", "--out", str(folder / "runs"), "--name", "bench")
    taken, peak = run(*arguments, XDG_CACHE_HOME=str(folder / "cache"))
    results = json.loads((folder / "runs/task1/bench/results.json").read_text(encoding="utf-8"))
    accuracy = {name: model["test"]["RGB"]["accuracy"] for name, model in results["models"].items()}
    return measure.of_times([taken], peak_bytes=peak, accuracy=accuracy)


def run(*arguments: str, **environment: str) -> tuple[float, int]:
    """Run a Python command; return its milliseconds, and the peak bytes of memory of its largest process."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=said, stderr=said, env=os.environ | environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        taken = 1e3 * (time.perf_counter() - started)
        said.seek(0)
        assert process.returncode == 0, said.read().decode(errors="replace")
    return taken, usage.ru_maxrss * 1024
