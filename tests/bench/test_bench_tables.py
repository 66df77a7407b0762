"""The tables drawn from results, the lines they are held against, and the exits of what needs a GPU."""

import json

import pytest
import torch

from bench import gpu, lines, record, tables, tune

TEXT = "# Title\n\n<!-- bench:dynamic_conv -->\nold\n<!-- /bench:dynamic_conv -->\n\nmore\n"


def entry(dtype="bfloat16", pixels=196, ours=2.0, **others):
    """Return one shape's figures: `others` and ours are milliseconds of forward and backward together."""
    names = {"ours": ours, "naive": 8.0, "naive fp32": 16.0, "loop": 5.0, "static": 1.6} | others
    return {
        "dtype": dtype,
        "layout": "channels_last",
        "batch": 8,
        "pixels": pixels,
        "problem": "",
        "runs": 5,
        "ms": {name: {"forward": both / 4, "backward": both * 3 / 4, "both": both} for name, both in names.items()},
        "bound_ms": {"forward": 0.25, "backward": 0.75},
        "memory_bytes": None,
        "host_us": None,
        "skipped": {"timm": "not installed"},
    }


def section(kind="cpu", **shapes):
    return {
        "kind": kind,
        "device": "Some Device",
        "versions": {"torch": "2.15.0", "triton": None},
        "settings": {"threads": 2},
        "date": "2026-01-01",
        "commit": "abc",
        "ceilings": {"GB/s copy": 10.5},
        "shapes": shapes or {"bfloat16 C256 14x14": entry(), "bfloat16 C64 56x56": entry(pixels=3136, ours=10)},
    }


@pytest.fixture
def results(tmp_path):
    (tmp_path / "results").mkdir()
    record.write(tmp_path / "results" / "cpu.json", "dynamic_conv", section())
    return tmp_path / "results"


def test_a_row_holds_our_times_and_the_ratios():
    (row, _) = tables.rows(section(), "bfloat16")
    assert row == ["C256 14x14", "0.500", "1.50", "2.00", "8.00", "4.00", "2.50", "loop", "1.25", "50", "50", "-"]


def test_the_best_baseline_is_never_the_static_convolution():
    assert lines.best_baseline(entry(stacked=4.0, static=1.0)) == ("stacked", 2.0)


def test_lines_on_a_cpu_name_the_worst_shape():
    never_slower, small = lines.lines(section()["shapes"], on_gpu=False)
    assert (never_slower.met, small.met) == (False, True)
    assert never_slower.measured == "1.25 at bfloat16 C64 56x56; 1 of 2 miss"
    assert small.measured == "4.00"


def test_lines_on_a_gpu_are_judged_by_size():
    memory = {"ours": {"peak": 9, "extra": 1}, "naive": {"peak": 9, "extra": 8}}
    host = {"call": 50.0, "launches": 30.0}
    shapes = {"bfloat16 C512 7x7": entry(pixels=49, ours=6.0) | {"memory_bytes": memory, "host_us": host}}
    found = {line.demand: line for line in lines.lines(shapes, on_gpu=True)}
    static = "ours / static convolution"
    assert found[f"{static}, 28x28 and above: <= 1.25"].met is None
    assert found[f"{static}, 7x7: <= 4"].met
    assert found["memory beyond inputs and results / naive's: <= 0.25"].met
    assert found["host time of a call beyond its bare launches, us: <= 15"].measured.startswith("20.00 at")
    assert not found["slower than no baseline on any shape: >= 1"].met


@pytest.mark.parametrize("width", [80, 140])
def test_the_printed_table_fits_the_terminal(width):
    printed = tables.text(section(), width)
    assert max(map(len, printed.splitlines())) <= width
    assert "C64 56x56" in printed


def test_readme_is_rewritten_between_the_markers_only(results, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(TEXT)
    assert tables.main(["--check"], readme, results) == 1
    assert "not current" in capsys.readouterr().err
    assert readme.read_text() == TEXT
    assert tables.main([], readme, results) == 0
    assert tables.main(["--check"], readme, results) == 0
    new = readme.read_text()
    assert new.startswith("# Title\n\n<!-- bench:dynamic_conv -->\n")
    assert new.endswith("<!-- /bench:dynamic_conv -->\n\nmore\n")
    assert "GPU: not measured yet." in new
    assert "Some Device" in new
    assert "torch 2.15.0" in new
    assert "10.5 GB/s copy" in new
    assert "| C256 14x14 | 0.500 | 1.50 | 2.00 | 8.00 | 4.00 | 2.50 | loop | 1.25 | 50 | 50 | - |" in new
    assert "medians of 5 runs" in new
    assert "old" not in new


def test_missing_markers_are_reported(results, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n")
    assert tables.main([], readme, results) == 1
    assert "<!-- bench:dynamic_conv -->" in capsys.readouterr().err


def test_a_gpu_comes_first_in_the_tables(results):
    record.write(results / "some_gpu.json", "dynamic_conv", section("cuda") | {"device": "Some GPU"})
    drawn = tables.markdown("dynamic_conv", results)
    assert drawn.index("Some GPU") < drawn.index("Some Device")
    assert "GPU: not measured yet." not in drawn


def test_results_of_other_ops_and_shapes_stay(results):
    path = results / "cpu.json"
    everything = json.loads(path.read_text())
    path.write_text(json.dumps(everything | {"other_op": {"kept": True}}))
    record.write(path, "dynamic_conv", section(**{"float32 new": entry("float32")}))
    written = json.loads(path.read_text())
    assert written["other_op"] == {"kept": True}
    assert len(written["dynamic_conv"]["shapes"]) == 3


def test_results_under_other_versions_are_replaced(results):
    path = results / "cpu.json"
    changed = section(**{"float32 new": entry("float32")}) | {"versions": {"torch": "9"}}
    record.write(path, "dynamic_conv", changed)
    assert list(json.loads(path.read_text())["dynamic_conv"]["shapes"]) == ["float32 new"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("main", "arguments"), [(tune.main, []), (gpu.main, ["--out", "unused"])])
def test_without_a_gpu_one_line_says_so(main, arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
