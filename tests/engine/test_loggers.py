"""What a training tells its loggers, and what becomes of a logger that fails, hangs or is not installed."""

import importlib.util
import os
import struct
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from threading import Event, current_thread, main_thread

import pytest

from polychrome.engine.errors import UserError
from polychrome.engine.history import EpochRow, TrainingHistory
from polychrome.engine.machine import distributed
from polychrome.engine.watch import loggers
from polychrome.engine.watch.logger import InBackground, Logger, Training
from polychrome.engine.watch.loggers import KINDS, Kind, Loggers
from polychrome.engine.watch.mlflow import named

TRAINING = Training("task1", "a", "m", "2026-01-01T00:00:00+00:00", {"lr": 0.1, "optimizer": "adam"})


def history(epochs):
    rows = [EpochRow("m", epoch, 0.1, 1 / epoch, 0.5, 2 / epoch, 0.25) for epoch in range(1, epochs + 1)]
    return TrainingHistory(rows, [100.0 * row.epoch for row in rows])


class Noting(Logger):
    """Notes what it is told; an error that is given is raised at an epoch."""

    def __init__(self, last=0, error=None):
        self.last, self.error, self.told, self.threads = last, error, [], set()

    def epoch(self, row, images_per_second, idle=None):
        self.threads.add(current_thread())
        self.told.append((row.epoch, images_per_second, idle))
        if self.error is not None:
            raise self.error

    def result(self, epoch, figures, pictures):
        self.told.append((epoch, figures))

    def close(self, failed=False):
        self.told.append(failed)


def test_a_logger_is_told_each_epoch_once_and_those_that_it_lacks():
    noting = Noting(last=2)  # it was away when the third epoch ended, and the run goes on
    for epochs in (4, 4, 5):
        noting.epochs(history(epochs), idle=0.5)
    assert noting.told == [(3, 300.0, None), (4, 400.0, 0.5), (5, 500.0, 0.5)]


def test_a_server_is_told_in_another_thread_and_all_of_it_before_the_training_ends():
    noting = Noting()
    with InBackground("a server", lambda: noting) as logger:
        seen = history(2)
        logger.epochs(seen)
        seen.epochs.append(seen.epochs[-1])  # the training goes on meanwhile
        logger.result(2, {"test accuracy/RGB": 0.5}, {})
    assert noting.told == [(1, 100.0, None), (2, 200.0, None), (2, {"test accuracy/RGB": 0.5}), False]
    assert main_thread() not in noting.threads


def test_a_training_that_fails_tells_its_loggers():
    noting = Noting()
    with pytest.raises(ZeroDivisionError), InBackground("a server", lambda: noting):
        1 / 0  # noqa: B018
    assert noting.told == [True]


def failing_run(monkeypatch, tmp_path, made):
    """Return what two trainings with one logger took in seconds, and how often the logger was made."""
    count = []

    def make(training):
        count.append(training.network)
        return made()

    monkeypatch.setitem(KINDS, "mlflow", Kind("MLflow", make, lambda: None))
    every = Loggers(("mlflow",), tensorboard=False)
    started = time.monotonic()
    for network in ("m", "n"):
        with every.of(replace(TRAINING, network=network), tmp_path) as logger:
            logger.epochs(history(1))
            logger.epochs(history(2))
            logger.result(2, {}, {})
    return time.monotonic() - started, count


def test_a_logger_that_fails_is_told_no_more_in_the_run_and_one_line_says_so(monkeypatch, tmp_path, capsys):
    noting = Noting(error=OSError(28, "No space left on device"))
    _, made = failing_run(monkeypatch, tmp_path, lambda: noting)
    assert made == ["m"]
    assert noting.told == [(1, 100.0, None)]
    assert capsys.readouterr().out.splitlines() == [
        "nothing more is logged to MLflow, the training goes on: [Errno 28] No space left on device"
    ]


def test_a_logger_that_does_not_answer_is_not_waited_for(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(loggers, "InBackground", partial(InBackground, patience=0.2))
    seconds, made = failing_run(monkeypatch, tmp_path, Event().wait)
    assert made == ["m"]
    assert 0.2 <= seconds < 5
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "nothing more is logged to MLflow, the training goes on: no answer within 0.2 s"


def test_of_several_processes_the_first_alone_logs(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    with Loggers(("mlflow", "wandb"), tensorboard=True).of(TRAINING, tmp_path / "events") as logger:
        logger.epochs(history(1))
        logger.result(1, {}, {})
    assert logger.each == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", list(KINDS))
def test_a_logger_that_is_not_installed_is_refused_with_what_to_install(name, monkeypatch, tmp_path):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"^--logger {name} needs the package {name}: pip install {name}$"):
        loggers.check((name,))


def test_the_folder_of_wandbs_runs_is_not_taken_for_its_package(monkeypatch, tmp_path):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert importlib.util.find_spec("wandb") is not None
    with pytest.raises(UserError, match="pip install wandb"):
        loggers.check(("wandb",))


def test_no_logger_is_imported_unless_asked_for():
    """TensorBoard's too, which is written by a module of ours, before something is written."""
    code = """
import sys, engine.watch.loggers, engine.watch.tensorboard
print('tensorboard' in sys.modules)
import train.experiment
print({'mlflow', 'wandb', 'tensorboard'} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["False", "set()"]


def test_a_training_has_its_id_wherever_its_folder_is_and_no_other_has_it():
    ids = {
        TRAINING.id,
        *(replace(TRAINING, **{name: "x"}).id for name in ("task", "run", "network", "begun", "course")),
    }
    assert len(ids) == 6
    assert replace(TRAINING, settings={}, first_epoch=7, anew=True).id == TRAINING.id == "c67fc64f299d9912"
    assert all(len(each) == 16 and each.isalnum() for each in ids)


def test_names_that_mlflow_refuses_are_changed_and_stay_apart():
    given = {"test accuracy/red+nir": 1.0, "test accuracy/red_nir": 2.0, "test accuracy/3 of 12 #1": 3.0}
    assert named(given) == {
        "test accuracy/red_nir": 1.0,
        "test accuracy/red_nir_": 2.0,
        "test accuracy/3 of 12 _1": 3.0,
    }


def test_mlflow_without_the_packages_of_its_store_is_refused(monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///m.db")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sqlalchemy" else find(name))
    with pytest.raises(UserError, match=r"in a database \(sqlite\), for which mlflow-skinny lacks packages: pip"):
        loggers.check(("mlflow",))


def test_a_store_that_mlflow_refuses_is_refused_in_its_words(monkeypatch, tmp_path):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/store")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(UserError, match=r"^--logger mlflow: The filesystem tracking .*MLFLOW_ALLOW_FILE_STORE"):
        loggers.check(("mlflow",))


def test_wandb_without_an_account_is_refused(monkeypatch, tmp_path):
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    code = "from engine.watch import loggers; loggers.check(('wandb',))"
    unknown = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    unknown |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "PYTHONPATH": os.getcwd()}
    asked = {"env": unknown, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "check": False}
    refused = subprocess.run([sys.executable, "-c", code], **asked)
    assert "UserError: --logger wandb: " in refused.stderr
    assert refused.stderr.endswith("; WANDB_MODE=offline needs no account\n")
    offline = subprocess.run([sys.executable, "-c", code], **asked | {"env": unknown | {"WANDB_MODE": "offline"}})
    assert (offline.returncode, offline.stdout, offline.stderr) == (0, "", "")


def test_records_of_wandbs_file_are_read_over_the_edges_of_its_blocks():
    from polychrome.engine.watch.wandb import BLOCK, HEADER, _records

    wanted, content = [b"a" * 10, b"b" * 70_000, b"", b"c" * 40_000, b"d"], b"\0" * HEADER
    for record in wanted:
        first = True
        while first or record:
            if (room := BLOCK - len(content) % BLOCK - HEADER) < 0:
                content += b"\0" * (room + HEADER)
                continue
            piece, record = record[:room], record[room:]
            kind = (1 if first else 4) if not record else (2 if first else 3)
            content += struct.pack("<IHB", 0, len(piece), kind) + piece
            first = False
    assert list(_records(content)) == wanted
    assert list(_records(content[:-1])) == wanted[:-1]
    assert list(_records(content[: 2 * BLOCK])) == wanted[:1]
