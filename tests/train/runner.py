"""The command line in processes of its own, where a test kills them or starts several."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]

# Ends the process as `kill -9` does, before optimiser step number `KILL_AT` of what it trains: on rank `KILL_RANK` and
# in the first life of it alone, where torchrun may start it again.
KILLED = """
import os, signal, sys
from polychrome.engine.training.trainer import Trainer
update, steps = Trainer._update, [0]
def dying(self):
    steps[0] += 1
    rank, life = os.environ.get("RANK", "0"), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if steps[0] == int(os.environ["KILL_AT"]) and rank == os.environ.get("KILL_RANK", "0") and life == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    update(self)
Trainer._update = dying
from polychrome.train.run import main
if __name__ == "__main__":
    sys.exit(main())
"""


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a process that finds our packages and uses one thread."""
    here = {key: value for key, value in os.environ.items() if not key.startswith(("TORCHELASTIC", "RANK", "WORLD"))}
    return here | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


def train(*arguments: str, script: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
    """Run `python -m train.run` with these arguments, or a script in its place, to its end."""
    program = [str(script)] if script else ["-m", "train.run"]
    return run([sys.executable, *program, *arguments], **variables)


def torchrun(processes: int, *arguments: str, script: Path | None = None, restarts: int = 0, **variables: str):
    """Run the same in several processes, as users do."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    program = [str(script)] if script else ["-m", "train.run"]
    with TemporaryDirectory() as logs:  # it leaves its own behind
        options = [f"--max-restarts={restarts}", f"--log-dir={logs}"]
        return run([*launcher, *options, *program, *arguments], **variables)


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess:
    """Run a command in the project's folder."""
    return subprocess.run(
        command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, timeout=300, check=False
    )


def was_killed(done: subprocess.CompletedProcess) -> bool:
    """Return whether a process ended by `kill -9`."""
    return done.returncode == -signal.SIGKILL


def history(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's `history.csv`."""
    with open(run / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def results(run: Path) -> dict:
    """Return a run's `results.json`."""
    return json.loads((run / "results.json").read_text())


def files_of(run: Path) -> dict[Path, bytes]:
    """Return what a run's files hold."""
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
