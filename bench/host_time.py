"""Host time of a call on maps so small that a GPU waits for the host: `python -m bench.host_time`."""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench.measuring import record
from bench.report.markdown import document, grid, wrapped
from bench.report.targets import HOST_US
from polychrome import kernels
from polychrome.engine.report.tables import Table
from polychrome.kernels.backend import is_interpreted
from polychrome.kernels.launch import record_launches

PAGE = record.RESULTS / "host_time.md"
RESULTS = PAGE.with_suffix("") / "times.json"
# A time is the median of ROUNDS means over CALLS calls, after FIRST warm-up calls.
ROUNDS, CALLS, FIRST = 15, 200, 20
WAYS = {
    "inference": "Forward, no gradients recorded",
    "forward": "Forward, gradients recorded",
    "both": "Forward and backward",
}
BATCH, CHANNELS, EXPERTS = 4, 8, 4


class Case(NamedTuple):
    """A timed call, of sizes so small that torch on the host computes it in negligible time."""

    op: str
    form: str
    function: Callable
    leaves: list[Tensor]
    options: dict


def main(arguments: list[str] | None = None) -> int:
    """Time all cases and write the page, or with --json the rows only; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.host_time", description=__doc__.partition(":")[0])
    parser.add_argument("--as", dest="name", default="now", metavar="NAME", help="the section's name (default now)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the times to FILE, and no page")
    options = parser.parse_args(arguments)
    if is_interpreted():
        print("bench.host_time launches compiled kernels: unset TRITON_INTERPRET", file=sys.stderr)
        return 2
    stands_in = not torch.cuda.is_available()
    if stands_in:
        from bench.stand_in import cuda

        cuda.install()
    torch.set_num_threads(1)
    rows = [_row(case) for case in cases()]
    about = record.circumstances("cpu" if stands_in else "cuda", packages=())
    about = {name: about[name] for name in ("device", "versions", "date", "commit")}
    section = about | {"stand_in": stands_in, "rows": rows}
    if options.json:
        record.replace(options.json, section)
        return 0
    record.add(RESULTS, options.name, section)
    write()
    print(PAGE)
    return 0


def cases() -> list[Case]:
    """Return a call of every form of every op that has gradients, and an empty call."""
    size, wide = (BATCH, CHANNELS, 10, 10), (BATCH, CHANNELS, 28, 28)
    per_sample = _leaves(size, (BATCH, CHANNELS, CHANNELS, 3, 3))
    layers = _leaves(size, (2, CHANNELS), (2,), (CHANNELS, 2), (CHANNELS,))
    return [
        _dynamic("weights mixed", size),
        _dynamic("stacked", (BATCH, CHANNELS, 5, 5), experts=2),
        _dynamic("depthwise", wide, groups=CHANNELS),
        _dynamic("1x1", size, side=1),
        Case("per_sample_conv2d", "3x3", kernels.per_sample_conv2d, per_sample, {"padding": 1}),
        Case("spatial_attention", "7x7", kernels.spatial_attention, _leaves(size, (1, 2, 7, 7)), {}),
        Case("spatial_gate", "", kernels.spatial_gate, _leaves(size, (BATCH, 1, 10, 10)), {}),
        Case("channel_stats", "", kernels.channel_stats, _leaves(size), {}),
        Case("channel_gate", "two layers", kernels.channel_gate, layers, {}),
        Case("none", "an `autograd.Function` of three tensors", Nothing.apply, _leaves(size, size, size), {}),
    ]


class Nothing(torch.autograd.Function):
    """An autograd node without work: its time is torch's overhead."""

    @staticmethod
    def forward(ctx, x: Tensor, *others: Tensor) -> Tensor:
        ctx.save_for_backward(x, *others)
        return x.detach()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(grad for _ in ctx.saved_tensors)


def _dynamic(form: str, size: tuple[int, ...], side: int = 3, groups: int = 1, experts: int = EXPERTS) -> Case:
    leaves = _leaves(size, (experts, CHANNELS, CHANNELS // groups, side, side), (BATCH, experts))
    return Case("dynamic_conv2d", form, kernels.dynamic_conv2d, leaves, {"padding": side // 2, "groups": groups})


def _leaves(size: tuple[int, ...], *others: tuple[int, ...]) -> list[Tensor]:
    made = [torch.randn(shape, device="cuda").to(torch.bfloat16) for shape in (size, *others)]
    made[0] = made[0].contiguous(memory_format=torch.channels_last)
    return [each.requires_grad_() for each in made]


def _row(case: Case) -> dict:
    def forward() -> Tensor:
        return case.function(*case.leaves, **case.options)

    grad = torch.ones_like(forward())

    def both() -> None:
        torch.autograd.grad(forward(), case.leaves, grad)

    with record_launches() as launches:
        forward()
    of_forward = len(launches)
    with record_launches() as launches:
        both()
    with torch.no_grad():
        plain = _microseconds(forward)
    spent = (plain, _microseconds(forward), _microseconds(both))
    return {
        "op": case.op,
        "form": case.form,
        "launches": [of_forward, len(launches)],
        "us": {way: round(us, 1) for way, us in zip(WAYS, spent, strict=True)},
    }


def _microseconds(call: Callable) -> float:
    for _ in range(FIRST):
        call()
    means = []
    gc.disable()
    try:
        for _ in range(ROUNDS):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            means.append((time.perf_counter() - start) / CALLS * 1e6)
    finally:
        gc.enable()
    return statistics.median(means)


def write(results: Path = RESULTS, page: Path = PAGE) -> None:
    """Write the page of a results file: a column for each section, the newest last."""
    sections = record.read(results)
    newest = list(sections.values())[-1]
    blocks = ["# Host time", *map(wrapped, _words(sections))]
    columns = ("op", "form", "launches", *(f"{name}, us" for name in sections), "asked")
    for way, title in WAYS.items():
        rows = [_cells(row, way, sections, HOST_US.get(way)) for row in newest["rows"]]
        blocks += [f"## {title}", grid(Table(way, columns, rows, left=2))]
    page.write_text(document(*blocks), encoding="utf-8")


def _cells(row: dict, way: str, sections: dict[str, dict], asked: float | None) -> tuple[str, ...]:
    found = record.alike(row, sections, ("op", "form"))
    cells = ["-" if each is None else f"{each['us'][way]:.0f}" for each in found]
    launches = row["launches"][way == "both"]
    return row["op"], row["form"], str(launches), *cells, f"{asked:g}" if asked and launches else "-"


def _words(sections: dict[str, dict]) -> list[str]:
    made = "; ".join(
        f"`{name}` of {each['date']}, commit {each['commit']}, on {each['device']} (torch {each['versions']['torch']}, "
        f"triton {each['versions']['triton']}, Python {each['versions']['python']})"
        for name, each in sections.items()
    )
    found = [
        f"Microseconds in which the host issues a call, written by `python -m bench.host_time`: {made}. Each is the "
        f"median of {ROUNDS} means over {CALLS} calls outside torch.compile, in bfloat16 channels_last with "
        f"{CHANNELS} channels and a batch of {BATCH}."
    ]
    stood_in = [f"`{name}`" for name, each in sections.items() if each["stand_in"]]
    if stood_in:
        found.append(
            f"Measured without a GPU ({', '.join(stood_in)}): Triton's JIT has a driver whose launches do nothing, so "
            "that the figures are what comes on top of the launches themselves. Two things that a GPU does not have "
            "are in them: what torch computes beside our kernels is computed on the host (14 us for each of the three "
            "matrix products of 1x1, one of them forward; 2 us for a copy of the experts), and a tensor that says "
            "that it is on a GPU takes 0.2 us for it, an allocation there 0.7, by a detour through Python."
        )
    return found


if __name__ == "__main__":
    from bench import host_time  # the importable module, not its copy `__main__`

    sys.exit(host_time.main())
