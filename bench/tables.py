"""Tables of the results in `bench/results`: `python -m bench.tables` rewrites those in README.md and in docs/."""

import argparse
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table as Printed
from rich.text import Text

from bench import columns, goals, headline, scaling, study
from bench.columns import ENGINE, ON_CPU, SECTIONS
from bench.lines import Entry
from bench.markdown import grid, wrapped
from polychrome.engine.report.tables import Table

ROOT = Path(__file__).resolve().parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "bench" / "results"
OPS = columns.OPS
VERDICTS = {True: "pass", False: "miss", None: "not measured yet"}
# The markers in each page, by its place beside the README.
PAGES = {
    "README.md": ("headline", "shallow", "channels", *columns.COMMANDS),
    "docs/engine.md": tuple(ENGINE),
    "docs/flagship.md": ("goals", *study.TABLES),
    "docs/fuse.md": tuple(columns.FUSE),
    "docs/scaling.md": tuple(scaling.TABLES),
}


def rows(op: str, entries: dict[str, Entry]) -> list[list[str]]:
    """Return the cells of one row per entry, under `headings(op)`."""
    cells = SECTIONS[op].cells.values()
    return [[name_in_table(key, entry), *(cell(entry) for cell in cells)] for key, entry in entries.items()]


def headings(op: str) -> list[str]:
    """Return the headings of an op's tables."""
    return [SECTIONS[op].first, *SECTIONS[op].cells]


def tables_of(section: dict) -> list[dict[str, Entry]]:
    """Return the entries of each table: one for each series, dtype and layout, in the order they were measured."""
    found: dict[tuple[str, ...], dict[str, Entry]] = {}
    for key, entry in section["shapes"].items():
        found.setdefault(tuple(entry.get(name, "") for name in ("along", "dtype", "layout")), {})[key] = entry
    return list(found.values())


def drawn(op: str, section: dict) -> list[Table]:
    """Return the tables of a section, titled with what its entries share and the number of runs."""
    heads = tuple(headings(op))
    return [Table(_title(each), heads, tuple(map(tuple, rows(op, each)))) for each in tables_of(section)]


def peaks(section: dict) -> list[Table]:
    """Return the tables of the peak memory of every way, as far as it was measured."""
    found = []
    for entries in tables_of(section):
        used = {name_in_table(key, entry): entry.get("memory_bytes") or {} for key, entry in entries.items()}
        ways = tuple(dict.fromkeys(way for each in used.values() for way in each))
        cells = (
            (name, *(f"{each[way]['peak'] / 1e6:,.1f}" if way in each else "-" for way in ways))
            for name, each in used.items()
        )
        found.append(Table(f"{kind(entries)}: peak memory above the inputs, MB", ("shape", *ways), tuple(cells)))
    return [table for table in found if len(table.columns) > 1]


def verdicts(op: str, section: dict) -> Table:
    """Return the lines that a section is held against, what was measured, and whether they are met."""
    held = headline.verdicts(op, section)
    cells = tuple((line.demand, line.measured, VERDICTS[line.met]) for line in held)
    return Table("Lines", ("line", "measured", "verdict"), cells, left=3)


def legend(op: str, section: dict) -> str:
    """Return what the columns of a section's tables mean, and which ways were not run."""
    return f"{SECTIONS[op].legend} {_skipped(section)}".rstrip()


def text(op: str, section: dict, width: int) -> str:
    """Return a section as tables for a terminal of `width` columns."""
    console = Console(file=io.StringIO(), width=width)
    for each in drawn(op, section):
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
    for line in headline.verdicts(op, section):
        console.print(Text(f"{VERDICTS[line.met].upper() if line.met is not None else '-':5}{line.demand}"))
        console.print(Text(f"     {line.measured}"))
    return "\n".join(part.rstrip() for part in console.file.getvalue().splitlines())


def markdown(name: str, results: Path = RESULTS) -> str:
    """Return what stands between a marker of this name in Markdown, the GPUs' first, as far as it was measured."""
    if name in (made := scaling.TABLES | study.TABLES | {"goals": goals.goals}):
        return made[name](results)
    devices = _devices(results)
    parts = [
        _section_markdown(name, sections[name]) if name in SECTIONS else _headline_markdown(path, sections)
        for path, sections in devices.items()
        if name in sections or name == "headline"
    ]
    kinds = {section["kind"] for each in devices.values() for key, section in each.items() if name in (key, "headline")}
    if name != ON_CPU and "cuda" not in kinds:
        parts.insert(0, "GPU: not measured yet.")
    if name == "headline":
        parts += _picture(devices)
    return "\n\n".join(parts) or "Not measured yet."


def rewritten(page: str, names: Iterable[str], results: Path = RESULTS) -> str:
    """Return the text of a page with the tables of `results` between the markers of these names.

    Raises:
        ValueError: a marker is missing.
    """
    for name in names:
        opening, closing = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
        before, found, rest = page.partition(opening)
        _, closed, after = rest.partition(closing)
        if not (found and closed):
            raise ValueError(f"the markers {opening} and {closing} are missing")
        page = f"{before}{opening}\n{markdown(name, results)}\n{closing}{after}"
    return page


def main(arguments: list[str] | None = None, readme: Path = README, results: Path = RESULTS) -> int:
    """Rewrite the pages, or with --check only say whether they are current; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description="rewrite the tables in the pages")
    parser.add_argument("--check", action="store_true", help="exit with 1 where one is not current")
    check = parser.parse_args(arguments).check
    pages = {readme.parent / place: names for place, names in PAGES.items()}
    return max(_rewrite(page, names, results, check) for page, names in pages.items() if page.exists())


def name_in_table(key: str, entry: Entry) -> str:
    """Return what of an entry's key the title of its table does not say."""
    return key.removeprefix(f"{entry.get('dtype')} ").removeprefix(f"{entry.get('layout')} ")


def kind(entries: dict[str, Entry]) -> str:
    """Return what the entries of a table share: the series, dtype and layout."""
    first = next(iter(entries.values()))
    words = " ".join(first[name] for name in ("dtype", "layout") if name in first)
    return f"by {first['along']}, {words}" if "along" in first else words


def stamp(section: dict) -> str:
    """Return the versions, date, commit and ceilings of a section."""
    versions = ", ".join(f"{name} {number}" for name, number in section["versions"].items() if number)
    ceilings = ", ".join(f"{value:g} {name}" for name, value in section["ceilings"].items())
    measured = f"; ceilings measured in the same run: {ceilings}" if ceilings else ""
    return f"{versions}; {section['date']}, commit {section['commit']}{measured}."


def _rewrite(page: Path, names: tuple[str, ...], results: Path, check: bool) -> int:
    old = page.read_text(encoding="utf-8")
    try:
        new = rewritten(old, names, results)
    except ValueError as error:
        print(f"{page.name}: {error}", file=sys.stderr)
        return 1
    if check and new != old:
        print(f"{page.name} is not current: run python -m bench.tables", file=sys.stderr)
        return 1
    if new != old:
        page.write_text(new, encoding="utf-8")
    return 0


def _title(entries: dict[str, Entry]) -> str:
    """Return dtype, layout, the usual batch where entries name theirs apart from the shape, and the number of runs."""
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


def _section_markdown(op: str, section: dict) -> str:
    parts = [wrapped(f"**{section['device']}**; {stamp(section)}")]
    for table in drawn(op, section):
        parts += [f"{table.title}:", grid(table)]
    parts.append(wrapped(legend(op, section)))
    held = verdicts(op, section)
    return "\n\n".join(parts + ([grid(held)] if held.rows else []))


def _headline_markdown(path: Path, sections: dict[str, dict]) -> str:
    page = path.with_suffix(".md")
    more = f" Everything measured: [{page.name}](bench/results/{page.name})." if page.exists() else ""
    stamp = f"**{headline.device(sections)}**; {headline.versions(sections)}; {headline.dates(sections)}."
    return "\n\n".join([wrapped(stamp), grid(headline.table(sections)), wrapped(headline.LEGEND + more)])


def _picture(devices: dict[Path, dict[str, dict]]) -> list[str]:
    """Return the first of the devices' pictures of speed-ups that was drawn."""
    places = {path.with_suffix("") / "speedup.png": sections for path, sections in devices.items()}
    found = [place for place in places if place.exists()]
    return [
        f"![{headline.device(places[place])}: time of the usual way and of the best baseline over ours, for every "
        f"shape]({'/'.join(('bench', 'results', *place.parts[-2:]))})"
        for place in found[:1]
    ]


def _devices(results: Path) -> dict[Path, dict[str, dict]]:
    """Return the sections of each device by the path of its file, the GPUs' first."""
    found = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))}
    return dict(sorted(found.items(), key=lambda item: (headline.is_cpu(item[1]), headline.device(item[1]))))


if __name__ == "__main__":
    sys.exit(main())
