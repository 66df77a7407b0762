"""Replay of measured times as rows of pytest-benchmark.

The ways of a shape are timed in turn, in a new order each round, on a GPU by device events. pytest-benchmark would time
one way after another by the host's clock; its tests use `clock` instead, which moves only by measured times.
"""

from collections.abc import Sequence

_now = 0.0


def clock() -> float:
    """Return the seconds of all runs replayed so far: a timer for `pytest.mark.benchmark(timer=...)`."""
    return _now


def replay(benchmark, milliseconds: Sequence[float]) -> None:
    """Make pytest-benchmark count these runs, in a test whose timer is `clock`."""
    runs = iter(milliseconds)

    def run() -> None:
        global _now
        _now += next(runs) / 1e3

    benchmark.pedantic(run, rounds=len(milliseconds))
