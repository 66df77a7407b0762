"""The plan of the tree: no two modules import each other in a circle, and docs/architecture.md tells what there is."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
FOLDERS = ("polychrome", "kernels", "models", "engine", "train", "bench")
MOST = 13  # modules of a folder; those that are a list of one kind of thing may be longer
LISTS = ("models", "bench", "kernels")


def module_name(path: Path) -> str:
    """Return a module's name, those of our subpackages without `polychrome.`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}


def imported(source: str, modules=MODULES) -> set[str]:
    """Return the modules of ours that a source imports anywhere, in functions and for type checking too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            name = name.removeprefix("polychrome.")
            while name and name not in modules:
                name = name.rpartition(".")[0]
            found |= {name} - {""}
    return found


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """The modules that each module imports."""
    return {name: imported(path.read_text(encoding="utf-8")) - {name} for name, path in MODULES.items()}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return modules that import each other in turn, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_each_other_in_a_circle(graph):
    assert len(graph) > 200
    assert circle(graph) == []


def test_no_parts_of_a_layer_depend_on_each_other_in_a_circle(graph):
    def part(module):
        return ".".join(module.split(".")[:2])

    parts = {}
    for module, found in graph.items():
        if not module.endswith("__main__"):  # which no module imports
            parts.setdefault(part(module), set()).update(part(other) for other in found)
    own = {name: found - {name} for name, found in parts.items() if "." in name}
    assert {"engine.data", "engine.report", "train.commands", "kernels.dynamic_conv", "bench.report"} <= own.keys()
    assert circle(own) == []


@pytest.mark.parametrize(
    "source",
    [
        "from polychrome.engine import errors",
        "from polychrome.engine.errors import UserError",
        "def f():\n    import polychrome.engine.errors",
        "if TYPE_CHECKING:\n    from engine.errors import UserError",
    ],
)
def test_a_circle_is_seen_however_a_module_is_imported(source):
    assert imported(source) == {"engine.errors"}
    assert set(circle({"engine.errors": {"train.data"}, "train.data": imported(source)})) == {
        "engine.errors",
        "train.data",
    }


@pytest.mark.parametrize("folder", sorted({str(path.parent.relative_to(ROOT)) for path in MODULES.values()}))
def test_a_folder_can_be_looked_over(folder):
    loose = [path.name for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]
    assert len(loose) <= MOST or folder in LISTS, loose


def test_the_page_names_every_folder_of_modules():
    text = PAGE.read_text(encoding="utf-8")
    folders = {path.parent.relative_to(ROOT).as_posix() for path in MODULES.values()}
    named = set(re.findall(r"`([\w/]+)`", text))
    assert folders - named == set()


def test_what_the_page_names_is_there():
    text = PAGE.read_text(encoding="utf-8")
    for name in re.findall(r"`([\w/]+/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`((?:kernels|models|engine|train)\.[\w.]+)`", text):
        assert name in MODULES or name.rpartition(".")[0] in MODULES, name


def steps() -> list[list[tuple[str, str]]]:
    """Return the ways on the page, each a list of (path, name in it)."""
    sections = PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
    return [re.findall(r"^\d+\. `([\w/.]+)` `(\w+)`", section, re.MULTILINE) for section in sections]


def test_each_step_of_a_way_leads_to_the_next(graph):
    def imports(one: str, other: str) -> bool:
        """Whether a module imports another, itself or by the package that hands its names on."""
        package = other.rpartition(".")[0]
        return other in graph[one] or (package in graph[one] and other in graph.get(package, ()))

    image, gradient = steps()
    assert (len(image), len(gradient)) == (8, 7)
    for way in (image, gradient):
        for path, name in way:
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            assert name in {getattr(node, "name", None) for node in tree.body}, f"{path} has no {name}"
        for one, other in pairwise(module_name(ROOT / path) for path, _ in way):
            assert imports(one, other) or imports(other, one), f"{one} and {other}"


def test_a_class_is_chosen_from_logits_in_one_place():
    """By `engine.metrics.likeliest`, as `argmax` names the first class where a logit is NaN.

    In training a logit that is not finite ends the run by its loss.
    """
    choosing = re.compile(r"argmax\(1\)|argmax\(dim=|\.max\(1\)|\.max\(dim=")
    found = [
        name
        for name, path in MODULES.items()
        if name.startswith(("engine", "train")) and choosing.search(path.read_text(encoding="utf-8"))
    ]
    assert found == ["engine.metrics", "engine.training.trainer"]
