"""Tables of the results in `bench/results`: `python -m bench.tables` rewrites those in README.md."""

import argparse
import io
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench import lines

ROOT = Path(__file__).resolve().parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "bench" / "results"
Entry = lines.Entry


class Columns(NamedTuple):
    """The columns of an op's tables after the shape, each a function from entry to cell, and what they mean."""

    cells: dict[str, Callable[[Entry], str]]
    legend: str


VERDICTS = {True: "pass", False: "miss", None: "not measured yet"}


def rows(op: str, entries: dict[str, Entry]) -> list[list[str]]:
    """Return the cells of one row per entry, under `headings(op)`."""
    return [[_name(key, entry), *(cell(entry) for cell in OPS[op].cells.values())] for key, entry in entries.items()]


def headings(op: str) -> list[str]:
    """Return the headings of an op's tables."""
    return ["shape", *OPS[op].cells]


def tables_of(section: dict) -> list[dict[str, Entry]]:
    """Return the entries of each table: one for each dtype and layout, in the order they were measured."""
    found: dict[tuple[str, str], dict[str, Entry]] = {}
    for key, entry in section["shapes"].items():
        found.setdefault((entry["dtype"], entry["layout"]), {})[key] = entry
    return list(found.values())


def text(op: str, section: dict, width: int) -> str:
    """Return a section as tables for a terminal of `width` columns."""
    console = Console(file=io.StringIO(), width=width)
    for entries in tables_of(section):
        table = Table(*headings(op), box=None, padding=(0, 1, 0, 0), title=Text(_title(entries)))
        table.title_justify = "left"
        for column, heading in zip(table.columns, headings(op), strict=True):
            column.justify = "left" if heading in ("shape", "which") else "right"
            column.no_wrap = heading != "shape"
            column.header_style = "none"
            column.min_width = max(len(word) for word in heading.split())
            column.header = heading.replace(" ", "\n")
        for row in rows(op, entries):
            table.add_row(*map(Text, row))
        console.print(table)
        console.print()
    console.print(Text(f"{OPS[op].legend} {_skipped(section)}"))
    console.print()
    for line in lines.lines(op, section["shapes"], section["kind"] == "cuda"):
        console.print(Text(f"{VERDICTS[line.met].upper() if line.met is not None else '-':5}{line.demand}"))
        console.print(Text(f"     {line.measured}"))
    return "\n".join(part.rstrip() for part in console.file.getvalue().splitlines())


def markdown(op: str, results: Path = RESULTS) -> str:
    """Return an op's tables in Markdown, the GPUs' first; a GPU that nothing was measured on is said to be missing."""
    sections = [_load(path).get(op) for path in sorted(results.glob("*.json"))]
    sections = sorted(filter(None, sections), key=lambda section: (section["kind"] == "cpu", section["device"]))
    parts = [_section_markdown(op, section) for section in sections]
    if not any(section["kind"] == "cuda" for section in sections):
        parts.insert(0, "GPU: not measured yet.")
    return "\n\n".join(parts)


def rewritten(readme: str, results: Path = RESULTS) -> str:
    """Return the text of README.md with the tables of `results` between its markers.

    Raises:
        ValueError: a marker is missing.
    """
    for op in OPS:
        opening, closing = f"<!-- bench:{op} -->", f"<!-- /bench:{op} -->"
        before, found, rest = readme.partition(opening)
        _, closed, after = rest.partition(closing)
        if not (found and closed):
            raise ValueError(f"the markers {opening} and {closing} are missing")
        readme = f"{before}{opening}\n{markdown(op, results)}\n{closing}{after}"
    return readme


def main(arguments: list[str] | None = None, readme: Path = README, results: Path = RESULTS) -> int:
    """Rewrite README.md, or with --check only say whether it is current; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description="rewrite the tables in README.md")
    parser.add_argument("--check", action="store_true", help="exit with 1 where README.md is not current")
    check = parser.parse_args(arguments).check
    old = readme.read_text(encoding="utf-8")
    try:
        new = rewritten(old, results)
    except ValueError as error:
        print(f"{readme.name}: {error}", file=sys.stderr)
        return 1
    if check and new != old:
        print(f"{readme.name} is not current: run python -m bench.tables", file=sys.stderr)
        return 1
    if new != old:
        readme.write_text(new, encoding="utf-8")
    return 0


def _name(key: str, entry: Entry) -> str:
    """Return what of an entry's key the title of its table does not say."""
    return key.removeprefix(f"{entry['dtype']} ").removeprefix(f"{entry['layout']} ")


def _ours(part: str) -> Callable[[Entry], str]:
    return lambda entry: _three_digits(entry["ms"]["ours"][part])


def _over(name: str) -> Callable[[Entry], str]:
    return lambda entry: _ratio(lines.speedup(entry, name))


def _share(direction: str) -> Callable[[Entry], str]:
    return lambda entry: f"{100 * lines.share_of_bound(entry, direction):.0f}"


def _memory(usual: str) -> Callable[[Entry], str]:
    return lambda entry: _ratio(lines.extra_memory(entry, usual))


def _best(entry: Entry) -> str:
    return _ratio(lines.best_baseline(entry)[1])


def _which(entry: Entry) -> str:
    return lines.best_baseline(entry)[0].replace(" fp32", "32").removesuffix(" no graphs")


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}" if value >= 1 else f"{value:.3f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _title(entries: dict[str, Entry]) -> str:
    """Return dtype, layout, the usual batch where entries name theirs apart from the shape, and the number of runs."""
    chosen = list(entries.values())
    runs = sorted({entry["runs"] for entry in chosen})
    counted = f"{runs[0]}" if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
    batches = [entry["batch"] for entry in chosen if "batch" in entry]
    batch = f", batch {max(set(batches), key=batches.count)}" if batches else ""
    return f"{chosen[0]['dtype']} {chosen[0]['layout']}{batch}, medians of {counted} runs"


def _skipped(section: dict) -> str:
    """Return which baselines were left out, at how many shapes and why."""
    entries = section["shapes"].values()
    measured = {name for entry in entries for name in entry["ms"]}
    counts = Counter((reason, name) for entry in entries for name, reason in entry["skipped"].items())
    names: dict[str, list[str]] = {}
    for (reason, name), count in counts.items():
        names.setdefault(reason, []).append(f"{name} at {count} shapes" if name in measured else name)
    return f"Not run: {'; '.join(f'{_list(each)} ({reason})' for reason, each in names.items())}." if names else ""


def _list(words: list[str]) -> str:
    return ", ".join(words)


def _section_markdown(op: str, section: dict) -> str:
    versions = _list([f"{name} {number}" for name, number in section["versions"].items() if number])
    ceilings = _list([f"{value:g} {name}" for name, value in section["ceilings"].items()])
    stamp = f"{section['date']}, commit {section['commit']}"
    parts = [_wrapped(f"**{section['device']}**; {versions}; {stamp}; ceilings measured in the same run: {ceilings}.")]
    for entries in tables_of(section):
        parts += [f"{_title(entries)}:", _grid(headings(op), rows(op, entries))]
    parts.append(_wrapped(f"{OPS[op].legend} {_skipped(section)}"))
    held = lines.lines(op, section["shapes"], section["kind"] == "cuda")
    demands = [[line.demand, line.measured, VERDICTS[line.met]] for line in held]
    parts.append(_grid(("line", "measured", "verdict"), demands))
    return "\n\n".join(parts)


def _wrapped(paragraph: str) -> str:
    return textwrap.fill(paragraph, 120, break_long_words=False, break_on_hyphens=False)


def _grid(headings, cells: list[list[str]]) -> str:
    words = {"shape", "which", "line", "measured", "verdict"}
    rule = "|".join("---" if heading in words else "---:" for heading in headings)
    return "\n".join([f"| {' | '.join(headings)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in cells)])


def _load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


_TIMES = {"fwd ms": _ours("forward"), "bwd ms": _ours("backward"), "both ms": _ours("both")}
_SHARES = {"% fwd": _share("forward"), "% bwd": _share("backward")}
_MEMORY_BOUND = Columns(
    {
        **_TIMES,
        "eager": _over("eager"),
        "compiled": lambda entry: _ratio(lines.compiled_speedup(entry)),
        "best": _best,
        "which": _which,
        **_SHARES,
        "memory": _memory("eager"),
    },
    "shape: batch x channels x height x width. ms: ours. eager (the definition), compiled (torch.compile with "
    "max-autotune, the faster with CUDA graphs or without), best (which): their time over ours, forward + backward. "
    "% fwd, % bwd: the least possible time over ours. memory: ours over eager's, beyond inputs and results.",
)
OPS = {
    "dynamic_conv": Columns(
        {
            **_TIMES,
            "naive fp32": _over("naive fp32"),
            "naive": _over("naive"),
            "best": _best,
            "which": _which,
            "static": lambda entry: _ratio(lines.to_static(entry)),
            **_SHARES,
            "memory": _memory("naive"),
        },
        "ms: ours. naive fp32, naive, best (which): their time over ours, forward + backward. static: our time over a "
        "plain convolution's. % fwd, % bwd: the least possible time over ours. memory: ours over naive's, beyond "
        "inputs and results.",
    ),
    "spatial_attention": _MEMORY_BOUND,
    "channel_gate": _MEMORY_BOUND._replace(
        legend="hidden N: two layers with biases; single: one layer without. " + _MEMORY_BOUND.legend
    ),
    "augment": Columns(
        {
            "ms": _ours("forward"),
            "images/s": lambda entry: f"{lines.images_per_second(entry):,.0f}",
            **{name: _over(name) for name in ("eager", "torchvision", "workers", "dali")},
            "% bound": _share("forward"),
        },
        "shape: batch x height x width x channels of the uint8 images, and the side of the output; random resized "
        "crop, flip and normalisation; whole: also rotation, brightness, contrast, gamma, grayscale, cutout and "
        "channel subsets. ms, images/s: ours. eager (the definition), torchvision (v2 functions on the device, sample "
        "by sample), workers (the same in CPU processes, in steady state), dali (DALI's operators): their time over "
        "ours. % bound: the least possible time over ours.",
    ),
}


if __name__ == "__main__":
    sys.exit(main())
