"""The first minute on a GPU: a check of every op, and the GPU's rates of copies and products."""

import argparse
import sys
from pathlib import Path

import torch

from bench.measuring import measure, record
from polychrome.kernels import check

PRODUCTS = (torch.bfloat16, torch.float32)


def main(arguments: list[str] | None = None) -> int:
    """Check every op, measure the ceilings, write both; return 1 where an op is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.first_light", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    outcomes = list(check.checked())
    print(check.table(outcomes), check.verdict(outcomes), sep="\n", flush=True)
    found = record.circumstances("cuda") | {"check": [outcome._asdict() for outcome in outcomes]}
    record.replace(options.json, found)
    record.replace(options.json, found | {"ceilings": measure.ceilings(*PRODUCTS)})
    return int(any(outcome.fault for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
