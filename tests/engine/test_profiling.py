"""Spans, traces of training steps and the table of kernels, on real recordings of a CPU."""

import json
import time

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from polychrome.engine.report import tables
from polychrome.engine.watch import profiling
from polychrome.engine.watch.profiling import RECORDED, SKIPPED, SPANS, decoded, span, top_kernels, trace
from polychrome.engine.watch.recorder import Recorder


def step(model, optimizer):
    """Take a training step with all of its spans."""
    with span("augment"):
        images = torch.rand(4, 3, 16, 16)
    with span("forward"):
        loss = model(images).square().mean()
    with span("backward"):
        loss.backward()
    with span("optimizer"):
        optimizer.step()
        optimizer.zero_grad()


def train(recording, steps, evaluations=0):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 3))
    optimizer = torch.optim.Adam(model.parameters())
    for _ in decoded(iter(range(steps))):
        step(model, optimizer)
        recording()
    for _ in range(evaluations):
        with span("evaluate"), torch.no_grad():
            model(torch.rand(4, 3, 16, 16))
        recording.evaluated(4)


def names_in(path):
    return [event.get("name") for event in json.loads(path.read_text(encoding="utf-8"))["traceEvents"]]


def test_a_trace_holds_the_spans_of_the_recorded_steps(tmp_path):
    with trace(tmp_path / "trace", "small cnn") as recording:
        train(recording, SKIPPED + RECORDED + 4)
    (path,) = recording.files
    assert list((tmp_path / "trace").iterdir()) == [path]
    assert path.name.startswith("small cnn.")
    assert path.name.endswith(".pt.trace.json")
    names = names_in(path)
    numbers = {name for name in names if name.startswith("ProfilerStep#")}
    assert numbers == {f"ProfilerStep#{number}" for number in range(SKIPPED, SKIPPED + RECORDED)}
    for name in ("augment", "forward", "backward", "optimizer"):
        assert names.count(name) == RECORDED, name
    assert "decode" in names
    assert "aten::conv2d" in names


def test_an_evaluation_has_a_trace_of_its_own(tmp_path):
    with trace(tmp_path, "m") as recording:
        for _ in range(2):
            train(recording, SKIPPED + RECORDED, evaluations=6)
    first, second = recording.files
    assert "evaluate" not in names_in(first)
    assert names_in(second).count("evaluate") == profiling.EVALUATIONS_RECORDED
    assert second.name.startswith("m evaluate.")


def test_an_evaluation_amid_the_recorded_steps_is_in_their_trace(tmp_path):
    with trace(tmp_path, "m") as recording:
        for _ in range(4):
            train(recording, 5, evaluations=2)
    assert set(SPANS) <= set(names_in(recording.files[0]))


def test_an_evaluation_of_few_batches_leaves_no_recording_open(tmp_path):
    with trace(tmp_path, "m") as recording:
        train(recording, SKIPPED + RECORDED, evaluations=3)
        assert torch.autograd._profiler_enabled()
        train(recording, 1)
        assert not torch.autograd._profiler_enabled()
    assert names_in(recording.files[1]).count("evaluate") == 1


def test_a_short_training_has_a_trace_of_the_steps_there_were(tmp_path):
    with trace(tmp_path, "m") as recording:
        train(recording, SKIPPED + 2)
    assert names_in(recording.files[0]).count("forward") == 2


def test_a_training_too_short_for_a_trace_says_so(tmp_path, capsys):
    with trace(tmp_path / "trace", "m") as recording:
        train(recording, SKIPPED - 1)
    assert recording.files == []
    assert capsys.readouterr().out.splitlines() == ["m: no trace, 2 steps are too few: the first 3 are left out"]


def test_a_failed_training_leaves_its_trace(tmp_path):
    def failing():
        with trace(tmp_path, "m") as recording:
            train(recording, SKIPPED + 1)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        failing()
    assert [path.name.split(".")[0] for path in tmp_path.iterdir()] == ["m"]
    assert not torch.autograd._profiler_enabled()


def failing(*_, **__):
    raise RuntimeError("CUPTI_ERROR_NOT_INITIALIZED\nsome more")


@pytest.mark.parametrize("method", ["__init__", "start", "step", "export_chrome_trace"])
def test_a_profiler_that_fails_is_told_in_a_line_and_the_training_goes_on(tmp_path, capsys, monkeypatch, method):
    monkeypatch.setattr(profile, method, failing)
    with trace(tmp_path, "m") as recording:
        train(recording, SKIPPED + RECORDED + 2, evaluations=6)
    wanted = ["m: no trace of its steps (RuntimeError: CUPTI_ERROR_NOT_INITIALIZED some more)"]
    assert capsys.readouterr().out.splitlines() == wanted
    assert recording.files == []
    assert Recorder.running is None
    assert not torch.autograd._profiler_enabled()


def test_a_failure_at_the_end_of_a_short_training_is_told_in_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(profile, "export_chrome_trace", failing)
    with trace(tmp_path, "m") as recording:
        train(recording, SKIPPED + 1)
    assert "m: no trace of its steps (RuntimeError: " in capsys.readouterr().out
    assert not torch.autograd._profiler_enabled()


@pytest.mark.parametrize("name", ["m", "no/such"])
def test_a_trace_that_cannot_be_written_is_told_in_a_line(tmp_path, capsys, name):
    folder = tmp_path / "trace"
    if name == "m":
        folder.write_text("a file in its place")
    with trace(folder, name) as recording:
        train(recording, SKIPPED + RECORDED)
    assert recording.files == []
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{name}: no trace of its steps (")
    assert str(folder) in line
    assert recording.kernels  # these are known all the same
    assert not torch.autograd._profiler_enabled()


def test_an_evaluation_whose_recording_fails_is_told_in_a_line(tmp_path, capsys, monkeypatch):
    with trace(tmp_path, "m") as recording:
        train(recording, SKIPPED + RECORDED)
        monkeypatch.setattr(profile, "export_chrome_trace", failing)
        train(recording, 0, evaluations=6)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("m: no trace of an evaluation (RuntimeError: CUPTI_ERROR_NOT_INITIALIZED")
    assert len(recording.files) == 1


def test_a_trace_waits_for_another_profiler_to_end(tmp_path, capsys):
    for steps in (0, RECORDED + 2):
        with trace(tmp_path, "m") as recording:
            with profile(activities=[ProfilerActivity.CPU]) as other:
                train(recording, SKIPPED + RECORDED)
            assert "forward" in {event.key for event in other.key_averages()}
            train(recording, steps)
    assert names_in(recording.files[0]).count("forward") == RECORDED
    assert capsys.readouterr().out.splitlines() == ["m: no trace of its steps (another profiler runs)"]


def test_a_trace_leaves_nsys_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "1")
    monkeypatch.setattr(profiling, "activities", lambda: [ProfilerActivity.CPU, ProfilerActivity.CUDA])
    with trace(tmp_path, "m") as recording:
        train(recording, SKIPPED + RECORDED)
    assert capsys.readouterr().out.splitlines() == ["m: no trace of its steps (nsys records)"]


def test_every_model_has_its_trace_and_a_run_that_is_gone_on_with_another(tmp_path):
    for name in ("a", "b", "a"):
        with trace(tmp_path, name) as recording:
            train(recording, SKIPPED + 1)
    assert sorted(path.name.split(".")[0] for path in tmp_path.iterdir()) == ["a", "a", "b"]


def test_spans_cost_nothing_to_speak_of_when_nobody_listens():
    def cost(times=2000):
        started = time.process_time()
        for _ in range(times):
            with span("forward"):
                pass
        return (time.process_time() - started) / times

    assert min(cost() for _ in range(20)) < 20e-6


def test_a_span_is_harmless_around_compiled_code():
    compiled = torch.compile(lambda x: x.relu() + 1, backend="eager", fullgraph=True)
    with profile(activities=[ProfilerActivity.CPU]) as profiler, span("forward"):
        assert compiled(torch.tensor([-1.0, 2.0])).tolist() == [1, 3]
    assert "forward" in {event.key for event in profiler.key_averages()}


def test_top_kernels_are_the_operators_that_take_longest_themselves():
    x = torch.rand(900, 900)  # so large that a pause of the process in another operator is not the longest
    nn.functional.linear(x, x)
    with profile(activities=[ProfilerActivity.CPU]) as profiler, span("forward"):
        for _ in range(5):
            nn.functional.linear(x, x)
        (x[:2] + 1).sum()
        time.sleep(0.02)
    found = top_kernels(profiler)
    longest = found[0]
    assert longest["name"] in ("aten::mm", "aten::addmm")
    assert longest["calls"] == 5
    assert 0.5 < longest["share"] <= 1
    assert [row["ms"] for row in found] == sorted((row["ms"] for row in found), reverse=True)
    assert sum(row["share"] for row in found) == pytest.approx(1) or len(found) == 10
    assert "forward" not in {row["name"] for row in found}
    assert len(top_kernels(profiler, rows=2)) == 2


def test_the_kernels_of_a_run_are_a_table_per_model(tmp_path):
    with trace(tmp_path, "m") as recording:
        train(recording, SKIPPED + RECORDED)
    results = {"models": {"m": {"kernels": recording.kernels}, "without": {}}}
    (table,) = tables.kernels(results)
    assert table.title == "m: what took longest in the steps traced"
    assert table.columns == ("operator or kernel", "calls", "ms", "share")
    assert len(table.rows) == 10
    assert {len(row) for row in table.rows} == {4}
    assert sum(float(row[3].rstrip("%")) for row in table.rows) <= 100.5
