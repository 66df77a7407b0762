"""The trials that tune each contender of the comparison on RGB: `python -m bench.studies.trials --data DIR --out RUNS`.

Every network gets the same number of trials of the same minutes on one core: three learning rates, then stronger
augmentation, then two other weight decays, each at the best settings so far. 6,149 training images train, 2,500 others
of the training set decide; images held out, the validation images but for the log, and the test images decide nothing.
A row is added to `bench/results/mini50/trials.csv` after each trial, and trials that have a row are not run again; a
trial that was interrupted goes on with its run's last checkpoint. The epochs that fit into the minutes follow from a
probe of five short epochs for each network, measured while the other core is as busy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from bench.studies import runs, study
from polychrome.engine.data.image_set import Split
from polychrome.engine.data.sets import division, listing
from polychrome.engine.run_folder import RunFolder

TABLE = Path("mini50/trials.csv")
CONTENDERS = ("resnet34", "resnet34+small_stem", "prism4", "prism4_small", "simple_4layer_cnn")
HELD_OUT, DECIDING = 2500, 2500  # training images: never read here; those that trials are compared on
MINUTES = 20.0
RATES, DECAYS = (0.01, 0.005, 0.02), (0.1, 0.3, 0.03)
# By strength of augmentation, beyond crops and flips.
STRENGTHS: Mapping[int, Mapping[str, float]] = {
    0: {},
    1: {"cutmix": 1.0, "mix_share": 0.5, "cutout": 0.25, "gain": 0.2},
}
PROBED, PROBE_EPOCHS = 1280, 5  # images; an epoch for each size of the growing images


@dataclass(frozen=True)
class Choice:
    """What a trial tries: learning rate, weight decay and strength of augmentation, a key of `STRENGTHS`."""

    lr: float = RATES[0]
    weight_decay: float = DECAYS[0]
    strength: int = 0

    @property
    def settings(self) -> dict[str, float]:
        """The settings of a training by their names."""
        return {"lr": self.lr, "weight_decay": self.weight_decay, **STRENGTHS[self.strength]}


@dataclass(frozen=True)
class Trial:
    """A row of the table of trials: what was tried, on what, and the share of deciding images that were right."""

    network: str
    number: int
    lr: float
    weight_decay: float
    strength: int
    epochs: int
    seconds_per_image: float
    accuracy: float
    flipped: float
    train_seconds: float
    commit: str
    machine: str

    @property
    def choice(self) -> Choice:
        return Choice(self.lr, self.weight_decay, self.strength)


def following(done: Sequence[Trial]) -> Choice | None:
    """Return what to try after the trials `done` of a network, in their order; None after the last."""
    if len(done) < len(RATES):
        return Choice(lr=RATES[len(done)])
    best = max(done, key=lambda trial: trial.accuracy).choice
    if len(done) == len(RATES):
        return replace(best, strength=1)
    number = len(done) - len(RATES)
    return replace(best, weight_decay=DECAYS[number]) if number < len(DECAYS) else None


def tuned(network: str, trials: Iterable[Trial]) -> Choice:
    """Return the best choice of a network's trials. Raises ValueError where it has none."""
    return max((trial for trial in trials if trial.network == network), key=lambda trial: trial.accuracy).choice


def read(results: Path = study.RESULTS) -> list[Trial]:
    """Return the rows of the table of trials; none where there is no file."""
    return runs.read(results / TABLE, Trial)


def write(trials: Iterable[Trial], results: Path = study.RESULTS) -> None:
    """Write the table of trials, by network in the order of `CONTENDERS` and number."""
    order = sorted(trials, key=lambda trial: (CONTENDERS.index(trial.network), trial.number))
    runs.write(results / TABLE, order)


def make_folders(data: Path, out: Path) -> None:
    """Write the data folders of the trials and of the probes into `out`: list files, and a link to the images.

    The splits of `choices`: the training images that are neither held out nor decide, the validation images as they
    are, and as test images those that decide.
    """
    images = listing.read(data)
    kept = division.hold_out(images, HELD_OUT)
    parts = division.hold_out(kept, DECIDING).splits
    choices = {"train": parts["train"], "val": parts["val"], "test": parts[division.HOLDOUT]}
    runs.write_folder(out / "choices", images, choices)
    step = len(parts["train"].paths) // PROBED
    few = {"train": _every(parts["train"], step, PROBED), "val": _every(parts["val"], 1, 64)}
    runs.write_folder(out / "probe", images, few | {"test": few["val"]})


def _every(split: Split, step: int, count: int) -> Split:
    return Split(split.paths[::step][:count], split.labels[::step][:count])


def train(name: str, network: str, data: Path, out: Path, core: int, settings: Mapping[str, Any]) -> RunFolder:
    """Train a network by the recipe on one core, or go on with it, and return its finished run."""
    return runs.train(name, "task2", out, core, {"recipe": "strong", "models": network, "data": data, **settings})


def _seconds_per_image(core: int, network: str, out: Path) -> float:
    """Return the seconds of a training for each image of each epoch, on average over the sizes of growing images."""
    run = train(f"probe-{network}", network, out / "probe", out, core, {"epochs": PROBE_EPOCHS, "holdout": 0})
    return run.read_results()["models"][network]["train_seconds"] / (PROBE_EPOCHS * PROBED)


def _tune(core: int, network: str, out: Path, minutes: float, seconds: float, results: Path, lock: Lock) -> None:
    """Run the trials of a network that the table lacks, and add their rows."""
    images = len((out / "choices" / "train.txt").read_text(encoding="utf-8").splitlines())
    epochs = max(3, int(60 * minutes / (seconds * images)))
    while (choice := following(done := [trial for trial in read(results) if trial.network == network])) is not None:
        number = len(done) + 1
        settings = choice.settings | {"epochs": epochs, "holdout": 0}
        run = train(f"{network}-{number}", network, out / "choices", out, core, settings)
        found, facts = run.read_results()["models"][network], run.read_environment()
        accuracies = (found[kind]["test"]["RGB"]["accuracy"] for kind in ("scores", "flipped"))
        about = round(found["train_seconds"], 1), study.commit(facts), study.machine(facts)
        row = Trial(network, number, *asdict(choice).values(), epochs, round(seconds, 6), *accuracies, *about)
        with lock:
            write([*read(results), row], results)
        print(f"{network} {number}: {choice}, {epochs} epochs: {row.accuracy:.1%}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None, results: Path = study.RESULTS) -> int:
    """Run the trials that the table lacks, a network on each core at a time; return the exit status."""
    parser = runs.parser("trials", "tune each contender alike", MINUTES, CONTENDERS)
    asked = parser.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    make_folders(asked.data, asked.out)
    networks, lock = asked.networks.split(","), Lock()
    # All probes first: later the machine may be at other work.
    seconds = list(runs.on_cores(_seconds_per_image, [(network, asked.out) for network in networks]))
    for network, each in zip(networks, seconds, strict=True):
        print(f"{network}: {1000 * each:.2f} ms an image", file=sys.stderr, flush=True)
    more = ((asked.out, asked.minutes, each, results, lock) for each in seconds)
    runs.on_cores(_tune, [(network, *each) for network, each in zip(networks, more, strict=True)])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
