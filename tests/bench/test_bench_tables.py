"""The tables drawn from results, the lines they are held against, and the exits of what needs a GPU."""

import json
from importlib import import_module

import pytest
import torch

from bench import gpu, lines, record, tables, timing, tune

TEXT = "# Title\n\n" + "".join(f"<!-- bench:{op} -->\nold\n<!-- /bench:{op} -->\n\nmore\n" for op in tables.OPS)
MAP = "64x256x16x16"
IMAGES = "64x256x256x3 to 224"


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


def map_entry(layout="channels_last", ours=2.0, **others):
    """Return the figures of a call on a feature map, which has the batch in its key."""
    found = entry(ours=ours)
    times = {"ours": ours, "eager": 8.0, "compiled": 5.0, "compiled no graphs": 3.0} | others
    found["ms"] = {name: {"forward": both / 4, "backward": both * 3 / 4, "both": both} for name, both in times.items()}
    return {name: value for name, value in found.items() if name not in ("batch", "pixels")} | {"layout": layout}


def map_section():
    kinds = {"channels_last": 2.0, "contiguous": 2.5}
    return section(**{f"bfloat16 {kind} {MAP}": map_entry(kind, ours) for kind, ours in kinds.items()})


def image_entry(recipe="plain", channels=3, ours=0.5, **others):
    """Return the figures of a call without backward."""
    times = {"ours": ours, "eager": 8.0} | others
    figures = {"ms": {name: {"forward": taken, "both": taken} for name, taken in times.items()}}
    named = {"images": 64, "recipe": recipe, "channels": channels, "bound_ms": {"forward": 0.25}}
    return map_entry() | figures | named


def image_section():
    whole = image_entry("whole", ours=0.8) | {"skipped": {"dali": "plain recipe only"}}
    return section(
        **{
            f"bfloat16 channels_last {IMAGES}": image_entry(torchvision=0.4, workers=20.0, dali=1.0),
            "bfloat16 channels_last 64x256x256x13 to 224": image_entry(channels=13, ours=1.0),
            f"bfloat16 channels_last {IMAGES} whole": whole,
        }
    )


@pytest.fixture
def results(tmp_path):
    (tmp_path / "results").mkdir()
    record.write(tmp_path / "results" / "cpu.json", "dynamic_conv", section())
    return tmp_path / "results"


def test_a_row_holds_our_times_and_the_ratios():
    (row, _) = tables.rows("dynamic_conv", section()["shapes"])
    assert row == ["C256 14x14", "0.500", "1.50", "2.00", "8.00", "4.00", "2.50", "loop", "1.25", "50", "50", "-"]


def test_a_map_is_compared_with_eager_and_the_faster_compiled_form():
    first, second = tables.tables_of(map_section())
    assert tables.rows("spatial_attention", first) == [
        [MAP, "0.500", "1.50", "2.00", "4.00", "1.50", "1.50", "compiled", "50", "50", "-"]
    ]
    assert tables.rows("channel_gate", second)[0][:4] == [MAP, "0.625", "1.88", "2.50"]


def test_each_dtype_and_layout_has_a_table():
    drawn = tables.text("channel_gate", map_section(), 140)
    assert "bfloat16 channels_last, medians of 5 runs" in drawn
    assert "bfloat16 contiguous, medians of 5 runs" in drawn


def test_the_best_baseline_is_never_the_static_convolution():
    assert lines.best_baseline(entry(stacked=4.0, static=1.0)) == ("stacked", 2.0)


def test_lines_on_a_cpu_name_the_worst_shape():
    never_slower, small = lines.lines("dynamic_conv", section()["shapes"], on_gpu=False)
    assert (never_slower.met, small.met) == (False, True)
    assert never_slower.measured == "1.25 at bfloat16 C64 56x56; 1 of 2 miss"
    assert small.measured == "4.00"


def test_lines_on_a_gpu_are_judged_by_size():
    memory = {"ours": {"peak": 9, "extra": 1}, "naive": {"peak": 9, "extra": 8}}
    host = {"call": 50.0, "launches": 30.0}
    shapes = {"bfloat16 C512 7x7": entry(pixels=49, ours=6.0) | {"memory_bytes": memory, "host_us": host}}
    found = {line.demand: line for line in lines.lines("dynamic_conv", shapes, on_gpu=True)}
    static = "ours / static convolution"
    assert found[f"{static}, 28x28 and above: <= 1.25"].met is None
    assert found[f"{static}, 7x7: <= 4"].met
    assert found["memory beyond inputs and results / naive's: <= 0.25"].met
    assert found["host time of a call beyond its bare launches, us: <= 15"].measured.startswith("20.00 at")
    assert not found["slower than no baseline on any shape: >= 1"].met


def test_lines_of_maps_hold_every_shape_to_eager_compiled_and_the_bound():
    found = lines.lines("spatial_attention", map_section()["shapes"], on_gpu=True)
    assert [(line.demand, line.met) for line in found] == [
        ("eager / ours on every shape: >= 3", True),
        ("compiled / ours on every shape: >= 1.3", False),
        ("slower than no baseline on any shape: >= 1", True),
        ("share of the bound forward, every shape: >= 0.8", False),
        ("share of the bound backward, every shape: >= 0.7", False),
    ]
    assert found[1].measured == f"1.20 at bfloat16 contiguous {MAP}; 1 of 2 miss"
    (never_slower,) = lines.lines("channel_gate", map_section()["shapes"], on_gpu=False)
    assert (never_slower.met, never_slower.measured[:5]) == (True, "0.31 ")


def test_a_compiled_form_that_did_not_run_is_not_judged():
    alone = map_entry()
    del alone["ms"]["compiled"], alone["ms"]["compiled no graphs"]
    assert lines.compiled_speedup(alone) is None
    assert lines.lines("channel_gate", {MAP: alone}, on_gpu=True)[1].met is None


def test_an_augmentation_has_images_a_second_and_each_baseline_over_ours():
    first, second, whole = tables.rows("augment", image_section()["shapes"])
    assert first == [IMAGES, "0.500", "128,000", "16.00", "0.80", "40.00", "2.00", "50"]
    assert second == ["64x256x256x13 to 224", "1.00", "64,000", "8.00", "-", "-", "-", "25"]
    assert whole[:3] == [f"{IMAGES} whole", "0.800", "80,000"]


def test_lines_of_an_augmentation_take_the_bound_from_the_plain_recipe_and_the_rate_from_three_channels():
    bound, rate = lines.lines("augment", image_section()["shapes"], on_gpu=True)
    assert (bound.demand, bound.met) == ("share of the bound forward, plain recipe: >= 0.6", False)
    assert bound.measured == "0.25 at bfloat16 channels_last 64x256x256x13 to 224; 2 of 2 miss"
    assert (rate.demand, rate.met) == ("thousand images a second at 224 px, 3 channels: >= 200", False)
    assert rate.measured == f"80.00 at bfloat16 channels_last {IMAGES} whole; 2 of 2 miss"
    (never_slower,) = lines.lines("augment", image_section()["shapes"], on_gpu=False)
    assert never_slower.demand == "ours / torchvision on every shape: <= 1.03"
    assert never_slower.measured == f"1.25 at bfloat16 channels_last {IMAGES}; 1 of 1 miss"


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("op", tables.OPS)
def test_the_printed_table_fits_the_terminal(op, width):
    section_of, shape = {"dynamic_conv": (section, "C64 56x56"), "augment": (image_section, IMAGES)}.get(
        op, (map_section, MAP)
    )
    printed = tables.text(op, section_of(), width)
    assert max(map(len, printed.splitlines())) <= width
    assert shape in printed


def test_the_readme_has_the_tables_of_the_committed_results():
    assert tables.main(["--check"]) == 0


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
    assert new.endswith("<!-- /bench:augment -->\n\nmore\n")
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


def test_each_op_stands_between_its_own_markers(results):
    record.write(results / "cpu.json", "channel_gate", map_section())
    drawn = tables.rewritten(TEXT, results)
    gate = drawn.partition("<!-- bench:channel_gate -->")[2].partition("<!-- /bench:channel_gate -->")[0]
    assert f"| {MAP} | 0.500 |" in gate
    assert MAP not in drawn.partition("<!-- bench:channel_gate -->")[0]


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


def test_the_gpu_script_measures_every_op_in_the_order_of_the_tables(tmp_path):
    names = [step.name for step in gpu.steps(tmp_path)]
    ops = ("dynamic_conv", "spatial_attention", "channel_gate", "augment")
    assert names[:5] == ["tests", *(f"bench-{op}" for op in ops)]
    commands = {step.name: step.arguments for step in gpu.steps(tmp_path)}
    for op in tables.OPS:
        assert (gpu.ROOT / commands[f"bench-{op}"][-2]).is_file()
    assert commands["bench-tuned"] == commands["bench-dynamic_conv"]


@pytest.mark.parametrize("op", tables.OPS)
def test_every_op_names_shapes_to_trace(op):
    for parts in import_module(f"bench.test_{op}").profiled().values():
        gradients = timing.run(parts)
        assert all(gradient.isfinite().all() for gradient in gradients)
