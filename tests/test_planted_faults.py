"""Faults, each a patch in `tests/faults`, that the usual run must catch: what was thinned out still finds them.

A patch says what is wrong, then which tests of the usual run catch it.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FAULTS = sorted(Path(__file__).with_name("faults").glob("*.patch"))
pytestmark = pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="faults are planted in a copy of a git checkout"
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda path: path.stem)
def test_every_fault_can_be_planted_in_todays_code(fault):
    command = ["git", "apply", "--check", str(fault)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (ROOT / catcher(fault)).exists()


def test_there_are_ten_faults():
    assert len(FAULTS) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda path: path.stem)
def test_every_planted_fault_is_caught(fault, tmp_path):
    copy_tree(tmp_path)
    subprocess.run(["git", "apply", str(fault)], cwd=tmp_path, check=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", catcher(fault)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    summary = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 1, done.stdout
    assert re.search(r"\b1 failed\b", summary), done.stdout
    assert "error" not in summary, done.stdout


def catcher(fault: Path) -> str:
    """Return the tests that catch a fault, as its patch names them."""
    return re.search(r"^Caught by: (\S+)$", fault.read_text(encoding="utf-8"), re.MULTILINE)[1]


def copy_tree(folder: Path) -> None:
    """Copy what git tracks, or would, into a folder."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
