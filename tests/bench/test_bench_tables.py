"""The tables drawn from results, the targets of what is measured, and the exits of what needs a GPU."""

import json

import pytest

from bench import pages
from bench.measuring import record
from bench.measuring.record import NOT_ASKED
from bench.report import metrics, overview, tables, targets

TEXT = "# Title\n\n" + "".join(
    f"<!-- bench:{name} -->\nold\n<!-- /bench:{name} -->\n\nmore\n" for name in pages.PAGES["README.md"]
)
OVERVIEW = "<!-- bench:overview -->\nold\n<!-- /bench:overview -->\n\nmore\n"
OPS_TEXT = "".join(f"<!-- bench:{op} -->\nold\n<!-- /bench:{op} -->\n\nmore\n" for op in tables.OPS)
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


def fuse_section():
    """Return the figures of a model before and after `kernels.fuse`."""
    shared = {"layout": "channels_last", "dtype": "bfloat16", "batch": 8, "images": 8, "size": 128, "runs": 5}
    times = {"training": (100.0, 250.0), "inference": (20.0, 20.0)}
    return section(
        **{
            f"bfloat16 {name}": shared | {"ms": {"ours": {"both": ours}, "unfused": {"both": before}}, "skipped": {}}
            for name, (ours, before) in times.items()
        }
    )


def layers_section():
    """Return the figures of a layer and of a step beside their public forms."""
    shared = {"layout": "channels_last", "dtype": "bfloat16", "samples": 16, "runs": 5, "skipped": {}}
    times = {"ODConv C256 14x14": (50.0, 150.0), "penalty step, 64 px": (80.0, 120.0)}
    return section(
        **{
            f"bfloat16 {name}": shared
            | {
                "ms": {"ours": {"both": ours}, "public": {"both": public}},
                "ratio": ours / public,
                "ratio_error": 0.01,
                "memory_bytes": {"ours": {"peak": 20e6, "extra": 0}, "public": {"peak": 100e6, "extra": 0}},
            }
            for name, (ours, public) in times.items()
        }
    )


def growth_section():
    """Return the times of two batches and of one number of experts, of which one way did not run everywhere."""
    shapes = {f"batch {count}": entry(ours=2.0 * count) | {"along": "batch", "value": count} for count in (4, 1)}
    shapes["experts 4"] = entry(stacked=1.0) | {"along": "experts", "value": 4}
    return section(**shapes)


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
    known = {name: value for name, value in found.items() if name not in ("batch", "pixels")}
    return known | {"layout": layout, "bytes": {"forward": 9_600_000, "backward": 12_800_000}}


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


def command_section():
    """Return the figures of two commands."""

    def command(both, runs, **others):
        return {"runs": runs, "ms": {"ours": {"both": both}}, "skipped": {}} | others

    accuracy = {"simple_cnn": 0.798, "pool_attention_cnn": 0.893}
    task1 = command(92_000.0, 1, peak_bytes=1.18e9, accuracy=accuracy)
    starts = {name: command(60.0, 5) for name in ("import train.run", "--help")}
    return section(**starts, **{"task1 from nothing": task1})


@pytest.fixture
def results(tmp_path):
    (tmp_path / "results").mkdir()
    record.write(tmp_path / "results" / "cpu.json", "dynamic_conv", section())
    return tmp_path / "results"


def test_a_row_holds_our_times_and_the_ratios():
    (row, _) = tables.rows("dynamic_conv", section()["shapes"])
    assert row == ["C256 14x14", "0.500", "1.50", "2.00", "8.00", "4.00", "2.50", "loop", "1.25", "50", "50", "-"]


def test_a_map_is_compared_with_eager_and_the_faster_compiled_form():
    first, second = tables.entry_groups(map_section())
    assert tables.rows("spatial_attention", first) == [
        [MAP, "0.500", "1.50", "2.00", "4.00", "1.50", "1.50", "compiled", "50", "50", "-"]
    ]
    assert tables.rows("channel_gate", second)[0][:4] == [MAP, "0.625", "1.88", "2.50"]


def test_each_dtype_and_layout_has_a_table():
    drawn = tables.text("channel_gate", map_section(), 140)
    assert "bfloat16 channels_last, medians of 5 runs" in drawn
    assert "bfloat16 contiguous, medians of 5 runs" in drawn


def test_the_best_baseline_is_never_the_static_convolution():
    assert metrics.best_baseline(entry(stacked=4.0, static=1.0)) == ("stacked", 2.0)


def test_a_baseline_chosen_in_other_runs_is_the_best_one():
    chosen = {"chosen": {"way": "loop", "over_ours": 0.9}}
    assert metrics.best_baseline(entry(stacked=4.0, static=1.0) | chosen) == ("loop", 0.9)


def test_targets_on_a_cpu_name_the_worst_shape():
    never_slower, mean, small = targets.verdicts("dynamic_conv", section())
    assert (never_slower.met, mean.met, small.met) == (False, True, True)
    assert never_slower.demand == "best baseline / ours on every shape: >= 0.97"
    assert never_slower.measured == "0.50 at bfloat16 C64 56x56; 1 of 2 miss"
    assert small.measured == "4.00"


def test_targets_on_a_gpu_are_judged_by_size():
    memory = {"ours": {"peak": 9, "extra": 1}, "naive": {"peak": 9, "extra": 8}}
    host = {"forward": {"call": 50.0, "launches": 30.0}, "both": {"call": 170.0, "launches": 60.0}}
    shapes = {"bfloat16 C512 7x7": entry(pixels=49, ours=6.0) | {"memory_bytes": memory, "host_us": host}}
    found = {verdict.demand: verdict for verdict in targets.verdicts("dynamic_conv", section("cuda", **shapes))}
    static = "ours / static convolution"
    assert found[f"{static}, 28x28 and above: <= 1.25"].met is None
    assert found[f"{static}, 7x7: <= 4"].met
    assert found["memory beyond inputs and results / naive's: <= 0.25"].met
    assert found["host time of forward beyond the launches, us: <= 30"].measured.startswith("20.00 at")
    assert not found["host time of forward + backward beyond the launches, us: <= 100"].met
    assert not found["slower than no baseline on any shape: >= 1"].met


def test_a_best_baseline_is_judged_only_where_all_were_run():
    some = entry() | {"skipped": {"timm": NOT_ASKED}}
    found = {verdict.demand: verdict.met for verdict in targets.verdicts("dynamic_conv", section("cuda", some=some))}
    assert found["slower than no baseline on any shape: >= 1"] is None
    assert found["same-dtype naive / ours, forward + backward: geometric mean >= 5"] is False


def test_a_target_is_met_only_where_every_shape_was_measured():
    lacking = entry() | {"skipped": {"timm": NOT_ASKED}}
    shapes = {"C64": entry(), "C128": lacking}
    (found,) = (each for each in targets.verdicts("dynamic_conv", section("cuda", **shapes)) if "slower" in each.demand)
    assert (found.met, found.partly) == (None, True)
    assert found.measured == "2.50 at C64; 0 of 1 miss; 1 not measured"
    shapes["C64"] = entry(ours=9.0)
    (found,) = (each for each in targets.verdicts("dynamic_conv", section("cuda", **shapes)) if "slower" in each.demand)
    assert (found.met, found.partly) == (False, False)
    inference = {"bfloat16 training": fuse_section()["shapes"]["bfloat16 training"]}
    inference["float32 inference"] = inference["bfloat16 training"]
    told = {each.demand: each for each in targets.verdicts("fuse", section("cuda", **inference))}
    assert told["inference, unfused / fused: >= 1"].partly


def test_the_time_of_the_host_stands_beside_the_devices():
    waits = {"both": {"call": 3000.0, "launches": 9.0}}
    shapes = {
        "C64": entry() | {"host_us": waits},
        "C128": entry() | {"host_us": {"both": {"call": 1500.0, "launches": 9.0}}},
    }
    sections = {"dynamic_conv": section("cuda", **shapes)}
    said = overview.headline(sections)
    assert "at 1 of 2 shapes it took longer for an eager call of ours, 3,000 to 3,000 us, than the device. " in said
    for each in shapes.values():
        each["usual_host_us"] = {"both": {"call": 12000.0}}
    # 12 over 3 and over 2 ms.
    assert "the longer of the two counted on both sides, 4.90x. " in overview.headline(sections)


def test_no_way_exceeds_the_ceiling_of_a_section(tmp_path):
    work = {"bytes": {"forward": 1000, "backward": 1000}, "flops": {"forward": 4 * 10**9, "backward": 12 * 10**9}}
    found = section(fast=entry(dtype="float32", static=1.0) | work, other=entry() | work)
    found["ceilings"] = {"GB/s copy": 1.0, "TFLOP/s float32 matmul": 10.0}
    record.write(tmp_path / "some.json", "dynamic_conv", found)
    read = record.sections(tmp_path / "some.json")["dynamic_conv"]
    # 4 GFLOP in a quarter of a millisecond.
    assert read["ceilings"] == {"GB/s copy": 1.0, "TFLOP/s float32 in the fastest call": 16.0}
    assert read["shapes"]["fast"]["bound_ms"] == {"forward": 0.25, "backward": 0.75}
    assert read["shapes"]["other"] == found["shapes"]["other"]


def test_targets_of_maps_hold_every_shape_to_eager_compiled_and_the_bound():
    found = targets.verdicts("spatial_attention", map_section() | {"kind": "cuda"})
    assert [(verdict.demand, verdict.met) for verdict in found] == [
        ("eager / ours on every shape: >= 3", True),
        ("compiled / ours on every shape: >= 1.3", False),
        ("slower than no baseline on any shape: >= 1", True),
        ("share of the bound forward, large maps: >= 0.8", False),
        ("share of the bound backward, large maps: >= 0.7", False),
        ("bound under 5 us: us beyond the bound at 80% forward, against 3 launches: <= 7.5", None),
        ("bound under 5 us: us beyond the bound at 70% backward, against 4 launches: <= 10", None),
    ]
    assert found[1].measured == f"1.20 at bfloat16 contiguous {MAP}; 1 of 2 miss"
    never_slower, faster = targets.verdicts("channel_gate", map_section())
    assert (never_slower.met, never_slower.measured[:5]) == (True, "0.31 ")
    assert (faster.met, faster.measured[:5]) == (True, "3.20 ")
    small = map_entry(ours=7.0) | {"bytes": {"forward": 6_400_000}}
    _, faster = targets.verdicts("channel_gate", section(small=small))
    assert faster.met is None


def test_maps_whose_launches_cost_more_than_their_bytes_are_held_to_the_launches():
    small = map_entry() | {"bound_ms": {"forward": 0.004, "backward": 0.007, "both": 0.011}}
    small["ms"] = small["ms"] | {"ours": {"forward": 0.0124, "backward": 0.0201, "both": 0.0325}}
    found = {verdict.demand: verdict for verdict in targets.verdicts("channel_gate", section("cuda", small=small))}
    assert found["share of the bound forward, large maps: >= 0.8"].met is None
    forward = found["bound under 5 us: us beyond the bound at 80% forward, against 3 launches: <= 7.5"]
    assert (forward.met, forward.measured) == (True, "7.40 at small; 0 of 1 miss")
    backward = found["bound under 5 us: us beyond the bound at 70% backward, against 4 launches: <= 10"]
    assert (backward.met, backward.measured) == (False, "10.10 at small; 1 of 1 miss")


@pytest.mark.parametrize(
    ("pixels", "bound", "held"),
    [
        (784, 0.02, ["28x28 and above"]),
        (196, 0.02, ["14x14"]),
        (49, 0.02, ["7x7"]),
        (196, 0.001, ["against 2 launches", "against 5 launches"]),
    ],
)
def test_a_convolution_is_held_to_the_share_of_its_size_or_to_its_launches(pixels, bound, held):
    shape = entry(pixels=pixels) | {"bound_ms": {"forward": bound, "backward": bound, "both": bound}}
    found = targets.verdicts("dynamic_conv", section("cuda", one=shape))
    judged = [verdict.demand for verdict in found if "the bound" in verdict.demand and verdict.met is not None]
    assert len(judged) == 2
    assert all(any(name in demand for name in held) for demand in judged)
    to_static = [verdict for verdict in found if "static" in verdict.demand and verdict.met is not None]
    assert len(to_static) == 1  # small calls too


def test_a_compiled_form_that_did_not_run_is_not_judged():
    alone = map_entry()
    del alone["ms"]["compiled"], alone["ms"]["compiled no graphs"]
    assert metrics.compiled_over_ours(alone) is None
    assert targets.verdicts("channel_gate", section("cuda", alone=alone))[1].met is None


def test_an_augmentation_has_images_a_second_and_each_baseline_over_ours():
    first, second, whole = tables.rows("augment", image_section()["shapes"])
    assert first == [IMAGES, "0.500", "128,000", "16.00", "0.80", "40.00", "2.00", "50"]
    assert second == ["64x256x256x13 to 224", "1.00", "64,000", "8.00", "-", "-", "-", "25"]
    assert whole[:3] == [f"{IMAGES} whole", "0.800", "80,000"]


def test_targets_of_an_augmentation_take_the_bound_from_the_plain_recipe_and_the_rate_from_three_channels():
    bound, rate = targets.verdicts("augment", image_section() | {"kind": "cuda"})
    assert (bound.demand, bound.met) == ("share of the bound forward, plain recipe: >= 0.6", False)
    assert bound.measured == "0.25 at bfloat16 channels_last 64x256x256x13 to 224; 2 of 2 miss"
    assert (rate.demand, rate.met) == ("thousand images a second at 224 px, 3 channels: >= 200", False)
    assert rate.measured == f"80.00 at bfloat16 channels_last {IMAGES} whole; 2 of 2 miss"
    (never_slower,) = targets.verdicts("augment", image_section())
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
    assert pages.main(["--check"]) == 0


def test_readme_is_rewritten_between_the_markers_only(results, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(TEXT)
    assert pages.main(["--check"], readme, results) == 1
    assert "not current" in capsys.readouterr().err
    assert readme.read_text() == TEXT
    assert pages.main([], readme, results) == 0
    assert pages.main(["--check"], readme, results) == 0
    new = readme.read_text()
    assert new == "# Title\n\n<!-- bench:headline -->\nGPU: not measured yet.\n<!-- /bench:headline -->\n\nmore\n"


def test_the_headline_has_the_figures_of_the_overview_of_each_gpu(results):
    record.write(results / "some_gpu.json", "dynamic_conv", section("cuda") | {"device": "Some GPU"})
    new = pages.rewritten(TEXT + OVERVIEW, ("headline", "overview"), results)
    row = next(line for line in new.splitlines() if line.startswith("| dynamic_conv |"))
    usual, met = row.split(" | ")[2], row.split(" | ")[-1].removesuffix(" |")
    said = " ".join(new.split())
    assert "**Some GPU** (2026-01-01), time on the device of forward + backward" in said
    assert f"`dynamic_conv` {usual}x. {met} targets are met." in said
    assert "Some Device" not in new.partition("<!-- /bench:headline -->")[0]


def test_the_overview_has_a_row_for_each_op(results):
    new = pages.rewritten(OVERVIEW, ("overview",), results)
    assert "GPU: not measured yet." in new
    assert "**Some Device**; torch 2.15.0; 2026-01-01." in new
    # Naive over ours is 4 and 0.8, loop over ours 2.5 and 0.5; of both directions half and a tenth is the bound.
    assert "| dynamic_conv | 2 | 1.79 | 1.12 | 30 | 30 | 2 of 3 |" in new
    assert "old" not in new


def test_the_overview_has_fuse_and_training_below_the_ops(results):
    training = {"batch": 4, "images": 8, "runs": 3, "skipped": {}}
    training["ms"] = {"ours": {"step": 1.0, "epoch": 2.0, "input": 0.1}, "reports": {"step": 3.0, "epoch": 5.0}}
    training |= {"dtype": "bfloat16", "layout": "channels_last"}
    record.write(results / "cpu.json", "training", section(**{"simple_cnn 256 px": training}))
    record.write(results / "cpu.json", "fuse", fuse_section())
    rows = [line for line in pages.markdown("overview", results).splitlines() if line.startswith("| ")][1:]
    # The geometric mean of 2.5 and 1.
    assert rows[1].startswith("| fuse | 2 | 1.58 | - | - | - |")
    assert rows[2] == "| training | 1 | 2.50 | - | - | - | - |"


def test_the_overview_shows_the_picture_and_the_page_that_are_there(results):
    assert "cpu.md" not in pages.markdown("overview", results)
    (results / "cpu.md").write_text("page")
    (results / "cpu").mkdir()
    (results / "cpu" / "speedup.png").write_bytes(b"picture")
    drawn = pages.markdown("overview", results)
    assert "(../bench/results/cpu.md)" in drawn.replace("\n", " ")
    assert drawn.endswith("(../bench/results/cpu/speedup.png)")
    record.write(results / "some_gpu.json", "dynamic_conv", section("cuda") | {"device": "Some GPU"})
    assert pages.markdown("overview", results).endswith("(../bench/results/cpu/speedup.png)")
    (results / "some_gpu").mkdir()
    (results / "some_gpu" / "speedup.png").write_bytes(b"picture")
    drawn = pages.markdown("overview", results)
    assert drawn.endswith("(../bench/results/some_gpu/speedup.png)")
    assert drawn.index("Some GPU") < drawn.index("Some Device")
    assert "not measured yet" not in drawn


def test_missing_markers_are_reported(results, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n")
    assert pages.main([], readme, results) == 1
    assert "<!-- bench:headline -->" in capsys.readouterr().err


def test_an_op_has_all_its_rows_in_markdown(results):
    drawn = pages.markdown("dynamic_conv", results)
    assert "10.5 GB/s copy" in drawn
    assert "| C256 14x14 | 0.500 | 1.50 | 2.00 | 8.00 | 4.00 | 2.50 | loop | 1.25 | 50 | 50 | - |" in drawn
    assert "medians of 5 runs" in drawn


def test_a_gpu_comes_first_in_the_tables(results):
    record.write(results / "some_gpu.json", "dynamic_conv", section("cuda") | {"device": "Some GPU"})
    drawn = pages.markdown("dynamic_conv", results)
    assert drawn.index("Some GPU") < drawn.index("Some Device")
    assert "GPU: not measured yet." not in drawn


def test_each_op_stands_between_its_own_markers(results):
    record.write(results / "cpu.json", "channel_gate", map_section())
    drawn = pages.rewritten(OPS_TEXT, tables.OPS, results)
    gate = drawn.partition("<!-- bench:channel_gate -->")[2].partition("<!-- /bench:channel_gate -->")[0]
    assert f"| {MAP} | 0.500 |" in gate
    assert MAP not in drawn.partition("<!-- bench:channel_gate -->")[0]


def test_docs_fuse_is_rewritten_beside_the_readme(results, tmp_path):
    page = tmp_path / "docs" / "fuse.md"
    page.parent.mkdir()
    page.write_text("<!-- bench:fuse -->\n<!-- /bench:fuse -->\n")
    (tmp_path / "README.md").write_text(TEXT)
    assert pages.main([], tmp_path / "README.md", results) == 0
    assert page.read_text() == "<!-- bench:fuse -->\nGPU: not measured yet.\n<!-- /bench:fuse -->\n"
    record.write(results / "cpu.json", "fuse", fuse_section())
    assert pages.main([], tmp_path / "README.md", results) == 0
    assert "bfloat16 channels_last, batch 8, 128 px, medians of 5 runs" in page.read_text()
    assert "| training | 100 | 80.0 | 32.0 | 0.400 |" in page.read_text()


def test_fuse_shows_the_ratio_of_the_same_rounds_where_there_is_one():
    shapes = fuse_section()["shapes"]
    shapes["bfloat16 training"] |= {"ratio": 1.0125, "ratio_error": 0.0025}
    paired, plain = tables.rows("fuse", shapes)
    assert (paired[-1], plain[-1]) == ("1.012 +-0.003", "1.000")
    assert overview.usual_over_ours("fuse")(shapes["bfloat16 training"]) == 1 / 1.0125


def test_commands_show_seconds_memory_and_accuracy():
    found = command_section()
    assert tables.rows("commands", found["shapes"]) == [
        ["import train.run", "0.06", "5", "-", "-"],
        ["--help", "0.06", "5", "-", "-"],
        ["task1 from nothing", "92.00", "1", "1,180", "simple_cnn 79.8%, pool_attention_cnn 89.3%"],
    ]
    verdicts = {verdict.demand: verdict.met for verdict in targets.verdicts("commands", found)}
    assert list(verdicts.values()) == [True, True, True, True]
    found["shapes"]["task1 from nothing"]["peak_bytes"] = 4e9
    found["shapes"]["--help"]["ms"]["ours"]["both"] = 2500.0
    verdicts = {verdict.demand: verdict.met for verdict in targets.verdicts("commands", found | {"kind": "cuda"})}
    assert list(verdicts.values()) == [False, True, False, True]


def test_growth_has_a_table_for_each_series():
    batch, experts = tables.section_tables("growth", growth_section())
    assert batch.title == "by batch, bfloat16 channels_last, medians of 5 runs"
    assert experts.title == "by experts, bfloat16 channels_last, batch 8, medians of 5 runs"
    assert experts.rows == (("experts 4", "2.00", "4.00", "0.50", "2.50", "-", "-", "-", "1.25"),)


def test_a_shape_at_which_no_baseline_ran_has_dashes():
    alone = entry()
    alone["ms"] = {"ours": alone["ms"]["ours"]}
    (row,) = tables.rows("dynamic_conv", {"bfloat16 C256 14x14": alone})
    assert row[4:9] == ["-", "-", "-", "-", "-"]


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
