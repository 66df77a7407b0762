import pytest

from bench.studies import runs
from polychrome.engine.machine import hardware


@pytest.fixture
def native(monkeypatch):
    """Lets the studies run on processors that emulate bfloat16: slow, but right."""
    monkeypatch.setattr(hardware, "native_precision", lambda on: runs.PRECISION)
