"""Runs of studies: a signal ends them in good order, and a failure says which command failed."""

import os
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest

from bench.studies import comparison, forms, runs, trials
from polychrome.engine.errors import UserError
from polychrome.engine.machine import hardware
from polychrome.train.cli import settings_of


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Let a script stand for Python: it notes that it began, and on SIGTERM that it saved, or ends with a status."""

    def stand_in(last="while :; do sleep 0.02; done"):
        script = tmp_path / "python"
        note = f"""trap 'echo saved >> {tmp_path}/notes; exit 143' TERM; echo began >> {tmp_path}/notes"""
        script.write_text(f"#!/bin/sh\n{note}\n{last}\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        return lambda core, name: runs.train(name, "task2", tmp_path, core, {"epochs": 3})

    return stand_in


def notes(folder):
    path = folder / "notes"
    return path.read_text().split() if path.exists() else []


def test_a_signal_ends_the_runs_which_save_and_begins_no_others(command, tmp_path, capsys):
    work, cores = command(), len(os.sched_getaffinity(0))

    def terminate():
        while len(notes(tmp_path)) < cores:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=terminate).start()
    with pytest.raises(SystemExit) as caught, runs.stoppable():
        runs.on_cores(work, [(f"run{number}",) for number in range(cores + 3)])
    assert caught.value.code == os.EX_TEMPFAIL == 75
    assert sorted(notes(tmp_path)) == ["began"] * cores + ["saved"] * cores
    assert "stopped in run0; the same command goes on from there" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    work = command("exit 0")
    runs.on_cores(work, [("another",)])  # later studies of the process are not stopped
    assert notes(tmp_path)[-1] == "began"


def test_a_failure_is_printed_at_once_and_any_other_error_ends_the_study(monkeypatch, capsys):
    monkeypatch.setattr(runs, "cores", lambda: [None])
    ran = []

    def work(core, error):
        ran.append(capsys.readouterr().err)
        if error:
            raise error

    with pytest.raises(FileNotFoundError, match="gone"):
        runs.on_cores(work, [(runs.FailedError("first"),), (None,), (FileNotFoundError("gone"),), (None,)])
    assert ran == ["", "error: first\n", ""]
    assert capsys.readouterr().err == "error: gone\n"


@pytest.mark.parametrize("study", [trials, comparison, forms])
def test_no_study_runs_where_its_arithmetic_is_emulated(monkeypatch, tmp_path, study):
    monkeypatch.setattr(hardware, "native_precision", lambda on: "fp32")
    with pytest.raises(UserError, match=r"the studies' runs are in bf16, which .* only emulates"):
        study.main(["--data", str(tmp_path), "--out", str(tmp_path / "runs")], tmp_path)
    monkeypatch.setattr(hardware, "native_precision", lambda on: "bf16")
    runs.check_machine()


def test_a_failed_run_is_named_at_the_end_and_keeps_no_other_from_running(command, tmp_path):
    work = command('case "$*" in *run1*) exit 2;; esac')
    with pytest.raises(SystemExit) as caught, runs.stoppable():
        runs.on_cores(work, [(f"run{number}",) for number in range(5)])
    assert caught.value.code == f"error: run1 failed with status 2: {tmp_path}/run1.log has its output"
    assert notes(tmp_path) == ["began"] * 5


def test_a_run_has_its_core_for_itself(command, tmp_path):
    work = command(f"taskset -pc $$ > {tmp_path}/cores; echo $OMP_NUM_THREADS >> {tmp_path}/cores")
    last = max(os.sched_getaffinity(0))
    work(last, "one")
    said = (tmp_path / "cores").read_text().splitlines()
    assert said[0].endswith(f" {last}")
    assert said[1] == "1"


def test_on_a_gpu_runs_follow_each_other_on_the_whole_machine(monkeypatch):
    monkeypatch.setattr(runs.torch.cuda, "is_available", lambda: True)
    at_once = []

    def work(core, number):
        at_once.append(number)
        time.sleep(0.01)
        assert at_once.pop() == number
        return core, number

    assert runs.on_cores(work, [(0,), (1,), (2,)]) == [(None, 0), (None, 1), (None, 2)]


@pytest.mark.parametrize(("last", "error"), [("; try a smaller --lr", runs.DivergedError), ("", runs.FailedError)])
def test_a_loss_that_is_not_finite_is_told_from_other_failures(command, last, error):
    work = command(f"echo 'error: prism4: the loss is not finite{last} or --precision fp32'; exit 1")
    with pytest.raises(error, match="run0"):
        work(None, "run0")


def test_a_run_of_other_settings_is_not_taken_for_the_one_wanted(tmp_path):
    recipe, run = tmp_path / "own.toml", tmp_path / "task2" / "run"
    recipe.write_text("[task2]\nlabel_smoothing = 0.1\n[task2.model.prism4_small]\nlr = 0.5\n")
    flags = {"recipe": recipe, "models": "prism4", "epochs": 3, "data": tmp_path / "data", "lr": 0.02}
    flags |= {"precision": "bf16", "image_size": 84}
    words = [part for key, value in flags.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    own = replace(settings_of("task2", words), workers=1, backend="torch")
    run.mkdir(parents=True)
    (run / "config.toml").write_text(own.to_toml())
    for name in ("results.json", "report.html"):
        (run / name).touch()
    assert runs.train("run", "task2", tmp_path, None, flags).root == run
    others = {"epochs": 17, "lr": 0.01, "data": tmp_path / "other", "models": "prism4_small", "channels": "RG"}
    for name, value in (others | {"cutmix": 1.0}).items():  # of which the run has the default
        told = rf"task2/run was trained with {name} .*, not .*{value}"
        with pytest.raises(ValueError, match=told):
            runs.train("run", "task2", tmp_path, None, flags | {name: value})
    recipe.write_text("[task2]\nlabel_smoothing = 0.3\n")
    with pytest.raises(ValueError, match=r"task2/run was trained with label_smoothing 0\.1, not 0\.3"):
        runs.train("run", "task2", tmp_path, None, flags)


def test_a_study_s_paths_are_those_of_its_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = runs.parser("trials", "tune").parse_args(["--data", "mini50", "--out", "../runs"])
    assert (asked.data, asked.out) == (tmp_path / "mini50", tmp_path / "../runs")
