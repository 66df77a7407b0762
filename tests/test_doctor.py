"""The doctor: each thing that a machine may lack is told with what to do about it."""

import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from polychrome import doctor
from polychrome.train.run import main

ROOT = Path(__file__).resolve().parents[1]


def told(capsys):
    """Return the lines by subject: state, what was found, and the advice."""
    found, subject = {}, None
    for line in capsys.readouterr().out.splitlines():
        if match := re.fullmatch(r"(ok|missing|wrong) +([^:]+): (.*)", line):
            subject = match[2]
            found[subject] = [match[1], match[3], ""]
        else:
            found[subject][2] = line.strip()
    return found


def test_every_subject_is_told_and_what_is_not_well_has_advice(capsys):
    status = doctor.main([])
    found = told(capsys)
    assert {
        "polychrome",
        "torch",
        "triton",
        "DALI",
        "C++ compiler",
        "packages for training",
        "processor",
        "cache",
    } <= set(found)
    assert status == any(state == "wrong" for state, *_ in found.values())
    assert all(advice for state, _, advice in found.values() if state != "ok")
    assert found["torch"][1].startswith(torch.__version__)


def test_the_command_line_has_the_doctor(capsys):
    assert main(["doctor"]) == doctor.main([])
    assert doctor.main(["x"], lambda line: None) == 2
    assert doctor.main(["--help"], lambda line: None) == 0


@pytest.mark.parametrize(
    ("change", "subject", "state", "said"),
    [
        (lambda m: m.setattr(torch, "__version__", "2.9.1"), "torch", "wrong", "pip install 'torch>=2.11'"),
        (lambda m: m.setattr(doctor, "triton_is_installed", lambda: False), "triton", "missing", "plain PyTorch"),
        (lambda m: m.setattr(doctor, "_wanted_triton", lambda: "1.0"), "triton", "wrong", "pip install triton==1.0"),
        (lambda m: m.setenv("CXX", "no-compiler -m64"), "C++ compiler", "missing", "install g++, or set CXX"),
        (lambda m: m.setattr(doctor, "ROOM", 1 << 62), "cache", "wrong", "make room, or set XDG_CACHE_HOME"),
        (lambda m: m.setattr(doctor, "SHARED", 1 << 62), "shared memory", "wrong", "--shm-size=8g"),
        (lambda m: m.setenv("XDG_CACHE_HOME", "/proc/none"), "cache", "wrong", "set XDG_CACHE_HOME to a folder"),
        (
            lambda m: m.setitem(doctor.EXTRAS, "parquet", {"no-such": "1.0"}),
            "packages for parquet files",
            "missing",
            "[parquet]",
        ),
        (
            lambda m: m.setitem(doctor.EXTRAS["train"], "pillow", "1000.1"),
            "packages for training",
            "wrong",
            "pip install 'pillow>=1000.1'",
        ),
        (lambda m: m.setitem(doctor.OLDEST, "numpy", "1000.1"), "numpy", "wrong", "pip install 'numpy>=1000.1'"),
        (lambda m: m.setattr(doctor.hardware, "version_of", lambda name: "1.53.0"), "DALI", "wrong", "cuda130>=2.2'"),
        (lambda m: m.setattr(doctor, "DALI", "no-such"), "DALI", "missing", "pip install no-such"),
    ],
    ids=[
        "old torch",
        "no triton",
        "other triton",
        "compiler",
        "disk",
        "shared memory",
        "cache",
        "extra",
        "old",
        "numpy",
        "old dali",
        "dali",
    ],
)
def test_what_is_not_well_is_told_with_what_to_do(monkeypatch, capsys, change, subject, state, said):
    change(monkeypatch)
    status = doctor.main([])
    found = told(capsys)
    if subject == "shared memory" and subject not in found:
        pytest.skip("this machine has no /dev/shm")
    assert found[subject][0] == state
    assert said in found[subject][2]
    assert status or state == "missing"


def test_a_gpu_that_torch_or_triton_cannot_use_is_told(monkeypatch, capsys):
    about = SimpleNamespace(name="Old GPU", total_memory=8 * 2**30, major=6, minor=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: about)
    monkeypatch.setattr(doctor.probe, "obstacle", lambda index: "too old" if index else None)
    assert doctor.main([]) == 1
    found = told(capsys)
    assert found["GPU 0"][:2] == ["ok", "Old GPU, 8 GiB, sm_61"]
    assert found["GPU 1"][0] == "wrong"
    assert "too old" in found["GPU 1"][2]


def test_a_torch_for_cpus_beside_a_gpu_is_told(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/bin/{name}")
    assert doctor.main([]) == 1
    assert "built for CPUs" in told(capsys)["GPU"][2]


def test_the_distribution_asks_for_the_versions_that_the_doctor_looks_for_and_the_tests_have_seen():
    text = (ROOT / "setup.py").read_text()
    bounds = dict(re.findall(r'"([\w-]+)>=([\d.]+)[";]', text))
    known = doctor.OLDEST | {name: oldest for extra in doctor.EXTRAS.values() for name, oldest in extra.items()}
    assert bounds == known | {"triton": "3.6"}
    for name, packages in (("TRAIN", doctor.EXTRAS["train"]), ("EXPORT", doctor.EXTRAS["export"])):
        listed = re.findall(r'"([\w-]+)', re.search(rf"^{name} = \[(.*?)\]", text, re.M | re.S)[1])
        assert set(listed) - {doctor.DALI} == set(packages)
    seen = dict(line.split("==") for line in (ROOT / "tests/oldest.txt").read_text().splitlines())
    assert all(f"{seen[name]}.".startswith(f"{bound}.") for name, bound in bounds.items())


def test_the_doctor_and_all_ops_need_no_package_of_training_and_load_says_what_it_needs():
    """As `polychrome check`: with every package of training hidden."""
    hidden = [*doctor.EXTRAS["train"], "PIL", "torchvision", "rich", "click"]
    code = (
        "import sys\n"
        f"for name in {hidden}: sys.modules[name] = None\n"
        "sys.argv = ['polychrome', 'doctor']\n"
        "from polychrome.command import main\n"
        "print('status', main())\n"
        "from polychrome import *\n"
        "try:\n    load('x')\nexcept ModuleNotFoundError as error:\n    print(dynamic_conv2d.__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ok       polychrome: " in done.stdout
    assert re.search(r"^status [01]$", done.stdout, re.M)
    said = r"^dynamic_conv2d polychrome\.load needs \w+: pip install 'polychrome\[train\]'\n\Z"
    assert re.search(said, done.stdout, re.M)


def test_the_package_is_the_command_too(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["polychrome", "doctor", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("polychrome", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("What this machine lacks, and what to do: `polychrome doctor`")


@pytest.mark.parametrize(
    "command", ["doctor", pytest.param("bench --quick --device cpu --seconds 0.1", marks=pytest.mark.slow)]
)
def test_a_reader_who_has_seen_enough_ends_no_command_with_a_traceback(command):
    """`polychrome doctor | head -1`: the pipe is closed while the command still prints."""
    code = f"import sys; sys.argv = ['polychrome', *{command.split()!r}]\n"
    code += "from polychrome.command import main\nsys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        run.stdout.close()
        said = run.stderr.read()
    assert (run.returncode, said) == (0, "")
