"""What a run of the benchmarks leaves: a row of pytest-benchmark's for each way, and a saved run with the sections."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from bench.measuring import record, replay
from bench.ops.dynamic_conv import growths_on

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved run of the channel gate at its smallest shape."""
    path = tmp_path_factory.mktemp("saved") / "run.json"
    command = ("-m", "pytest", "-p", "no:cacheprovider", "bench/test_channel_gate.py", "--benchmark-only")
    chosen = ("-k", "float32 and 8x512x7x7 and single", f"--benchmark-json={path}")
    done = subprocess.run([sys.executable, *command, *chosen], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return path


def test_the_ways_of_a_shape_are_rows_of_a_group(saved):
    rows = json.loads(saved.read_text())["benchmarks"]
    assert {row["group"] for row in rows} == {"channel_gate float32 contiguous 8x512x7x7 single"}
    assert {row["extra_info"]["way"] for row in rows} >= {"ours", "eager"}
    entry = record.sections(saved)["channel_gate"]["shapes"]["float32 contiguous 8x512x7x7 single"]
    for row in rows:
        carried = row["extra_info"]
        assert row["stats"]["rounds"] == entry["runs"]
        assert 1e3 * row["stats"]["median"] == pytest.approx(entry["ms"][carried["way"]]["both"], rel=1e-3)
        assert carried["bytes"]["forward"] > 3 * 4 * 8 * 512 * 49
        assert carried["flops"] == {"forward": 2 * 8 * 512**2, "backward": 2 * 2 * 8 * 512**2}
        share = carried["bound_ms"]["forward"] / entry["ms"][carried["way"]]["forward"]
        assert carried["share_of_bound"]["forward"] == pytest.approx(share, abs=1e-4)
        # y and the gradients of x and the weights are there at the end.
        assert carried["peak_memory_bytes"] >= 4 * (2 * 8 * 512 * 49 + 512**2)


def test_a_file_that_is_no_run_is_refused(tmp_path):
    for text in ("{", "[]", '{"benchmarks": []}', '{"a": 1}'):
        path = tmp_path / "run.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"run\.json is neither"):
            record.sections(path)


def test_measured_times_reach_pytest_benchmark_as_they_are():
    taken = []

    class Benchmark:
        def pedantic(self, target, rounds):
            for _ in range(rounds):
                start = replay.clock()
                target()
                taken.append(replay.clock() - start)

    replay.replay(Benchmark(), [3.0, 1.0, 2.0])
    assert taken == pytest.approx([3e-3, 1e-3, 2e-3])
    assert statistics.median(taken) == pytest.approx(2e-3)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_size_grows_in_each_series(device):
    series = {}
    for growth in growths_on(device):
        series.setdefault(growth.along, []).append(growth.value)
        assert getattr(growth.shape, growth.along) == growth.value
    assert list(series) == ["batch", "experts", "size"]
    assert all(len(values) >= 4 and values == sorted(set(values)) for values in series.values())
