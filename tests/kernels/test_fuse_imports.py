"""`kernels` in a project of somebody else's."""

import subprocess
import sys
from pathlib import Path

import pytest

import polychrome

NAMES = ("engine", "kernels", "models", "train")


@pytest.fixture
def project(tmp_path):
    """A project with packages that have the names of ours, which is installed in another folder."""
    site, project = tmp_path / "site", tmp_path / "project"
    site.mkdir()
    (site / "polychrome").symlink_to(Path(polychrome.__file__).parent)
    for name in NAMES:
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text(f"HOME = {name!r}\n")
    return project


def run(project, code):
    """Return what a script in the project prints; nothing of this repository is on its path but `polychrome`."""
    (project / "script.py").write_text(code)
    environment = {"PYTHONPATH": str(project.parent / "site"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::UserWarning:polychrome", str(project / "script.py")]
    result = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_kernels_imports_torch_alone_and_none_of_our_other_packages_in_little_time(project):
    code = """
import sys
import time
import torch
before = set(sys.modules)
start = time.process_time()
from polychrome import kernels
print(time.process_time() - start)
import polychrome.kernels.modules
tops = {name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(sorted(top for top in tops - {"polychrome", "torch", "triton"} if not top.startswith("_")))
print([name for name in ("torch._dynamo", "torch._inductor") if name in set(sys.modules) - before])
"""
    seconds, *found = run(project, code).splitlines()
    assert found == ["[]", "[]"]
    assert float(seconds) < 1.5


def test_kernels_works_beside_packages_that_have_the_names_of_ours(project):
    code = """
import torch
from torch import nn
from polychrome import kernels
from polychrome.kernels.modules import DynamicConv2d
import engine, kernels as others, models, train

class SELayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 8), nn.Sigmoid())
    def forward(self, x):
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]

model = nn.Sequential(DynamicConv2d(3, 8, 3), SELayer())
print(len(kernels.fuse(model).swapped))
with kernels.use_backend("reference"):
    model(torch.randn(2, 3, 8, 8)).sum().backward()
print(all(p.grad is not None for p in model.parameters()))
print(engine.HOME, others.HOME, models.HOME, train.HOME)
"""
    assert run(project, code).splitlines() == ["1", "True", "engine kernels models train"]
