"""The page of a device's results: its figures, pictures and sources, and what it says of what was not measured."""

import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from bench.measuring import record
from bench.report import figures, page, sources
from bench.report.__main__ import main
from tests.bench.test_bench_tables import (
    IMAGES,
    command_section,
    entry,
    fuse_section,
    growth_section,
    image_section,
    layers_section,
    map_section,
    section,
)

CEILINGS = {"GB/s copy": 10.0, "TFLOP/s bfloat16 matmul": 0.5}


def with_work(entries, flops=0):
    """Return entries that moved 5 MB each way at so many FLOPs, with the peak memory of each way."""
    for each in entries.values():
        directions = each["bound_ms"]
        each |= {"bytes": dict.fromkeys(directions, 5_000_000), "flops": dict.fromkeys(directions, flops)}
        each["memory_bytes"] = {way: {"peak": 2_000_000, "extra": 1} for way in each["ms"]}
        each["memory_bytes"]["ours"]["peak"] = 500_000
    return entries


def engine_entry(**ms):
    named = {"dtype": "bfloat16", "layout": "channels_last", "batch": 4, "images": 8, "workers": None}
    return named | {"runs": 3, "ms": ms, "skipped": {}}


def whole(kind="cpu"):
    """Return all sections of a device."""
    conv = {"bfloat16 C256 14x14": entry(), "float32 C64 56x56": entry("float32", 3136, ours=10)}
    conv["float32 C64 56x56"]["layout"] = "contiguous"
    training = engine_entry(ours={"step": 1.0, "epoch": 2.0, "input": 0.1}, reports={"step": 3.0, "epoch": 5.0})
    found = {
        "dynamic_conv": section(**with_work(conv, 10_000_000)),
        "spatial_attention": section(**with_work(map_section()["shapes"], 100_000)),
        "channel_gate": section(**with_work(map_section()["shapes"])),
        "augment": section(**with_work(image_section()["shapes"])),
        "growth": growth_section(),
        "fuse": fuse_section(),
        "layers": layers_section(),
        "training": section(**{"simple_cnn 256 px": training}),
        "input": section(**{"host cache": engine_entry(ours={"both": 4.0}, torch={"both": 8.0})}),
        "start": section(**{"first start": engine_entry(ours={"both": 9000.0})}),
        "processes": section(two=engine_entry(ours={"both": 4.0}, one={"both": 8.0})),
        "commands": command_section(),
    }
    device = "Some Device" if kind == "cpu" else "NVIDIA H200"
    return {name: each | {"kind": kind, "device": device, "ceilings": CEILINGS} for name, each in found.items()}


def stored(path, sections):
    path.write_text(json.dumps(sections))
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a report of all sections."""
    folder = tmp_path_factory.mktemp("report")
    assert main([str(stored(folder / "results.json", whole())), "--out", str(folder / "out")]) == 0
    return folder / "out"


class Page(HTMLParser):
    """The rows of cells, images and scripts of a page."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.images, self.tags = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "img":
            self.images.append(dict(attributes))

    def handle_data(self, data):
        if self.rows and self.rows[-1] and self.lasttag in ("td", "th"):
            self.rows[-1][-1] += data.strip()


def rows_of(markdown):
    return [re.split(r" ?\| ?", line)[1:-1] for line in markdown.splitlines() if line.startswith("| ")]


def test_the_headline_has_the_means_over_shapes(written):
    rows = rows_of((written / "cpu.md").read_text())
    # Naive over ours is 4 and 0.8, the best baseline's 2.5 and 0.5; half and a tenth of the time is the bound.
    assert ["dynamic_conv", "2", "1.79", "1.12", "30", "30", "2 of 3"] in rows
    # Eager is 8 over 2 and over 2.5, compiled without graphs 3 over the same.
    assert ["spatial_attention", "2", "3.58", "1.34", "45", "45", "1 of 1"] in rows
    assert ["fuse", "2", "1.58", "-", "-", "-", "1 of 1"] in rows
    assert ["training", "1", "2.50", "-", "-", "-", "-"] in rows


def test_both_pages_have_the_same_rows(written):
    markdown, html = (written / "cpu.md").read_text(), Page((written / "cpu.html").read_text())
    assert html.rows == rows_of(markdown)
    assert [
        "C256 14x14",
        "0.500",
        "1.50",
        "2.00",
        "8.00",
        "4.00",
        "2.50",
        "loop",
        "1.25",
        "50",
        "50",
        "1.00",
    ] in html.rows
    assert ["experts 4", "2.00", "4.00", "0.50", "2.50", "-", "-", "-", "1.25"] in html.rows
    assert ["C64 56x56", "0.5", "2.0", "2.0", "2.0", "2.0"] in html.rows
    demand = "best baseline / ours on every shape: >= 0.97"
    assert [demand, "0.50 at float32 C64 56x56; 1 of 2 miss", "miss"] in html.rows


def test_the_page_says_where_when_and_how_often_it_was_measured(written):
    text = (written / "cpu.md").read_text().replace("\n", " ")
    assert text.startswith("# Benchmarks: Some Device")
    assert "torch 2.15.0; 2026-01-01, commit abc. " in text
    assert "each the medians of 1 to 5 runs" in text
    assert "10 GB/s copy, 0.5 TFLOP/s bfloat16 matmul" in text
    assert "Not measured yet" not in text


def test_every_picture_is_drawn_linked_and_inside_the_html(written):
    drawn = {path.relative_to(written).as_posix() for path in written.rglob("*.png")}
    ops = ("dynamic_conv", "spatial_attention", "channel_gate", "augment")
    wanted = [f"{kind}-{op}" for kind in ("speedup", "memory") for op in ops]
    wanted += ["speedup", "roofline", "growth", "fuse", "training", "input"]
    assert drawn == {f"cpu/{name}.png" for name in wanted}
    linked = re.findall(r"!\[.+\]\((.+)\)", (written / "cpu.md").read_text())
    assert set(linked) == drawn - {"cpu/speedup.png"}
    html = Page((written / "cpu.html").read_text())
    assert len(html.images) == len(linked)
    assert all(image["src"].startswith("data:image/png;base64,") for image in html.images)
    assert not html.tags & {"script", "link"}


def test_pictures_are_narrow_and_not_empty(written):
    for path in written.rglob("*.png"):
        with Image.open(path) as image:
            assert 800 <= image.width <= 1000, path
            assert 100 < image.height < 2500, path
            shades = image.convert("L").histogram()
            # Some ink, and paper around it.
            assert 0.01 < 1 - shades[255] / sum(shades) < 0.7, path


def test_a_point_of_the_roofline_is_work_over_time():
    point = figures.points(whole())[0]
    assert point[:4] == ("dynamic_conv", "C256 14x14", "forward", "bfloat16")
    # 10 MFLOP and 5 MB in half a millisecond, of 10 GB/s.
    assert point[4:] == pytest.approx((2.0, 2e10, 1.0))
    assert figures.ceilings(whole()) == {"copy": 1e10, "bfloat16 matmul": 5e11}


def test_a_call_without_flops_is_a_share_of_the_copy():
    point = next(point for point in figures.points(whole()) if point.op == "augment")
    assert (point.direction, point.shape, point.flops_per_second) == ("forward", IMAGES, 0)
    assert point.share_of_copy == pytest.approx(1.0)


def test_growth_goes_by_the_value_and_has_only_what_ran():
    batch, experts = figures.growth(growth_section()).values()
    assert batch["ours"] == {1: 2.0, 4: 8.0}
    assert list(batch["ours"]) == [1, 4]
    assert "stacked" not in batch
    assert experts["stacked"] == {4: 1.0}


def test_memory_is_a_mean_over_the_shapes_a_way_ran_at():
    first, second = entry(), entry()
    first["memory_bytes"] = {"ours": {"peak": 10, "extra": 0}, "naive": {"peak": 20, "extra": 0}}
    second["memory_bytes"] = {
        "ours": {"peak": 10, "extra": 0}, "naive": {"peak": 80, "extra": 0}, "loop": {"peak": 5, "extra": 0},
    }  # fmt: skip
    (found,) = figures.memory(section(a=first, b=second)).values()
    assert found["naive"].mean == pytest.approx(4.0)
    assert found["loop"] == (0.5, (0.5,))
    assert figures.memory(section(a=entry())) == {}


def test_what_is_missing_has_no_picture_and_is_named(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "growth.png").write_bytes(b"of a run before")
    page.write({"dynamic_conv": section()}, tmp_path, "cpu")
    drawn = {path.name for path in (tmp_path / "cpu").iterdir()}
    assert drawn == {"speedup.png", "speedup-dynamic_conv.png"}
    text = (tmp_path / "cpu.md").read_text()
    missing = text.partition("## Not measured yet")[2]
    assert "- dynamic_conv: bytes moved and FLOPs\n- dynamic_conv: peak memory\n" in missing
    assert "- spatial_attention\n" in missing
    assert "- How time grows\n" in missing
    assert "- Two processes\n" in missing
    assert "## Roofline" not in text
    assert "<li>How time grows</li>" in (tmp_path / "cpu.html").read_text()


def test_figures_that_some_shapes_lack_are_counted():
    some = section()
    with_work(dict([next(iter(some["shapes"].items()))]))
    assert "dynamic_conv: peak memory at 1 of 2 shapes" in page.not_measured({"dynamic_conv": some})


def test_the_engine_alone_makes_a_page(tmp_path):
    page.write({"training": whole()["training"]}, tmp_path, "cpu")
    assert [path.name for path in (tmp_path / "cpu").iterdir()] == ["training.png"]


def test_a_gpu_has_a_page_of_its_name_beside_the_cpus(tmp_path, capsys):
    cpu = stored(tmp_path / "one.json", {"dynamic_conv": section()})
    gpu = stored(tmp_path / "two.json", {"fuse": whole("cuda")["fuse"]})
    assert main([str(cpu), str(gpu), "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "cpu", "cpu.html", "cpu.md", "nvidia_h200", "nvidia_h200.html", "nvidia_h200.md",
    }  # fmt: skip
    text = (tmp_path / "out" / "nvidia_h200.md").read_text()
    assert text.startswith("# Benchmarks: NVIDIA H200")
    # What is for two cores of a CPU is no gap.
    assert "Two processes" not in text
    assert "nvidia_h200.md" in capsys.readouterr().out


def test_sections_and_shapes_of_several_files_are_one_page(tmp_path):
    old = {"dynamic_conv": section(kept=entry(ours=1.0), twice=entry(ours=1.0)), "channel_gate": map_section()}
    new = {"dynamic_conv": section(twice=entry(ours=2.0)) | {"date": "2026-02-02"}}
    paths = [stored(tmp_path / f"{name}.json", found) for name, found in {"old": old, "new": new}.items()]
    found = sources.merged(paths)["cpu"]
    assert list(found) == ["dynamic_conv", "channel_gate"]
    shapes = found["dynamic_conv"]["shapes"]
    assert {name: each["ms"]["ours"]["both"] for name, each in shapes.items()} == {"kept": 1.0, "twice": 2.0}
    assert found["dynamic_conv"]["date"] == "2026-02-02"


def test_shapes_under_other_versions_are_not_mixed(tmp_path):
    old = {"dynamic_conv": section(kept=entry())}
    new = {"dynamic_conv": section(other=entry()) | {"versions": {"torch": "9"}}}
    paths = [stored(tmp_path / f"{name}.json", found) for name, found in {"old": old, "new": new}.items()]
    assert list(sources.merged(paths)["cpu"]["dynamic_conv"]["shapes"]) == ["other"]


def test_a_results_file_reads_as_it_was_recorded(tmp_path):
    record.write(tmp_path / "cpu.json", "channel_gate", map_section())
    assert sources.merged([tmp_path / "cpu.json"]) == {"cpu": {"channel_gate": map_section()}}


def test_a_run_saved_by_pytest_benchmark_gives_the_same_page(tmp_path):
    saved = stored(tmp_path / "0001_run.json", {"benchmarks": [], "machine_info": {}, "sections": whole()})
    assert sources.merged([saved]) == {"cpu": whole()}


def test_without_a_file_the_newest_saved_run_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = tmp_path / ".benchmarks" / "Linux-CPython"
    saved.mkdir(parents=True)
    for number, text in {"0002": "two", "0001": "one", "0010": "ten"}.items():
        (saved / f"{number}_run.json").write_text(text)
    (saved / "notes.json").write_text("no run")
    assert sources.newest(tmp_path / ".benchmarks") == saved / "0010_run.json"


def test_without_a_run_the_exit_names_the_command(tmp_path, capsys):
    assert main(["--out", str(tmp_path)], saved=tmp_path / "nothing") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pytest bench --benchmark-only" in said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        "{}",
        '{"benchmarks": []}',
        '{"some_op": {"device": "x", "shapes": {}}}',
        '{"dynamic_conv": {"device": "x", "shapes": {"a": {}}}}',
        '{"dynamic_conv": {"device": "x", "shapes": {"a": 1}}}',
        '{"dynamic_conv": "device and shapes"}',
    ],
)
def test_a_damaged_or_foreign_file_is_named_in_one_line(text, tmp_path, capsys):
    path = tmp_path / "damaged.json"
    path.write_text(text)
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "damaged.json" in said
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_named(tmp_path, capsys):
    assert main([str(tmp_path / "gone.json")]) == 2
    assert "gone.json: No such file" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    results = stored(tmp_path / "results.json", {"dynamic_conv": section()})
    assert main([str(results), "--out", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err
