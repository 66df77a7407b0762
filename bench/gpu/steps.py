"""Steps on a GPU, the most valuable first: commands, their time limits, and the sources that they measure."""

import hashlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from bench.report import tables

ROOT = Path(__file__).resolve().parents[2]
RUNS = "runs/study-{kind}"
# Of each training of the comparison at equal epochs.
EPOCHS = 300
# The exit status of a step that ran out of time and resumes in the next call.
UNFINISHED = 75

PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "-p", "bench.gpu.plugin", "-q")
CONVOLUTION_TESTS = "tests/kernels/test_dynamic_conv_on_gpu.py"
# Tests that take Inductor minutes.
COMPILED = "compiled or graph"
# A test that takes all of the GPU's memory.
ALONE = "twice_as_many_images"
# Processes of each step of tests, of which four run beside each other.
WORKERS = max(2, min(8, (os.cpu_count() or 1) // 3))
# The number of first shapes of each benchmark that get all baselines before the other shapes: the compiled baseline is
# slow to compile.
FEW = {"dynamic_conv": 4, "channel_gate": 4, "spatial_attention": 4, "augment": 1}
QUICK = {
    "dynamic_conv": "ours,naive,naive fp32",
    "channel_gate": "ours,eager",
    "spatial_attention": "ours,eager",
    "augment": "ours,eager",
}
COMMON = (
    "kernels/*.py",
    "bench/measuring/measure.py",
    "bench/measuring/timing.py",
    "bench/gpu/times.py",
    "bench/ops/feature_maps.py",
)


class Step(NamedTuple):
    """A Python command, the most seconds that it may take, and the least seconds left for it to be started.

    sources: patterns of the files whose change makes the step run again. timed: it takes --seconds and --digest.
    untimed: nothing in it is measured by time, so that it may run beside others.
    """

    name: str
    arguments: tuple[str, ...]
    most: int
    least: int
    sources: tuple[str, ...]
    timed: bool = False
    untimed: bool = False

    def digest(self, device: str, root: Path = ROOT) -> str:
        """Return a hash of the device, Python's version and the step's sources."""
        found = hashlib.sha256(repr((device, sys.version_info[:2])).encode())
        for path in sorted({path for pattern in self.sources for path in root.glob(pattern) if path.is_file()}):
            found.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
        return found.hexdigest()[:16]


def steps(folder: Path, data: str | None = None) -> list[Step]:
    """Return the steps by value, which write into `folder`. `data`: mini50, to compare trained networks last."""
    conv, table, kernels = "dynamic_conv", "kernels/dynamic_conv/configs/*.json", "kernels/**/*.py"
    engine = (kernels, "engine/**/*.py", "models/**/*.py", "bench/test_engine.py")
    tuned = ("kernels/*.py", "kernels/dynamic_conv/**/*.py", "bench/tune.py", "bench/measuring/timing.py")
    engine_tests = ("tests/engine", "tests/train", "tests/bench", "tests/models")
    tested = (kernels, "engine/**/*.py", "train/**/*.py", "models/**/*.py", "tests/engine/**/*.py")

    def json(name: str, option: str = "--json") -> tuple[str, str]:
        return option, str(folder / f"{name}.json")

    return [
        Step("first-light", ("-m", "bench.gpu.first_light", *json("first_light")), 120, 20, (kernels,)),
        _tests("tests-dynamic_conv", _tested("dynamic_conv"), f"not ({COMPILED})", CONVOLUTION_TESTS),
        _tests("tests-kernels", _tested("*"), f"not ({COMPILED})", "tests/kernels", f"--ignore={CONVOLUTION_TESTS}"),
        _tests("tests-compiled", _tested("*"), COMPILED, "tests/kernels"),
        _tests("tests-engine", tested, f"not {ALONE}", *engine_tests),
        *(_times(f"times-{op}", op, QUICK[op]) for op in tables.OPS),
        Step("host-time", ("-m", "bench.host_time", *json("host_time")), 60, 15, (kernels, "bench/host_time.py")),
        Step("tune", ("-m", "bench.tune", *json("tuning", "--log")), 400, 45, tuned, timed=True),
        _times(f"times-{conv}-tuned", conv, QUICK[conv], sources=(table,)),
        Step(
            "counters",
            ("-m", "bench.gpu.counters", *json("counters")),
            150,
            45,
            (kernels, table, "bench/gpu/counters.py"),
        ),
        *(_times(f"baselines-{op}", op, None, FEW[op], (table,), most=400) for op in tables.OPS),
        Step("engine-epoch", (*_bench("engine"), "-k", "test_training and attention_cnn"), 240, 60, engine),
        Step("growth", _bench("growth"), 400, 60, (*COMMON, "kernels/dynamic_conv/**/*.py", table)),
        Step("fuse", _bench("fuse"), 240, 60, (kernels, table, "bench/test_fuse.py")),
        Step("layers", _bench("layers"), 240, 60, (kernels, table, "bench/ops/layers.py", "bench/test_layers.py")),
        *(_times(f"all-{op}", op, None, None, (table,), most=590) for op in tables.OPS),
        Step("tests-memory", (*PYTEST, "-m", "gpu", "-k", ALONE, "tests/engine"), 60, 20, tested),
        Step("engine", _bench("engine"), 590, 150, engine),
        *(studies(data) if data else ()),
    ]


def studies(data: str) -> list[Step]:
    """Return the comparison at equal epochs on the images in `data`, by the settings of the committed trials.

    What a call does not finish the next goes on with: keep `runs/`, which git ignores, from call to call. Rows and
    predictions, in `runs/study-comparison/results`, are among the files that the command writes out.
    """
    runs = RUNS.format(kind="comparison")
    words = ("-m", "bench.studies.comparison", "--data", data, "--out", runs, "--results", f"{runs}/results")
    options = ("--epochs", str(EPOCHS))
    sources = ("train/**/*.py", "engine/**/*.py", "bench/studies/comparison.py", "bench/results/mini50/trials.csv")
    return [Step("study-comparison", (*words, *options), 590, 60, sources)]


def _tests(name: str, sources: tuple[str, ...], chosen: str, *where: str) -> Step:
    """Return a step of the `chosen` GPU tests, in several processes."""
    several = ("-n", str(WORKERS), "--dist", "worksteal") if find_spec("xdist") else ()
    return Step(name, (*PYTEST, *several, "-m", "gpu", "-k", chosen, *where), 240, 25, sources, untimed=True)


def _tested(op: str) -> tuple[str, ...]:
    return "kernels/*.py", f"kernels/{op}/**/*.py", "tests/kernels/*.py"


def _times(
    name: str, op: str, ways: str | None, first: int | None = None, sources: tuple[str, ...] = (), most: int = 200
) -> Step:
    words = ("-m", "bench.gpu.times", op, *(("--ways", ways) if ways else ()))
    words += ("--first", str(first)) if first else ()
    measured = (*COMMON, f"kernels/{op}/**/*.py", f"bench/*/{op}.py", f"bench/test_{op}.py", *sources)
    return Step(name, words, most, 30, measured, timed=True)


def _bench(op: str) -> tuple[str, ...]:
    return (*PYTEST, f"bench/test_{op}.py", "--benchmark-only")
