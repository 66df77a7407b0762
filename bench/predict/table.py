"""The predictions as a page: bench/results/predicted.md, from predicted/times.json."""

from math import fsum
from pathlib import Path

from bench.machine import H200, Machine
from bench.measuring import record
from bench.report.markdown import bullets, document, grid, wrapped
from polychrome.engine.report.tables import Table

PAGE = Path(__file__).resolve().parents[1] / "results" / "predicted.md"
RESULTS = PAGE.with_suffix("") / "times.json"
# The most launches named in a row.
NAMED = 3


def us_of(row: dict) -> float:
    """Return the microseconds of a pass."""
    return fsum(launch["us"] for launch in row["launches"])


def share_of(row: dict) -> float:
    """Return the bound of a pass over its time."""
    return row["bound_us"] / us_of(row)


def most_of(row: dict) -> str:
    """Return the longest launches of a pass, each with its limit."""
    parts: dict[str, list[float]] = {}
    for launch in row["launches"]:
        parts.setdefault(f"{launch['kernel'].removesuffix('_kernel')} ({launch['limit']})", []).append(launch["us"])
    most = sorted(parts.items(), key=lambda part: -fsum(part[1]))[:NAMED]
    return ", ".join(f"{name}{f' x{len(us)}' if len(us) > 1 else ''} {fsum(us):.1f}" for name, us in most)


def line(row: dict) -> str:
    """Return a pass as a line of text."""
    found = f"{us_of(row):.1f} us, {share_of(row):.0%} of the bound"
    return f"{row['op']} {row['shape']}, {row['pass']}: {found}: {most_of(row)}"


def write(results: Path = RESULTS, page: Path = PAGE) -> None:
    """Write the page of a results file, whose sections are columns: predicted, the newest last, then measured."""
    sections = dict(sorted(record.read(results).items(), key=lambda section: section[1].get("measured", False)))
    newest = [section for section in sections.values() if not section.get("measured")][-1]
    blocks = ["# Predicted times", *_words(sections)]
    columns = ("shape", "pass", "bound", *(f"{name}, us" for name in sections), "share of the bound", "most of it")
    for op in dict.fromkeys(row["op"] for row in newest["rows"]):
        rows = [_cells(row, sections) for row in newest["rows"] if row["op"] == op]
        blocks += [f"## {op}", grid(Table(op, columns, rows, left=2))]
    page.write_text(document(*blocks), encoding="utf-8")


def _cells(row: dict, sections: dict[str, dict]) -> tuple[str, ...]:
    found = record.alike(row, sections, ("op", "shape", "pass"))
    cells = ["-" if each is None else f"{us_of(each):.1f}" for each in found]
    return row["shape"], row["pass"], f"{row['bound_us']:.1f}", *cells, f"{share_of(row):.0%}", most_of(row)


def _words(sections: dict[str, dict], machine: Machine = H200) -> list[str]:
    made = "; ".join(
        f"`{name}` of {section['date']} (commit {section['commit']}, triton {section['versions']['triton']})"
        for name, section in sections.items()
    )
    before = [
        f"Predicted for one {machine.name} without one, in bfloat16, by `python -m bench.predict`. {made}.",
        *(_compared(section) for section in sections.values() if section.get("measured")),
        "Each kernel of ours is compiled for sm_90 by Triton's JIT as a GPU run would have it; its instructions are "
        "counted in the machine code, each as often as its loop or branch runs in a trace of up to 16 programs by "
        "Triton's interpreter, which also gives the bytes of each load and store. The time of a launch is the largest "
        f"of five, and {machine.launch_us} us for the launch:",
    ]
    limits = [
        f"matrix: products, at {machine.matrix_flops:,} FLOPs a clock and multiprocessor ({machine.multiprocessors}, "
        f"{machine.hertz / 1e9} GHz);",
        f"issue: instructions, on {machine.issue_slots} slots, of the multiprocessor with the most blocks, as many "
        f"at a time as fit, each warp one every {machine.warp_clocks} clocks at best;",
        f"shared: bytes of L1 and shared memory that loads, stores, copies and the operands of products move, at "
        f"{machine.shared:.0f} a clock;",
        f"l2: bytes through the L2 cache, at {machine.l2} a clock and multiprocessor over all and "
        f"{machine.l2_port:.0f} into one;",
        f"memory: bytes of device memory, at {machine.memory / 1e12} TB/s, without tensors that half the L2 cache "
        "holds from an earlier launch of the pass.",
    ]
    after = [
        "Kernels of torch's own (`torch`) are taken to reach these rates. The bound has the least bytes of any way at "
        f"the last, or the FLOPs at {machine.products / 1e12:.0f} TFLOP/s.",
        f"The rates are makers' figures, but the {machine.l2} bytes (all multiprocessors of an H200 read 16 to 32 MiB "
        f"at 8.3 TB/s), the {machine.launch_us} us and the {machine.warp_clocks} clocks (which a count by hand of the "
        "weight gradient at C64 gave). They hold for no other GPU, and ratios between two rows are worth more than "
        "either.",
    ]
    return [*map(wrapped, before), bullets(limits), *map(wrapped, after)]


def _compared(section: dict) -> str:
    return (
        f"The column of an {section['device']} was measured: the sum of a pass's kernels, torch's among them, medians "
        "with the L2 cache empty before the call, without the time between kernels. The model knows no waiting: where "
        "few loads are on their way, a kernel takes longer than the largest of the five."
    )
