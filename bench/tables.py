"""Tables of the results in `bench/results`: `python -m bench.tables` rewrites those in README.md and in docs/."""

import argparse
import io
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench import lines, scaling

ROOT = Path(__file__).resolve().parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "bench" / "results"
Entry = lines.Entry


class Columns(NamedTuple):
    """The columns of a section's tables after the `first`, each a function from entry to cell, and what they mean."""

    cells: dict[str, Callable[[Entry], str]]
    legend: str
    first: str = "shape"


# Headings of columns that hold words.
WORDS = {"shape", "model", "source", "start", "processes", "which", "line", "measured", "verdict"}
VERDICTS = {True: "pass", False: "miss", None: "not measured yet"}


def rows(op: str, entries: dict[str, Entry]) -> list[list[str]]:
    """Return the cells of one row per entry, under `headings(op)`."""
    cells = SECTIONS[op].cells.values()
    return [[_name(key, entry), *(cell(entry) for cell in cells)] for key, entry in entries.items()]


def headings(op: str) -> list[str]:
    """Return the headings of an op's tables."""
    return [SECTIONS[op].first, *SECTIONS[op].cells]


def tables_of(section: dict) -> list[dict[str, Entry]]:
    """Return the entries of each table: one for each dtype and layout, in the order they were measured."""
    found: dict[tuple[str, str], dict[str, Entry]] = {}
    for key, entry in section["shapes"].items():
        found.setdefault((entry.get("dtype", ""), entry.get("layout", "")), {})[key] = entry
    return list(found.values())


def text(op: str, section: dict, width: int) -> str:
    """Return a section as tables for a terminal of `width` columns."""
    console = Console(file=io.StringIO(), width=width)
    for entries in tables_of(section):
        table = Table(*headings(op), box=None, padding=(0, 1, 0, 0), title=Text(_title(entries)))
        table.title_justify = "left"
        for column, heading in zip(table.columns, headings(op), strict=True):
            column.justify = "left" if heading in WORDS else "right"
            column.no_wrap = heading != SECTIONS[op].first
            column.header_style = "none"
            column.min_width = max(len(word) for word in heading.split())
            column.header = heading.replace(" ", "\n")
        for row in rows(op, entries):
            table.add_row(*map(Text, row))
        console.print(table)
        console.print()
    console.print(Text(f"{SECTIONS[op].legend} {_skipped(section)}"))
    console.print()
    for line in lines.lines(op, section["shapes"], section["kind"] == "cuda"):
        console.print(Text(f"{VERDICTS[line.met].upper() if line.met is not None else '-':5}{line.demand}"))
        console.print(Text(f"     {line.measured}"))
    return "\n".join(part.rstrip() for part in console.file.getvalue().splitlines())


def markdown(op: str, results: Path = RESULTS) -> str:
    """Return an op's tables in Markdown, the GPUs' first; a GPU that nothing was measured on is said to be missing."""
    if op in scaling.TABLES:
        return scaling.TABLES[op](results)
    sections = [_load(path).get(op) for path in sorted(results.glob("*.json"))]
    sections = sorted(filter(None, sections), key=lambda section: (section["kind"] == "cpu", section["device"]))
    parts = [_section_markdown(op, section) for section in sections]
    if op != ON_CPU and not any(section["kind"] == "cuda" for section in sections):
        parts.insert(0, "GPU: not measured yet.")
    return "\n\n".join(parts) or "Not measured yet."


def rewritten(readme: str, results: Path = RESULTS, names: Iterable[str] | None = None) -> str:
    """Return the text of README.md with the tables of `results` between its markers; `names`: those of other sections.

    Raises:
        ValueError: a marker is missing.
    """
    for op in OPS if names is None else names:
        opening, closing = f"<!-- bench:{op} -->", f"<!-- /bench:{op} -->"
        before, found, rest = readme.partition(opening)
        _, closed, after = rest.partition(closing)
        if not (found and closed):
            raise ValueError(f"the markers {opening} and {closing} are missing")
        readme = f"{before}{opening}\n{markdown(op, results)}\n{closing}{after}"
    return readme


def main(arguments: list[str] | None = None, readme: Path = README, results: Path = RESULTS) -> int:
    """Rewrite the pages, or with --check only say whether they are current; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description="rewrite the tables in the pages")
    parser.add_argument("--check", action="store_true", help="exit with 1 where one is not current")
    check = parser.parse_args(arguments).check
    pages = {readme: tuple(OPS)}
    for name, sections in {"engine.md": ENGINE, "scaling.md": scaling.TABLES}.items():
        if (page := readme.parent / "docs" / name).exists():
            pages[page] = tuple(sections)
    return max([_rewrite(page, names, results, check) for page, names in pages.items()])


def _rewrite(page: Path, names: tuple[str, ...], results: Path, check: bool) -> int:
    old = page.read_text(encoding="utf-8")
    try:
        new = rewritten(old, results, names)
    except ValueError as error:
        print(f"{page.name}: {error}", file=sys.stderr)
        return 1
    if check and new != old:
        print(f"{page.name} is not current: run python -m bench.tables", file=sys.stderr)
        return 1
    if new != old:
        page.write_text(new, encoding="utf-8")
    return 0


def _name(key: str, entry: Entry) -> str:
    """Return what of an entry's key the title of its table does not say."""
    return key.removeprefix(f"{entry.get('dtype')} ").removeprefix(f"{entry.get('layout')} ")


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
    kind = [chosen[0][name] for name in ("dtype", "layout") if name in chosen[0]]
    described = [" ".join(kind) + batch] if kind else []
    return ", ".join([*described, f"medians of {counted} runs"]) if described else f"Medians of {counted} runs"


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
    measured = f"; ceilings measured in the same run: {ceilings}" if ceilings else ""
    parts = [_wrapped(f"**{section['device']}**; {versions}; {stamp}{measured}.")]
    for entries in tables_of(section):
        parts += [f"{_title(entries)}:", _grid(headings(op), rows(op, entries))]
    parts.append(_wrapped(f"{SECTIONS[op].legend} {_skipped(section)}"))
    held = lines.lines(op, section["shapes"], section["kind"] == "cuda")
    demands = [[line.demand, line.measured, VERDICTS[line.met]] for line in held]
    if demands:
        parts.append(_grid(("line", "measured", "verdict"), demands))
    return "\n\n".join(parts)


def _wrapped(paragraph: str) -> str:
    return textwrap.fill(paragraph, 120, break_long_words=False, break_on_hyphens=False)


def _grid(headings, cells: list[list[str]]) -> str:
    rule = "|".join("---" if heading in WORDS else "---:" for heading in headings)
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


def _rate(way: str, part: str) -> Callable[[Entry], str]:
    return lambda entry: _three_digits(lines.rate(entry, way, part))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


ENGINE = {
    "training": Columns(
        {
            "batch": lambda entry: str(entry["batch"]),
            "step img/s": _rate("ours", "step"),
            "reports step": _rate("reports", "step"),
            "ratio step": lambda entry: _ratio(lines.to_reports(entry, "step")),
            "epoch img/s": _rate("ours", "epoch"),
            "reports epoch": _rate("reports", "epoch"),
            "ratio epoch": lambda entry: _ratio(lines.to_reports(entry, "epoch")),
            "% input": lambda entry: _percent(lines.input_share(entry)),
            "% idle": lambda entry: _percent(entry.get("gpu_idle")),
        },
        "Images a second of ours and of the reports' way (float32, eager, NCHW, torchvision in a DataLoader with a "
        "worker per core), an epoch of each in turn. step: from the batch to the new weights; for ours that has crop, "
        "resize and normalisation in it where images are kept on the GPU. epoch: the training part, input and all. "
        "% input: the time that the kept images alone take for a batch, over that of a step. % idle: the share of a "
        "step in which the GPU runs nothing.",
        "model",
    ),
    "input": Columns(
        {
            "images/s": _rate("ours", "both"),
            "to torch": _over("torch"),
            "workers": lambda entry: str(entry["workers"] or "-"),
        },
        "JPEGs of 500x375 pixels, a random crop resized to 256 pixels, mirrored, normalised; nothing else runs. to "
        "torch: the rate over the torch backend's.",
        "source",
    ),
    "start": Columns(
        {"seconds": lambda entry: f"{lines.seconds(entry):.1f}", "images": lambda entry: f"{entry['images']:,}"},
        "Seconds from the start of the process to the first step of its training; the images of all splits are decoded "
        "in the first start and read from the disk cache in the second.",
        "start",
    ),
    "processes": Columns(
        {
            "images/s": _rate("ours", "both"),
            "one process": _rate("one", "both"),
            "ratio": _over("one"),
        },
        "Images a second of resnet34 at 84 pixels, batches of 64, on two cores: by two processes with one thread each "
        "(torchrun, Gloo), and by one process with two threads.",
        "processes",
    ),
}
ON_CPU = "processes"  # the section that is for two cores of a CPU
SECTIONS = OPS | ENGINE


if __name__ == "__main__":
    sys.exit(main())
