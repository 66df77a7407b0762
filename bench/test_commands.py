"""Whole commands, from the outside: start-up time, and the first `task1` of a new user with its peak memory."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments, **environment):
    subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True, env=os.environ | environment
    )


@pytest.mark.benchmark(group="start-up")
@pytest.mark.parametrize(
    "arguments", [("-c", "import train.run"), ("-m", "train.run", "--help")], ids=["import train.run", "--help"]
)
def test_start_up(benchmark, arguments):
    benchmark.extra_info["line_s"] = 2
    benchmark.pedantic(run, arguments, rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="task1 from nothing")
def test_task1_from_nothing(benchmark, tmp_path):
    """Generates the set, scans it, trains and tests both models, writes the report."""
    arguments = ("-m", "train.run", "task1", "--out", str(tmp_path / "runs"), "--name", "bench")
    benchmark.pedantic(run, arguments, {"XDG_CACHE_HOME": str(tmp_path / "cache")}, rounds=1)
    results = json.loads((tmp_path / "runs/task1/bench/results.json").read_text())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    benchmark.extra_info |= {
        "cores": len(os.sched_getaffinity(0)),
        "accuracy": {name: entry["test"]["RGB"]["accuracy"] for name, entry in results["models"].items()},
        "images_per_second": {name: entry["images_per_second"] for name, entry in results["models"].items()},
        "peak_memory_mb": round(peak),
        "line_s": 180,
        "line_accuracy": 0.5,
        "line_peak_memory_mb": 3000,
    }
    print(benchmark.extra_info)
