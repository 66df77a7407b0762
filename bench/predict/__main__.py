"""Predict the time of every kernel at every shape of the benchmark on an H200: `python -m bench.predict`."""

import argparse
import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

from bench.measuring import record
from bench.predict import measured, passes, table
from bench.predict.rows import predictions
from bench.stand_in import driver
from polychrome.kernels.backend import is_interpreted


def main(arguments: list[str] | None = None) -> int:
    """Write the predictions; return the exit status, 2 where there is nothing to predict."""
    parser = argparse.ArgumentParser(prog="python -m bench.predict", description=__doc__.partition(":")[0])
    parser.add_argument("--as", dest="name", default="now", metavar="NAME", help="the section to write (default now)")
    parser.add_argument(
        "--shapes", default="", metavar="TEXT", help='only shapes with TEXT in "op shape"; results are not written'
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="with --shapes: write the rows to FILE")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="only add the times in results.json of bench.gpu")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="number of processes")
    options = parser.parse_args(arguments)
    if options.measured:
        return _add(options.measured)
    wanted = [index for index, each in enumerate(passes.shapes()) if options.shapes in f"{each.op} {each.key}"]
    if is_interpreted():
        print("bench.predict compiles kernels: unset TRITON_INTERPRET", file=sys.stderr)
        return 2
    if not wanted:
        print(f'bench.predict: no shape has "{options.shapes}" in its name', file=sys.stderr)
        return 2
    rows = []
    # Triton's cache may have the same kernels of another checkout, whose code names other files and lines.
    with (
        tempfile.TemporaryDirectory() as cache,
        mock.patch.dict(os.environ, TRITON_CACHE_DIR=cache),
        ProcessPoolExecutor(options.jobs, get_context("spawn"), driver.install) as pool,
    ):
        for found in pool.map(predictions, wanted):
            rows += found
            for row in found:
                print(table.line(row), flush=True)
    if options.shapes:
        if options.json:
            record.replace(options.json, rows)
        return 0
    about = record.circumstances("cpu", packages=())
    section = {name: about[name] for name in ("versions", "date", "commit")} | {"rows": rows}
    return _write(options.name, section)


def _write(name: str, section: dict) -> int:
    record.add(table.RESULTS, name, section)
    table.write()
    print(table.PAGE)
    return 0


def _add(path: Path) -> int:
    """Add the kernel times measured by `bench.gpu` beside the newest predictions."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        predicted = json.loads(table.RESULTS.read_text(encoding="utf-8"))
        newest = [section for section in predicted.values() if not section.get("measured")][-1]
        section = measured.section(results, newest["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"bench.predict finds no kernel times in {path}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return _write(section["device"], section)


if __name__ == "__main__":
    sys.exit(main())
