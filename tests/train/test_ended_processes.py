"""Signals to a whole group of processes, workers whose parent dies, and output that nobody reads."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from polychrome.engine.machine.interruption import SIGNALS
from polychrome.train.run import main
from tests.train import runner
from tests.train.test_killed_runs import assert_equal_runs

SMALL = (
    *("--image-size", "32", "--batch-size", "16", "--precision", "fp32", "--models", "pool_attention_cnn"),
    *("--no-plots", "--no-tensorboard"),
)
# Two workers, which decode in every epoch.
DECODING = (*SMALL, "--workers", "2", "--backend", "torch", "--cache", "none")
PATIENCE = 60

# Scans a folder of files each of which takes a minute.
SLOW_SCAN = """
import sys, time
from polychrome.engine.machine.workers import parallel
if __name__ == "__main__":
    print("begun", flush=True)
    list(parallel(time.sleep, [60.0] * 8, 2))
"""


def begun(*arguments, script=None, **options):
    """Start the command line, or a script, in a group of processes of its own."""
    program = [str(script)] if script else ["-m", "train.run", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(
        [sys.executable, *program], cwd=runner.ROOT, env=runner.environment(), start_new_session=True, **pipes
    )


def wait_for(condition, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    return condition()


def parents():
    """Return the parent of each process that is alive, by its number."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(path.parent.name)] = int(parent)
    return found


def descendants(process):
    of, found = parents(), {process.pid}
    while new := {child for child, parent in of.items() if parent in found} - found:
        found |= new
    return found - {process.pid}


def alive(numbers):
    return numbers & parents().keys()


def is_worker(number):
    """Return whether a process is one of ours, not the tracker of semaphores that Python starts beside them."""
    with suppress(OSError):
        return b"resource_tracker" not in Path(f"/proc/{number}/cmdline").read_bytes()
    return False


@pytest.fixture(scope="module")
def unbroken(stripes, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    assert main(["task1", "--data", str(stripes), "--out", str(out), "--name", "a", *DECODING, "--epochs", "4"]) == 0
    return out / "task1/a"


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_all_processes_saves_and_the_run_goes_on_equal(stripes, tmp_path, unbroken, number):
    """As a terminal that closes sends SIGHUP, or systemd SIGTERM, to the workers too."""
    run = begun("task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "a", *DECODING, "--epochs", "4")
    assert wait_for(lambda: (tmp_path / "task1/a/history.csv").exists())
    os.killpg(run.pid, number)
    output, errors = run.communicate(timeout=PATIENCE)
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    assert run.returncode == 1, output + errors
    assert f"was stopped by {name} in epoch" in errors
    assert "Traceback" not in output + errors
    assert (tmp_path / "task1/a/checkpoints/pool_attention_cnn/step.pt").exists()
    again = re.search("; go on: python -m train.run (task1 --resume .*)", errors)[1]
    assert main(shlex.split(again)) == 0
    assert_equal_runs(tmp_path / "task1/a", unbroken)


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(stripes, tmp_path):
    run = begun("task1", "--data", str(stripes), "--out", str(tmp_path), *DECODING, "--epochs", "1000")
    assert wait_for(lambda: len(list(filter(is_worker, descendants(run)))) >= 2)
    workers = descendants(run)
    run.kill()
    run.communicate(timeout=PATIENCE)
    wait_for(lambda: not alive(workers), 5)
    assert alive(workers) == set()


def test_workers_that_are_busy_end_with_a_parent_that_is_killed_or_stopped(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(SLOW_SCAN)
    for number in (signal.SIGKILL, signal.SIGINT):
        run = begun(script=script)
        assert wait_for(lambda run=run: len(list(filter(is_worker, descendants(run)))) == 2)
        time.sleep(1)  # they import what they need, and begin
        workers = descendants(run)
        os.kill(run.pid, number)
        run.communicate(timeout=20)
        wait_for(lambda workers=workers: not alive(workers), 5)
        assert alive(workers) == set()


@pytest.mark.parametrize("closed", ["pipe", pytest.param("closed", marks=pytest.mark.slow)])
def test_a_run_whose_output_nobody_reads_trains_to_its_end(stripes, tmp_path, closed):
    arguments = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "a", *SMALL]
    arguments += ["--workers", "1", "--epochs", "1"]
    if closed == "pipe":
        run = begun(*arguments, bufsize=1)
        run.stdout.close()
        errors = run.stderr.read()
    else:
        command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", sys.executable, "-m", "train.run", *arguments]
        run, errors = subprocess.Popen(command, cwd=runner.ROOT, env=runner.environment()), ""
    assert run.wait(timeout=PATIENCE) == 0, errors
    assert errors == ""
    assert runner.results(tmp_path / "task1/a")["models"].keys() == {"pool_attention_cnn"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_output_on_a_full_disk_is_told(tmp_path):
    with open("/dev/full", "w") as full:
        run = begun("task1", "--print-config", stdout=full)
        _, errors = run.communicate(timeout=PATIENCE)
    assert (run.returncode, errors) == (1, "error: not all output was written: No space left on device\n")


def job(tmp_path, *arguments):
    """Start the job script as Slurm does, with an `scontrol` in place of Slurm's that writes down how it is called."""
    command = tmp_path / "bin/scontrol"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/scontrol"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", "examples/slurm.sh", *arguments],
        cwd=runner.ROOT,
        env=runner.environment(PATH=path, SLURM_JOB_ID="17"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_job_that_slurm_warns_saves_goes_back_into_the_queue_and_ends_equal(stripes, tmp_path, unbroken):
    run = tmp_path / "task1/job-17"
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), *DECODING, "--epochs", "4"]
    first = job(tmp_path, *start)
    assert wait_for(lambda: (run / "history.csv").exists())
    os.kill(first.pid, signal.SIGUSR1)  # to the script alone, as `--signal=B:` says
    _, errors = first.communicate(timeout=PATIENCE)
    assert first.returncode == 1
    assert "was stopped by SIGTERM in epoch" in errors
    assert (tmp_path / "scontrol").read_text() == "requeue 17\n"
    second = job(tmp_path, *start)
    assert "going on with" in second.communicate(timeout=PATIENCE)[0]
    assert second.returncode == 0
    assert (tmp_path / "scontrol").read_text() == "requeue 17\n"
    assert_equal_runs(run, unbroken)


def test_a_job_that_fails_or_is_cancelled_does_not_go_back_into_the_queue(stripes, tmp_path):
    wrong = job(tmp_path, "task1", "--epochs", "none")
    wrong.communicate(timeout=PATIENCE)
    assert wrong.returncode == 2
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), *DECODING, "--epochs", "1000"]
    cancelled = job(tmp_path, *start)
    assert wait_for(lambda: (tmp_path / "task1/job-17/history.csv").exists())
    os.kill(cancelled.pid, signal.SIGTERM)
    _, errors = cancelled.communicate(timeout=PATIENCE)
    assert cancelled.returncode == 1
    assert "was stopped by SIGTERM in epoch" in errors
    assert not (tmp_path / "scontrol").exists()
