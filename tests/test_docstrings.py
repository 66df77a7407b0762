"""What docstrings of public functions and classes tell: the shapes of tensors, their dtypes, and what is raised."""

import ast
import inspect
import pkgutil
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from polychrome import kernels, models
from polychrome.engine import export
from polychrome.kernels import modules

ROOT = Path(__file__).resolve().parents[1]
SHAPE = re.compile(r"(?<!\w)\[[^\[\]]*\]")  # `[batch, channels]`, `[n]` or `[]`, and not an index
DTYPE = re.compile(r"float32|u?int\d+|\bbool\b|dtype")
CONSTRUCTORS = ("__init__", "__post_init__")


def own(module) -> list[str]:
    """Return the names of the public functions and classes that a module defines."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == module.__name__
    ]


def public() -> set[tuple[str, str]]:
    """Return (module, name) of the functions and classes that users are told to import, and of every model."""
    listed = [kernels, models, export, *submodules(kernels)]
    objects = [getattr(module, name) for module in listed for name in getattr(module, "__all__", ())]
    objects += [getattr(module, name) for module in (modules, *submodules(models)) for name in own(module)]
    return {(value.__module__, value.__name__) for value in map(inspect.unwrap, filter(callable, objects))}


def submodules(package) -> list:
    return [import_module(f"{package.__name__}.{found.name}") for found in pkgutil.iter_modules(package.__path__)]


def above_the_ops() -> list[tuple[str, str]]:
    """Return (module, name) of every public function and class of the engine and of the training commands."""
    return [
        (".".join(("polychrome", *path.relative_to(ROOT).with_suffix("").parts)), name)
        for folder in ("engine", "train")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in named(parsed(path).body)
        if not name.startswith("_") and path.name != "__init__.py"
    ]


def source(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split(".")[1:])
    return parsed(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def named(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Return the functions and classes of a body by their names."""
    return {node.name: node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    """Return a module's own functions by their names."""
    return {name: node for name, node in named(tree.body).items() if isinstance(node, ast.FunctionDef)}


def called(node: ast.AST) -> set[str]:
    """Return the names that a node calls as functions."""
    calls = (inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call))
    return {function.id for function in calls if isinstance(function, ast.Name)}


def raised(node: ast.AST) -> set[str]:
    """Return the names of the exceptions that a node makes and raises, but for those that it catches itself."""
    found = set()
    for inner in ast.walk(node):
        made = inner.exc if isinstance(inner, ast.Raise) else None
        for error in (made.body, made.orelse) if isinstance(made, ast.IfExp) else (made,):
            if isinstance(error, ast.Call) and isinstance(error.func, ast.Name):
                found.add(error.func.id)
    return found - caught(node)


def caught(node: ast.AST) -> set[str]:
    """Return the names of the exceptions that a node catches and does not raise again as they are."""
    found = set()
    for handler in (inner for inner in ast.walk(node) if isinstance(inner, ast.ExceptHandler) and inner.type):
        if not any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(handler)):
            found |= {name.id for name in ast.walk(handler.type) if isinstance(name, ast.Name)}
    return found


def helpers(tree: ast.Module) -> dict[str, set[str]]:
    """Return what a module's private functions raise, and the functions that it imports from us."""
    found = {name: raised(node) for name, node in functions(tree).items() if name.startswith("_")}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module.startswith("polychrome."):
            theirs = functions(source(node.module))
            found |= {alias.name: raised(theirs[alias.name]) for alias in node.names if alias.name in theirs}
    return found


def told(docs: list[str]) -> set[str]:
    """Return the words of the sections `Raises:`, and of what follows `raise` or `raises` in other sentences."""
    sections = [doc.partition("Raises:\n")[2] for doc in docs]
    sentences = [sentence for doc in docs for sentence in re.findall(r"\b[Rr]aises?\b[^.]*", doc)]
    return set(re.findall(r"\w+", " ".join(sections + sentences)))


def tensors(node: ast.FunctionDef) -> list[str]:
    """Return the arguments of a function that are tensors."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [
        each.arg
        for each in arguments
        if each.annotation and re.match(r"(torch\.)?Tensor\b", ast.unparse(each.annotation))
    ]


def entries(doc: str) -> dict[str, str]:
    """Return the text of each argument in a docstring's section `Args:`."""
    section = doc.partition("Args:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^ {4}([\w, ]+): (.*(?:\n {5}.*)*)", section, re.M)
    return {name: text for names, text in found for name in names.split(", ")}


def faults(tree: ast.Module, name: str) -> list[str]:
    """Return what the docstrings of a function, or of a class and its public methods, leave out."""
    node, known = named(tree.body)[name], helpers(tree)
    outer = ast.get_docstring(node) or ""
    if isinstance(node, ast.FunctionDef):
        documented = {name: (node, [outer])}
    else:
        methods = {
            method: inner for method, inner in named(node.body).items() if method in CONSTRUCTORS or method[0] != "_"
        }
        documented = {
            f"{name}.{method}": (inner, [outer, ast.get_docstring(inner) or ""]) for method, inner in methods.items()
        }
    found = [] if outer else [f"{name} has no docstring"]
    for title, (function, docs) in documented.items():
        theirs = set().union(*(known.get(helper, set()) for helper in called(function))) - caught(function)
        errors = raised(function) | theirs
        found += [f"{title} raises {error}" for error in sorted(errors - told(docs))]
        given = tensors(function)
        if given and not any(map(SHAPE.search, docs)):
            found.append(f"{title} takes tensors of no shape")
        for argument, text in entries(docs[-1]).items():
            if argument in given and not SHAPE.search(text):
                found.append(f"{title} takes {argument} of no shape")
        if given and "Args:" in docs[-1] and not DTYPE.search(docs[-1]):
            found.append(f"{title} takes tensors of no dtype")
    return found


@pytest.mark.parametrize(("module", "name"), sorted(public()))
def test_a_docstring_tells_shapes_and_errors(module, name):
    assert faults(source(module), name) == []


def test_docstrings_of_the_engine_and_the_commands_tell_shapes_and_errors():
    listed = above_the_ops()
    assert len(listed) > 250
    found = {(module, fault) for module, name in listed for fault in faults(source(module), name)}
    assert found == set()


def test_what_a_docstring_leaves_out_is_seen():
    assert len(public()) > 80
    code = '''
from polychrome.kernels.checks import check_input
def f(x: Tensor, y: Tensor):
    """Return a sum.

    Args:
        x: [batch], an image.
        y: another.
    """
    check_input(x)
    _look(y)
class C:
    """A module."""
    def __init__(self):
        raise KeyError("none")
    def forward(self, x: Tensor):
        pass
def _look(y):
    raise RuntimeError("no")
def check(x):
    """Raise OSError where x is gone."""
    raise OSError("gone")
'''
    tree = ast.parse(code)
    assert faults(tree, "f") == [
        *("f raises RuntimeError", "f raises ValueError", "f takes y of no shape", "f takes tensors of no dtype"),
    ]
    assert faults(tree, "C") == ["C.__init__ raises KeyError", "C.forward takes tensors of no shape"]
    assert faults(tree, "check") == []
