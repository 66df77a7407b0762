"""`python -m kernels.check`: a fault of an op is told, whatever it does to its process. Where Triton cannot compile."""

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from polychrome import kernels
from polychrome.kernels import backend, check, probe
from tests.kernels.op_calls import public

ROOT = Path(__file__).resolve().parents[2]
# A pretended GPU on which one op is wrong, one faults, one ends its process, and one is right.
SITE = """
import os
import torch
from bench.stand_in import cuda, results

def run(kernel, grid, arguments):
    name = kernel.fn.__name__
    if name == "stats_kernel":
        os._exit(9)
    if name == "reduce_kernel":
        def lost():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        torch.cuda.synchronize = lost
        lost()
    results.interpret(kernel, grid, arguments)
    if name == "scale_pixels_backward_kernel":
        arguments[3].mul_(1.5)

cuda.install(run)
from polychrome.kernels import check
every = {case.function.__name__: case for case in check.cases()}
check.cases = lambda: [every[name] for name in ("spatial_gate", "channel_scale", "channel_stats", "augment")]
del check.TOLERANCES[torch.bfloat16]
"""


@pytest.mark.slow
def test_every_fault_is_told_and_the_ops_after_it_are_checked(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SITE)
    known = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    known["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{ROOT}"
    done = subprocess.run(
        [sys.executable, "-m", "polychrome.kernels.check", "--seconds", "500"],
        cwd=ROOT,
        env=known,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    heading, *rows = done.stdout.partition("\n\n")[0].splitlines()
    assert heading.split() == ["op", "case", "dtype", "output", "gradients", "allowed"]
    said = {row.split()[0]: row.rpartition("  ")[2] for row in rows}
    assert said.pop("channel_stats").startswith("the process died with status 9: ")
    assert said == {
        "spatial_gate": "WRONG gradients",
        "channel_scale": "RuntimeError: CUDA error: an illegal memory access was encountered",
        "augment": "right",
    }
    assert done.stdout.rstrip().endswith("3 of 4 are wrong")


ANSWERS = """
import json, os, sys, time
answers, first = json.loads(sys.argv[1]), int(sys.argv[2])
for number in range(first, len(answers)):
    if number == 1:
        time.sleep(60)
    if number == 3:
        print("Segmentation fault", file=sys.stderr, flush=True)
        os._exit(9)
    print(json.dumps(answers[number]), flush=True)
"""


def test_a_case_that_hangs_or_ends_its_process_costs_one_case(monkeypatch):
    """Another process answers for the ops here: a kernel that never ends cannot be had without a GPU."""
    five = check.listed()[:5]
    answers = [check._outcome(*call, 1e-4, 1e-4, None, 3) for call in five]
    monkeypatch.setattr(check, "COMMAND", (sys.executable, "-c", ANSWERS, json.dumps(answers)))
    monkeypatch.setattr(check, "PATIENCE", 3.0)
    monkeypatch.setattr(check, "listed", lambda: five)
    outcomes = list(check.checked(60))
    died = "the process died with status 9: Segmentation fault"
    assert [outcome.fault for outcome in outcomes] == [None, "no answer within 3 s", None, died, None]
    assert [(outcome.op, outcome.dtype) for outcome in outcomes] == [
        (case.function.__name__, str(dtype)[6:]) for case, dtype in five
    ]
    monkeypatch.setattr(check, "PATIENCE", 60.0)
    assert [outcome.fault for outcome in check.checked(2)][1:] == [check.LATE] * 4


def test_an_error_of_an_op_is_told_and_the_process_goes_on_unless_the_gpu_is_lost(monkeypatch, capsys):
    case, dtype = check.listed()[0]
    right = check._outcome(case, dtype, 1e-4, 1e-4, None, 3)

    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with more")

    monkeypatch.setattr(check, "listed", lambda: [(case, dtype)] * 3)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for function, faults in (
        (lambda *_: right, [None] * 3),
        (fail, ["RuntimeError: CUDA error: an illegal memory access was encountered"] * 3),
    ):
        monkeypatch.setattr(check, "check", function)
        assert check._report(0) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [check.Outcome(*json.loads(line)).fault for line in lines] == faults
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    assert check._report(0) == 3
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_what_is_no_number_is_wrong_wherever_it_stands():
    exact = torch.ones(3, dtype=torch.float64)
    assert check._error(torch.tensor([1.0, torch.nan, 1.0]), exact) == math.inf
    assert check._error(torch.ones(1, 3), exact) == math.inf
    assert check._error(torch.ones(3), exact) == 0
    case, dtype = check.listed()[0]

    def spoiled(place):
        def function(*arguments, **options):
            y = kernels.dynamic_conv2d(*arguments, **options)
            arguments[place].register_hook(lambda gradient: gradient * torch.nan)
            return y

        function.reference = kernels.dynamic_conv2d.reference
        outcome = check.check(case._replace(function=function), dtype, "cpu")
        return outcome.fault, outcome.gradients  # None: JSON has no infinity

    assert [spoiled(place) for place in range(4)] == [("WRONG gradients", None)] * 4


def test_every_public_op_is_checked():
    assert {case.function.__name__ for case in check.cases()} == {function.__name__ for function in public()}


def test_ops_that_were_not_reached_are_no_success():
    case, dtype = check.listed()[0]
    right = check._outcome(case, dtype, 1e-4, 1e-4, None, 3)
    late = check._outcome(case, dtype, fault=check.LATE)
    assert check.verdict([right, right]) == "2 are right"
    assert check.verdict([right, late]) == "1 are right, 1 were not run: more --seconds are needed"
    assert check.verdict([right, right._replace(fault="WRONG output"), late]).startswith("1 of 3 are wrong, 1 were not")


@pytest.mark.parametrize("case", check.cases(), ids=lambda case: f"{case.function.__name__} {case.name}")
def test_the_eager_forms_pass_the_check(case):
    for dtype in check.TOLERANCES:
        outcome = check.check(case, dtype, "cpu")
        assert (outcome.fault, outcome.launches) == (None, 0)
        assert outcome.output > 0


@pytest.fixture
def unprobed():
    """Forget what is known of GPUs, before and after."""
    backend.compiles_for.cache_clear()
    yield
    backend.compiles_for.cache_clear()


def on_gpu(dtype=torch.float32):
    """Return what `runs_triton` looks at of a CUDA tensor."""
    return SimpleNamespace(is_cuda=True, dtype=dtype, device=torch.device("cuda", 0))


def runs_twice():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ran = [backend.runs_triton(on_gpu(), "auto") for _ in range(2)]
    return ran, [str(warning.message) for warning in caught]


def test_a_gpu_that_is_too_old_runs_eager_and_is_told_once(unprobed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    ran, said = runs_twice()
    assert ran == [False, False]
    assert said == ["polychrome runs as plain PyTorch on Some GPU: its compute capability is 7.5, the kernels need 8.0"]


def test_a_gpu_that_triton_cannot_compile_for_runs_eager_and_is_told_once(unprobed, monkeypatch):
    class Failing:
        def __getitem__(self, grid):
            raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    monkeypatch.setattr(torch.cuda, "device", lambda index: warnings.catch_warnings())
    monkeypatch.setattr(probe, "probe_kernel", Failing())
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    ran, said = runs_twice()
    assert ran == [False, False]
    assert said == [
        "polychrome runs as plain PyTorch on Some GPU: Triton cannot compile for it: Failed to find C compiler."
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tensors_without_data_of_a_gpu_that_is_elsewhere_are_not_probed(unprobed):
    assert runs_twice() == ([True, True], [])


def test_triton_that_is_asked_for_is_not_refused_for_the_gpu(unprobed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert backend.runs_triton(on_gpu(), "triton")
