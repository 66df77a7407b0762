"""The tree is clean and its layers depend one way: train -> engine -> models -> kernels."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ["kernels", "models", "engine", "train"]


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]])
def test_ruff_is_clean(arguments):
    pytest.importorskip("ruff")
    result = subprocess.run([sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_nothing_above_it(layer):
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    for path in (ROOT / layer).rglob("*.py"):
        assert not above & imported(path.read_text(encoding="utf-8")), path


def imported(source):
    """Return which subpackages a source imports, by whatever name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("polychrome.").split(".")[0] for name in found} & set(LAYERS)


def test_an_import_upwards_is_seen_in_every_form():
    for line in ("from polychrome import train", "import polychrome.train.run", "from polychrome.train import run"):
        assert imported(line) == {"train"}
    assert imported("from train.run import main\nimport kernels") == {"train", "kernels"}
