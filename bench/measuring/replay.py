"""Times that were measured before, as pytest-benchmark lists them.

The ways of a shape are run in turn, in a new order each round, on a GPU by device events. pytest-benchmark would run
one way after another by the host's clock; so its tests are given this clock, which moves only by what was measured.
"""

from collections.abc import Sequence

_now = 0.0


def clock() -> float:
    """Return the seconds of all runs replayed so far: a timer for `pytest.mark.benchmark(timer=...)`."""
    return _now


def replay(benchmark, milliseconds: Sequence[float]) -> None:
    """Have pytest-benchmark count the runs given, in a test whose timer is `clock`."""
    runs = iter(milliseconds)

    def run() -> None:
        global _now
        _now += next(runs) / 1e3

    benchmark.pedantic(run, rounds=len(milliseconds))
