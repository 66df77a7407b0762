"""The command for a machine with a GPU, run whole where there is none, and what it keeps between its calls."""

import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from bench import tune
from bench.gpu import __main__ as gpu
from bench.gpu import counters, state, steps, times
from bench.measuring import record
from bench.measuring.record import NOT_ASKED
from bench.ops.dynamic_conv import Shape
from bench.report import tables
from polychrome.kernels import check

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("bench", "engine", "kernels", "models", "polychrome", "tests", "train")
# Left out are those that take minutes here at any size, the engine's and torch.compile's, and more of the same.
WHOLE = (
    *("first-light", "tests-kernels", "times-dynamic_conv", "times-augment", "host-time", "tune", "counters"),
    "baselines-dynamic_conv",
)
# Without those of convolutions, whose kernels the interpreter takes minutes for.
USUAL = ("first-light", "tests-kernels", "times-augment", "host-time")
# What the processes of a dry run begin with: a pretended GPU, whose kernels Triton's interpreter computes; small sizes.
SITE = """
import sys
from bench.stand_in import cuda, results
cuda.install(results.interpret, cuda.Card(L2_cache_size=2**20))
import torch
from bench.ops import augment, dynamic_conv, feature_maps
dynamic_conv.BATCH["cuda"] = 2
dynamic_conv.shapes_on = lambda device: [
    dynamic_conv.Shape("C256 14x14", 2, 8, 8, 5),
    dynamic_conv.Shape("C256 14x14 b1", 1, 16, 16, 4),  # of another batch: not tuned
]
feature_maps.SIZES["cuda"] = ((2, 64, 4, 4),)
feature_maps.LAYOUTS["cuda"] = feature_maps.LAYOUTS["cuda"][:1]
augment.SIDE, augment.SIZE, augment.COUNTS["cuda"] = 16, 8, 4
augment.shapes_on = lambda device: [augment.Shape(2, 3, torch.bfloat16)]
from bench.measuring import timing
timing.COPIED["cuda"], timing.SIDE["cuda"], timing.HOST_RUNS = 2**20, 64, 1
words = " ".join(sys.orig_argv)
if "bench.gpu --out" in words:
    from bench.gpu import steps
    listed = steps.steps
    steps.steps = lambda *given: [step._replace(least=1) for step in listed(*given) if step.name in STEPS]
if "bench.host_time" in words:
    from bench import host_time
    host_time.ROUNDS, host_time.CALLS, host_time.FIRST = 1, 1, 3
    all_cases = host_time.cases
    host_time.cases = lambda: all_cases()[-4:-2]
if "bench.gpu.times" in words:
    from bench.measuring import measure
    measure.ROUNDS = 1, 1
if "bench.gpu.counters" in words:
    from bench.gpu import counters
    counters.RUNS, counters.COUNTED = 1, counters.COUNTED[:1]
    every_call = counters.calls
    counters.calls = lambda: list(every_call())[:1]
if "bench.tune" in words:
    from bench import tune
    rows = tune.rows
    tune.rows, tune.ROUNDS = lambda *given: rows(*given)[:1], (1, 1)
if "polychrome.kernels.check" in words or "first_light" in words:
    from polychrome.kernels import check
    few = {"spatial_gate": ((2, 24, 5, 3), (2, 1, 5, 3)), "channel_scale": ((2, 24, 5, 3), (2, 24))}
    every = [case for case in check.cases() if case.function.__name__ in few]
    check.cases = lambda: [case._replace(make=check._tensors(*few[case.function.__name__])) for case in every]
"""
# Two of the GPU tests, one that fails, and one that loses the GPU.
FEW = """

def pytest_collection_modifyitems(items):
    kept = ("planted", "[spatial_gate of one image, odd-nhwc-bfloat16]", "[per_sample_conv2d-one_pixel_out-float32]")
    items[:] = [item for item in items if any(name in item.nodeid for name in kept)]
"""
PLANTED = """
import pytest

@pytest.mark.gpu
def test_planted():
    assert 1 == 2, "a planted failure"

@pytest.mark.gpu
def test_planted_fault():
    import torch
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    torch.cuda.synchronize = lost
"""
NCU = f"""#!{sys.executable}
import subprocess, sys
subprocess.run(sys.argv[sys.argv.index("-m") - 1:], check=True)
print('"ID","Section Name","Metric Name","Metric Unit","Metric Value"')
print('"0","GPU Speed Of Light Throughput","Duration","ns","38000"')
"""


@pytest.fixture(
    scope="module", params=[pytest.param(USUAL, id="usual"), pytest.param(WHOLE, id="whole", marks=pytest.mark.slow)]
)
def listed(request):
    """The steps of a dry run."""
    return request.param


whole = pytest.mark.parametrize("listed", [pytest.param(WHOLE, id="whole", marks=pytest.mark.slow)], indirect=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory, listed):
    """A copy of what the command runs, with few GPU tests, one of which fails, and the environment of a dry run."""
    root = tmp_path_factory.mktemp("tree")
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__", "results" if name == "bench" else "nothing")
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", root)
    with (root / "tests" / "kernels" / "conftest.py").open("a") as file:
        file.write(FEW)
    (root / "tests" / "kernels" / "test_planted_on_gpu.py").write_text(PLANTED)
    for path in (root / "tests" / "kernels").glob("test_*.py"):
        if path.stem not in ("test_planted_on_gpu", "test_ops_on_gpu", "test_dynamic_conv_on_gpu"):
            path.unlink()
    site = root / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(f"STEPS = {listed}\n{SITE}")
    (site / "ncu").write_text(NCU)
    (site / "ncu").chmod(stat.S_IRWXU)
    return root


def command(tree, out, *words, **environment):
    """Run the command in a copy of the tree, and return how it ended."""
    dropped = ("TRITON_INTERPRET", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    known = {name: value for name, value in os.environ.items() if name not in dropped}
    known["PYTHONPATH"] = f"{tree / 'site'}{os.pathsep}{tree}"
    known["PATH"] = f"{tree / 'site'}{os.pathsep}{known['PATH']}"
    words = [sys.executable, "-m", "bench.gpu", "--out", str(out), *map(str, words)]
    return subprocess.run(words, cwd=tree, env=known | environment, capture_output=True, text=True)


def results(out):
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def calls(tree, tmp_path_factory):
    """Two calls: one of a step, with a broken archive of kernels, and one that goes on elsewhere from its files."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    state = tree / "runs" / "gpu"
    state.mkdir(parents=True)
    (state / "warm.tar.xz").write_bytes(b"cut off")
    began = command(tree, first, "--only", "first-light")
    shutil.rmtree(state)
    return (first, began), (second, command(tree, second, "--from", first / "all.tgz"))


def test_a_call_goes_on_where_the_one_before_it_ended(calls, listed):
    (first, began), (second, ended) = calls
    before, after = results(first)["steps"], results(second)["steps"]
    assert list(before) == ["first-light"]
    assert before["first-light"]["outcome"] == "passed"
    assert f"not started: {', '.join(listed[1:])}"[:150] in began.stdout
    assert list(after) == list(listed)
    assert after["first-light"] == before["first-light"]
    assert "first-light: " not in ended.stdout.partition("\n\n")[0]
    assert {name for name, step in after.items() if step["outcome"] != "passed"} == {"tests-kernels"}
    assert ended.returncode == 1


def test_a_broken_archive_is_told_in_one_line_and_costs_nothing_else(calls):
    (_, began), (_, ended) = calls
    assert began.stderr.count("\n") == 1
    assert "warm.tar.xz: not an lzma file; going on without compiled kernels" in began.stderr
    assert ended.stderr == ""


def test_what_comes_back_is_flat_and_small(calls):
    for out, _ in calls:
        files = {path.name: path.stat().st_size for path in out.rglob("*")}
        assert set(files) == {"summary.txt", "results.json", "tuned.json", "failures.txt", "all.tgz"}
        assert max(files.values()) < 16 * 2**20
        lines = (out / "summary.txt").read_text().splitlines()
        assert 8 < len(lines) <= 60


def test_the_summary_is_printed_last(calls):
    for out, done in calls:
        assert done.stdout.rstrip().endswith((out / "summary.txt").read_text().rstrip())


def test_a_failed_test_is_told_whole_and_a_lost_gpu_costs_one_test(calls):
    _, (out, _) = calls
    said = (out / "failures.txt").read_text()
    assert "test_planted_on_gpu.py::test_planted (call)" in said
    assert "AssertionError: a planted failure" in said
    assert re.search(r"worker 'gw\d' crashed while running .*test_planted_fault", said)
    assert said.count("---- tests/") == 2
    assert "2 failed, 2 passed" in results(out)["steps"]["tests-kernels"]["outcome"]


def test_every_way_that_was_asked_for_is_measured(calls):
    _, (out, _) = calls
    found = results(out)
    assert list(found["first_light"]["ceilings"]) == ["GB/s copy", "TFLOP/s bfloat16 matmul", "TFLOP/s float32 matmul"]
    assert [each["fault"] for each in found["first_light"]["check"]] == [None] * 4
    assert [each["op"] for each in found["host_time"]["rows"]] == ["spatial_gate", "channel_stats"]
    assert all(us > 0 for row in found["host_time"]["rows"] for us in row["us"].values())
    (images,) = found["sections"]["augment"]["shapes"].values()
    assert set(images["ms"]) == {"ours", "eager"}
    assert images["skipped"]["torchvision"] == NOT_ASKED


@whole
def test_counters_of_a_kernel_are_kept(calls):
    _, (out, _) = calls
    ((name, metrics),) = results(out)["counters"]["counters"].items()
    assert name == "dynamic_conv bfloat16 C256 14x14 weight_gradient_kernel"
    assert metrics == {"GPU Speed Of Light Throughput: Duration [ns]": "38000"}


@whole
def test_a_convolution_is_measured_beside_every_baseline(calls):
    _, (out, _) = calls
    shapes = results(out)["sections"]["dynamic_conv"]["shapes"]
    assert list(shapes) == ["bfloat16 C256 14x14", "bfloat16 C256 14x14 b1"]
    for entry in shapes.values():
        assert {"ours", "naive", "naive fp32", "static", "stacked", "compiled"} <= set(entry["ms"])
        assert NOT_ASKED not in entry["skipped"].values()


@whole
def test_tuning_measures_every_candidate_and_writes_what_beats_the_rules(calls):
    _, (out, _) = calls
    tuned = json.loads((out / "tuned.json").read_text())
    log = tuned["log"]["tuned"]
    assert set(log) == {"bfloat16 C256 14x14", "float32 C256 14x14"}
    shape = Shape("C256 14x14", 2, 8, 8, 5)
    keys = {f"{str(dtype)[6:]} C256 14x14": shape.problem(dtype).key for dtype in (torch.bfloat16, torch.float32)}
    for label, found in log.items():
        assert {each["pass"] for each in found["tried"]} == {"forward", "input_gradient", "weight_gradient"}
        assert all(each["ms"] > 0 for each in found["tried"])
        kept = tuned["table"]["choices"].get(keys[label], {})
        assert kept == (found["choice"] and found["choice"] | {"batch": shape.batch})
        assert bool(found["choice"]) == (found["rules_ms"] >= 1.02 * found["best_ms"])
    assert tuned["table"]["device"] == "NVIDIA H200"


@whole
def test_kernels_are_looked_up_by_the_jit(calls):
    """A later step finds what an earlier one had compiled; the first call began without."""
    _, (out, _) = calls
    found = results(out)["warm"]
    assert found["misses"] > 10
    assert found["hits"] > found["misses"] / 2


def sleeping(name, seconds, least=1, child=61):
    """Return a step that prints, starts another process, and sleeps."""
    code = f"import subprocess, time; print('begun', flush=True); subprocess.Popen(['sleep', '{child}'])"
    return steps.Step(name, ("-c", f"{code}; time.sleep({seconds})"), 60, least, ())


def test_a_step_that_takes_too_long_is_stopped_with_all_that_it_started(tmp_path):
    for folder in ("logs", "failures"):
        (tmp_path / folder).mkdir()
    slow = sleeping("slow", 60, child=67)
    ((step, outcome, taken),) = gpu.run({slow: ""}, 1.0, tmp_path)
    assert (step, outcome, 1 <= taken < 8) == (slow, "stopped", True)
    assert (tmp_path / "logs" / "slow.log").read_text() == "begun\n"
    assert subprocess.run(["pgrep", "-f", "sleep 67"], capture_output=True).returncode == 1


def test_steps_that_measure_no_time_run_beside_each_other(tmp_path):
    for folder in ("logs", "failures"):
        (tmp_path / folder).mkdir()
    tests = [sleeping(name, seconds)._replace(untimed=True) for name, seconds in (("slow", 1.5), ("fast", 0.7))]
    timed = sleeping("timed", 0)
    assert list(gpu.abreast([timed, timed, *tests, timed])) == [[timed], [timed], tests, [timed]]
    start = time.monotonic()
    ended = list(gpu.run(dict.fromkeys(tests, ""), 60.0, tmp_path))
    assert [(step.name, outcome) for step, outcome, _ in ended] == [("fast", "passed"), ("slow", "passed")]
    assert time.monotonic() - start < 2.2
    assert ended[0][2] < ended[1][2]


def test_a_call_ends_by_itself_and_begins_no_step_that_has_no_time(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some GPU")
    monkeypatch.setattr(gpu, "FOLDER", tmp_path / "state")
    monkeypatch.setattr(state, "ROOT", tmp_path / "tree")
    listed = [sleeping("short", 0), sleeping("long", 60, least=30), sleeping("cut", 60), sleeping("late", 0, least=2)]
    monkeypatch.setattr(gpu, "steps", lambda *_: listed)
    start = time.monotonic()
    status = gpu.main(["--out", str(tmp_path / "out"), "--seconds", str(gpu.RESERVE + 2.5)])
    assert time.monotonic() - start < gpu.RESERVE
    found = {name: step["outcome"] for name, step in results(tmp_path / "out")["steps"].items()}
    assert (status, found) == (1, {"short": "passed", "cut": "stopped"})
    gpu.main(["--out", str(tmp_path / "out"), "--seconds", str(gpu.RESERVE + 1.5), "--only", "short"])
    assert results(tmp_path / "out")["steps"]["short"]["outcome"] == "passed"
    assert "not started: long, late" in (tmp_path / "out" / "summary.txt").read_text()


def test_a_step_runs_again_where_what_it_measures_has_changed(tmp_path):
    listed = {step.name: step for step in steps.steps(tmp_path)}
    for name in ("kernels/launch.py", "kernels/augment/eager.py", "kernels/dynamic_conv/plan.py", "README.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")

    def changed_by(name):
        before = {each: step.digest("GPU", tmp_path) for each, step in listed.items()}
        (tmp_path / name).write_text("new")
        return {each for each, step in listed.items() if step.digest("GPU", tmp_path) != before[each]}

    assert not changed_by("README.md")
    of_images = changed_by("kernels/augment/eager.py")
    assert {"first-light", "times-augment", "all-augment", "tests-kernels"} <= of_images
    assert not of_images & {"times-dynamic_conv", "tune", "tests-dynamic_conv", "times-channel_gate"}
    of_plan = changed_by("kernels/dynamic_conv/plan.py")
    assert {"first-light", "times-dynamic_conv", "tune", "tests-dynamic_conv"} <= of_plan
    assert "times-augment" not in of_plan
    assert {"times-dynamic_conv", "times-augment", "tune"} <= changed_by("kernels/launch.py")


def test_the_order_is_that_of_value(tmp_path):
    names = [step.name for step in steps.steps(tmp_path)]
    order = ["first-light", "tests-dynamic_conv", "tests-kernels", "tests-compiled", "tests-engine"]
    order += ["times-dynamic_conv", "tune", "times-dynamic_conv-tuned", "counters", "baselines-dynamic_conv"]
    order += ["engine-epoch", "tests-memory"]
    assert [name for name in names if name in order] == order
    assert names[5:9] == [f"times-{op}" for op in tables.OPS]
    assert len(names) == len(set(names))


def test_every_step_names_what_there_is(tmp_path):
    for step in steps.steps(tmp_path):
        for word in step.arguments:
            if word.startswith(("tests/", "bench/")):
                assert (ROOT / word).exists(), step.name
        module = step.arguments[step.arguments.index("-m") + 1]
        assert importlib.util.find_spec(module) is not None, step.name
        assert any(ROOT.glob(pattern) for pattern in step.sources), step.name
        assert step.least <= step.most


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("main", "arguments"),
    [(tune.main, []), (gpu.main, ["--out", "unused"]), (check.main, [])],
    ids=["bench.tune", "bench.gpu", "polychrome.kernels.check"],
)
def test_without_a_gpu_one_line_says_so(main, arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.endswith("needs a CUDA device, and torch finds none\n")


def test_what_cannot_be_written_or_read_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "FOLDER", tmp_path / "state")
    (tmp_path / "file").write_text("")
    assert gpu.main(["--out", str(tmp_path / "file" / "out")]) == 2
    assert re.fullmatch(r"bench.gpu cannot write into --out .*: Not a directory\n", capsys.readouterr().err)
    (tmp_path / "all.tgz").write_bytes(b"half an archive")
    assert gpu.main(["--out", str(tmp_path / "out"), "--from", str(tmp_path / "all.tgz")]) == 2
    assert re.fullmatch(r"bench.gpu cannot read --from .*all.tgz: .*\n", capsys.readouterr().err)
    assert not (tmp_path / "state").exists()


def test_a_shape_is_measured_again_for_other_sources_and_for_ways_that_were_left_out():
    entry = {"sources": "now", "skipped": {"timm": NOT_ASKED, "unfold": "needs 9 GB, 1 GB are free"}}
    assert times.is_measured(entry, "now", ["ours", "naive"])
    assert times.is_measured(entry, "now", ["ours", "unfold"])
    assert not times.is_measured(entry, "now", ["ours", "timm"])
    assert not times.is_measured(entry, "now", None)
    assert times.is_measured(entry | {"skipped": {}}, "now", None)
    assert not times.is_measured(entry, "then", ["ours"])
    assert not times.is_measured({"skipped": {}}, "", None)
    assert not times.is_measured(None, "now", ["ours"])


def test_the_kernels_of_a_call_are_told_in_order_with_their_medians():
    """The first event of each run empties the cache."""
    events = [
        event
        for run in range(counters.RUNS)
        for event in [("b", run + 0.2, 5.0 + run), ("Memset", run + 0.0, 90.0), ("a", run + 0.1, 1.0 + run % 2)]
    ]
    assert counters.in_order(events) == [("a", 1.0), ("b", 7.0)]
    assert counters.in_order([]) == []
    with pytest.raises(ValueError, match="not the same kernels"):
        counters.in_order(events[1:])
    with pytest.raises(ValueError, match="not the same kernels"):
        counters.in_order([("other", *events[0][1:]), *events[1:]])


def test_what_the_tree_has_is_kept_unless_the_state_comes_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "ROOT", tmp_path)
    monkeypatch.setattr(state, "WRITTEN", ("table.json",))
    (tmp_path / "runs" / "files").mkdir(parents=True)
    (tmp_path / "runs" / "files" / "table.json").write_text("kept")
    monkeypatch.setattr(state.record, "results_path", lambda kind: Path("gpu.json"))
    known = state.State(tmp_path / "runs", "GPU")
    known.restore(anew=False)
    assert (tmp_path / "table.json").read_text() == "kept"
    (tmp_path / "table.json").write_text("newer")
    known.restore(anew=False)
    assert (tmp_path / "table.json").read_text() == "newer"
    known.restore(anew=True)
    assert (tmp_path / "table.json").read_text() == "kept"


def test_results_of_a_call_outlive_a_tree_that_is_copied_anew(tmp_path, monkeypatch):
    """As on a machine to which the tree, with its older file of results, is copied before each call."""
    monkeypatch.setattr(state, "ROOT", tmp_path)
    monkeypatch.setattr(state, "WRITTEN", ("results.json", "table.json"))
    monkeypatch.setattr(record, "results_path", lambda kind: Path("gpu.json"))
    tree, table = tmp_path / "results.json", tmp_path / "table.json"
    for number, measured in enumerate(("one", "one, two", "one, two, three")):
        tree.write_text("committed")
        call = state.State(tmp_path / "runs", "GPU")
        call.restore(anew=False)
        assert tree.read_text() == ("committed", "one", "one, two")[number]
        if number == 2:
            assert table.read_text() == "tuned between two calls"
        tree.write_text(measured)
        call.save()
        if number == 1:
            table.write_text("tuned between two calls")


def test_an_archive_of_kernels_is_unpacked_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "cache" / "KEY").mkdir(parents=True)
    (tmp_path / "cache" / "KEY" / "a.cubin").write_bytes(b"machine code")
    archive = tmp_path / "warm.tar.xz"
    monkeypatch.setattr(record, "results_path", lambda device: Path("gpu.json"))
    known = state.State(tmp_path / "state", "GPU")
    for content, said in ((b"machine code", 1), (None, 0), (b"other code", 1)):
        if content is not None:
            (tmp_path / "cache" / "KEY" / "a.cubin").write_bytes(content)
            gpu.packed.pack(tmp_path / "cache", archive)
        gpu._warm_up(archive, known)
        assert capsys.readouterr().out.count("1 compiled kernels unpacked") == said
        assert (tmp_path / "state" / "cache" / "KEY" / "a.cubin").read_bytes() == (content or b"machine code")


def test_the_metrics_of_a_kernel_are_read_from_between_what_the_program_prints():
    output = 'loading\n==PROF== Connected\n"ID","Section Name","Metric Name","Metric Unit","Metric Value","Rule Name"\n'
    output += '"0","Occupancy","Registers","register/thread","64",""\n"0","Occupancy","","","","a rule"\n'
    assert counters.parsed(output) == {"Occupancy: Registers [register/thread]": "64"}
    assert counters.parsed("==ERROR== no permission\n") == {}


def test_a_state_that_was_cut_off_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record, "results_path", lambda device: Path("gpu.json"))
    step = sleeping("short", 0)
    state.State(tmp_path, "GPU").enter(step, step.digest("GPU"), "passed", 1)
    assert state.State(tmp_path, "GPU").is_done(step)
    assert not state.State(tmp_path, "other GPU").is_done(step)
    assert capsys.readouterr().err == ""
    (tmp_path / "steps.json").write_text('{"GPU": {"sh')
    assert not state.State(tmp_path, "GPU").is_done(step)
    assert re.fullmatch(r"bench.gpu cannot read .*steps.json, and begins anew\n", capsys.readouterr().err)


def test_an_interrupted_log_of_tuning_is_told_and_begun_anew(tmp_path, capsys):
    path = tmp_path / "tuning.json"
    fresh = {"digest": "d", "tuned": {}}
    assert tune.read_log(path, "d") == fresh
    path.write_text(json.dumps({"digest": "d", "tuned": {"one": 1}}))
    assert tune.read_log(path, "d")["tuned"] == {"one": 1}
    assert tune.read_log(path, "other") == {"digest": "other", "tuned": {}}
    path.write_text('{"digest": "d", "tu')
    assert tune.read_log(path, "d") == fresh
    assert re.fullmatch(r"bench.tune cannot read .*tuning.json \(.*\), and begins anew\n", capsys.readouterr().err)


def test_the_largest_file_is_left_out_of_a_state_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "LARGEST", 100_000)
    monkeypatch.setattr(record, "results_path", lambda device: Path("gpu.json"))
    kept = state.State(tmp_path / "state", "GPU")
    (kept.folder / "logs" / "small.log").write_bytes(os.urandom(1000))
    (kept.folder / "logs" / "large.log").write_bytes(os.urandom(300_000))
    kept.pack(tmp_path / "all.tgz")
    state.unpack(tmp_path / "all.tgz", tmp_path / "elsewhere")
    assert [path.name for path in (tmp_path / "elsewhere").rglob("*.log")] == ["small.log"]
