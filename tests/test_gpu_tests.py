"""GPU tests are not run where there is no GPU: they may read nothing of the package that a rename could miss."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
OF_NAMED_TUPLES = {"_replace", "_asdict", "_fields"}


def has_gpu_tests(path):
    text = path.read_text(encoding="utf-8")
    nodes = ast.walk(ast.parse(text)) if "mark.gpu" in text else ()
    return any(isinstance(node, ast.Attribute) and ast.unparse(node) == "pytest.mark.gpu" for node in nodes)


GPU_TESTS = sorted(filter(has_gpu_tests, TESTS.glob("**/test_*.py")))


def private_names_of_others(text):
    """Return the private names that a module reads, `x._name`, and does not define, other than torch's."""
    tree, read, own = ast.parse(text), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            if isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            elif ast.unparse(node.value).partition(".")[0] != "torch":
                read.add(node.attr)
    return read - own - OF_NAMED_TUPLES


@pytest.mark.parametrize("path", GPU_TESTS, ids=lambda path: path.name)
def test_gpu_tests_read_no_private_names_of_the_package(path):
    assert private_names_of_others(path.read_text(encoding="utf-8")) == set()


def test_private_names_are_found():
    text = "def kept(stored):\n    return stored._places, torch.cuda._sleep, shape._replace(batch=1)"
    assert private_names_of_others(text) == {"_places"}
