"""Checking before timing, and the figures drawn from times."""

import time

import pytest
import torch

from bench.measuring import measure, timing
from bench.measuring.measure import Candidate
from bench.measuring.record import NOT_ASKED

X, GRAD = torch.tensor([1.0, 2.0, 3.0], requires_grad=True), torch.tensor([1.0, -1.0, 2.0])
TOLERANCES = (1e-5, 1e-5)


def candidate(name, function, reason=None):
    return Candidate(name, measure.parts_of(function, (X,), GRAD), TOLERANCES, reason)


def exact():
    wide = X.detach().double().requires_grad_()
    return measure.exact_results(measure.parts_of(torch.square, (wide,), GRAD.double()))


def fails(x):
    raise RuntimeError("no such kernel\nand more")


def test_baselines_that_are_wrong_or_fail_are_left_out_with_the_reason():
    candidates = [
        candidate("ours", torch.square),
        candidate("right", lambda x: x * x),
        candidate("wrong value", lambda x: x * x + 0.1),
        candidate("wrong gradient", lambda x: x.detach().square() + 0 * x),
        candidate("failing", fails),
        candidate("absent", None, "not installed"),
    ]
    made, skipped = measure.checked_calls(candidates, exact())
    assert list(made) == ["ours", "right"]
    assert skipped["wrong value"].startswith("failed: wrong value: output 0 is off by")
    assert skipped["wrong gradient"] == "failed: wrong gradient: output 1 is off by 1.0e+00"
    assert skipped["failing"] == "failed: no such kernel"
    assert skipped["absent"] == "not installed"


def test_ours_must_be_right():
    with pytest.raises(AssertionError, match="ours: output 0 is off by"):
        measure.checked_calls([candidate("ours", lambda x: x * x * 1.001)], exact())


@pytest.mark.parametrize(("device", "left_out"), [("cpu", ["slow"]), ("cuda", [])])
def test_slow_baselines_are_left_out_on_a_cpu(monkeypatch, device, left_out):
    monkeypatch.setattr(measure, "DEVICE", device)
    slow = measure.SLOW + 0.1
    seconds = {"ours": 10.0, "usual": 1.0, "slow": slow, "kept": slow}
    monkeypatch.setattr(measure, "check", lambda name, *_: seconds[name])
    made, skipped = measure.checked_calls([candidate(name, None) for name in seconds], [], "usual", ("kept",))
    assert list(made) == [name for name in seconds if name not in left_out]
    assert skipped == dict.fromkeys(left_out, f"over {measure.SLOW} times as long as usual")


def test_a_call_without_backward_has_forward_and_both():
    assert measure.medians([[3.0], [1.0], [2.0]]) == {"forward": 2.0, "both": 2.0}
    assert measure.medians([[3.0, 1.0], [1.0, 9.0], [2.0, 2.0]]) == {"forward": 2.0, "backward": 2.0, "both": 4.0}


def test_batches_that_come_in_bursts_are_averaged_and_what_was_ready_is_not_counted(monkeypatch):
    clock, taken = [0.0], []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def following():
        # Two windows are ready; then four batches come at once after every 8 ms.
        taken.append(None)
        clock[0] += 0.008 if len(taken) > 8 and len(taken) % 4 == 1 else 0.0

    (times,) = zip(*measure.steady_times(following, 4, seconds=0.03), strict=True)
    assert times == pytest.approx([2.0] * 4)
    assert len(taken) == 4 * (2 + 4)
    assert len(measure.steady_times(following, 4, seconds=0)) == 3


def test_a_gpu_waits_for_the_host_three_times_as_long_as_the_host_takes(monkeypatch):
    waits, calls = [], []
    monkeypatch.setattr(timing.torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(timing, "_device_times", lambda parts, wait: waits.append(wait) or [1.0])
    slow = (lambda _: calls.append(time.sleep(0.002)),)
    times = timing.take_turns({"slow": slow, "quick": (lambda _: None,)}, "cuda", (2, 2), 1.0)
    assert {name: len(each) for name, each in times.items()} == {"slow": 2, "quick": 2}
    assert len(calls) == 2
    assert sorted(waits)[:2] == [timing.LEAST_WAIT] * 2
    assert 6000 <= min(sorted(waits)[2:]) == max(waits) < 60_000


def test_ways_that_nobody_asks_for_are_left_out_with_that_reason():
    every = [measure.Candidate("ours", (), (0, 0)), measure.Candidate("timm", None, (0, 0), "not installed")]
    every.append(measure.Candidate("naive", (), (0, 0)))
    assert measure.only(every, None) == every
    assert [each.reason for each in measure.only(every, ["ours"])] == [None, "not installed", NOT_ASKED]


def test_the_bound_is_the_slower_of_bytes_and_arithmetic(monkeypatch):
    monkeypatch.setattr(measure.timing, "copy_rate", lambda device: 1e9)
    monkeypatch.setattr(measure.timing, "matmul_rate", lambda device, dtype: 1e12)
    assert measure.bound(2_000_000) == pytest.approx(2)
    assert measure.bound(2_000_000, 3 * 10**9, torch.float32) == pytest.approx(3)
    assert measure.ceilings(torch.float32) == {"GB/s copy": 1.0, "TFLOP/s float32 matmul": 1.0}


def test_the_fastest_baseline_is_chosen_in_every_other_run_and_compared_in_the_others():
    times = {
        "ours": [[1.0, 1.0], [2.0, 2.0], [1.0, 1.0], [2.0, 2.0]],
        "lucky": [[0.5, 0.5], [4.0, 4.0], [0.5, 0.5], [4.0, 4.0]],
        "steady": [[2.0, 1.0], [2.0, 1.0], [2.0, 1.0], [2.0, 1.0]],
        "compiled": [[0.1, 0.1]] * 4,
        "static": [[0.1, 0.1]] * 4,
    }
    assert measure.chosen_baseline(times) == {"way": "lucky", "over_ours": 2.0}
    assert measure.chosen_baseline({name: times[name] for name in ("ours", "static", "compiled")}) is None
    assert measure.chosen_baseline({name: each[:1] for name, each in times.items()}) is None
