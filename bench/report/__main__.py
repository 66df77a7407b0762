"""The command line: `python -m bench.report [FILE ...] [--out FOLDER]`."""

import argparse
import sys
from pathlib import Path

from bench.measuring.record import RESULTS
from bench.report import page, sources


def main(arguments: list[str] | None = None, saved: Path = Path(".benchmarks")) -> int:
    """Write the pages of the results in the files named, else of the newest saved run; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.report",
        description="write a page with pictures, in Markdown and HTML, for each device in results",
    )
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="results, or runs saved by pytest bench, merged by device; default: the newest saved run",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="default: bench/results")
    given = parser.parse_args(arguments)
    try:
        devices = sources.merged(given.files or [sources.newest(saved)])
        for name, sections in devices.items():
            print(f"{page.write(sections, given.out, name)}, and {name}.html beside it")
    except (sources.SourceError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
