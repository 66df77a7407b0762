"""`polychrome bench --quick`: what is timed computes the same, and what is told follows from the rounds."""

import re
import subprocess
import sys

import pytest
import torch

from polychrome.kernels import quick
from polychrome.kernels.quick import OURS, PLAIN, STATIC, Case, Timing
from polychrome.train.run import main


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(quick.SIZES, "cpu", ((2, 16, 6),))
    monkeypatch.setattr(quick, "LEAST", 1e-4)
    monkeypatch.setattr(quick, "ROUNDS", 2)


def test_every_op_is_timed_and_agrees_with_plain_pytorch(small, capsys):
    assert quick.main(["--quick", "--device", "cpu", "--seconds", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("forward and backward, float32, on the CPU, ")
    names = [line.partition(",")[0] for line in lines[1:-1:2]]
    assert names == ["dynamic_conv2d", "per_sample_conv2d", "channel_gate", "spatial_attention"]
    for name, line in zip(names, lines[2:-1:2], strict=True):
        told = r"^ +[\d.]+ ms, plain PyTorch [\d.]+ ms: round by round [\d.]+ times as fast"
        more = r"; [\d.]+ times the time of one kernel for all samples" if "conv" in name else ""
        assert re.fullmatch(told + more, line)
    assert re.fullmatch(
        r"ahead of plain PyTorch in \d of 4 steady calls, [\d.]+ times as fast in the median", lines[-1]
    )


def test_a_call_by_its_groups_is_the_convolution_of_each_sample():
    x, kernels = torch.randn(3, 4, 7, 6), torch.randn(3, 5, 4, 3, 3)
    expected = torch.cat([torch.nn.functional.conv2d(x[i : i + 1], kernels[i], padding=1) for i in range(3)])
    torch.testing.assert_close(quick.grouped(x, kernels), expected, rtol=1e-4, atol=1e-5)
    experts, mixing = torch.randn(2, 5, 4, 3, 3), torch.rand(3, 2)
    torch.testing.assert_close(quick.mixed(experts, mixing), torch.einsum("bk,koihw->boihw", mixing, experts))


def test_ratios_are_of_rounds_and_not_of_medians():
    timing = Timing(
        "x", {OURS: [0.001, 0.010, 0.003], PLAIN: [0.002, 0.020, 0.009], STATIC: [0.0005, 0.01, 0.003]}, True
    )
    assert (timing.ratio(PLAIN), timing.milliseconds(PLAIN)) == (2.0, 9.0)
    first, second = quick.line(timing).splitlines()
    assert first == "x"
    assert second.strip() == (
        "3.00 ms, plain PyTorch 9.00 ms: round by round 2.00 times as fast; "
        "1.00 times the time of one kernel for all samples"
    )
    slower = Timing("y", {OURS: [0.004], PLAIN: [0.002]}, True)
    told = "ahead of plain PyTorch in 1 of 2 steady calls, 1.25 times as fast in the median"
    assert quick.verdict([timing, slower]) == told


def test_times_of_a_busy_machine_are_told_to_be_unsteady():
    """Where other programs take the processor by turns, the ratio of a round says little, and so does their median."""
    steady = Timing("a", {OURS: [0.01] * 8, PLAIN: [0.02, 0.021, 0.022, 0.019] * 2}, True)
    busy = Timing("b", {OURS: [0.01] * 8, PLAIN: [0.005, 0.02, 0.006, 0.03] * 2}, True)
    assert steady.unsteady(PLAIN) is None
    assert "unsteady" not in quick.line(steady)
    low, high = busy.unsteady(PLAIN)
    assert 0.5 <= low < 0.7 < 2 < high <= 3
    assert quick.line(busy).endswith(f" ms: unsteady, {low:.2f} to {high:.2f} times as fast")  # no single ratio
    of_steady = "ahead of plain PyTorch in 1 of 1 steady calls, 2.05 times as fast in the median"
    advice = "calls unsteady: let other programs end, and time again"
    assert quick.verdict([steady, busy, busy]).splitlines() == [of_steady, f"2 of 3 {advice}"]
    assert quick.verdict([busy]) == f"1 of 1 {advice}"
    assert len(quick.verdict([steady, steady]).splitlines()) == 1


def test_ways_that_differ_are_told_and_fail(small, monkeypatch, capsys):
    x = torch.ones(2, 3, requires_grad=True)
    monkeypatch.setattr(
        quick, "cases", lambda device: [Case("x", (x,), {OURS: lambda x: 1.01 * x, PLAIN: lambda x: x})]
    )
    assert quick.main(["--quick", "--device", "cpu"]) == 1
    assert "WRONG: the two do not compute the same" in capsys.readouterr().out


def test_wrong_use_is_told(capsys):
    for arguments, said in (([], "here is --quick alone"), (["--quick", "--device", "tpu"], "invalid choice")):
        with pytest.raises(SystemExit) as caught:
            quick.main(arguments)
        assert caught.value.code == 2
        assert said in capsys.readouterr().err


def test_the_command_line_has_it_and_it_needs_no_package_of_training(small, capsys):
    assert main(["bench", "--quick", "--device", "cpu", "--seconds", "1"]) == 0
    hidden = ["torchvision", "PIL", "click", "rich", "matplotlib", "jinja2"]
    code = (
        "import sys\n"
        f"for name in {hidden}: sys.modules[name] = None\n"
        "sys.argv = ['polychrome', 'bench', '--quick', '--device', 'cpu', '--seconds', '0.1']\n"
        "from polychrome.kernels import quick\n"
        "quick.SIZES['cpu'], quick.LEAST, quick.ROUNDS = ((2, 16, 6),), 1e-4, 1\n"
        "from polychrome.command import main\n"
        "print('status', main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("status 0\n")
