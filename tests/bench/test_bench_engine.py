"""The engine's benchmark: what it reads, the reports' way, targets and tables."""

import subprocess
import sys
import time

import pytest
import torch

from bench import pages, test_engine
from bench.measuring import photographs, record
from bench.measuring.measure import DEVICE, Stopwatch
from bench.ops.trainings import Reports, Timm
from bench.report import columns, metrics, tables, targets
from polychrome.engine.data.sets import listing, scan
from tests.bench.test_bench_tables import section


def training_entry(step=50.0, epoch=1000.0, dtype="bfloat16", **others):
    """Return a model's figures, in milliseconds: the reports' way takes 400 a step and 9,000 an epoch."""
    ways = {"ours": {"step": step, "epoch": epoch, "input": 2.0}, "reports": {"step": 400.0, "epoch": 9000.0}}
    found = {"dtype": dtype, "layout": "channels_last", "batch": 64, "images": 1280, "runs": 3, "ms": ways}
    return found | {"skipped": {}} | others


def plain_entry(both, **others):
    """Return the figures of a section without a step: `both` and the others' are milliseconds."""
    ways = {name: {"both": taken} for name, taken in {"ours": both, **others}.items()}
    return {"images": 64, "batch": 64, "workers": 2, "runs": 3, "ms": ways, "skipped": {}}


ENTRIES = {
    "training": {"pool_attention_cnn 256 px": training_entry(gpu_idle=0.05), "resnet34 84 px": training_entry(80.0)},
    "input": {"torch": plain_entry(64.0, torch=64.0), "dali gpu": plain_entry(16.0, torch=64.0)},
    "start": {"first start": plain_entry(9000.0), "second start": plain_entry(5500.0)},
    "processes": {"two": plain_entry(1000.0, one=900.0)},
}


@pytest.fixture(scope="module")
def images(stripes):
    found = listing.read(stripes)
    paths = [path for split in found.splits.values() for path in split.paths]
    return scan.apply(found, scan.scan(found.root, paths, 1, cache=False))


def verdicts(op, entries, on_gpu):
    return {each.demand: each.met for each in judged(op, entries, "cuda" if on_gpu else "cpu")}


def judged(op, entries, kind="cpu"):
    return targets.verdicts(op, {"kind": kind, "shapes": entries})


def test_photographs_are_a_data_set_of_the_size_asked_for(tmp_path):
    root = photographs.write(tmp_path / "photographs", {"train": 52, "val": 2, "test": 2})
    found = listing.read(root)
    assert [len(found.splits[name].paths) for name in ("train", "val", "test")] == [52, 2, 2]
    assert len(found.class_names) == photographs.CLASSES
    report = scan.scan(root, found.splits["val"].paths, 1, cache=False)
    assert set(report.sizes.values()) == {(375, 500)}
    assert all(50_000 < path.stat().st_size < 110_000 for path in root.glob("*.jpg"))


def test_the_reports_way_standardises_and_trains(images):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    before = model[0].weight.detach().clone()
    steps = Stopwatch()
    with Reports(model, images, "val", 32, 8, DEVICE) as reports:
        taken = reports.epoch(steps)
        assert len(steps.times()) == len(reports.loader) == 3
        shown = torch.stack([reports.loader.dataset[index][0] for index in range(8)])
    assert 0 < sum(steps.times()) < 1e3 * taken
    assert not torch.equal(model[0].weight.cpu(), before)
    assert shown.shape == (8, 3, 32, 32)
    grey = (shown * torch.tensor(images.channels.std)[:, None, None]).mean((0, 2, 3)) + torch.tensor(
        images.channels.mean
    )
    torch.testing.assert_close(grey, torch.full((3,), 0.5), atol=0.1, rtol=0)


def test_timms_way_standardises_and_trains(images):
    pytest.importorskip("timm")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    before = model[0].weight.detach().clone()
    steps = Stopwatch()
    with Timm(model, images, "train", 32, 8, DEVICE, "bf16") as timm:
        taken = timm.epoch(steps)
        assert len(steps.times()) == len(timm.loader) > 2
        shown = torch.cat([batch.cpu() for batch, _ in timm.loader])
    assert 0 < sum(steps.times()) < 1e3 * taken
    assert not torch.equal(model[0].weight.cpu(), before)
    assert (shown.shape[1:], shown.dtype) == ((3, 32, 32), torch.float32)
    grey = (shown * torch.tensor(images.channels.std)[:, None, None]).mean((0, 2, 3)) + torch.tensor(
        images.channels.mean
    )
    torch.testing.assert_close(grey, torch.full((3,), 0.5), atol=0.1, rtol=0)


def cells_of(entry):
    """Return the cells of a model's row by their headings."""
    (row,) = tables.rows("training", {"simple_cnn 256 px": entry})
    return dict(zip(tables.headings("training"), row, strict=True))


def test_a_way_that_was_not_measured_has_no_figure():
    entry = training_entry()
    assert metrics.over_ours("timm", "epoch")(entry) is None
    cells = cells_of(entry)
    assert (cells["timm epoch"], cells["ratio to timm"]) == ("-", "-")
    entry["ms"]["timm"] = {"step": 100.0, "epoch": 2000.0}
    cells = cells_of(entry)
    assert (cells["timm epoch"], cells["ratio to timm"]) == ("640", "2.00")


def test_few_repeats_a_list_that_is_too_short(images):
    chosen = test_engine.few(images, 100).splits["train"]
    first = images.splits["train"]
    assert chosen.paths == (first.paths * 2)[:100]
    assert chosen.labels == (first.labels * 2)[:100]
    assert test_engine.few(images, 5).splits["train"].sizes == first.sizes[:5]


def test_a_source_of_input_outlives_its_epoch(images, monkeypatch):
    """A list of two batches, and windows of four."""
    for name, value in {
        "BATCH": 4,
        "SIZE": 16,
        "REPEATS": 1,
        "FILES": {"train": 8},
        "SECONDS": 0,
        "WORKERS": 1,
    }.items():
        monkeypatch.setattr(test_engine, name, value)
    monkeypatch.setattr(test_engine, "listed", lambda folder: images)
    try:
        found = test_engine.read_alone(images.root, "host cache")
        assert found.entry["runs"] == 3
    finally:
        test_engine.read_alone.cache_clear()
        test_engine.first_batch.cache_clear()


def test_the_time_of_the_first_step_is_printed_and_the_run_ends_there(stripes, tmp_path):
    started = time.time()
    arguments = ("task1", "--data", stripes, "--models", "simple_cnn", "--image-size", "32", "--workers", "1")
    done = subprocess.run(
        [sys.executable, "-m", "bench.measuring.first_step", *map(str, arguments), "--out", str(tmp_path)],
        cwd=record.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert started < float(done.stdout.splitlines()[-1]) < time.time()
    assert not list(tmp_path.rglob("*.pt"))


def test_rates_and_ratios_of_a_training():
    entry = training_entry()
    assert metrics.rate("ours", "step")(entry) == pytest.approx(1280)
    assert metrics.rate("reports", "epoch")(entry) == pytest.approx(1280 / 9)
    assert metrics.over_ours("reports", "epoch")(entry) == pytest.approx(9)
    assert metrics.input_share(entry) == pytest.approx(0.04)
    (minutes,) = [each for each in judged("training", {"one": entry}, "cuda") if "25 epochs" in each.demand]
    assert minutes.measured.startswith(f"{25 * 63_325 / 1280 / 60:.2f} at one")


def test_targets_of_a_training_on_a_gpu():
    entries = {"one": training_entry(gpu_idle=0.05), "other": training_entry(epoch=1200.0, step=20.0, gpu_idle=0.2)}
    assert list(verdicts("training", {"one": entries["one"] | {"images": 12_800}}, True).values()) == [True] * 4
    assert list(verdicts("training", entries, True).values()) == [False] * 4
    (idle,) = [each for each in judged("training", {"one": training_entry()}, "cuda") if "idle" in each.demand]
    assert (idle.met, idle.measured) == (None, "-")


def test_targets_on_a_cpu():
    assert list(verdicts("training", ENTRIES["training"], False).values()) == [True]
    slow = {"resnet34 84 px": training_entry(epoch=5000.0)}
    assert list(verdicts("training", slow, False).values()) == [False]
    in_float32 = {"resnet34 84 px": training_entry(dtype="float32")}
    assert list(verdicts("training", in_float32, False).values()) == [None]
    (start,) = judged("start", ENTRIES["start"])
    assert (start.met, start.measured) == (False, "5.50 at second start; 1 of 1 miss")
    (processes,) = judged("processes", ENTRIES["processes"])
    assert (processes.met, processes.measured[:4]) == (True, "0.90")
    assert list(verdicts("input", ENTRIES["input"], True).values()) == [True]
    assert judged("input", ENTRIES["input"]) == []


def test_a_row_of_each_section():
    assert tables.rows("training", ENTRIES["training"])[0] == [
        *("pool_attention_cnn 256 px", "64", "1280", "160", "8.00", "1280", "142", "9.00", "-", "-", "4.0", "5.0")
    ]
    assert tables.rows("input", ENTRIES["input"])[1] == ["dali gpu", "4000", "4.00", "2"]
    assert tables.rows("start", ENTRIES["start"])[0] == ["first start", "9.0", "64"]
    assert tables.rows("processes", ENTRIES["processes"])[0] == ["two", "64.0", "71.1", "0.90"]


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("op", columns.ENGINE)
def test_the_printed_table_fits_the_terminal(op, width):
    printed = tables.text(op, section(**ENTRIES[op]), width)
    assert max(map(len, printed.splitlines())) <= width


def test_the_pages_in_docs_are_rewritten_beside_the_readme(tmp_path):
    results, docs = tmp_path / "results", tmp_path / "docs"
    docs.mkdir()
    for op, entries in ENTRIES.items():
        record.write(results / "cpu.json", op, section(**entries))
    marked = {
        tmp_path / "README.md": pages.PAGES["README.md"],
        docs / "engine.md": columns.ENGINE,
    }
    for page, names in marked.items():
        page.write_text("".join(f"<!-- bench:{name} -->\n<!-- /bench:{name} -->\n" for name in names))
    assert pages.main(["--check"], tmp_path / "README.md", results) == 1
    assert pages.main([], tmp_path / "README.md", results) == 0
    assert pages.main(["--check"], tmp_path / "README.md", results) == 0
    assert "| resnet34 84 px | 64 | 800 |" in (docs / "engine.md").read_text()
    assert "GPU: not measured yet." in (docs / "engine.md").read_text()
