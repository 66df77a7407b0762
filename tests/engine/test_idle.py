"""The idle share: unions of intervals, windows of a real recording, and the wait for input."""

import time
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from polychrome.engine.report import tables
from polychrome.engine.watch import idle, profiling, recorder
from polychrome.engine.watch.idle import Idle, Window, covered

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("found", "busy"),
    [
        ([], 0),
        ([(0, 10)], 10),
        ([(2, 4), (6, 9)], 5),
        ([(2, 6), (4, 8)], 6),
        ([(4, 8), (1, 9), (2, 3)], 8),
        ([(-5, 3), (8, 20)], 5),
        ([(-5, -1), (11, 20)], 0),
        ([(3, 3)], 0),
        ([(0, 5), (5, 10)], 10),
    ],
)
def test_the_union_of_intervals_in_a_span(found, busy):
    assert covered(found, 0, 10) == busy


def work(seconds):
    """Keep a CPU busy."""
    x = torch.rand(64, 64)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        x @ x


def test_intervals_of_a_recording_stand_in_the_time_of_the_clock():
    before = time.time_ns()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        torch.rand(300, 300) @ torch.rand(300, 300)
    found = idle.intervals(profiler, torch.autograd.DeviceType.CPU)
    assert found
    assert all(before < start <= end < time.time_ns() for start, end in found)


def test_a_window_finds_the_share_in_which_nothing_runs():
    window = Window(ProfilerActivity.CPU)
    worked, rested = [], []
    for _ in range(idle.SKIPPED + idle.STEPS + 4):
        x = torch.rand(700, 700)
        started = time.perf_counter()
        for _ in range(3):
            x @ x
        worked.append(time.perf_counter() - started)
        time.sleep(worked[-1])
        rested.append(time.perf_counter() - started - worked[-1])
        window.step()
    # The window stands after the steps left out, one to warm up and one to get going again.
    seen = slice(idle.SKIPPED + 2, idle.SKIPPED + 2 + idle.STEPS)
    rest = sum(rested[seen])
    assert window.share == pytest.approx(rest / (rest + sum(worked[seen])), abs=0.1)
    assert window.failure is None
    assert not torch.autograd._profiler_enabled()


def test_a_window_ends_with_the_epoch():
    window = Window(ProfilerActivity.CPU)
    for _ in range(idle.SKIPPED + 4):
        work(0.002)
        window.step()
    assert window.share is None
    window.close()
    assert 0 <= window.share < 1
    assert not torch.autograd._profiler_enabled()


def test_a_window_of_too_few_steps_has_no_share():
    window = Window(ProfilerActivity.CPU)
    for _ in range(idle.SKIPPED + 1):
        window.step()
    window.close()
    assert (window.share, window.failure) == (None, None)
    assert not torch.autograd._profiler_enabled()


def test_a_window_waits_for_another_profiler_to_end():
    window = Window(ProfilerActivity.CPU)
    with profile(activities=[ProfilerActivity.CPU]):
        for _ in range(20):
            window.step()
    for _ in range(idle.STEPS + 4):
        work(0.001)
        window.step()
    assert window.share is not None


def train(idle_share, batches, steps_take=0.0):
    """Go through an epoch as a training does; return its seconds, without those of the validation."""
    started = time.perf_counter()
    batches, end = iter(batches), object()
    while True:
        with idle_share.waiting():
            batch = next(batches, end)
        if batch is end:
            break
        work(steps_take)
        idle_share.step()
    seconds = time.perf_counter() - started
    work(0.005)
    idle_share.epoch(None)
    return seconds


def test_a_profiler_that_does_not_start_leaves_the_share_open(monkeypatch):
    def broken(**_):
        raise RuntimeError("CUPTI_ERROR_NOT_INITIALIZED\nsome more")

    monkeypatch.setattr(recorder, "profile", broken)
    with Idle(torch.device("cuda")) as measured:
        train(measured, range(8))
    assert measured.share is None
    assert str(measured).startswith(
        "GPU idle: not measured (RuntimeError: CUPTI_ERROR_NOT_INITIALIZED some more); input waited for: "
    )
    assert list(measured.figures()) == ["input_wait"]


def test_on_cuda_the_share_is_that_of_the_second_epoch_or_else_of_the_first(monkeypatch):
    # The operators of a CPU stand for kernels.
    monkeypatch.setattr(idle, "ProfilerActivity", SimpleNamespace(CUDA=ProfilerActivity.CPU))
    with Idle(torch.device("cuda")) as measured:
        shares = []
        for _ in range(3):
            train(measured, range(idle.SKIPPED + idle.STEPS + 3), steps_take=0.001)
            shares.append(measured.share)
        assert not torch.autograd._profiler_enabled()
    assert 0 < shares[0] < 1
    assert 0 < shares[1] < 1
    assert shares[1] != shares[0]
    assert shares[2] == shares[1]
    assert str(measured).startswith(f"GPU idle: {shares[1]:.1%} of a step; input waited for: ")
    assert measured.figures()["gpu_idle"] == round(shares[1], 4)


def test_too_few_steps_leave_the_share_open():
    with Idle(torch.device("cuda")) as measured:
        train(measured, range(idle.SKIPPED - 1))
    assert str(measured).startswith("GPU idle: not measured (too few steps); ")


def test_nsys_is_left_alone(monkeypatch):
    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "1")
    with Idle(torch.device("cuda")) as measured:
        train(measured, range(idle.SKIPPED + idle.STEPS + 3))
    assert str(measured).startswith("GPU idle: not measured (nsys records); ")


def test_a_failed_training_leaves_no_profiler_running(monkeypatch):
    monkeypatch.setattr(idle, "ProfilerActivity", SimpleNamespace(CUDA=ProfilerActivity.CPU))
    with Idle(torch.device("cuda")) as measured:
        with measured.waiting():
            pass
        for _ in range(idle.SKIPPED + 3):
            measured.step()
        assert torch.autograd._profiler_enabled()
    assert not torch.autograd._profiler_enabled()


def test_on_a_cpu_the_share_is_that_of_the_wait_for_input():
    waited = []

    def slow(count):
        for number in range(count):
            started = time.perf_counter()
            time.sleep(0.004)
            waited.append(time.perf_counter() - started)
            yield number

    measured = Idle(CPU)
    assert measured.share is None
    assert str(measured) == "input waited for: not measured"
    train(measured, range(5), steps_take=0.004)
    without = measured.share
    seconds = train(measured, slow(5), steps_take=0.004)
    assert without < measured.share
    assert measured.share == pytest.approx(sum(waited) / seconds, abs=0.05)
    assert str(measured) == f"input waited for: {measured.share:.1%} of the epoch"
    assert measured.figures() == {"input_wait": round(measured.share, 4)}


def test_idle_shares_are_columns_of_the_training_table():
    entry = {"test": {"RGB": {"accuracy": 0.5}}, "gpu_idle": 0.043, "input_wait": 0.0214}
    table = tables.training({"models": {"m": entry}, "combinations": {"RGB": ["R", "G", "B"]}})
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (row["GPU idle"], row["input wait"]) == ("4.3%", "2.1%")


def test_a_window_and_the_traces_of_a_run_do_not_disturb_each_other(tmp_path):
    """Torch does not say of a profiler that warms up that it runs, and another that is started then ends it."""
    window, recording = Window(ProfilerActivity.CPU), profiling.Trace(tmp_path, "model")
    for _ in range(profiling.SKIPPED + profiling.RECORDED + 2):
        work(0.001)
        window.step()
        recording()
    assert [path.name.split(".")[0] for path in recording.files] == ["model"]
    recording.evaluated()  # the window is open
    for _ in range(idle.STEPS + 3):
        work(0.001)
        window.step()
        recording()
    assert 0 <= window.share < 1
    for _ in range(profiling.EVALUATIONS_SKIPPED + profiling.EVALUATIONS_RECORDED):
        work(0.001)
        recording.evaluated()
    recording.close()
    assert len(recording.files) == 2
    assert recorder.Recorder.running is None
