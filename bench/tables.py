"""Tables of the results in `bench/results`: `python -m bench.tables` rewrites those in README.md."""

import argparse
import io
import json
import sys
import textwrap
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench import lines

ROOT = Path(__file__).resolve().parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "bench" / "results"
OPS = ("dynamic_conv",)
HEADINGS = (
    "shape",
    "fwd ms",
    "bwd ms",
    "both ms",
    "naive fp32",
    "naive",
    "best",
    "which",
    "static",
    "% fwd",
    "% bwd",
    "memory",
)
LEGEND = (
    "ms: ours. naive fp32, naive, best (which): their time over ours, forward + backward. static: our time over a "
    "plain convolution's. % fwd, % bwd: the least possible time over ours. memory: ours over naive's, beyond inputs "
    "and results."
)
VERDICTS = {True: "pass", False: "miss", None: "not measured yet"}


def rows(section: dict, dtype: str) -> list[list[str]]:
    """Return the cells of one row per shape of a dtype, under HEADINGS."""
    return [_row(key, entry) for key, entry in section["shapes"].items() if entry["dtype"] == dtype]


def dtypes(section: dict) -> list[str]:
    """Return the dtypes measured, in the order they were."""
    return list(dict.fromkeys(entry["dtype"] for entry in section["shapes"].values()))


def text(section: dict, width: int) -> str:
    """Return a section as tables for a terminal of `width` columns."""
    console = Console(file=io.StringIO(), width=width)
    for dtype in dtypes(section):
        table = Table(*HEADINGS, box=None, padding=(0, 1, 0, 0), title=Text(_title(section, dtype)))
        table.title_justify = "left"
        for column, heading in zip(table.columns, HEADINGS, strict=True):
            column.justify = "left" if heading in ("shape", "which") else "right"
            column.no_wrap = heading != "shape"
            column.header_style = "none"
            column.min_width = max(len(word) for word in heading.split())
            column.header = heading.replace(" ", "\n")
        for row in rows(section, dtype):
            table.add_row(*map(Text, row))
        console.print(table)
        console.print()
    console.print(Text(f"{LEGEND} {_skipped(section)}"))
    console.print()
    for line in lines.lines(section["shapes"], section["kind"] == "cuda"):
        console.print(Text(f"{VERDICTS[line.met].upper() if line.met is not None else '-':5}{line.demand}"))
        console.print(Text(f"     {line.measured}"))
    return "\n".join(part.rstrip() for part in console.file.getvalue().splitlines())


def markdown(op: str, results: Path = RESULTS) -> str:
    """Return an op's tables in Markdown, the GPUs' first; a GPU that nothing was measured on is said to be missing."""
    sections = [_load(path).get(op) for path in sorted(results.glob("*.json"))]
    sections = sorted(filter(None, sections), key=lambda section: (section["kind"] == "cpu", section["device"]))
    parts = [_section_markdown(section) for section in sections]
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


def _row(key: str, entry: dict) -> list[str]:
    ours, (best, ratio) = entry["ms"]["ours"], lines.best_baseline(entry)
    shares = [f"{100 * lines.share_of_bound(entry, direction):.0f}" for direction in ("forward", "backward")]
    memory = lines.extra_memory(entry)
    return [
        key.partition(" ")[2],
        *(_three_digits(ours[name]) for name in ("forward", "backward", "both")),
        *(_ratio(lines.speedup(entry, name)) for name in ("naive fp32", "naive")),
        _ratio(ratio),
        best.replace(" fp32", "32"),
        _ratio(lines.to_static(entry)),
        *shares,
        _ratio(memory),
    ]


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}" if value >= 1 else f"{value:.3f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _title(section: dict, dtype: str) -> str:
    chosen = [entry for entry in section["shapes"].values() if entry["dtype"] == dtype]
    runs = sorted({entry["runs"] for entry in chosen})
    counted = f"{runs[0]}" if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
    batch = max(set(batches := [entry["batch"] for entry in chosen]), key=batches.count)
    return f"{dtype} {chosen[0]['layout']}, batch {batch}, medians of {counted} runs"


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


def _section_markdown(section: dict) -> str:
    versions = _list([f"{name} {number}" for name, number in section["versions"].items() if number])
    ceilings = _list([f"{value:g} {name}" for name, value in section["ceilings"].items()])
    stamp = f"{section['date']}, commit {section['commit']}"
    parts = [_wrapped(f"**{section['device']}**; {versions}; {stamp}; ceilings measured in the same run: {ceilings}.")]
    for dtype in dtypes(section):
        parts += [f"{_title(section, dtype)}:", _grid(HEADINGS, rows(section, dtype))]
    parts.append(_wrapped(f"{LEGEND} {_skipped(section)}"))
    held = lines.lines(section["shapes"], section["kind"] == "cuda")
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


if __name__ == "__main__":
    sys.exit(main())
