"""Tables of the results in `bench/results`, for pages and for a terminal."""

import io
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table as Printed
from rich.text import Text

from bench.report import columns, targets
from bench.report.columns import SECTIONS
from bench.report.metrics import Entry
from polychrome.engine.report.tables import Table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
OPS = columns.OPS
VERDICTS = {True: "pass", False: "miss", None: "not measured yet"}


def rows(op: str, entries: dict[str, Entry]) -> list[list[str]]:
    """Return the cells of one row per entry, under `headings(op)`."""
    cells = SECTIONS[op].cells.values()
    return [[name_in_table(key, entry), *(cell(entry) for cell in cells)] for key, entry in entries.items()]


def headings(op: str) -> list[str]:
    """Return the headings of an op's tables."""
    return [SECTIONS[op].first, *SECTIONS[op].cells]


def entry_groups(section: dict) -> list[dict[str, Entry]]:
    """Return the entries of each table: one table for each series, dtype and layout, in the order of measurement."""
    found: dict[tuple[str, ...], dict[str, Entry]] = {}
    for key, entry in section["shapes"].items():
        found.setdefault(tuple(entry.get(name, "") for name in ("along", "dtype", "layout")), {})[key] = entry
    return list(found.values())


def section_tables(op: str, section: dict) -> list[Table]:
    """Return the tables of a section, titled with dtype, layout and the number of runs."""
    heads = tuple(headings(op))
    return [Table(_title(each), heads, tuple(map(tuple, rows(op, each)))) for each in entry_groups(section)]


def peaks(section: dict) -> list[Table]:
    """Return the tables of peak memory, a column for each implementation with measured memory."""
    found = []
    for entries in entry_groups(section):
        used = {name_in_table(key, entry): entry.get("memory_bytes") or {} for key, entry in entries.items()}
        ways = tuple(dict.fromkeys(way for each in used.values() for way in each))
        cells = (
            (name, *(f"{each[way]['peak'] / 1e6:,.1f}" if way in each else "-" for way in ways))
            for name, each in used.items()
        )
        found.append(Table(f"{kind(entries)}: peak memory above the inputs, MB", ("shape", *ways), tuple(cells)))
    return [table for table in found if len(table.columns) > 1]


def verdicts(op: str, section: dict) -> Table:
    """Return the table of a section's targets, measured values and verdicts."""
    cells = ((each.demand, each.measured, VERDICTS[each.met]) for each in targets.verdicts(op, section))
    return Table("Targets", ("target", "measured", "verdict"), tuple(cells), left=3)


def legend(op: str, section: dict) -> str:
    """Return the meaning of the columns of a section's tables, and the baselines that were not run."""
    return f"{SECTIONS[op].legend} {_skipped(section)}".rstrip()


def text(op: str, section: dict, width: int) -> str:
    """Return a section as tables for a terminal of `width` columns."""
    console = Console(file=io.StringIO(), width=width)
    for each in section_tables(op, section):
        table = Printed(*each.columns, box=None, padding=(0, 1, 0, 0), title=Text(each.title))
        table.title_justify = "left"
        for number, (column, heading) in enumerate(zip(table.columns, each.columns, strict=True)):
            column.justify = "left" if number < each.left else "right"
            column.no_wrap = number > 0
            column.header_style = "none"
            column.min_width = max(len(word) for word in heading.split())
            column.header = heading.replace(" ", "\n")
        for row in each.rows:
            table.add_row(*map(Text, row))
        console.print(table)
        console.print()
    console.print(Text(legend(op, section)))
    console.print()
    for each in targets.verdicts(op, section):
        console.print(Text(f"{'-' if each.met is None else VERDICTS[each.met].upper():5}{each.demand}"))
        console.print(Text(f"     {each.measured}"))
    return "\n".join(part.rstrip() for part in console.file.getvalue().splitlines())


def name_in_table(key: str, entry: Entry) -> str:
    """Return an entry's key without dtype and layout, which the title of its table has."""
    return key.removeprefix(f"{entry.get('dtype')} ").removeprefix(f"{entry.get('layout')} ")


def kind(entries: dict[str, Entry]) -> str:
    """Return the series, dtype and layout that the entries of a table share."""
    first = next(iter(entries.values()))
    words = " ".join(first[name] for name in ("dtype", "layout") if name in first)
    return f"by {first['along']}, {words}" if "along" in first else words


def stamp(section: dict) -> str:
    """Return the versions, date, commit and ceilings of a section."""
    versions = ", ".join(f"{name} {number}" for name, number in section["versions"].items() if number)
    ceilings = ", ".join(f"{value:g} {name}" for name, value in section["ceilings"].items())
    measured = f"; ceilings measured in the same run: {ceilings}" if ceilings else ""
    return f"{versions}; {section['date']}, commit {section['commit']}{measured}."


def _title(entries: dict[str, Entry]) -> str:
    """Return dtype, layout, the usual batch where entries record a batch beside the shape, and the number of runs."""
    chosen = list(entries.values())
    runs = sorted({entry["runs"] for entry in chosen})
    counted = f"{runs[0]}" if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
    batches = [entry["batch"] for entry in chosen if "batch" in entry and entry.get("along") != "batch"]
    batch = f", batch {max(set(batches), key=batches.count)}" if batches else ""
    size = f", {chosen[0]['size']} px" if "size" in chosen[0] else ""
    described = f"{kind(entries)}{batch}{size}" if kind(entries) else ""
    return f"{described}, medians of {counted} runs" if described else f"Medians of {counted} runs"


def _skipped(section: dict) -> str:
    """Return which baselines were left out, at how many shapes and why."""
    entries = section["shapes"].values()
    measured = {name for entry in entries for name in entry["ms"]}
    counts = Counter((reason, name) for entry in entries for name, reason in entry["skipped"].items())
    names: dict[str, list[str]] = {}
    for (reason, name), count in counts.items():
        shapes = f"{count} shape{'s' if count > 1 else ''}"
        names.setdefault(reason, []).append(f"{name} at {shapes}" if name in measured else name)
    told = "; ".join(f"{', '.join(each)} ({reason})" for reason, each in names.items())
    return f"Not run: {told}." if told else ""
