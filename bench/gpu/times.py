"""Times of an op's shapes by the chosen ways: `python -m bench.gpu.times OP [--ways a,b] [--first N]`.

Writes the entries of the benchmark's pytest run after each shape, so that a run that is cut off keeps earlier shapes; a
shape measured under the given digest is not measured again.
"""

import argparse
import sys
import time
from collections.abc import Collection
from importlib import import_module

from bench.gpu import lookups
from bench.gpu.state import json_of
from bench.gpu.steps import UNFINISHED
from bench.measuring import record
from bench.measuring.measure import DEVICE, Measured
from bench.measuring.record import NOT_ASKED
from bench.report import tables
from polychrome.engine.data.files import dali_check

PACKAGES = {"augment": ("torchvision", *filter(None, [dali_check.package()]))}


def main(arguments: list[str] | None = None) -> int:
    """Measure the shapes; return UNFINISHED if the time ended before the last shape, 1 if a shape failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.times", description=__doc__.partition(":")[0])
    parser.add_argument("op", choices=tables.OPS)
    parser.add_argument("--ways", help="only these columns of the table, separated by commas")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N shapes of the benchmark")
    parser.add_argument("--seconds", type=float, default=600, help="begin no shape after this time (default 600)")
    parser.add_argument("--digest", default="", help="hash of the measured sources")
    options = parser.parse_args(arguments)
    lookups.count()
    start = time.monotonic()
    path = record.results_path(DEVICE)
    known = (json_of(path) or {}).get(options.op, {}).get("shapes", {})
    about = record.circumstances(DEVICE, PACKAGES.get(options.op, ("timm",)))
    ways = options.ways.split(",") if options.ways else None
    failed = False
    calls = import_module(f"bench.test_{options.op}").calls()
    for key, call in list(calls.items())[: options.first]:
        if is_measured(known.get(key), options.digest, ways):
            continue
        if time.monotonic() - start > options.seconds:
            print(f"out of time before {key}")
            return UNFINISHED
        try:
            measured = call(ways)
        except Exception as error:
            print(f"{key}: {type(error).__name__}: {error}", flush=True)
            failed = True
            continue
        write(path, options.op, key, measured, about, options.digest)
        print(f"{key}: {_said(measured)}", flush=True)
    return int(failed)


def is_measured(entry: dict | None, digest: str, ways: Collection[str] | None) -> bool:
    """Return whether an entry was measured with the sources of `digest`, by all of `ways` that can run."""
    if entry is None or not digest or entry.get("sources") != digest:
        return False
    missing = {way for way, reason in entry["skipped"].items() if reason == NOT_ASKED}
    return not missing if ways is None else not missing & set(ways)


def write(path, op: str, key: str, measured: Measured, about: dict, digest: str) -> None:
    """Write an entry to the device's file of results."""
    entry = measured.entry | {"date": about["date"], "commit": about["commit"], "sources": digest}
    record.write(path, op, about | {"ceilings": measured.ceilings, "shapes": {key: entry}})


def _said(measured: Measured) -> str:
    return ", ".join(f"{way} {taken['both'] * 1e3:.0f} us" for way, taken in measured.entry["ms"].items())


if __name__ == "__main__":
    sys.exit(main())
