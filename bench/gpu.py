"""All that there is to do on a GPU, the most valuable first, each step on its own: `python -m bench.gpu --out DIR`."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch

from bench import record, study, tables

ROOT = Path(__file__).resolve().parents[1]
PYTEST = ("-m", "pytest", "-p", "no:cacheprovider")
ENGINE_TESTS = ("tests/engine", "tests/train")
NO_TIME = "not started: no time"
RUNS = "runs/study-{kind}"
KEPT = (
    *("bench/results/{gpu}.*", "bench/results/{gpu}/*", "kernels/dynamic_conv/configs/*.json"),
    *(f"{RUNS.format(kind='*')}/**/{files}" for files in ("*.csv", "*.json", "report.*", "plots/*.png")),
)


class Step(NamedTuple):
    """One command of this Python, the most seconds it may take, and the fewest it is worth starting with."""

    name: str
    arguments: tuple[str, ...]
    most: int
    least: int


def steps(out: Path) -> list[Step]:
    """Return the steps before the report by value, the benchmarks of the ops in the order of the tables."""
    ignored = (f"--ignore={folder}" for folder in ("tests/kernels", *ENGINE_TESTS))
    tuned, *others = (Step(f"bench-{op}", bench(op), 480, 60) for op in tables.OPS)
    return [
        Step("tests", (*PYTEST, "-m", "gpu", "tests/kernels"), 240, 30),
        tuned,
        *(step._replace(most=300, least=45) for step in others),
        Step("bench-fuse", bench("fuse"), 240, 60),
        Step("engine-tests", (*PYTEST, "-m", "gpu", *ENGINE_TESTS), 300, 60),
        Step("bench-engine", bench("engine"), 590, 150),
        Step("tune", ("-m", "bench.tune"), 400, 60),
        tuned._replace(name="bench-tuned"),
        Step("bench-growth", bench("growth"), 400, 60),
        Step("profile", ("-m", "bench.gpu", "--profile", "--out", str(out)), 60, 20),
        Step("other-tests", (*PYTEST, "-m", "gpu", "tests", *ignored), 120, 30),
    ]


def studies(data: str) -> list[Step]:
    """Return the trainings of the studies on the images in `data` that are not done, each going on where it ended.

    They stay in `runs/`, which is not in git: keep the machine's ignored files from call to call. `bench.keep` takes
    their tables.
    """
    found = []
    for kind in ("shallow", "parts", "channels"):
        _, *words, _ = study.COMMANDS[kind].split()
        kept = ("--seeds", "3", "--out", RUNS.format(kind=kind), "--resume", "auto")
        if not any(ROOT.glob(f"{RUNS.format(kind=kind)}/*/*/report.html")):
            found.append(Step(f"study-{kind}", (*words, data, *kept), 590, 60))
    return found


def report() -> Step:
    """Return the last step, which draws the pages of this GPU's results; the others leave it the time."""
    return Step("report", ("-m", "bench.report", str(record.results_path("cuda"))), 40, 5)


def bench(op: str) -> tuple[str, ...]:
    """Return the command that measures an op, or the like: one process each, so that a fault leaves others alone."""
    return (*PYTEST, f"bench/test_{op}.py", "--benchmark-only")


def main(arguments: list[str] | None = None) -> int:
    """Run the steps that fit; return 0 if all that were run passed, 1 if not, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.partition(":")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for logs, traces and copies of results")
    parser.add_argument("--seconds", type=float, default=540, help="for all steps together (default 540)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the steps that have TEXT in their names")
    parser.add_argument(
        "--data", metavar="DIR", help="mini50: also train the studies of docs/flagship.md, the last steps"
    )
    parser.add_argument("--profile", action="store_true", help="only trace a few shapes into DIR")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench.gpu needs a CUDA device, and torch finds none", file=sys.stderr)
        return 2
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if options.profile:
        profile(out)
        return 0
    end = time.monotonic() + options.seconds
    outcomes = []
    last = report()
    trained = studies(str(Path(options.data).resolve())) if options.data else []
    for step in (step for step in [*steps(out), *trained, last] if options.only in step.name):
        left = end - time.monotonic() - (0 if step is last else last.most)
        outcomes.append((step.name, *(run(step, left, out) if left >= step.least else (NO_TIME, 0.0))))
        keep(out / step.name)
        print("{}: {} ({:.0f} s)".format(*outcomes[-1]), flush=True)
    show()
    print("\n{:23} {:>7}  {}".format("step", "seconds", "outcome"))
    for name, outcome, taken in outcomes:
        print(f"{name:23} {taken:7.0f}  {outcome}")
    return int(any(outcome not in ("passed", NO_TIME) for _, outcome, _ in outcomes))


def run(step: Step, left: float, out: Path) -> tuple[str, float]:
    """Run a step into its log in `out`; return how it ended and the seconds it took."""
    limit = min(step.most, left)
    arguments = [*step.arguments, *(("--seconds", str(limit * 0.8)) if step.name == "tune" else ())]
    start = time.monotonic()
    with (out / f"{step.name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
            outcome = "passed" if status == 0 else f"failed: status {status}"
        except subprocess.TimeoutExpired:
            outcome = f"stopped after {limit:.0f} s"
            _stop(process)
    return (
        f"{outcome}; {_last_line(out / f'{step.name}.log')}" if outcome != "passed" else outcome,
        time.monotonic() - start,
    )


def show() -> None:
    """Print the tables of this GPU, also where the step that measured was cut off."""
    path = record.results_path("cuda")
    if path.exists():
        for op, section in json.loads(path.read_text(encoding="utf-8")).items():
            print(f"\n{op}\n{tables.text(op, section, 140)}")


def keep(out: Path) -> None:
    """Copy the results, their pages and the configs as a step leaves them: a later one writes the same files."""
    for pattern in KEPT:
        for path in ROOT.glob(pattern.format(gpu=record.results_path("cuda").stem)):
            target = out / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)


def profile(out: Path) -> None:
    """Write a trace, of backward too where there is one, and a table of the kernels for the shapes each op names."""
    from bench.measure import finished

    activities = (torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA)
    for op in tables.OPS:
        for name, parts in import_module(f"bench.test_{op}").profiled().items():
            finished(parts)
            with torch.profiler.profile(activities=activities, record_shapes=True) as trace:
                for _ in range(5):
                    finished(parts)
            trace.export_chrome_trace(str(out / f"{op}_{name}.trace.json".replace(" ", "_")))
            kernels = trace.key_averages().table(sort_by="self_device_time_total", row_limit=20)
            print(f"{op} {name}", kernels, sep="\n", flush=True)


def _stop(process: subprocess.Popen) -> None:
    """End a step and what it started."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip()[:100] for line in reversed(lines) if line.strip()), "no output")


if __name__ == "__main__":
    sys.exit(main())
