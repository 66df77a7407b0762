"""What a network that always saw all channels makes of fewer: `python -m bench.studies.filled RUN ...`.

The trained networks of finished runs, which were made for red, green and blue and shown nothing else, are tested on the
images held out with every combination of the channels: with zeros for the absent channels, and in an `AnyChannels`,
which fills them in with the nearest present ones, or with estimates by the covariance of the channels in training
images. Nothing is trained. The rows go to `bench/results/mini50/filled.csv`; those of a run that is tested again are
replaced.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bench.report.markdown import grid, wrapped
from bench.studies import runs, study
from polychrome.engine.channels.combinations import parse
from polychrome.engine.data.sets.division import HOLDOUT
from polychrome.engine.evaluation import evaluate
from polychrome.engine.machine import hardware
from polychrome.engine.report.tables import Table
from polychrome.models.any_channels import ESTIMATED, FILLS, NEAREST, AnyChannels
from polychrome.train import networks
from polychrome.train.data import make_loader, open_data, with_sensors
from polychrome.train.finished import Run

LABELS = (study.FULL, *study.PAIRS, *study.SINGLES)
COMMAND = "python -m bench.studies.filled RUN ..."


@dataclass(frozen=True)
class Row:
    """A test of a network on a combination of channels; `absent` tells what it saw for the others."""

    network: str
    seed: int
    absent: str
    combination: str
    accuracy: float
    images: int
    trained: str
    commit: str
    machine: str


def read(results: Path = study.RESULTS) -> list[Row]:
    """Return the rows of the study; none where there is no file."""
    return runs.read(results / "mini50" / "filled.csv", Row)


def tested(root: Path) -> Iterator[Row]:
    """Yield the rows of the networks of a finished run, which must not be for any channels."""
    run = Run(root, "cpu")
    made = study.commit(run.folder.read_environment())
    facts = hardware.describe()
    splits = "train", HOLDOUT
    opened = open_data(replace(run.settings, cache="none"), run.results["task"], splits, run.data, None)
    opened = replace(opened, images=replace(opened.images, channels=with_sensors(run.channels, opened.images)))
    wanted = parse(("all",), run.channels.names, run.settings.division_seed, run.channels.sensors)
    for name in run.results["models"]:
        ((_, network),), settings = run.networks(name, wanted), run.entry_settings(name)
        estimated = AnyChannels(network, fill=ESTIMATED)
        networks.measure_channels(estimated, name, opened, settings)
        for absent, model in (("zeros", network), (NEAREST, AnyChannels(network)), (ESTIMATED, estimated)):
            with make_loader(opened, HOLDOUT, settings) as loader:
                found = evaluate(model, loader, wanted, run.num_classes, run.autocast())
            for label, scores in found.scores.items():
                print(f"{name}, {absent}: {label} {100 * scores.accuracy:.1f}%", file=sys.stderr, flush=True)
                measured = label, scores.accuracy, scores.images, made, study.commit(facts), study.machine(facts)
                yield Row(name, run.settings.seed, absent, *measured)


def table(results: Path = study.RESULTS) -> str:
    """Return the table of accuracies by combination, and below it the command, the commits and the machines."""
    rows = read(results)
    if not rows:
        return "Not measured yet."
    lines = []
    for network, absent in dict.fromkeys((row.network, row.absent) for row in rows):
        own = [row for row in rows if (row.network, row.absent) == (network, absent)]
        cells = []
        for label in LABELS:
            found = [row.accuracy for row in own if row.combination == label]
            cells.append(f"{100 * sum(found) / len(found):.1f}")
        seeds = " ".join(str(seed) for seed in sorted({row.seed for row in own}))
        lines.append((f"`{network}`", absent, *cells, seeds))
    made = study.stamps((row.commit, row.machine) for row in rows)
    trained = ", ".join(sorted({row.trained for row in rows}))
    words = f"`{COMMAND}`: `bench/results/mini50/filled.csv`; {made}; trained by commit {trained}."
    return "\n\n".join(
        [grid(Table("", ("network", "absent channels", *LABELS, "seeds"), tuple(lines), 2)), wrapped(words)]
    )


def main(arguments: list[str] | None = None, results: Path = study.RESULTS) -> int:
    """Test the networks of runs and keep the rows; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.studies.filled", description="fewer channels, not trained on"
    )
    parser.add_argument("run", nargs="+", type=runs.whole, help="a finished run's folder")
    for root in parser.parse_args(arguments).run:
        found = list(tested(root))
        again = {(row.network, row.seed) for row in found}
        rows = [row for row in read(results) if (row.network, row.seed) not in again] + found
        runs.write(
            results / "mini50" / "filled.csv",
            sorted(rows, key=lambda row: (row.network, ("zeros", *FILLS).index(row.absent))),
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
