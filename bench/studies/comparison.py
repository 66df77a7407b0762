"""The comparison at equal training minutes: `python -m bench.studies.comparison --data DIR --out RUNS`.

Each contender is trained by its best trial's settings (`bench.studies.trials`) for as many epochs as fit into the
minutes on one core, with several seeds, on the training images that are not held out. A finished run's predictions for
every image go to `bench/results/mini50/predictions`, a row about it to `comparison.csv`, and the tables are drawn from
these. A run that was interrupted goes on when the command is given again.

`--fresh LIST` then tests every run, once, on images that no choice was made on: the command refuses to do so before the
runs of all contenders are there, and where all have been tested so.
"""

from __future__ import annotations

import csv
import lzma
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from threading import Lock

import torch

from bench.report.markdown import grid, wrapped
from bench.studies import paired, runs, study, trials
from polychrome.engine.data.image_set import Split
from polychrome.engine.data.sets import listing
from polychrome.engine.machine.files import write_atomically
from polychrome.engine.report.tables import Table
from polychrome.engine.run_folder import RunFolder
from polychrome.models import complexity
from polychrome.train.commands.evaluate import evaluate_run
from polychrome.train.networks import create
from polychrome.train.settings import variants
from polychrome.train.settings.config import Settings

MINUTES, SEEDS = 60.0, 3
FULL, FRESH = "RGB", "fresh"
RIVALS = ("resnet34", "resnet34+small_stem")  # each contender is compared with
TABLE = Path("mini50/comparison.csv")
COMMAND = "python -m bench.studies.comparison --data DIR --out RUNS"


@dataclass(frozen=True)
class Training:
    """A row of `comparison.csv`: a training, its settings and its costs; `depth_written_out` counts gates, too."""

    network: str
    seed: int
    lr: float
    weight_decay: float
    strength: int
    epochs: int
    images: int
    train_seconds: float
    seconds_per_image: float
    params: int
    macs: int
    depth: int
    depth_written_out: int
    commit: str
    machine: str

    @property
    def minutes(self) -> float:
        """The minutes of the training on one core by the probe, the same for all seeds."""
        return self.seconds_per_image * self.images * self.epochs / 60

    @property
    def trained_macs(self) -> float:
        """Multiply-adds of the whole training, taking a step for three times its forward pass at full size."""
        return 3.0 * self.macs * self.images * self.epochs


def read(results: Path = study.RESULTS) -> list[Training]:
    """Return the rows of the comparison; none where there is no file."""
    return runs.read(results / TABLE, Training)


def write(rows: Iterable[Training], results: Path) -> None:
    """Write the rows of the comparison, by network and seed."""
    runs.write(results / TABLE, sorted(rows, key=lambda row: (trials.CONTENDERS.index(row.network), row.seed)))


def predictions(network: str, seed: int, results: Path = study.RESULTS) -> Path:
    """Return the path of a training's predictions, CSV compressed by xz."""
    return results / "mini50" / "predictions" / f"{network}-{seed}.csv.xz"


def train(core: int, network: str, seed: int, data: Path, out: Path, minutes: float, results: Path) -> Training:
    """Train a network, or go on with it, keep its predictions, and return its row."""
    tried = [trial for trial in trials.read(results) if trial.network == network]
    choice, seconds = trials.tuned(network, tried), tried[0].seconds_per_image
    images = len(listing.read(data).splits["train"].paths) - trials.HELD_OUT
    settings = choice.settings | {"epochs": max(3, int(60 * minutes / (seconds * images))), "seed": seed}
    run = trials.train(_name(network, seed), network, data, out, core, settings | {"holdout": trials.HELD_OUT})
    found, facts = run.read_results()["models"][network], run.read_environment()
    path = predictions(network, seed, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lzma.compress(run.every_prediction(network).read_bytes()))
    with torch.device("meta"):
        own = variants.of(Settings.of_run(run.config), network)
        model = create(network, own, len(run.read_results()["data"]["class_names"]), 3).eval()
    depth = complexity.depth(model, torch.empty(2, 3, own.image_size, own.image_size, device="meta"), gates=True)
    costs = seconds, found["params"], found["macs"], found["depth"], depth
    about = found["epochs"], images, round(found["train_seconds"], 1)
    return Training(network, seed, *asdict(choice).values(), *about, *costs, study.commit(facts), study.machine(facts))


def _name(network: str, seed: int) -> str:
    return f"{network}-seed{seed}"


def test_on_fresh(rows: Sequence[Training], data: Path, out: Path, fresh: Path, results: Path) -> None:
    """Add each training's predictions for the images of the list `fresh` to its file, as the split "fresh".

    Trainings that have been tested on these images are left out, as after a kill in between.

    Raises:
        ValueError: all trainings have been tested on the images, or a split of `data` has one of them.
    """
    paths = {(row.network, row.seed): predictions(row.network, row.seed, results) for row in rows}
    rows = [row for row in rows if all(split != FRESH for split, *_ in _rows(paths[row.network, row.seed]))]
    if not rows:
        raise ValueError("every training has been tested on the fresh images: they are read once")
    images, folder = listing.read(data), out / FRESH
    parts = [line.rsplit(maxsplit=1) for line in fresh.read_text(encoding="utf-8").splitlines()]
    tested = Split(tuple(path for path, _ in parts), tuple(int(label) for _, label in parts))
    if known := set(tested.paths) & {path for split in images.splits.values() for path in split.paths}:
        raise ValueError(f"{len(known)} fresh images are in a split of {data}, such as {min(known)}")
    runs.write_folder(folder, images, {**images.splits, "test": tested})
    for row in rows:
        run = RunFolder(out / "task2" / _name(row.network, row.seed))
        evaluate_run(run.root, (FULL,), "test", str(folder), None, "auto")
        path = paths[row.network, row.seed]
        found = run.every_prediction(row.network, "evaluation").read_text(encoding="utf-8").splitlines()[1:]
        text = lzma.decompress(path.read_bytes()).decode("utf-8")
        lines = (f"{FRESH}{line.removeprefix('test')}\n" for line in found)
        write_atomically(path, lzma.compress((text + "".join(lines)).encode("utf-8")))


def _rows(path: Path) -> Iterator[list[str]]:
    with lzma.open(path, "rt", encoding="utf-8", newline="") as stream:
        yield from csv.reader(stream)


def table(results: Path = study.RESULTS) -> str:
    """Return the table of all contenders, drawn from their predictions, and below it the trainings' commits."""
    rows = read(results)
    if not rows:
        return "Not measured yet."
    networks = list(dict.fromkeys(row.network for row in rows))
    seeds = {name: [row.seed for row in rows if row.network == name] for name in networks}
    files = {name: [predictions(name, seed, results) for seed in seeds[name]] for name in networks}
    splits = {row[0] for path in files[networks[0]] for row in _rows(path)}
    final = FRESH if FRESH in splits else "holdout"
    heads = ["network", "epochs", "minutes", *([FRESH] * (final == FRESH)), "held-out", "test", "flip avg."]
    heads += [f"less `{name}`" for name in RIVALS if name in networks]
    heads += ["parameters", "mult-adds", "trained", "depth", "seeds"]
    cells = []
    for name in networks:
        own = [row for row in rows if row.network == name]
        hits = {split: paired.right(files[name], split, FULL) for split in (final, "holdout", "test")}
        scores = [_range(paired.accuracy(hits[final]))] * (final == FRESH)
        scores += [_spread(hits["holdout"]), _spread(hits["test"])]
        scores += [f"{100 * paired.right(files[name], final, f'{FULL} flipped').mean():.1f}"]
        for rival in (each for each in RIVALS if each in networks):
            scores.append("-" if rival == name else _lead(hits[final], paired.right(files[rival], final, FULL)))
        first = own[0]
        depth = (
            str(first.depth) if first.depth == first.depth_written_out else f"{first.depth}/{first.depth_written_out}"
        )
        costs = f"{first.params:,}", f"{first.macs / 1e6:,.0f} M", f"{first.trained_macs / 1e15:.1f} P", depth
        minutes = f"{sum(row.minutes for row in own) / len(own):.0f}"
        cells.append((f"`{name}`", str(first.epochs), minutes, *scores, *costs, " ".join(map(str, seeds[name]))))
    made = {(row.commit, row.machine) for row in rows}
    stamps = "; ".join(f"commit {commit}, {machine}" for commit, machine in sorted(made))
    stamp = wrapped(f"`{COMMAND}`: `bench/results/mini50/comparison.csv` and `predictions/`; {stamps}.")
    return "\n\n".join([grid(Table("comparison", tuple(heads), tuple(cells))), stamp])


def _range(found: paired.Difference) -> str:
    return f"{100 * found.value:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def _spread(hits) -> str:
    each = 100 * hits.mean(1)
    return f"{each.mean():.1f}" + (f" ± {each.std(ddof=1):.1f}" if len(each) > 1 else "")


def _lead(ours, theirs) -> str:
    """Return a lead with its interval, and the largest p-value of pairs of trainings, in the order of their seeds."""
    found = paired.difference(ours, theirs)
    p = max(paired.mcnemar(*each) for each in zip(ours, theirs, strict=False))
    told = "p < 0.001" if p < 0.001 else f"p {p:.3f}"
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f}; {told})"


def main(arguments: list[str] | None = None, results: Path = study.RESULTS) -> int:
    """Train what the comparison lacks, on each core a network, and test it on fresh images; return the exit status."""
    parser = runs.parser("comparison", "train each contender alike", MINUTES, trials.CONTENDERS)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="trainings of each network")
    parser.add_argument("--fresh", type=Path, help="list of images never used for a choice, to test all runs on, once")
    asked, lock = parser.parse_args(arguments), Lock()
    asked.out.mkdir(parents=True, exist_ok=True)

    def work(core: int, seed: int, network: str) -> None:
        row = train(core, network, seed, asked.data, asked.out, asked.minutes, results)
        with lock:
            write([*read(results), row], results)
        print(f"{_name(network, seed)}: {row.epochs} epochs in {row.train_seconds / 60:.0f} min", file=sys.stderr)

    done = {(row.seed, row.network) for row in read(results)}
    runs.on_cores(work, [each for each in product(range(asked.seeds), asked.networks.split(",")) if each not in done])
    if asked.fresh is not None:
        there = {(row.seed, row.network) for row in read(results)}
        if missing := [each for each in product(range(asked.seeds), trials.CONTENDERS) if each not in there]:
            raise ValueError(f"fresh images are read when all runs are there; missing: {missing}")
        test_on_fresh(read(results), asked.data, asked.out, asked.fresh, results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
