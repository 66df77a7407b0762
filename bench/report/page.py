"""The page of a device's results, in Markdown and in HTML, and its pictures."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.report import columns, figures, overview, pictures, tables
from bench.report.markdown import document, grid, wrapped
from polychrome.engine.report import pages
from polychrome.engine.report.pages import Picture
from polychrome.engine.report.tables import Table

HEADINGS = {
    "growth": "How time grows",
    "fuse": "kernels.fuse on timm's EfficientNet",
    "layers": "Layers beside their public forms",
    "training": "Training",
    "input": "Input",
    "start": "Start",
    "processes": "Two processes",
    "commands": "Whole commands",
}
ROOFLINE = (
    "Each point is one direction of ours at one shape. The roofs are the greatest rates measured in these runs: a "
    "large copy, bytes read plus written, and in each dtype a large matrix product, or a call that was faster. Calls "
    "without FLOPs have their bytes a second beside the copy's of their own run. Bytes are the least that any "
    "implementation moves, so what a cache keeps from one call to the next can lift a point above the copy's roof."
)


@dataclass(frozen=True)
class Part:
    """A heading and its contents; `stamp` tells versions and date, `legend` the meaning of the tables' columns."""

    title: str
    stamp: str = ""
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    legend: str = ""
    verdicts: Table | None = None


def write(sections: dict[str, dict], out: Path, name: str) -> Path:
    """Write a device's page as `name`.md and `name`.html into `out`, the pictures into `name`/; return the .md path.

    The sections are of one device, as `sources.merged` returns them.
    """
    folder = out / name
    if folder.exists():
        for old in folder.glob("*.png"):
            old.unlink()
    parts = [_overview(sections), *_roofline(sections, folder)]
    parts += [_section(each, section, folder) for each, section in sections.items()]
    ops = {op: figures.speedups(op, section) for op, section in sections.items() if op in columns.OPS}
    if ops:
        pictures.speedups(ops, "the definition in eager PyTorch / ours", folder / "speedup.png")
    missing = not_measured(sections)
    title = f"Benchmarks: {overview.device(sections)}"
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(_markdown(title, parts, missing, out), encoding="utf-8")
    content = {"heading": title, "parts": parts, "missing": missing}
    html = pages.rendered("benchmarks.html.j2", content, "bench.report")
    (out / f"{name}.html").write_text(html, encoding="utf-8")
    return out / f"{name}.md"


def not_measured(sections: dict[str, dict]) -> list[str]:
    """Return the names of the sections that a device lacks, and of the figures that its entries lack."""
    other = (columns.ON_CPU,) if not overview.is_cpu(sections) else ()
    found = [_heading(name) for name in columns.SECTIONS if name not in sections and name not in other]
    for op in filter(sections.__contains__, columns.OPS):
        entries = sections[op]["shapes"].values()
        for what, key in {"bytes moved and FLOPs": "bytes", "peak memory": "memory_bytes"}.items():
            lacking = sum(not entry.get(key) for entry in entries)
            if lacking:
                found.append(f"{op}: {what}" + (f" at {lacking} of {len(entries)} shapes" * (lacking < len(entries))))
    return found


def _overview(sections: dict[str, dict]) -> Part:
    commits = dict.fromkeys(str(section["commit"]) for section in sections.values())
    runs = [entry["runs"] for section in sections.values() for entry in section["shapes"].values()]
    stamp = (
        f"{overview.versions(sections)}; {overview.dates(sections)}, "
        f"commit {'; '.join(commits)}. {len(runs)} entries, each the medians of {min(runs)} to {max(runs)} runs."
    )
    table = overview.table(sections)
    return Part("Overview", stamp, tables=(table,), legend=overview.LEGEND) if table.rows else Part("Runs", stamp)


def _roofline(sections: dict[str, dict], folder: Path) -> list[Part]:
    points, ceilings = figures.points(sections), figures.ceilings(sections)
    if not points:
        return []
    pictures.roofline(points, ceilings, folder / "roofline.png")
    shown = Picture("Achieved FLOPs a second against FLOPs per byte", folder / "roofline.png")
    return [Part("Roofline", pictures=(shown,), legend=ROOFLINE)]


def _section(name: str, section: dict, folder: Path) -> Part:
    verdicts = tables.verdicts(name, section)
    return Part(
        _heading(name),
        tables.stamp(section),
        tuple(_pictures(name, section, folder)),
        (*tables.section_tables(name, section), *(tables.peaks(section) if name in columns.OPS else ())),
        tables.legend(name, section),
        verdicts if verdicts.rows else None,
    )


def _pictures(name: str, section: dict, folder: Path) -> list[Picture]:
    """Draw the pictures of a section and return them."""
    found = []

    def draw(kind: str, title: str, function: Callable, *content) -> None:
        path = folder / f"{kind}.png"
        function(*content, path)
        found.append(Picture(title, path))

    if name in columns.OPS:
        shown = {name: figures.speedups(name, section)}
        title = f"Time of {overview.usual(name)} and of the best baseline over ours, forward + backward"
        draw(f"speedup-{name}", title, pictures.speedups, shown, f"{overview.usual(name)} / ours")
    if name in columns.OPS and (used := figures.memory(section)):
        draw(f"memory-{name}", "Peak memory of the other ways over ours", pictures.memory, used)
    if name == "growth":
        draw(name, "Time against batch, experts and size", pictures.growth, figures.growth(section))
    if name == "fuse":
        shown = {name: figures.speedups(name, section)}
        draw(name, "Speed after kernels.fuse", pictures.speedups, shown, "images a second, fused over unfused")
    if name == "training":
        shown = figures.rates(section, "epoch", {"ours": "ours", "reports": "the reports' way"})
        draw(name, "An epoch: ours beside the reports' way", pictures.rates, shown, "images a second of an epoch")
    if name == "input":
        draw(
            name,
            "Sources of batches",
            pictures.rates,
            figures.rates(section, "both", {"ours": "ours"}),
            "images a second",
        )
    return found


def _heading(name: str) -> str:
    return HEADINGS.get(name, name)


def _markdown(title: str, parts: list[Part], missing: list[str], out: Path) -> str:
    found = [f"# {title}"]
    for part in parts:
        found += [f"## {part.title}", *([wrapped(part.stamp)] if part.stamp else [])]
        found += [f"![{each.title}]({each.path.relative_to(out).as_posix()})" for each in part.pictures]
        for table in part.tables:
            found += [f"{table.title}:", grid(table)] if len(part.tables) > 1 else [grid(table)]
        found += [wrapped(part.legend)] if part.legend else []
        found += [grid(part.verdicts)] if part.verdicts else []
    if missing:
        found += ["## Not measured yet", "\n".join(f"- {each}" for each in missing)]
    return document(*found)
