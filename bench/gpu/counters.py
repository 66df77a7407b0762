"""Device times of single kernels at every shape, and hardware counters of the kernels in COUNTED.

`python -m bench.gpu.counters --json FILE`. The counters need Nsight Compute (`ncu`).
"""

import argparse
import csv
import io
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch.autograd import DeviceType

from bench.gpu.steps import ROOT
from bench.measuring import record, timing
from bench.measuring.measure import DEVICE, finished, parts_of
from bench.ops import augment as augmentations
from bench.ops import channel_gate as gates
from bench.ops import dynamic_conv as convolutions
from bench.ops import spatial_attention as attentions

RUNS = 5
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "SchedulerStats", "WarpStateStats", "LaunchStats", "Occupancy")
PATIENCE = 60  # seconds for one kernel


class Counted(NamedTuple):
    """A kernel whose counters are read: its launch in a call after `skipped` launches of the same name."""

    call: str
    kernel: str
    skipped: int = 0


COUNTED = (
    Counted("dynamic_conv bfloat16 C256 14x14", "weight_gradient_kernel"),
    Counted("dynamic_conv bfloat16 C64 56x56", "convolution_kernel"),
    Counted("dynamic_conv bfloat16 C512 7x7", "convolution_kernel", 1),
    Counted("spatial_attention bfloat16 channels_last 64x64x128x128", "maps_kernel"),
    Counted("augment bfloat16 channels_last 64x256x256x3 to 224", "augment_flat_kernel"),
)


def main(arguments: list[str] | None = None) -> int:
    """Write the device times of all kernels, then counters; with --run, only make one call for the profiler."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.counters", description=__doc__.partition(":")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", default=Path("counters.json"))
    parser.add_argument("--run", metavar="CALL", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    listed = dict(calls())
    if options.run:
        finished(listed[options.run]())
        return 0
    found: dict[str, dict] = {"kernels": {}, "counters": {}}
    failed = False
    for name, make in listed.items():
        try:
            found["kernels"][name] = kernel_times(make())
        except ValueError as error:
            print(f"{name}: {error}", flush=True)
            failed = True
            continue
        print(name, *(f"\n  {kernel}: {us:.1f} us" for kernel, us in found["kernels"][name]), flush=True)
        record.replace(options.json, found)
    if shutil.which("ncu") is None:
        print("ncu is not on this machine: no counters")
        return int(failed)
    for wanted in COUNTED:
        if wanted.call in listed:
            found["counters"][f"{wanted.call} {wanted.kernel}"] = counters(wanted)
            record.replace(options.json, found)
    return int(failed or any("error" in each for each in found["counters"].values()))


def calls() -> Iterator[tuple[str, Callable[[], timing.Parts]]]:
    """Yield, for every shape of the benchmarks, "op name" and a function that makes the parts of ours."""
    for shape in convolutions.shapes_on(DEVICE):
        yield f"dynamic_conv bfloat16 {shape.name}", partial(_convolution, shape)
    for op, module in (("spatial_attention", attentions), ("channel_gate", gates)):
        for shape in module.shapes_on(DEVICE):
            yield f"{op} {shape.key}", lambda shape=shape, ours=module.ours: parts_of(ours, *shape.data(DEVICE))
    for shape in augmentations.shapes_on(DEVICE):
        yield f"augment {shape.key}", partial(_augmentation, shape)


def kernel_times(parts: timing.Parts) -> list[tuple[str, float]]:
    """Return the kernels of a call in launch order with median microseconds; each run begins with an empty L2 cache."""
    for _ in range(3):  # warm-up; launches are replayed from the third call on
        finished(parts)
    both = (torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=both) as profile:
        for _ in range(RUNS):
            timing.empty_cache()
            torch.cuda.synchronize()
            finished(parts)
    events = [event for event in profile.events() if event.device_type == DeviceType.CUDA]
    return in_order([(event.name, event.time_range.start, event.time_range.elapsed_us()) for event in events])


def in_order(events: list[tuple[str, float, float]]) -> list[tuple[str, float]]:
    """Return `kernel_times` of all runs' events (name, start, microseconds); a run's first event empties the cache.

    Raises:
        ValueError: the runs had not all the same kernels, so the times cannot be assigned.
    """
    events = sorted(events, key=lambda event: event[1])
    each = len(events) // RUNS
    runs = [events[first : first + each] for first in range(0, len(events), each)] if each else []
    if len(events) % RUNS or len({tuple(name for name, _, _ in run) for run in runs}) > 1:
        raise ValueError(f"the {RUNS} runs of a call had not the same kernels: {len(events)} in all")
    runs = [run[1:] for run in runs]
    return [
        (kernels[0][0][:80], round(statistics.median(us for _, _, us in kernels), 2))
        for kernels in zip(*runs, strict=True)
    ]


def counters(wanted: Counted) -> dict:
    """Return Nsight Compute's metrics of one kernel by section and name, or its output as "error"."""
    command = ["ncu", "--clock-control", "none", "--csv", "--page", "details", "--print-units", "base"]
    command += [word for section in SECTIONS for word in ("--section", section)]
    command += [
        "--kernel-name",
        f"regex:^{wanted.kernel}$",
        "--launch-skip",
        str(wanted.skipped),
        "--launch-count",
        "1",
    ]
    command += [sys.executable, "-m", "bench.gpu.counters", "--run", wanted.call]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return {"error": f"ncu took more than {PATIENCE} s"}
    found = parsed(done.stdout)
    return found or {"error": (done.stdout + done.stderr).strip()[-500:]}


def parsed(output: str) -> dict[str, str]:
    """Return the metrics of ncu's CSV, `section: name [unit]` to value; the program's own output is skipped."""
    lines = output.splitlines()
    first = next((index for index, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        return {}
    rows = csv.DictReader(io.StringIO("\n".join(lines[first:])))
    return {
        f"{row['Section Name']}: {row['Metric Name']} [{row['Metric Unit']}]": row["Metric Value"]
        for row in rows
        if row.get("Metric Name")
    }


def _convolution(shape: convolutions.Shape) -> timing.Parts:
    data = convolutions.data_of(shape, torch.bfloat16, DEVICE)
    return parts_of(convolutions.ours, data.leaves, data.grad, *shape.geometry)


def _augmentation(shape: augmentations.Shape) -> timing.Parts:
    forward = augmentations.ours(shape.call(DEVICE))
    return (lambda _: forward(),)


if __name__ == "__main__":
    from bench.gpu import counters  # the importable module, not its copy `__main__`

    sys.exit(counters.main())
