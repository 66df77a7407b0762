"""In a clone `kernels`, `models`, `engine` and `train` are the subpackages of `polychrome`, as the same modules."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHORT = ("kernels", "models", "engine", "train")
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for short in SHORT
    for path in (ROOT / short).rglob("*.py")
    if path.name != "__main__.py"
)


def python(*command):
    """Return what Python prints, run from the root of the clone."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_one_object_under_both_names():
    pytest.importorskip("triton")
    assert len(MODULES) > 150
    for name in MODULES:
        short, long = import_module(name), import_module(f"polychrome.{name}")
        assert short is long
        assert (long.__name__, long.__spec__.name) == (f"polychrome.{name}",) * 2


FIRST = ("kernels.modules", "polychrome.kernels.modules", "train.run")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_whichever_name_is_imported_first_there_is_one_copy():
    """Each in a fork of a process that has imported what is not ours."""
    script = f"""
import os, sys
import torch, torchvision
from importlib import import_module
for first in {FIRST}:
    sys.stdout.flush()
    if not os.fork():
        break
    os.wait()
else:
    sys.exit()
print(first)
import_module(first)
import kernels.dynamic_conv.api, polychrome.kernels.dynamic_conv.api
import polychrome
from polychrome.kernels import dynamic_conv2d
from polychrome.kernels.dynamic_conv.api import dynamic_conv2d as same
from polychrome.engine.data import loader
import engine.data.loader as other
print(polychrome.dynamic_conv2d is dynamic_conv2d is same, loader is other)
import kernels.channel_gate.api, kernels.explain, kernels.fuse.api
print(all(callable(getattr(polychrome, name)) for name in polychrome.__all__))
print({{*polychrome.__all__}} - {{"load"}} == {{*kernels.__all__}})
print(sorted(name for name, module in sys.modules.items()
             if name.partition(".")[0] in {SHORT} and module is not sys.modules["polychrome." + name]), flush=True)
os._exit(0)  # what torch does at the end of a process takes longer than all of this
"""
    printed = python("-c", script).splitlines()
    assert printed == [line for first in FIRST for line in (first, "True True", "True", "True", "[]")]


@pytest.mark.parametrize("module", ["train.run", "polychrome.train.run"])
def test_the_command_line_runs_under_both_names_and_says_which(module):
    assert python("-m", module, "--help").startswith(f"Usage: python -m {module} ")


def test_what_is_not_there_is_named():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'kernels\.nothing'"):
        import_module(".".join(["kernels", "nothing"]))
    with pytest.raises(AttributeError, match="module 'polychrome' has no attribute 'nothing'"):
        import_module("polychrome").nothing  # noqa: B018


def test_our_own_code_imports_the_long_names():
    """A short name imported while its package is would make a second copy."""
    short = re.compile(rf"^\s*(?:from|import) (?:{'|'.join(SHORT)})\b", re.M)
    files = [path for folder in (*SHORT, "polychrome", "bench") for path in (ROOT / folder).rglob("*.py")]
    assert [str(path) for path in files if short.search(path.read_text(encoding="utf-8"))] == []
