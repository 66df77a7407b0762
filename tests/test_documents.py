"""What the documentation says: its code runs, its commands exist, its links lead somewhere, and nothing is left out."""

import ast
import inspect
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import click
import pytest
import torch

from polychrome import kernels, models
from polychrome.kernels import modules
from polychrome.train.cli import cli
from polychrome.train.run import main
from tests.conftest import write_list_folder

ROOT = Path(__file__).resolve().parents[1]
FAULTS = "docs/engine.md"
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "kernels/*/README.md", "bench/results/README.md")
    for path in ROOT.glob(pattern)
)

IMAGES = """
import torch
images = torch.randint(256, (6, 256, 256, 3), dtype=torch.uint8)
indices, epoch, MEAN, STD = torch.tensor([4, 0]), 1, [0.5] * 3, [0.25] * 3
"""
CONVOLVED = """
import torch
x, experts, mixing = torch.randn(2, 3, 8, 8), torch.randn(4, 5, 3, 3, 3), torch.rand(2, 4)
"""
TRAINED = """
import shutil
from pathlib import Path
from polychrome.train.run import main
from tests.conftest import write_list_folder
data = write_list_folder(Path("photos"))
start = ["task1", "--data", "photos", "--name", "NAME", "--models", "pool_attention_cnn", "--image-size", "24"]
assert main([*start, "--epochs", "1", "--workers", "1", "--no-tensorboard"]) == 0
shutil.copy(data / "images/test 0.jpg", "photo.jpg")
shutil.copytree(data / "images", "holidays")
"""
# What a reader has at hand before a block of a page, by its number from 0. Blocks run in order, one after another.
SET_UP = {
    ("README.md", 0): TRAINED.replace("NAME", "first"),
    ("README.md", 1): CONVOLVED,
    ("docs/ops.md", 0): CONVOLVED,
    ("docs/ops.md", 1): IMAGES,
    ("docs/photos.md", 0): TRAINED,
    ("docs/use.md", 0): TRAINED,
    ("kernels/augment/README.md", 0): IMAGES,
    ("kernels/spatial_attention/README.md", 0): """
import torch
from polychrome.kernels import channel_stats, spatial_gate
x, norm, conv = torch.randn(2, 4, 8, 8), torch.nn.BatchNorm2d(1), torch.nn.Conv2d(2, 1, 7, padding=3, bias=False)
""",
    ("docs/export.md", 0): """
import pathlib, torch
from polychrome import models
from polychrome.engine import export
from polychrome.engine.channels.names import RGB
images = torch.rand(2, 3, 16, 16)
for name, target in (
    ("simple_cnn", "simple_cnn.pt2"),
    ("pool_attention_cnn", "pool_attention_cnn.onnx"),
    ("simple_cnn", "runs/task1/NAME/export/simple_cnn.safetensors"),
):
    about = export.Description(name, 16, ("a", "b"), RGB, "uint8", name == "pool_attention_cnn", 0.875)
    stored = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    export.save(models.create(name, num_classes=2, image_size=16), about, pathlib.Path(target), stored, "random images")
""",
    ("docs/export.md", 1): "images, mask = images.numpy(), torch.ones(2, 3, dtype=torch.bool).numpy()",
    ("docs/export.md", 2): """
from PIL import Image
about = export.Description("simple_cnn", 16, ("a", "b"), RGB, "uint8", False, 0.875)
pixels = [torch.randint(256, (30, 40, 3), dtype=torch.uint8).numpy()]
model, target = models.create("simple_cnn", num_classes=2, image_size=16), pathlib.Path("simple_cnn-whole.onnx")
export.save_whole(model, about, target, stored, pixels, "random images")
Image.fromarray(pixels[0]).save("photo.jpg")
""",
    ("docs/export.md", 3): "images = torch.from_numpy(images)",
}
SLOW = ("docs/export.md",)  # compiles a model
SUBPACKAGES = ("kernels", "models", "engine", "train")
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

# Not needed by the package itself: a page that uses one is left out where it is not installed.
OPTIONAL = ("onnx", "onnxruntime", "onnxscript", "safetensors", "timm", "transformers")


def blocks(page: str, language: str) -> list[tuple[int, str]]:
    """Return the code blocks of a page in a language, with the line each begins at."""
    text = (ROOT / page).read_text(encoding="utf-8")
    fences = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
    return [(text.count("\n", 0, fence.start(1)) + 1, fence[1]) for fence in fences]


def with_code() -> list:
    """Return the pages that have Python code, those that take long marked so."""
    found = [page for page in PAGES if blocks(page, "python")]
    return [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in found]


@pytest.mark.parametrize("page", with_code())
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict = {"__name__": page}
    for number, (line, code) in enumerate(blocks(page, "python")):
        try:
            exec(SET_UP.get((page, number), ""), namespace)
            exec(compile("\n" * (line - 1) + code, str(ROOT / page), "exec"), namespace)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
            pytest.skip(f"{error.name} is not installed")


def test_set_up_belongs_to_blocks_that_are_there():
    assert all(number < len(blocks(page, "python")) for page, number in SET_UP)


def short_imports(code: str) -> list[str]:
    """Return the modules that Python code imports by the short names of a clone."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module or ""]
    return [name for name in found if name.partition(".")[0] in SUBPACKAGES]


def short_names(text: str) -> list[str]:
    """Return the modules and names that code in a page's running text calls by the short names of a clone."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    names = re.compile(rf"(?<![\w./-])(?:{'|'.join(SUBPACKAGES)})\.(?!md\b|txt\b|run\b)[A-Za-z_]\w*")
    spans = [span for span in re.findall(r"`([^`]+)`", text) if "import" not in span]
    return [name for span in spans for name in names.findall(span)]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_has_the_names_of_an_installation(page):
    for _, code in blocks(page, "python"):
        assert short_imports(code) == []
    for words in commands(page):
        for flag, value in pairwise(words):
            assert flag != "-m" or value == "train.run" or value.partition(".")[0] not in SUBPACKAGES, words
            assert flag != "-c" or short_imports(value) == [], words
    if page == "README.md" or page.startswith(("docs/", "kernels/")):
        assert short_names((ROOT / page).read_text(encoding="utf-8")) == []


def test_a_short_name_is_seen_wherever_a_reader_may_take_it_from():
    assert short_imports("import torch, kernels\ndef f():\n    from models.registry import names") == [
        "kernels",
        "models.registry",
    ]
    assert short_imports("from polychrome import kernels\nimport polychrome.models") == []
    assert short_names("call `kernels.fuse(model)` or\n`python -m kernels.check`") == ["kernels.fuse", "kernels.check"]
    assert short_names("`python -m train.run`, `docs/models.md`, `train.txt`, `polychrome.kernels.fuse`") == []


def commands(page: str) -> list[list[str]]:
    """Return the commands in a page's sh blocks, split into words."""
    found = []
    for _, text in blocks(page, "sh"):
        for line in text.replace("\\\n", " ").splitlines():
            parts = line.split("&&")
            found += [shlex.split(part, comments=True) for part in parts]
    return [words for words in found if words]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")])
def test_the_commands_of_a_page_exist(page):
    for words in commands(page):
        program = Path(words[0]).name
        if program == "torchrun":
            place = words.index("-m")
            check_flags(words[1:place], torchrun_flags(), words)
            check_module(words[place + 1 :], words)
        elif program.startswith("python") and "-m" in words:
            check_module(words[words.index("-m") + 1 :], words)
        elif program == "polychrome":
            check_task(words[1:], words)
        elif program == "pytest":
            check_pytest(words[1:], words)
        elif program.startswith("python") and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file() or words[1].isupper(), words


SMALL = ["--image-size", "24", "--epochs", "1", "--workers", "1", "--no-tensorboard"]


def test_the_commands_of_the_readme_run(tmp_path, monkeypatch):
    """From photos in a folder for each class to the table of predictions, word for word but for a small training."""
    monkeypatch.chdir(tmp_path)
    lists = write_list_folder(Path("lists"))
    for split in ("train", "val", "test"):
        for line in (lists / f"{split}.txt").read_text().splitlines():
            path, label = line.rsplit(maxsplit=1)
            folder = Path("photos", label)
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path("lists", path), folder)
    shutil.copytree("photos/0", "holidays")
    ours = [words[3:] for words in commands("README.md") if words[:3] == ["python", "-m", "train.run"]]
    assert [words[0] for words in ours] == ["task1", "predict"]
    for words in ours:
        assert main(words + SMALL * (words[0] == "task1")) == 0
    assert len(Path("found.csv").read_text().splitlines()) == 1 + len(list(Path("holidays").iterdir()))


def check_module(arguments: list[str], words: list[str]) -> None:
    """Check what stands behind `-m`: a module and its arguments."""
    module, *rest = arguments
    if module == "train.run":
        check_task(rest, words)
    elif module == "pytest":
        check_pytest(rest, words)
    elif module.startswith("bench."):
        place = ROOT / module.replace(".", "/")
        path = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
        source = path.read_text(encoding="utf-8")
        if "runs.parser(" in source:  # what commands of studies have in common
            source += (ROOT / "bench" / "studies" / "runs.py").read_text(encoding="utf-8")
        for flag in flags(rest):
            assert flag == "--help" or f'"{flag}"' in source, words


def check_task(arguments: list[str], words: list[str]) -> None:
    """Check a command of ours: its name, its flags, and what their values may be."""
    command = cli.commands.get(arguments[0])
    assert arguments[0] == "--help" or command is not None, words
    if command is None:
        return
    options = {name: option for option in command.params for name in (*option.opts, *option.secondary_opts)}
    context, rest = click.Context(command), iter(arguments[1:])
    places = 0
    for word in rest:
        if not word.startswith("-"):
            places += 1
            continue
        name, _, value = word.partition("=")
        assert name in (*options, "--help"), words
        if name != "--help" and not options[name].is_flag:
            options[name].type_cast_value(context, value or next(rest))
    wanted = [option for option in command.params if isinstance(option, click.Argument)]
    assert places >= sum(option.required for option in wanted), words
    assert any(option.nargs < 0 for option in wanted) or places <= len(wanted), words


def check_pytest(arguments: list[str], words: list[str]) -> None:
    """Check a call of pytest: its flags, its markers, and the tests it names."""
    check_flags(arguments, pytest_help(), words)
    declared = re.findall(r'^    "(\w+):', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    for word, following in pairwise([*arguments, ""]):
        if word == "-m":
            assert set(re.findall(r"\w+", following)) - {"and", "or", "not"} <= set(declared), words
        elif "/" in word or word.endswith(".py"):
            assert (ROOT / word.partition("::")[0]).exists(), words


def check_flags(arguments: list[str], known: str, words: list[str]) -> None:
    """Check that every long flag among the arguments stands in a help text."""
    for flag in flags(arguments):
        assert re.search(rf"{flag}(?![\w-])", known), words


def flags(arguments: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in arguments if word.startswith("--")]


@cache
def torchrun_flags() -> str:
    from torch.distributed.run import get_args_parser

    return get_args_parser().format_help()


@cache
def pytest_help() -> str:
    asked = [sys.executable, "-m", "pytest", "--help", "--noconftest"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def headings(page: Path) -> set[str]:
    """Return the anchors of a page, made as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ +(.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in headings(file), target


def written() -> str:
    """Return all that a reader finds in the README and in docs/."""
    return "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES if not page.startswith("kernels/"))


def public(module) -> list[str]:
    """Return the names of the public classes and functions that a module defines."""
    own = [item for item in vars(module).items() if getattr(item[1], "__module__", None) == module.__name__]
    return [name for name, value in own if not name.startswith("_") and (inspect.isclass(value) or callable(value))]


def test_every_public_name_is_in_the_documentation():
    names = [*kernels.__all__, *public(modules), *models.names()]
    names += [*sys.modules["polychrome.kernels.augment"].__all__, *sys.modules["polychrome.kernels.fuse"].__all__]
    assert len(names) > 40
    text = written()
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


def signatures(page: str) -> list[str]:
    """Return the calls that a page's tables begin a row with, such as `f(x, y=1)`."""
    return re.findall(r"^\| `(\w+\(.*?\))` \|", (ROOT / page).read_text(encoding="utf-8"), re.M)


def test_signatures_in_tables_are_those_of_the_code():
    known = {name: getattr(kernels, name) for name in kernels.__all__}
    known |= {name: getattr(modules, name) for name in public(modules)}
    draws = sys.modules["polychrome.kernels.augment"]
    known |= {name: getattr(draws, name) for name in draws.__all__}
    checked = 0
    for page in (page for page in PAGES if page.startswith("docs/")):
        for text in signatures(page):
            function = known.get(text.partition("(")[0])
            if function is None:
                continue
            arguments = ast.parse(f"def {text}: pass").body[0].args
            own = {
                name: parameter
                for name, parameter in inspect.signature(function).parameters.items()
                if (name not in ("device", "dtype") or name in text) and parameter.kind not in VARIADIC
            }
            assert [item.arg for item in arguments.args + arguments.kwonlyargs] == list(own), text
            defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + arguments.defaults
            for item, default in zip(
                arguments.args + arguments.kwonlyargs, defaults + arguments.kw_defaults, strict=True
            ):
                assert default is None or ast.unparse(default) == repr(own[item.arg].default), (text, item.arg)
            checked += 1
    assert checked >= 15


def test_the_table_of_models_is_that_of_the_registry():
    row = re.compile(r"^\| `(\w+)` \| [A-E, ]+ \| \w+ \| ([\w-]+) \| ([\d,]+) \|", re.M)
    found = {name: rest for name, *rest in row.findall((ROOT / "docs/models.md").read_text(encoding="utf-8"))}
    assert list(found) == models.names()
    for name, (protocol, parameters) in found.items():
        with torch.device("meta"):
            model = models.create(name)
        of_its_own = "one-per-combination" if getattr(model, "one_per_combination", False) else "zero-pad"
        assert protocol == ("subset" if model.any_channels else of_its_own), name
        assert int(parameters.replace(",", "")) == sum(p.numel() for p in model.parameters()), name


def test_the_messages_in_troubleshooting_are_those_of_the_code():
    said = {
        node.value
        for layer in ("engine", "kernels", "models", "train")
        for path in (ROOT / layer).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `(.+?)` \| ", text, re.M)
    assert len(messages) > 30
    python = "cannot import name 'dynamic_conv2d' from 'kernels'"  # says the interpreter itself
    pieces = [piece for message in messages if message != python for piece in message.split("...") if piece.strip()]
    assert [piece for piece in pieces if not any(piece.rstrip() in one for one in said)] == []


@pytest.mark.parametrize(
    ("text", "status"),
    [("<!-- test -->\n```sh\necho tested\n```\n", 0), ("<!-- test -->\n```sh\nfalse\n```\n", 1), ("# No command\n", 1)],
    ids=["passes", "fails", "no command"],
)
def test_ci_runs_the_test_command_of_the_readme_and_fails_where_there_is_none(text, status, tmp_path):
    script = ROOT / ".ci/run"
    if not script.exists():
        pytest.skip("no .ci here")
    (tmp_path / ".ci").mkdir()
    (tmp_path / "README.md").write_text(text)
    shutil.copy(script, tmp_path / ".ci/run")
    done = subprocess.run(["bash", str(tmp_path / ".ci/run")], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert ("tested" in done.stdout.splitlines()) == (status == 0)
    assert "-m pytest" in (ROOT / "README.md").read_text().partition("<!-- test -->")[2].partition("```\n")[0]


def test_every_fault_names_tests_that_hold_its_promise():
    table = (ROOT / FAULTS).read_text().partition("## Faults")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    defined = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(rows) > 20
    for row in rows:
        fault, _, _, tests, tried = (cell.strip() for cell in row.strip("|").split("|"))
        named = re.findall(r"`(test_\w+)`", tests)
        assert named, fault
        assert set(named) <= defined, fault
        assert re.fullmatch(r"\d+( \+ \d+)?", tried), fault


def headless(text: str) -> list[str]:
    """Return the first line of each block of table rows that no line of dashes follows: it is shown as text."""
    lines = ["", *re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines(), ""]
    starts = [n for n, line in enumerate(lines) if line.startswith("|") and not lines[n - 1].startswith("|")]
    return [lines[n] for n in starts if not re.fullmatch(r"[|:\- ]+", lines[n + 1])]


@pytest.mark.parametrize("page", PAGES)
def test_no_row_of_a_table_is_cut_off(page):
    assert headless((ROOT / page).read_text(encoding="utf-8")) == []


def test_a_cut_table_is_seen():
    whole = "| a | b |\n|---|---:|\n| 1 | 2 |\n"
    assert headless(whole) == []
    assert headless(whole + "\n| 3 | 4 |\n") == ["| 3 | 4 |"]
