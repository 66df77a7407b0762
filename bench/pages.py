"""Tables in README.md and docs/, made from the files of `bench/results`: `python -m bench.pages` rewrites them."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from bench.measuring import record
from bench.report import columns, overview
from bench.report.columns import ENGINE, ON_CPU, SECTIONS
from bench.report.markdown import grid, wrapped
from bench.report.tables import RESULTS, ROOT, legend, section_tables, stamp, verdicts
from bench.studies import bands, comparison_tables, filled, forms, sensors, study, targets, trials

README = ROOT / "README.md"


# The tables of the studies, by the name of their markers.
STUDIES = study.TABLES | {
    "study-targets": targets.table,
    "sensors": sensors.table,
    "bands": bands.table,
    "trials": trials.table,
    "equal-minutes": comparison_tables.equal_minutes,
    "equal-epochs": comparison_tables.equal_epochs,
    "one-for-all": comparison_tables.one_for_all,
    "forms": forms.table,
    "filled": filled.table,
}

# The names of each page's markers, by the page's path beside README.md.
PAGES = {
    "README.md": ("headline",),
    "docs/ops.md": ("overview",),
    "docs/results.md": tuple(columns.COMMANDS),
    "docs/data.md": ("sensors",),
    "docs/models.md": ("filled",),
    "docs/engine.md": tuple(ENGINE),
    "docs/flagship.md": (
        "equal-minutes",
        "equal-epochs",
        "one-for-all",
        "forms",
        "bands",
        "trials",
        "study-targets",
        *study.TABLES,
    ),
    "docs/fuse.md": tuple(columns.FUSE),
}


def markdown(name: str, results: Path = RESULTS) -> str:
    """Return the Markdown between the markers of a name: the measurements, GPUs first."""
    if name in STUDIES:
        return STUDIES[name](results)
    devices = _devices(results)
    if name == "headline":
        found = [wrapped(overview.headline(sections)) for sections in devices.values() if not overview.is_cpu(sections)]
        return "\n\n".join(found) or "GPU: not measured yet."
    parts = [
        _section_markdown(name, sections[name]) if name in SECTIONS else _overview_markdown(path, sections)
        for path, sections in devices.items()
        if name in sections or name == "overview"
    ]
    kinds = {section["kind"] for each in devices.values() for key, section in each.items() if name in (key, "overview")}
    if name != ON_CPU and "cuda" not in kinds:
        parts.insert(0, "GPU: not measured yet.")
    if name == "overview":
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
    parser = argparse.ArgumentParser(prog="python -m bench.pages", description="rewrite the tables in the pages")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a page is not current")
    check = parser.parse_args(arguments).check
    pages = {readme.parent / place: names for place, names in PAGES.items()}
    return max(_rewrite(page, names, results, check) for page, names in pages.items() if page.exists())


def _rewrite(page: Path, names: tuple[str, ...], results: Path, check: bool) -> int:
    old = page.read_text(encoding="utf-8")
    try:
        new = rewritten(old, names, results)
    except ValueError as error:
        print(f"{page.name}: {error}", file=sys.stderr)
        return 1
    if check and new != old:
        print(f"{page.name} is not current: run python -m bench.pages", file=sys.stderr)
        return 1
    if new != old:
        page.write_text(new, encoding="utf-8")
    return 0


def _section_markdown(op: str, section: dict) -> str:
    parts = [wrapped(f"**{section['device']}**; {stamp(section)}")]
    for table in section_tables(op, section):
        parts += [f"{table.title}:", grid(table)]
    parts.append(wrapped(legend(op, section)))
    judged = verdicts(op, section)
    return "\n\n".join(parts + ([grid(judged)] if judged.rows else []))


def _overview_markdown(path: Path, sections: dict[str, dict]) -> str:
    page = path.with_suffix(".md")
    more = f" Everything measured: [{page.name}](../bench/results/{page.name})." if page.exists() else ""
    stamp = f"**{overview.device(sections)}**; {overview.versions(sections)}; {overview.dates(sections)}."
    return "\n\n".join([wrapped(stamp), grid(overview.table(sections)), wrapped(overview.LEGEND + more)])


def _picture(devices: dict[Path, dict[str, dict]]) -> list[str]:
    """Return the picture of speed-ups of the first device that has such a file."""
    places = {path.with_suffix("") / "speedup.png": sections for path, sections in devices.items()}
    found = [place for place in places if place.exists()]
    return [
        f"![{overview.device(places[place])}: time of the usual way and of the best baseline over ours, for every "
        f"shape]({'/'.join(('..', 'bench', 'results', *place.parts[-2:]))})"
        for place in found[:1]
    ]


def _devices(results: Path) -> dict[Path, dict[str, dict]]:
    """Return the sections of each device by the path of its file, GPUs first."""
    found = {path: record.sections(path) for path in sorted(results.glob("*.json"))}
    return dict(sorted(found.items(), key=lambda item: (overview.is_cpu(item[1]), overview.device(item[1]))))


if __name__ == "__main__":
    sys.exit(main())
