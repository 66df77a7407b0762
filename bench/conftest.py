"""`--save-results`, and the table printed at the end of a run."""

import pytest

from bench import tables

ENTRIES = pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption("--save-results", action="store_true", help="write bench/results/cpu.json (a GPU's always is)")


def pytest_configure(config):
    config.stash[ENTRIES] = {}


@pytest.fixture
def entries(request):
    """What this run has measured: op to "dtype shape" to figures; printed when the run ends."""
    return request.config.stash[ENTRIES]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    """Print the tables below pytest-benchmark's own."""
    for op, measured in config.stash[ENTRIES].items():
        terminalreporter.section(op)
        terminalreporter.write_line(tables.text(measured, min(terminalreporter._tw.fullwidth, 140)))
