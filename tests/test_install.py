"""The wheel in a project of its own: what it holds and asks for, a script beside it, and other people's names."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools")

ROOT = Path(__file__).resolve().parents[1]
SUBPACKAGES = ("engine", "kernels", "models", "train")
SOURCES = (*SUBPACKAGES, "polychrome", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")

# Falls from about 1 to under 0.1 in 20 steps; compiled whole, or torch raises. Inductor itself takes its time.
TRAINING = """
import sys
import engine, kernels, models, train
assert engine.OWN and kernels.OWN and models.OWN and train.OWN
import torch
from polychrome.kernels import dynamic_conv2d
from polychrome.kernels.modules import DynamicConv2d
import polychrome
torch.manual_seed(0)
layer = DynamicConv2d(3, 4, 3, padding=1, experts=2)
optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
x = torch.randn(4, 3, 8, 8)
wanted = torch.nn.functional.conv2d(x, torch.randn(4, 3, 3, 3) / 5, padding=1)
compiled = torch.compile(layer, fullgraph=True, backend=sys.argv[1])
for step in range(20):
    loss = (compiled(x) - wanted).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item())
print(polychrome.__file__)
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Return the wheel, built from a copy of the tree by what is installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", "dist", ".", cwd=folder)
    (built,) = (folder / "dist").glob("polychrome-*.whl")
    return built


@pytest.fixture(scope="session")
def python(wheel, tmp_path_factory):
    """Return the interpreter of a fresh environment that holds the wheel, and sees torch and the rest from here."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=folder)
    found = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", str(found), "install", "--no-deps", str(wheel), cwd=folder)
    see_packages(found)
    return found


def see_packages(python: Path) -> None:
    """Let an environment import what is installed in this one; what it holds itself comes first."""
    paths = sysconfig.get_paths()
    site = next(python.parents[1].glob("lib/python*/site-packages"))
    (site / "beside.pth").write_text("\n".join({paths["purelib"], paths["platlib"]}) + "\n")


def run(*command: str, cwd: Path, timeout: float = 300, **variables: str) -> str:
    """Return what a command prints; it sees nothing of this tree unless it is named."""
    away = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "TRITON_INTERPRET")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=away | {"OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_holds_the_packages_and_their_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"polychrome"}
    assert not [name for name in names if name.startswith("polychrome/clone")]
    sources = {path.relative_to(ROOT).as_posix() for folder in SUBPACKAGES for path in (ROOT / folder).rglob("*.py")}
    data = {path.relative_to(ROOT).as_posix() for kind in ("*.toml", "*.j2") for path in (ROOT / "train").rglob(kind)}
    data |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "engine").rglob("*.j2")}
    data.add("train/pretrained/prism4_small-shapes.pt")
    data |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "kernels").rglob("*.json")}
    assert len(data) >= 7
    own = {f"polychrome/{name}" for name in ("__init__.py", "command.py", "py.typed")}
    assert own | {f"polychrome/{name}" for name in sources | data} <= set(names)


def test_the_ops_ask_for_torch_triton_and_numpy_alone(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    asked = [line for line in archive.read(metadata).decode().splitlines() if line.startswith("Requires-Dist: ")]
    always = {re.match(r"[\w-]+", line.removeprefix("Requires-Dist: "))[0] for line in asked if "extra ==" not in line}
    assert always == {"numpy", "torch", "triton"}
    assert any(line.startswith("Requires-Dist: click") and 'extra == "train"' in line for line in asked)


@pytest.mark.slow
def test_a_layer_trains_compiled_in_a_project_with_packages_called_as_ours(python, tmp_path):
    for name in SUBPACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("OWN = True\n")
    (tmp_path / "script.py").write_text(TRAINING)
    *losses, place = run(str(python), "script.py", "aot_eager", cwd=tmp_path).split()
    losses = list(map(float, losses))
    assert len(losses) == 20
    assert losses[-1] < 0.5 * losses[0]
    assert Path(place).is_relative_to(python.parents[1])


SHAPES = """
import numpy as np
import polychrome
from polychrome.engine.data.sets.generated import draw
model = polychrome.load("prism4_small-shapes", device="cpu")
for channels in ("RGB", "GB", "R"):
    print(model.predict(draw(42, np.random.default_rng(0)), channels).name)
"""


def test_the_wheel_brings_a_trained_network(python, tmp_path):
    assert run(str(python), "-c", SHAPES, cwd=tmp_path).splitlines() == ["blotched triangle"] * 3


@pytest.mark.slow
def test_the_installed_command_trains_and_writes_its_report(python, stripes, tmp_path):
    command = str(python.with_name("polychrome"))
    assert "task1" in run(command, "--help", cwd=tmp_path)
    assert 'optimizer = "' in run(command, "task1", "--recipe", "report_c", "--print-config", cwd=tmp_path)
    options = "--models simple_cnn --epochs 1 --image-size 16 --device cpu --backend torch --channels RGB --name tiny"
    run(
        command, "task1", "--data", str(stripes), *options.split(), cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache")
    )
    page = (tmp_path / "runs/task1/tiny/report.html").read_text()
    assert "simple_cnn" in page
    assert (tmp_path / "runs/task1/tiny/report.md").is_file()


# A distribution as Hugging Face's: `kernels`, whose __init__ gathers names from the modules `layer` and `load`.
NAMESAKE = {
    "kernels/__init__.py": "from kernels.layer import kernelize\nfrom kernels.load import get_kernel\nMORE = 1\n",
    "kernels/layer/__init__.py": "def kernelize():\n    return 'theirs'\n",
    "kernels/load.py": "from . import __version__\n\n\ndef get_kernel():\n    return __version__\n",
    "kernels-9.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: kernels\nVersion: 9.1\n",
}
BOTH = "import kernels; from kernels import dynamic_conv2d, get_kernel, kernelize; print(kernelize(), get_kernel())"


def write_namesake(folder: Path) -> None:
    for name, text in NAMESAKE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_another_distribution_called_kernels_is_served_from_a_folder_of_its_own(tmp_path):
    write_namesake(tmp_path)
    paths = os.pathsep.join((str(ROOT), str(tmp_path)))
    script = f"{BOTH}; print(kernels.MORE, kernels.__version__, hasattr(kernels, 'nothing'), kernels.modules.__name__)"
    script = f"import kernels.modules; {script}"
    printed = run(sys.executable, "-W", "error", "-c", script, cwd=tmp_path / "kernels", PYTHONPATH=paths)
    assert printed.split() == ["theirs", "9.1", "1", "9.1", "False", "polychrome.kernels.modules"]


OTHERS = "import kernels, models, engine, train; print(kernels.NAME, models.NAME, engine.NAME, train.NAME)"


@pytest.mark.slow
def test_another_distribution_with_our_former_names_stays_whole_beside_ours(wheel, tmp_path):
    """Both are installed, one after the other, and either is uninstalled; the other goes on."""
    other = tmp_path / "other-1-py3-none-any.whl"
    with zipfile.ZipFile(other, "w") as archive:
        for name in SUBPACKAGES:
            archive.writestr(f"{name}/__init__.py", f"NAME = {name!r}\n")
        archive.writestr("other-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: other\nVersion: 1\n")
        archive.writestr("other-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("other-1.dist-info/RECORD", "")
    run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path), cwd=tmp_path)
    python = tmp_path / "bin" / "python"
    see_packages(python)
    pip = (sys.executable, "-m", "pip", "--python", str(python))
    ours = "from polychrome import dynamic_conv2d, models; print(len(models.names()))"
    for first, second, gone, stays, said in (
        (wheel, other, "polychrome", OTHERS, "kernels models engine train"),
        (other, wheel, "other", ours, "27"),
    ):
        run(*pip, "install", "-q", "--no-deps", "--force-reinstall", str(first), str(second), cwd=tmp_path)
        assert run(str(python), "-c", f"{OTHERS}; {ours}", cwd=tmp_path).split() == [
            "kernels",
            "models",
            "engine",
            "train",
            "27",
        ]
        run(*pip, "uninstall", "-q", "-y", gone, cwd=tmp_path)
        assert run(str(python), "-c", stays, cwd=tmp_path).strip() == said


def test_importing_polychrome_imports_nobody_elses_module_before_an_op_is_asked_for(python, tmp_path):
    script = (
        "import sys; before = set(sys.modules); import polychrome; first = set(sys.modules) - before; "
        "polychrome.dynamic_conv2d; more = set(sys.modules) - before; "
        "tops = [{n.partition('.')[0] for n in found} - set(sys.stdlib_module_names) for found in (first, more)]; "
        "print(*tops[0]); print({n for n in tops[1] if n in ('click', 'torchvision', 'PIL', 'kernels', 'models')})"
    )
    assert run(str(python), "-c", script, cwd=tmp_path).splitlines() == ["polychrome", "set()"]


def test_the_command_says_what_training_needs_where_it_is_missing(python, tmp_path):
    script = "import sys; sys.modules['click'] = None; sys.argv = ['polychrome', 'task1']; "
    script += "from polychrome.command import main; print(main())"
    command = [str(python), "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["2"]
    assert done.stderr == "error: training needs click: pip install 'polychrome[train]'\n"


TINY_TRANSFORMER = """
import torch, transformers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.import_utils import is_kernels_available
from polychrome.kernels import dynamic_conv2d
sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
tokens = torch.arange(8)[None]
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
loss = model(tokens, labels=tokens).loss
loss.backward()
y = dynamic_conv2d(torch.randn(2, 3, 8, 8), torch.randn(4, 5, 3, 3, 3), torch.rand(2, 4), padding=1)
print(is_kernels_available(), loss.item(), y.shape[1], sum(p.grad is not None for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("beside", ["alone", "beside Hugging Face's kernels"])
def test_transformers_runs_a_model_beside_ours(wheel, tmp_path, beside):
    python = tmp_path / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path), cwd=tmp_path)
    pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "-q")
    see_packages(python)
    # the version of transformers that takes the newest kernels on the package index
    wanted = ["transformers==5.20.2"] + ["kernels==0.17.2"] * (beside != "alone")
    done = subprocess.run([*pip, *wanted], capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"transformers cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    run(*pip, "--no-deps", str(wheel), cwd=tmp_path)
    printed = run(str(python), "-c", TINY_TRANSFORMER, cwd=tmp_path)
    available, loss, channels, gradients = printed.split()
    assert available == str(beside != "alone")
    assert 3.5 < float(loss) < 5  # ln 64 = 4.16
    assert (channels, gradients) == ("5", "21")


@pytest.mark.slow
def test_pip_installs_the_wheel_with_all_it_needs_in_an_empty_environment(wheel, tmp_path):
    run(sys.executable, "-m", "venv", str(tmp_path / "env"), cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    run(str(python), "-m", "pip", "install", "-q", str(wheel), cwd=tmp_path, timeout=3000)
    for name in SUBPACKAGES:
        (tmp_path / f"{name}.py").write_text("OWN = True\n")
    (tmp_path / "script.py").write_text(TRAINING)
    losses = [float(line) for line in run(str(python), "script.py", "inductor", cwd=tmp_path).split()[:-1]]
    shutil.rmtree(tmp_path / "env")  # gigabytes
    assert losses[-1] < 0.5 * losses[0]


def test_the_container_installs_extras_that_there_are_and_starts_the_command():
    """What can be checked of the Dockerfile without Docker."""
    text, setup = (ROOT / "Dockerfile").read_text(), (ROOT / "setup.py").read_text()
    (extras,) = re.findall(r"pip install --no-cache-dir '\.\[([\w,]+)\]'", text)
    assert all(re.search(rf'^        "{extra}": ', setup, re.M) for extra in extras.split(","))
    (command,) = re.findall(r'^ENTRYPOINT \["(\w+)"\]$', text, re.M)
    assert f'"{command}=polychrome.command:main"' in setup
    assert "XDG_CACHE_HOME" in text
    assert "Not built yet" in text
