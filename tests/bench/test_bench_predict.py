"""Predicted times: what a launch needs, counted by hand; the time that makes; and the page against an earlier count."""

import json
import os
import re
import subprocess
import sys
from math import ceil
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from bench.machine import H200
from bench.predict import __main__ as predict
from bench.predict import code, measured, table
from bench.predict.model import Block, Memory, Work, bytes_of, library_us, time_of
from bench.predict.passes import Library

ROOT = Path(__file__).resolve().parents[2]
# Microseconds of an H200 that a count by hand gave for the kernels of 2026-11-26.
BY_HAND = {
    "C64 56x56": {"forward": 60, "gradient of x": 62, "gradient of the weights": 100},
    "C128 28x28": {"forward": 50, "gradient of x": 52, "gradient of the weights": 85},
    "C256 14x14": {"forward": 80, "gradient of x": 80, "gradient of the weights": 160},
    "C512 7x7": {"forward": 215, "gradient of x": 230, "gradient of the weights": 105},
}
# Three launches, and what was counted of them; in a process of its own, as in this one Triton interprets.
COUNTED = """
import json, sys
import torch
from bench.predict import model
from bench.predict.trace import trace
from bench.stand_in.driver import install
from polychrome.kernels.dynamic_conv.configs import ConvolutionConfig, WeightGradientConfig
from polychrome.kernels.dynamic_conv.problem import Geometry
from polychrome.kernels.dynamic_conv.triton.convolution import convolve
from polychrome.kernels.dynamic_conv.triton.mixing import mix_into
from polychrome.kernels.dynamic_conv.triton.weight_gradient import expert_gradients
from polychrome.kernels.launch import record_launches

install()
def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(*shape, dtype=dtype, device="meta")
def image(channels):
    return empty(2, channels, 8, 8).to(memory_format=torch.channels_last)
geometry = (Geometry([1, 1], [1] * 4, [1, 1], 1), (3, 3))
mixing = empty(2, 4, dtype=torch.float32)
with record_launches() as launches:
    mix_into(empty(2, 8, 9, 16), empty(4, 8, 16, 3, 3), mixing)
    convolve(image(128), empty(2, 64, 9, 128), image(64), *geometry, ConvolutionConfig(64, 64, 64, 4), "ieee")
    expert_gradients(image(64), image(64), None, mixing, *geometry, WeightGradientConfig(64, 64, 32, 8), "ieee")
works = [model.work_of(launch) for launch in launches]
found = [work._asdict() | {"block": work.block._asdict()} for work in works]
counts = [[place[0].rpartition("/")[2], place[1], count] for place, count in trace(launches[2]).counts.items()]

from bench.predict import code
from bench.stand_in.driver import compile_launch
from polychrome.kernels.channel_gate.triton.pixels import sum_over_pixels
with record_launches() as reductions:
    sum_over_pixels(empty(4, 64, 128, 128).to(memory_format=torch.channels_last))
unread = code.read(compile_launch(reductions[0]))._replace(regions=[])
try:
    model._counted(unread, trace(reductions[0]), 4)
    said = ""
except ValueError as error:
    said = str(error)
again = [[place[0].rpartition("/")[2], place[1], count] for place, count in trace(launches[2]).counts.items()]
print(json.dumps({"works": found, "counts": counts, "again": again, "unread": said}))
"""


def run(*words, **environment):
    """Run Python in a process of its own, where Triton compiles; return what it prints."""
    known = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    known |= {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=known, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    # of another checkout the suite's cache may have the same kernels, with other lines
    return json.loads(run("-c", COUNTED, TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("triton"))))


def test_a_mix_reads_the_experts_once_and_writes_a_weight(counted):
    mix = counted["works"][0]
    weight = 8 * 9 * 16 * 2
    # Of 16 groups of 8 channels a tile takes 14.
    assert (mix["blocks"], mix["block"]["flops"]) == (2 * 2, 0)
    # a sample's four shares lie in one sector of 32 bytes
    assert mix["reads"] == {"0": 2 * 4 * weight, "1": 2 * 2 * 32}
    assert mix["writes"] == {"2": 2 * weight}


def test_a_convolution_multiplies_whole_tiles_and_loads_each_tap(counted):
    convolution = counted["works"][1]
    assert convolution["blocks"] == 2
    assert convolution["block"]["flops"] == 2 * 64 * 64 * 9 * 128
    seen = (3 * 8 - 2) ** 2  # pixels that lie inside, of nine taps at 8 x 8
    assert convolution["reads"] == {"0": 2 * seen * 128 * 2, "1": 2 * 64 * 9 * 128 * 2}
    assert convolution["writes"] == {"2": 2 * 64 * 64 * 2}
    # 18 steps of a hundred instructions and less
    assert 1_000 < convolution["block"]["instructions"] < 3_000
    # Of each step both tiles are written, and read once: 64 rows by 64 columns of the matrix unit. Copies begin two
    # steps before the first, and the result goes through shared memory too.
    assert 1 < convolution["block"]["shared_bytes"] / (18 * 2 * (64 + 64) * 64 * 2) < 1.3


def test_the_body_of_a_branch_counts_as_often_as_it_runs(counted):
    source = (ROOT / "kernels/dynamic_conv/triton/weight_gradient.py").read_text().splitlines()
    branch = next(number for number, line in enumerate(source, 1) if line.strip() == "if last:")
    counts = {line: count for file, line, count in counted["counts"] if file == "weight_gradient.py"}
    # two samples of two blocks of pixels
    assert (counts[branch], counts[branch + 1]) == (4, 2)
    assert counted["works"][2]["block"]["flops"] == 2 * 64 * 64 * 2 * 64


def test_what_was_traced_before_changes_no_count(counted):
    """Nor does what mends the interpreter of an older Triton, which runs for every scalar."""
    assert counted["again"] == counted["counts"]
    assert {file for file, _, _ in counted["counts"]} <= {"weight_gradient.py", "addressing.py", "splits.py"}


def test_a_loop_that_is_not_understood_is_no_prediction(counted):
    """Of a kernel without products it shows in what is loaded."""
    assert "bytes loaded and stored in the code" in counted["unread"]


def test_statements_are_found_by_any_of_their_lines(tmp_path):
    source = tmp_path / "source.py"
    source.write_text("for a in (\n    1,\n    2,\n):\n    b = (\n        a\n    )\n    if b:\n        c = 1\n")
    file = str(source)
    places = [code.statement_of((file, line))[1] for line in range(1, 10)]
    assert places == [1, 1, 1, 1, 5, 5, 5, 8, 9]
    assert [code.kind_of((file, line)) for line in (1, 5, 8)] == ["for", "", "if"]
    assert [code.body_of((file, line))[1] for line in (1, 8)] == [5, 9]
    assert code.statement_of(("elsewhere.py", 7)) == ("elsewhere.py", 7)


def test_a_loop_is_found_however_it_is_left(tmp_path):
    """In its middle, after which the branch back has the place of any statement in it; a `while` counts as a `for`."""
    source = tmp_path / "source.py"
    source.write_text("for a in b:\n    c = a\n    while c:\n        c = d\n    if c:\n        e = c\nf = 1\n")
    lines = [(1, "MOV"), (4, "MOV"), (3, "@P0 BRA `(.L_x_1)"), (5, "@!P0 BRA `(.L_x_2)"), (6, "MOV")]
    lines += [(1, "@P0 EXIT"), (2, "MOV"), (2, "BRA `(.L_x_0)")]
    places = [(str(source), line) for line, _ in lines]
    labels = {".L_x_0": 0, ".L_x_1": 1, ".L_x_2": 5}
    regions = code._regions([instruction for _, instruction in lines], places, labels)
    assert [(region.first, region.last, region.place[1]) for region in regions] == [(0, 7, 1), (1, 2, 3), (4, 4, 5)]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("LDG.E.128", 512),
        ("LDG.E.U16", 64),
        ("LDG.E", 128),
        ("STS.64", 256),
        ("LDGSTS.E.BYPASS.128", 512),
        ("LDSM.16.M88.4", 512),
        ("LDSM.16.M88", 128),
        ("LDG.E.U8", 32),
    ],
)
def test_bytes_of_a_warps_load(name, size):
    assert bytes_of(name) == size


def work(blocks=1, resident=2, warps=8, instructions=0.0, flops=0.0, shared_bytes=0.0, l2_bytes=0.0):
    return Work("kernel", blocks, resident, warps, Block(instructions, flops, shared_bytes, l2_bytes), {}, {})


@pytest.mark.parametrize(
    ("blocks", "clocks"),
    [(1, 3_250), (132, 3_250), (133, 4_000), (264, 4_000), (265, 7_250), (528, 8_000)],
)
def test_blocks_take_turns_and_one_alone_waits_for_its_own_results(blocks, clocks):
    taken = time_of(work(blocks, instructions=1_000), 0)
    assert taken.issue == pytest.approx(clocks / 1_755)
    assert (taken.us, taken.limit) == (pytest.approx(clocks / 1_755 + 2.5), "issue")


def test_each_limit_has_its_rate():
    taken = time_of(work(264, flops=4_096_000, shared_bytes=12_800, l2_bytes=3_600), 4.3e6)
    assert taken.shared == pytest.approx(200 / 1_755)
    assert taken.matrix == pytest.approx(2_000 / 1_755)
    assert taken.l2 == pytest.approx(200 / 1_755)
    assert taken.memory == pytest.approx(1)
    # one block cannot take from the cache more than its multiprocessor's port lets through
    assert time_of(work(1, l2_bytes=64_000), 0).l2 == pytest.approx(1_000 / 1_755)


def test_what_the_cache_holds_is_not_read_again():
    small, large, result = (torch.empty(size, device="meta", dtype=torch.uint8) for size in (1_000, 2**25, 500))
    memory = Memory([result])
    first, second = Library("first", [small, large], [], 0), Library("second", [small, large], [result], 0)
    assert memory.moved_by(first) == 1_000 + 2**25
    assert memory.moved_by(second) == 2**25 + 500
    within = torch.empty(700, device="meta", dtype=torch.uint8)
    assert memory.moved_by(Library("third", [], [within], 0)) == 0
    assert memory.moved((small, within), work()._replace(reads={1: 10.0}, writes={0: 10.0})) == 0


def test_a_kernel_of_torch_reaches_the_rates():
    tensor = torch.empty(2**22, device="meta")
    flops = H200.products * 1e-3
    assert library_us(Library("mm", [tensor], [], flops), 0) == pytest.approx(1_002.5)
    assert library_us(Library("sum", [tensor], [], 0), tensor.nbytes) == pytest.approx(2**24 / 4.3e6 + 2.5)


@pytest.fixture(scope="module")
def committed():
    return json.loads(table.RESULTS.read_text(encoding="utf-8"))


def ours(row):
    """Microseconds of a pass in our kernels."""
    return sum(launch["us"] for launch in row["launches"] if launch["limit"] != "torch")


@pytest.mark.parametrize("shape", BY_HAND)
def test_the_kernels_of_before_take_what_a_count_by_hand_gave(committed, shape):
    rows = {row["pass"]: row for row in committed["before"]["rows"] if row["shape"] == shape}
    found = {name: ours(rows[name]) / us for name, us in BY_HAND[shape].items()}
    if shape == "C512 7x7":
        # The count by hand lets the last of a multiprocessor's five blocks, which runs alone, go at the full rate.
        launch = rows["gradient of the weights"]["launches"][0]
        turns = ceil(launch["blocks"] / H200.multiprocessors)
        assert turns == 5
        found["gradient of the weights"] *= turns / (turns - 1 + H200.warp_clocks * H200.issue_slots / 8)
    assert found == pytest.approx(dict.fromkeys(found, 1), abs=0.15)


@pytest.mark.slow
def test_the_newest_predictions_are_of_the_kernels_as_they_are(committed, tmp_path):
    """Within what another Triton compiles otherwise: `python -m bench.predict --as now` writes them anew."""
    found = tmp_path / "found.json"
    said = run("-m", "bench.predict", "--shapes", "C256 14x14 b1", "--json", str(found))
    assert said.count("of the bound") == 3
    rows = [row for row in committed["now"]["rows"] if row["shape"] == "C256 14x14 b1"]
    now = {row["pass"]: table.us_of(row) for row in json.loads(found.read_text())}
    assert now == pytest.approx({row["pass"]: table.us_of(row) for row in rows}, rel=0.15)


def test_what_was_measured_is_of_the_kernels_that_are_predicted(committed):
    """A pass whose kernels have changed since is left out, not shown beside the prediction of others."""

    def kernels(row):
        return [launch["kernel"] for launch in row["launches"] if re.fullmatch(r"\w+_kernel", launch["kernel"])]

    now = {(row["op"], row["shape"], row["pass"]): kernels(row) for row in committed["now"]["rows"]}
    measured = [row for section in committed.values() if section.get("measured") for row in section["rows"]]
    assert len(measured) > 50
    for row in measured:
        assert kernels(row) == now[row["op"], row["shape"], row["pass"]]


def test_the_page_is_that_of_the_results(tmp_path):
    page = tmp_path / "predicted.md"
    table.write(page=page)
    assert page.read_text() == table.PAGE.read_text()


def test_the_sum_of_launches_is_the_nearest_number_under_every_python():
    assert table.us_of({"launches": [{"us": 0.1}] * 10}) == 1.0  # from the left it is 0.9999999999999999


@pytest.fixture
def two_passes():
    """Predicted passes of a convolution, as the page's rows."""

    def row(name, *kernels):
        launches = [{"kernel": kernel, "us": 1.0, "limit": "l2", "blocks": 1} for kernel in kernels]
        return {"op": "dynamic_conv", "shape": "s", "pass": name, "bound_us": 5.0, "launches": launches}

    return [row("forward", "mix_kernel", "bmm"), row("gradient of x", "mix_kernel", "bmm", "sum")]


def results_of(*kernels):
    """Results of `bench.gpu` with these kernels of one call."""
    first = {"versions": {"triton": "3"}, "date": "d", "commit": "c"}
    return {"device": "GPU", "first_light": first, "counters": {"kernels": {"dynamic_conv bfloat16 s": list(kernels)}}}


def test_measured_kernels_are_shared_out_to_the_passes_in_order(two_passes):
    kernels = [
        ("mix_kernel", 2.0),
        ("nvjet_a", 3.0),
        ("Memset", 0.5),
        ("mix_kernel", 4.0),
        ("nvjet_b", 5.0),
        ("add", 6.0),
    ]
    section = measured.section(results_of(*kernels), two_passes)
    assert [table.us_of(row) for row in section["rows"]] == [5.0, 15.5]
    assert section["device"] == "GPU"


def test_a_call_whose_kernels_are_not_those_predicted_is_left_out(two_passes):
    assert measured.section(results_of(("mix_kernel", 2.0), ("other_kernel", 3.0)), two_passes)["rows"] == []


def test_measured_times_stand_behind_the_predicted_ones_and_change_nothing_else(two_passes, tmp_path):
    kernels = [("mix_kernel", 2.0), ("nvjet", 3.0), ("mix_kernel", 4.0), ("nvjet", 5.0)]
    found = measured.section(results_of(*kernels), two_passes)
    about = {"versions": {"triton": "3"}, "date": "d", "commit": "c"}
    results, page = tmp_path / "predicted.json", tmp_path / "predicted.md"
    results.write_text(json.dumps({"GPU": found, "now": about | {"rows": two_passes}}))
    table.write(results, page)
    assert "| s | forward | 5.0 | 2.0 | 5.0 | 250% | mix (l2) 1.0, bmm (l2) 1.0 |" in page.read_text()


def test_results_without_kernels_are_refused_in_one_line(tmp_path, capsys):
    path = tmp_path / "results.json"
    path.write_text("{}")
    assert predict.main(["--measured", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_page_has_a_column_for_each_section(tmp_path):
    def section(us):
        launch = {"kernel": "a_kernel", "us": us, "limit": "l2", "blocks": 1}
        row = {"op": "op", "shape": "s", "pass": "forward", "bound_us": 5.0, "launches": [launch, launch]}
        return {"versions": {"triton": "3"}, "date": "d", "commit": "c", "rows": [row]}

    results, page = tmp_path / "predicted.json", tmp_path / "predicted.md"
    results.write_text(json.dumps({"before": section(20.0), "now": section(10.0)}))
    table.write(results, page)
    assert "| s | forward | 5.0 | 40.0 | 20.0 | 25% | a (l2) x2 20.0 |" in page.read_text()
