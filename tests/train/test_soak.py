"""A long run that is struck two hundred times equals the one that nothing happened to."""

import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest

from polychrome.engine.machine.files import PARTIAL
from polychrome.engine.machine.interruption import SIGNALS
from polychrome.engine.run_folder import RunFolder
from polychrome.engine.training import checkpoint, state
from tests import disks
from tests.engine.test_integrity import cut, flipped, zeroed
from tests.train import runner
from tests.train.test_killed_runs import ARGUMENTS, assert_equal_runs

EPOCHS, STEPS = 40, 18  # steps of an epoch
# Two workers decode the files anew in each epoch.
OPTIONS = [*ARGUMENTS, "--epochs", str(EPOCHS), "--batch-size", "4", "--cache", "none", "--workers", "2", "--plots"]
KINDS = {"kill": 60, "early kill": 20, "signal": 60, "full_disk": 10, "quota": 10, "damage": 20, "data": 20}
EVENTS = sum(KINDS.values())
MODEL = "pool_attention_cnn"
PATIENCE = 120

# Writes a byte to the descriptor in `STEPPED` after each optimiser step.
REPORTING = """
import os, sys
from polychrome.engine.training.trainer import Trainer
update = Trainer._update
def reporting(self):
    update(self)
    os.write(int(os.environ["STEPPED"]), b".")
Trainer._update = reporting
from polychrome.train.run import main
if __name__ == "__main__":
    sys.exit(main())
"""

# What torch says as it forgets workers that could not be started.
UNBORN = re.compile(
    r"Exception ignored in: <function _MultiProcessingDataLoaderIter.__del__.*?AttributeError.*?\n", re.S
)


class Use(NamedTuple):
    """What a process holds: resident memory in kB, open files, processes under it."""

    memory: int
    files: int
    children: int


def use(process) -> Use | None:
    """Return what a process holds; None where it has ended."""
    with suppress(OSError, StopIteration):
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        memory = int(next(line for line in status if line.startswith("VmRSS")).split()[1])
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return Use(memory, len(os.listdir(f"/proc/{process.pid}/fd")), len(children))
    return None


class Life:
    """A process of the command line that reports its steps."""

    def __init__(self, script: Path, *arguments: str) -> None:
        steps, stepped = os.pipe()
        self.seen: list[Use] = []
        self.process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            cwd=runner.ROOT,
            env=runner.environment(STEPPED=str(stepped), PYTHONUNBUFFERED="1"),
            pass_fds=[stepped],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(stepped)
        self.steps = os.fdopen(steps, "rb", buffering=0)

    def wait_for(self, count: int) -> bool:
        """Return whether the process makes so many more steps; else it has ended."""
        for _ in range(count):
            assert select.select([self.steps], [], [], PATIENCE)[0], "no step for too long"
            if not self.steps.read(1):
                return False
            if (found := use(self.process)) is not None:
                self.seen.append(found)
        return True

    def end(self) -> tuple[int, str, str]:
        """Return status, output and errors of the process once it ends by itself."""
        output, errors = self.process.communicate(timeout=PATIENCE)
        self.steps.close()
        errors = UNBORN.sub("", errors)
        # Workers whose parent was killed may say that their connection to it is gone.
        assert self.process.returncode < 0 or "Traceback" not in output + errors, errors
        return self.process.returncode, output, errors


def damage(folder: Path, rng: random.Random) -> bool:
    """Damage the newest checkpoint; return whether it is done, as it is where another one is whole."""
    whole = [folder / name for name in ("step.pt", "next.pt", "last.pt", "previous.pt") if (folder / name).exists()]
    whole = [path for path in whole if checkpoint.fault(path) is None]
    if len(whole) < 2:
        return False
    newest = max(whole, key=lambda path: tuple(checkpoint.load(path)["position"].values()))
    newest.write_bytes(rng.choice([flipped, zeroed, cut])(newest.read_bytes(), rng))
    return True


def done(folder: Path) -> int:
    """Return how many steps the newest checkpoint has done."""
    content = state.newest(folder).content
    epoch, turn, batch = content["position"].values() if content else (1, 0, 0)
    return (epoch - 1) * STEPS + (STEPS if turn else batch)


class Soak:
    """A run that is struck at random, in one life after another."""

    def __init__(self, script: Path, run: Path, data: Path, disk: Path | None, seed: int) -> None:
        self.script, self.run, self.data, self.disk = script, run, data, disk
        self.checkpoints = run / "checkpoints" / MODEL
        self.rng = random.Random(seed)
        self.seen: list[Use] = []
        self.damaged = 0

    def live(self, seconds: str = "0") -> Life:
        """Go on with the run, which saves within epochs every so many seconds."""
        return Life(self.script, "task1", "--resume", str(self.run), "--save-every", seconds)

    def strike(self, kind: str, waiting: int) -> bool:
        """Let something happen to the run, while so many events are to come; return whether it could.

        Where the run is ahead of its events, steps that a kill ends before the end of an epoch are lost.
        """
        if kind == "damage":
            struck = damage(self.checkpoints, self.rng)
            self.damaged += struck
            return struck
        if kind == "full_disk" and self.disk is None:
            kind = "quota"
        if kind == "data":
            self.change_data()
            return True
        left = EPOCHS * STEPS - done(self.checkpoints)
        behind = left / (EPOCHS * STEPS) > waiting / EVENTS
        life = self.live(self.rng.choice(["0.000001", "0"]) if behind else "0")
        if kind == "early kill":  # as it imports, scans, reads checkpoints, begins an epoch
            assert not select.select([life.steps], [], [], self.rng.uniform(0, 5))[0] or life.wait_for(1)
            life.process.kill()
            assert life.end()[0] == -signal.SIGKILL
            return True
        struck = life.wait_for(self.rng.randint(1, max(3, left // waiting) if behind else 2))
        if struck:
            self.seen += life.seen
            getattr(self, kind)(life)
        else:
            assert life.end()[0] == 0
        return struck

    def kill(self, life: Life) -> None:
        time.sleep(self.rng.uniform(0, 0.05))
        life.process.kill()
        status, output, _ = life.end()
        assert status == -signal.SIGKILL
        self.check_told(output)

    def signal(self, life: Life) -> None:
        number = self.rng.choice(SIGNALS)
        life.process.send_signal(number)
        status, output, errors = life.end()
        name = "Ctrl-C" if number == signal.SIGINT else number.name
        assert (status, errors.count("\n")) == (1, 1), errors
        assert re.search(rf"was stopped by {name} (in|after)|^error: stopped; ", errors), errors
        self.check_told(output)

    def full_disk(self, life: Life) -> None:
        filling = disks.fill(self.disk)
        try:
            self.check_storage(life, "No space left on device")
        finally:
            filling.unlink()

    def quota(self, life: Life) -> None:
        resource.prlimit(life.process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        self.check_storage(life, "File too large")

    def check_storage(self, life: Life, why: str) -> None:
        status, output, errors = life.end()
        assert (status, errors.count("\n")) == (1, 1), errors
        assert re.search(rf"(cannot be written|no worker process can be started): .*{why}", errors), errors
        self.check_told(output)

    def check_told(self, output: str) -> None:
        """Check that a life which trained named what was damaged before it."""
        if self.damaged:
            assert "is damaged" in output
            self.damaged = 0

    def change_data(self) -> None:
        """Start the run on other training data, which it refuses, and put them back."""
        path = self.data / "images" / self.rng.choice(sorted(os.listdir(self.data / "images")))
        whole, before = path.read_bytes(), runner.files_of(self.run)
        path.write_bytes(self.rng.choice([flipped, zeroed, cut])(whole, self.rng))
        changed = path.read_bytes() != whole
        status, output, errors = self.live().end()
        path.write_bytes(whole)
        assert changed
        assert status == 2, output + errors
        assert f"cannot go on: {path.stem.split()[0]} of {self.data} changed since the run began" in errors
        assert runner.files_of(self.run) == before


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
@pytest.mark.usefixtures("signals_heard")
def test_a_run_that_is_struck_two_hundred_times_equals_the_unbroken_one(stripes, tmp_path, monkeypatch, seed):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    script, data = tmp_path / "reporting.py", Path(shutil.copytree(stripes, tmp_path / "data"))
    script.write_text(REPORTING)
    start = ["task1", "--data", str(data), "--name", "a", *OPTIONS]

    life = Life(script, *start, "--out", str(tmp_path / "unbroken"))
    while life.wait_for(1):
        pass
    assert life.end()[0] == 0
    unbroken, uses = tmp_path / "unbroken/task1/a", life.seen
    assert len(uses) == EPOCHS * STEPS
    early, late = uses[STEPS : 10 * STEPS], uses[-10 * STEPS :]
    # Batches on their way to the process are open files: a few more or less at any moment.
    for held, margin in (("memory", 8_000), ("files", 4), ("children", 0)):
        assert median(getattr(each, held) for each in late) <= median(getattr(each, held) for each in early) + margin
    shared, cached = set(os.listdir("/dev/shm")), sorted(path.name for path in (tmp_path / "cache").rglob("*"))

    with disks.small(tmp_path / "disk", "32m") as mounted:
        run = tmp_path / "disk/task1/a"
        first = Life(script, *start, "--out", str(tmp_path / "disk"), "--save-every", "0.000001")
        assert first.wait_for(1)
        first.process.kill()
        first.end()
        soak = Soak(script, run, data, tmp_path / "disk" if mounted else None, seed)
        kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
        soak.rng.shuffle(kinds)
        while kinds:
            assert not RunFolder(run).finished, f"the run is over, {len(kinds)} events are to come"
            if soak.strike(kinds[-1], len(kinds)):
                kinds.pop()
            else:
                soak.rng.shuffle(kinds)
        last = soak.live()
        while last.wait_for(1):
            pass
        assert last.end()[0] == 0
        assert_equal_runs(run, unbroken)
        found, wanted = ({str(path.relative_to(each)) for path in each.rglob("*")} for each in (run, unbroken))
        # A file that was being written when its process was killed is removed an hour later, or, if a checkpoint, now.
        partial = {name for name in found if name.endswith(PARTIAL)}
        assert not any(name.startswith("checkpoints") for name in partial)
        assert found - partial == wanted
        sizes = [sum(path.stat().st_size for path in (each / "checkpoints").rglob("*.pt")) for each in (run, unbroken)]
        assert sizes[0] < 1.01 * sizes[1]
    assert max(each.memory for each in soak.seen) < max(each.memory for each in uses) + 40_000
    assert max(each.files for each in soak.seen) <= max(each.files for each in uses) + 4
    assert set(os.listdir("/dev/shm")) <= shared
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.suffix != PARTIAL) == cached
