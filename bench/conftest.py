"""`--save-results`, and the table printed at the end of a run."""

import pytest

from bench import record, tables
from bench.measure import DEVICE, finished

ENTRIES = pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption("--save-results", action="store_true", help="write bench/results/cpu.json (a GPU's always is)")


def pytest_configure(config):
    config.stash[ENTRIES] = {}


@pytest.fixture
def keep_entry(request, benchmark):
    """Return a function that keeps an entry of a section of results.

    Entries go to the tables printed when the run ends, and to the device's file: on a CPU with --save-results.
    """

    def kept(op, name, entry, ceilings=None, packages=("timm",)):
        sections = request.config.stash[ENTRIES]
        empty = {"ceilings": {}, "shapes": {}}
        section = sections.setdefault(op, record.circumstances(DEVICE, packages) | empty)
        section["ceilings"] |= ceilings or {}
        section["shapes"][name] = entry | {stamp: section[stamp] for stamp in ("date", "commit")}
        if DEVICE == "cuda" or request.config.getoption("--save-results"):
            record.write(record.results_path(DEVICE), op, section)
        benchmark.extra_info |= entry

    return kept


@pytest.fixture
def keep(keep_entry, benchmark):
    """Return a function that keeps an entry of an op's results and has pytest-benchmark time ours."""

    def timed(op, name, entry, calls, ceilings, packages=("timm",)):
        keep_entry(op, name, entry, ceilings, packages)
        benchmark.pedantic(finished, (calls["ours"],), rounds=3, warmup_rounds=1)

    return timed


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    """Print the tables below pytest-benchmark's own."""
    for op, measured in config.stash[ENTRIES].items():
        terminalreporter.section(op)
        terminalreporter.write_line(tables.text(op, measured, min(terminalreporter._tw.fullwidth, 140)))
