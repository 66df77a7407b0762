"""The sources of a report's figures: files of results, and runs that pytest-benchmark saved."""

from collections.abc import Iterable
from pathlib import Path

from bench.measuring import record
from bench.report.columns import SECTIONS
from polychrome.kernels.dynamic_conv.configs import table_path

STAMPS = (*record.CIRCUMSTANCES, "kind", "date", "commit", "ceilings", "shapes")


class SourceError(Exception):
    """There is nothing to report, or a file is not a run of the benchmarks."""


def newest(saved: Path) -> Path:
    """Return the newest run below `.benchmarks`.

    Raises:
        SourceError: no run is saved.
    """
    runs = sorted(saved.glob("*/[0-9][0-9][0-9][0-9]_*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    if not runs:
        raise SourceError(f"no run is saved under {saved}: `pytest bench --benchmark-only` makes and saves one")
    return runs[-1]


def merged(paths: Iterable[Path]) -> dict[str, dict[str, dict]]:
    """Return the sections of all files by the name of the device's pages, such as "cpu" or "nvidia_h200".

    Where several files have a section, the later file's shapes and stamps count, and the earlier file's other shapes
    where device, versions and settings are the same.

    Raises:
        SourceError: a file cannot be read, or is not a run of these benchmarks.
    """
    devices: dict[str, dict[str, dict]] = {}
    for path in paths:
        for name, section in _sections(path).items():
            sections = devices.setdefault(page_name(section), {})
            sections[name] = record.united(sections[name], section) if name in sections else section
    return {device: {name: found[name] for name in SECTIONS if name in found} for device, found in devices.items()}


def page_name(section: dict) -> str:
    """Return the name of the page of a section's device: the name of its results file."""
    return "cpu" if section["kind"] == "cpu" else table_path(section["device"]).stem


def _sections(path: Path) -> dict[str, dict]:
    try:
        sections = record.sections(path)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise SourceError(str(error)) from None
    known = {name: section for name, section in sections.items() if name in SECTIONS}
    for name, section in known.items():
        if lacking := _lacking(section):
            raise SourceError(f"{path}: section {name} lacks {lacking}")
    if not known:
        raise SourceError(f"{path} has no section of these benchmarks: {', '.join(SECTIONS)}")
    return known


def _lacking(section: dict) -> str:
    """Return the names of a section's missing parts, "" for none."""
    if not isinstance(section, dict) or not section.get("shapes"):
        return "shapes"
    found = [stamp for stamp in STAMPS if stamp not in section]
    for key, entry in section["shapes"].items():
        if not isinstance(entry, dict) or "ours" not in entry.get("ms", ()):
            found.append(f"times of {key}")
    return ", ".join(found)
