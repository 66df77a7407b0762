"""The comparison at equal training minutes: `python -m bench.studies.comparison --data DIR --out RUNS`.

Each contender is trained by its best trial's settings (`bench.studies.trials`) for the epochs that are nearest to the
minutes on one core, with several seeds, on the training images that are not held out: on RGB; then the better one of
the flagships for every combination of channels, and for some combinations alone, as is the better ResNet34, by their
networks' epochs on RGB. What an image takes is probed before the first run: `probes.csv` keeps it. A finished run's
predictions for every image go to `bench/results/mini50/equal-minutes`, with a row about it in `comparison.csv`, and
`bench.studies.comparison_tables` draws the tables from these. A run that was interrupted goes on when the command is
given again.

With `--epochs N` both ResNet34s and `prism4` are trained for N epochs each, whatever the time, and kept in
`equal-epochs`: work for a GPU.

`--fresh LIST` tests every run when it is finished, once, on images that no choice was made on. No command and no table
shows what it found before all runs are tested, and no settings can follow from it: the command refuses to go on where
the best trials are not those that the runs there were trained by, and the number of seeds is fixed. Before each run it
refuses as well where the code is another than the commits of the rows and of runs that have begun: a clone of its own
keeps the code of a study that takes days.
"""

from __future__ import annotations

import csv
import lzma
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from threading import Lock

import torch

from bench.studies import runs, study, trials
from bench.studies.trials import RIVALS, Choice, Trial
from polychrome.engine import console
from polychrome.engine.data.image_set import Split
from polychrome.engine.data.sets import listing
from polychrome.engine.errors import UserError
from polychrome.engine.machine.files import hold, write_atomically
from polychrome.engine.machine.hardware import PACKAGES, commit
from polychrome.engine.run_folder import RunFolder
from polychrome.models import complexity
from polychrome.train.commands.evaluate import evaluate_run
from polychrome.train.networks import create
from polychrome.train.settings import variants
from polychrome.train.settings.config import Settings

MINUTES = 60.0
# Trainings of each network at equal minutes, and at equal epochs, of which half an hour of a GPU allows two.
SEEDS, SEEDS_OF_EPOCHS = 3, 2
FRESH = "fresh"
LONG = (*RIVALS, "prism4")  # the networks of the comparison at equal epochs
ALONE = ("RG", "G")  # combinations that networks are trained for alone, beside RGB
EQUAL_MINUTES, EQUAL_EPOCHS = Path("mini50/equal-minutes"), Path("mini50/equal-epochs")
TABLE, PROBES = "comparison.csv", "probes.csv"
CODE = (*PACKAGES, "bench/studies")  # what trains a run
# Columns in which the trainings of a network differ.
OWN = ("seed", "train_seconds", "seconds_per_image", "commit", "machine")


@dataclass(frozen=True)
class Training:
    """A row of `comparison.csv`: a training, its settings and its costs; `depth_written_out` counts gates, too.

    `seconds_per_image` is of the network's probe on RGB, by which equal minutes become epochs, or at equal epochs of
    the training itself.
    """

    network: str
    channels: str
    seed: int
    lr: float
    weight_decay: float
    strength: int
    subset_bias: float
    places: int
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
    def name(self) -> str:
        """The training's name, of its run and its predictions."""
        return _name(self.network, self.channels, self.seed)

    @property
    def choice(self) -> Choice:
        """What it was trained by."""
        return Choice(self.lr, self.weight_decay, self.strength, self.subset_bias, self.places)

    @property
    def minutes(self) -> float:
        """The minutes of the training by `seconds_per_image`."""
        return self.seconds_per_image * self.images * self.epochs / 60

    @property
    def taken(self) -> float:
        """The minutes that the training took."""
        return self.train_seconds / 60

    @property
    def trained_macs(self) -> float:
        """Multiply-adds of the whole training, taking a step for three times its forward pass at full size."""
        return 3.0 * self.macs * self.images * self.epochs


@dataclass(frozen=True)
class Probe:
    """A row of `probes.csv`: the seconds of an image of one epoch of a network on RGB, all cores at the same work."""

    network: str
    seconds_per_image: float
    commit: str


def probes(data: Path, out: Path, folder: Path) -> dict[str, float]:
    """Return the seconds of one image of one epoch of each contender, measured here if `folder` has not kept them."""
    found = runs.read(folder / PROBES, Probe)
    if not found:
        trials.make_folders(data, out)
        seconds = trials.probed([(network, study.FULL) for network in trials.CONTENDERS], None, out)
        found = [Probe(network, each, (commit() or "none")[:12]) for (network, _), each in seconds.items()]
        runs.write(folder / PROBES, found)
    return {row.network: row.seconds_per_image for row in found}


def _name(network: str, channels: str, seed: int) -> str:
    return f"{network}-seed{seed}" if channels == study.FULL else f"{network}-{channels}-seed{seed}"


def read(folder: Path) -> list[Training]:
    """Return the rows of a comparison; none where there is no file.

    Raises:
        ValueError: a training has two rows, or trainings of a network differ in their settings or costs.
    """
    rows = runs.read(folder / TABLE, Training)
    if twice := [name for name, count in Counter(row.name for row in rows).items() if count > 1]:
        raise ValueError(f"{folder / TABLE} has several rows for {', '.join(twice)}")
    first: dict[tuple[str, str], Training] = {}
    for row in rows:
        before = first.setdefault((row.network, row.channels), row)
        for item in fields(row):
            if item.name not in OWN and getattr(row, item.name) != getattr(before, item.name):
                raise ValueError(f"{folder / TABLE}: {before.name} and {row.name} differ in {item.name}")
    return rows


def write(rows: Iterable[Training], folder: Path) -> None:
    """Write the rows of a comparison: those on RGB first, by network, channels and seed."""
    place = {channels: number for number, channels in enumerate((study.FULL, trials.ANY, *ALONE))}

    def order(row: Training) -> tuple[bool, int, int, int]:
        network = trials.CONTENDERS.index(row.network)
        return row.channels != study.FULL, place[row.channels], network, row.seed

    runs.write(folder / TABLE, sorted(rows, key=order))


def predictions(folder: Path, name: str) -> Path:
    """Return the path of a training's predictions, CSV compressed by xz."""
    return folder / "predictions" / f"{name}.csv.xz"


def wanted(tried: Sequence[Trial], seeds: int, epochs: int | None = None) -> list[tuple[int, str, str]]:
    """Return seed, network and channels of every training: all of a seed before those of the next.

    Args:
        tried: the trials that choose what is trained for other channels.
        epochs: of a comparison at equal epochs, which is on RGB alone.

    Raises:
        ValueError: trials are missing.
    """
    networks = trials.CONTENDERS if epochs is None else LONG
    each = [(network, study.FULL) for network in networks]
    if epochs is None:
        ours, deep = trials.best(trials.FLAGSHIPS, tried), trials.best(RIVALS, tried)
        for who in (*each, (ours, trials.ANY)):  # no run begins before the last choice
            trials.tuned(*who, tried)
        each += [(ours, trials.ANY), *((network, channels) for channels in ALONE for network in (ours, deep))]
    return [(seed, *who) for seed, who in product(range(seeds), each)]


def train(
    core: int | None,
    seed: int,
    network: str,
    channels: str,
    *,
    data: Path,
    out: Path,
    minutes: float,
    epochs: int | None,
    seconds: Mapping[str, float],
    tried: Sequence[Trial],
    folder: Path,
) -> Training:
    """Train a network, or go on with it, keep its predictions in `folder`, and return its row.

    A network for one combination is trained by what its trials on RGB found.

    Args:
        minutes: of a training by its network's `seconds`, see `probes`, where `epochs` is None.
    """
    choice = trials.tuned(network, _tuned_on(channels), tried)
    images = len(listing.read(data).splits["train"].paths) - trials.HELD_OUT
    count = epochs or epochs_of(minutes, seconds[network], images)
    name, how = _name(network, channels, seed), {"epochs": count, "holdout": trials.HELD_OUT, "seed": seed}
    run, entry = trials.train(name, network, channels, choice, data, out, core, **how)
    found, facts = run.read_results()["models"][entry], run.read_environment()
    path = predictions(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lzma.compress(run.every_prediction(entry).read_bytes()))
    with torch.device("meta"):
        own = variants.of(Settings.of_run(run.config), entry)
        model = create(entry, own, len(run.read_results()["data"]["class_names"]), 3).eval()
    depth = complexity.depth(model, torch.empty(2, 3, own.image_size, own.image_size, device="meta"), gates=True)
    each = seconds[network] if epochs is None else round(found["train_seconds"] / (images * epochs), 6)
    about = found["epochs"], images, round(found["train_seconds"], 1), each
    costs = found["params"], found["macs"], found["depth"], depth
    stamps = study.commit(facts), study.machine(facts)
    return Training(network, channels, seed, *asdict(choice).values(), *about, *costs, *stamps)


def epochs_of(minutes: float, seconds: float, images: int) -> int:
    """Return the epochs whose minutes are the nearest, at least 3, from the seconds of one image of one epoch."""
    return max(3, round(60 * minutes / (seconds * images)))


def _tuned_on(channels: str) -> str:
    return channels if channels == trials.ANY else study.FULL


def check_choices(rows: Iterable[Training], tried: Sequence[Trial], minutes: float, epochs: int | None) -> None:
    """Raise ValueError where trainings were not by the best of the trials `tried`, or not for as long as is asked for.

    As after more trials, or after a command with other minutes or epochs.
    """
    for row in rows:
        if row.choice != (best := trials.tuned(row.network, _tuned_on(row.channels), tried)):
            raise ValueError(f"{row.name} was trained by {row.choice}, and the best trial is now {best}")
        if row.epochs != (count := epochs or epochs_of(minutes, row.seconds_per_image, row.images)):
            raise ValueError(f"{row.name} was trained for {row.epochs} epochs, not for {count}")


def check_code(codes: Iterable[str]) -> None:
    """Raise UserError where the code has no commit, or one by which other runs would be trained than by `codes`.

    Args:
        codes: the commits of rows, as they have them.
    """
    now = commit()
    if now is None or now.endswith("changes"):
        raise UserError(f"the runs' code has to be in a commit, which their rows name, and is in {now or 'none'}")
    for code in sorted({code for some in codes for code in some.split(", ")}):
        if not is_same_code(code):
            raise UserError(f"some runs are of commit {code}: go on with that code, in a clone of its own")


def is_same_code(code: str) -> bool:
    """Return whether the packages and the studies are as in another commit."""
    root = Path(__file__).resolve().parents[2]
    command = ("git", "-C", str(root), "diff", "--quiet", code, "HEAD", "--", *CODE)
    return not subprocess.run(command, capture_output=True).returncode


def test_on_fresh(rows: Sequence[Training], data: Path, out: Path, fresh: Path, folder: Path) -> None:
    """Add each training's predictions for the images of the list `fresh` to its file, as the split "fresh".

    Trainings that have been tested on these images are left out: they are read once. Nothing of it is shown.

    Raises:
        ValueError: a split of `data` has one of the images, the run of a training is not in `out` any more, or its
            predictions are not of the images of the list.
    """
    rows = [row for row in rows if not tested_on_fresh(predictions(folder, row.name))]
    if not rows:
        return
    if lost := [row.name for row in rows if not _run(row, out).root.exists()]:
        raise ValueError(
            f"the weights of {', '.join(lost)} are not in {out} to be tested on the fresh images: without their rows "
            "they are trained again"
        )
    images, place, tested = listing.read(data), out / FRESH, fresh_images(data, fresh)
    runs.write_folder(place, images, {**images.splits, "test": tested})
    for row in rows:
        run, entry = _run(row, out), trials.entry_of(row.network, row.channels, row.places)
        path, every = predictions(folder, row.name), run.every_prediction(entry, "evaluation")
        found = _images_of(every)
        if not {line[1] for line in csv.reader(found)} & {*tested.paths}:  # else this command was interrupted here
            with console.silent():
                evaluate_run(run.root, (trials.asked(row.channels),), "test", str(place), None, "auto")
            found = _images_of(every)
        if sorted(line[1] for line in csv.reader(found)) != sorted(tested.paths):
            raise ValueError(f"{every} is not of the {len(tested.paths)} images of {fresh}")
        text = lzma.decompress(path.read_bytes()).decode("utf-8")
        lines = (f"{FRESH}{line.removeprefix('test')}\n" for line in found)
        write_atomically(path, lzma.compress((text + "".join(lines)).encode("utf-8")))


def fresh_images(data: Path, fresh: Path) -> Split:
    """Return the images of a list; raises ValueError where it cannot be read, or a split of `data` has one of them."""
    try:
        parts = [line.rsplit(maxsplit=1) for line in fresh.read_text(encoding="utf-8").splitlines()]
        tested = Split(tuple(path for path, _ in parts), tuple(int(label) for _, label in parts))
    except (OSError, ValueError) as error:
        raise ValueError(f"{fresh} is no list of images and labels: {error}") from error
    if known := set(tested.paths) & set(listing.read(data).paths):
        raise ValueError(f"{len(known)} fresh images are in a split of {data}, such as {min(known)}")
    return tested


def _images_of(predictions: Path) -> list[str]:
    """Return the lines of a file of predictions, a line for each image; none where there is no file."""
    return predictions.read_text(encoding="utf-8").splitlines()[1:] if predictions.is_file() else []


def _run(row: Training, out: Path) -> RunFolder:
    return _folder(out, row.seed, row.network, row.channels)


def _folder(out: Path, seed: int, network: str, channels: str) -> RunFolder:
    return RunFolder(out / trials.task_of(channels) / _name(network, channels, seed))


def tested_on_fresh(path: Path) -> bool:
    """Return whether a training's predictions have some for the fresh images."""
    return any(split == FRESH for split, *_ in rows_of(path))


def rows_of(path: Path) -> Iterator[list[str]]:
    """Yield the rows of a training's predictions."""
    with lzma.open(path, "rt", encoding="utf-8", newline="") as stream:
        yield from csv.reader(stream)


def main(arguments: list[str] | None = None, results: Path = study.RESULTS) -> int:
    """Train what the comparison lacks, on each core a network, and test it on fresh images; return the exit status.

    Raises:
        ValueError: trials are missing or have others as their best than before, the minutes or epochs are others, or
            fresh images cannot be read.
        UserError: the processor only emulates the runs' precision, the code is not that of the rows, or another command
            trains in the same folder.
    """
    parser = runs.parser("comparison", "train each contender alike", MINUTES, trials.CONTENDERS)
    parser.add_argument("--epochs", type=int, help="equal epochs of all in place of equal minutes")
    parser.add_argument("--results", type=Path, help="folder of the rows and predictions  [default: bench/results]")
    parser.add_argument(
        "--fresh", type=runs.whole, help="list of images never used for a choice, to test each run on, once"
    )
    asked, lock, reading = parser.parse_args(arguments), Lock(), Lock()
    runs.check_machine()
    asked.out.mkdir(parents=True, exist_ok=True)
    tried = trials.read(results)
    folder = (asked.results or results) / (EQUAL_MINUTES if asked.epochs is None else EQUAL_EPOCHS)
    given = {"minutes": asked.minutes, "epochs": asked.epochs, "tried": tried, "folder": folder}
    seeds = SEEDS if asked.epochs is None else SEEDS_OF_EPOCHS
    check_choices(read(folder), tried, asked.minutes, asked.epochs)
    every = wanted(tried, seeds, asked.epochs)
    if not hold(asked.out):
        raise UserError(f"another command trains in {asked.out}: wanted one at a time")
    if asked.fresh is not None:
        fresh_images(asked.data, asked.fresh)

    def check() -> None:
        if asked.epochs is None:  # at equal epochs the runs are of one visit to a GPU
            begun = [_folder(asked.out, *who) for who in every]
            codes = [study.commit(each.read_environment()) for each in begun if each.begun]
            check_code([*(row.commit for row in read(folder)), *codes])

    def work(core: int | None, *who) -> None:
        with lock:
            check()
        row = train(core, *who, data=asked.data, out=asked.out, **given)
        test([row])
        with lock:
            write([*(each for each in read(folder) if each.name != row.name), row], folder)
        print(f"{row.name}: {row.epochs} epochs in {row.train_seconds / 60:.0f} min", file=sys.stderr, flush=True)

    def test(rows: Sequence[Training]) -> None:
        if asked.fresh is not None:
            with reading:
                test_on_fresh(rows, asked.data, asked.out, asked.fresh, folder)

    check()
    test(read(folder))
    done = {(row.seed, row.network, row.channels) for row in read(folder)}
    left = [each for each in every if each not in done]
    with runs.stoppable():
        given["seconds"] = probes(asked.data, asked.out, folder) if asked.epochs is None else {}
        runs.on_cores(work, [each for each in left if each[1] in asked.networks.split(",")])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
