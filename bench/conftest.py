"""Hooks of the benchmarks: rows for pytest-benchmark, tables in the summary, files of results, saved runs."""

from collections.abc import Callable

import pytest

from bench.measuring import record
from bench.measuring.measure import DEVICE, Measured
from bench.measuring.replay import replay
from bench.report import tables

SECTIONS, MEASURED = pytest.StashKey[dict](), pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption("--save-results", action="store_true", help="save CPU results (GPU results are always saved)")


def pytest_configure(config):
    config.stash[SECTIONS], config.stash[MEASURED] = {}, {}
    options = config.option
    if options.benchmark_only and not (options.benchmark_save or options.benchmark_json):
        # bench.report draws the newest saved run.
        options.benchmark_autosave = options.benchmark_autosave or DEVICE


def pytest_benchmark_update_json(config, output_json):
    """Add the sections to a saved run, for `record.sections` to read."""
    output_json["sections"] = config.stash[SECTIONS]


@pytest.fixture
def compare(request, benchmark):
    """Return a function that measures all ways (implementations) of a shape, once, and lists one way as a row.

    compare(section, key, way, measure, packages, group): `measure()` returns a `Measured`; `key` is the shape's name in
    the section; `packages` provide the ways; pytest-benchmark compares the rows of a `group`, by default the ways of
    the shape. The test is skipped if the way was not run at this shape.
    """
    config = request.config

    def compared(section: str, key: str, way: str, measure: Callable[[], Measured], packages=("timm",), group=None):
        done = config.stash[MEASURED]
        if (section, key) not in done:
            done[section, key] = _outcome(measure)
            if isinstance(done[section, key], Measured):
                _record(config, section, key, done[section, key], packages)
        measured = done[section, key]
        if isinstance(measured, Exception):
            raise measured
        if way not in measured.times:
            pytest.skip(measured.entry["skipped"].get(way, "not among the ways of this shape"))
        benchmark.group = group or f"{section} {key}"
        benchmark.extra_info |= record.row(section, key, way, measured.entry)
        replay(benchmark, measured.times[way])

    return compared


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    """Print the tables below pytest-benchmark's table."""
    for name, section in config.stash[SECTIONS].items():
        terminalreporter.section(name)
        terminalreporter.write_line(tables.text(name, section, min(terminalreporter._tw.fullwidth, 140)))


def _outcome(measure: Callable[[], Measured]) -> Measured | Exception:
    """Return the measurements, or the error, with which every row of the shape then fails."""
    try:
        return measure()
    except Exception as error:
        return error


def _record(config, name: str, key: str, measured: Measured, packages: tuple[str, ...]) -> None:
    """Add an entry to its section, and write the section to the device's file; on a CPU only with --save-results."""
    sections = config.stash[SECTIONS]
    section = sections.setdefault(name, record.circumstances(DEVICE, packages) | {"ceilings": {}, "shapes": {}})
    section["ceilings"] |= measured.ceilings
    section["shapes"][key] = measured.entry | {stamp: section[stamp] for stamp in ("date", "commit")}
    if DEVICE == "cuda" or config.getoption("--save-results"):
        record.write(record.results_path(DEVICE), name, section)
