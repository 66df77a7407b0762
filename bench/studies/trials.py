"""The trials that tune each contender of the comparison: `python -m bench.studies.trials --data DIR --out RUNS`.

Every network gets the same number of trials of the same minutes on one core: three learning rates, then stronger
augmentation, then more weight decay, then a rate beyond the best of the three where that is the first or the last, else
less weight decay, each at the best settings so far. The `RIVALS` get more, where their best is the lowest rate or the
largest weight decay of these. 6,149 training images train, 2,500 others
of the training set decide; images held out, the validation images but for the log, and the test images decide nothing.
When both `FLAGSHIPS` are tuned, the better one is tuned as the network for every combination of channels:
its best choice on RGB, then few channels more often, known places, the other strength of augmentation, more weight
decay; the mean accuracy over the combinations decides.

A row is added to `bench/results/mini50/trials.csv` after each trial, and trials that have a row are not run again; a
trial that was interrupted goes on with its run's last checkpoint. One whose loss is not finite any more has a row with
no image right. The epochs that fit into the minutes follow from probes of five short epochs for each network before its
first trial, one on each core at the same time. Where other networks have had their probes before, perhaps on another
machine, one of these is probed again beside it, and its change is taken out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from threading import Lock

from bench.report.markdown import grid, wrapped
from bench.studies import runs, study
from polychrome.engine.data.image_set import Split
from polychrome.engine.data.sets import division, listing
from polychrome.engine.report.tables import Table
from polychrome.engine.run_folder import RunFolder

TABLE = Path("mini50/trials.csv")
COMMAND = "python -m bench.studies.trials --data DIR --out RUNS"
CONTENDERS = ("resnet34", "resnet34+small_stem", "prism4", "prism4_small", "simple_4layer_cnn")
RIVALS = ("resnet34", "resnet34+small_stem")  # each contender is compared with
FLAGSHIPS = ("prism4", "prism4_small")  # the better one is the network for every combination of channels
ANY = "any"  # what a network is trained for, if not RGB or another combination by its name
HELD_OUT, DECIDING = 2500, 2500  # training images: never read here; those that trials are compared on
MINUTES = 20.0
RATES, DECAYS, BIASES = (0.01, 0.005, 0.02), (0.1, 0.3, 0.03), (0.0, 1.0, 2.0)
BEYOND = {0.005: 0.0025, 0.02: 0.04}  # rates by those at the ends of the three
TRIALS, MORE = 6, 3  # of each network, and at the most more of a rival's
# By strength of augmentation, beyond crops and flips.
STRENGTHS: Mapping[int, Mapping[str, float]] = {
    0: {},
    1: {"cutmix": 1.0, "mix_share": 0.5, "cutout": 0.25, "gain": 0.2},
}
PROBED, PROBE_EPOCHS = 1280, 5  # images; an epoch for each size of the growing images


@dataclass(frozen=True)
class Choice:
    """What a trial tries; `strength` is a key of `STRENGTHS`.

    The last two are of networks for any channels: how much more often few are shown, and whether the network is told
    which are there (1) or only how many (0).
    """

    lr: float = RATES[0]
    weight_decay: float = DECAYS[0]
    strength: int = 0
    subset_bias: float = 0.0
    places: int = 0

    @property
    def settings(self) -> dict[str, float]:
        """The settings of a training by their names, without those of the network itself."""
        bias = {"subset_bias": self.subset_bias} if self.subset_bias else {}
        return {"lr": self.lr, "weight_decay": self.weight_decay, **STRENGTHS[self.strength], **bias}


@dataclass(frozen=True)
class Trial:
    """A row of the table of trials: what was tried, on what, and the share of deciding images that were right.

    `accuracy`, and with flips averaged `flipped`, is the mean over the combinations of channels where there are many.
    """

    network: str
    channels: str
    number: int
    lr: float
    weight_decay: float
    strength: int
    subset_bias: float
    places: int
    epochs: int
    seconds_per_image: float
    accuracy: float
    flipped: float
    train_seconds: float
    commit: str
    machine: str

    @property
    def choice(self) -> Choice:
        return Choice(self.lr, self.weight_decay, self.strength, self.subset_bias, self.places)

    @property
    def diverged(self) -> bool:
        """Whether the training ended early, with a loss that is not finite."""
        return not self.train_seconds


def following(done: Sequence[Trial]) -> Choice | None:
    """Return what to try after the trials `done` of a network on RGB, in their order; None after the last."""
    if len(done) < len(RATES):
        return Choice(lr=RATES[len(done)])
    best = _best(done).choice
    if len(done) == len(RATES):
        return replace(best, strength=1)
    if len(done) == len(RATES) + 1:
        return replace(best, weight_decay=DECAYS[1])
    if len(done) == len(RATES) + 2:
        return replace(best, lr=BEYOND[best.lr]) if best.lr in BEYOND else replace(best, weight_decay=DECAYS[2])
    return _beyond(best, done) if done[0].network in RIVALS and len(done) < TRIALS + MORE else None


def _beyond(best: Choice, done: Sequence[Trial]) -> Choice | None:
    """Return what to try where the best rate is the lowest tried, or the best weight decay the largest; or None."""
    rates, decays = ({getattr(trial.choice, name) for trial in done} for name in ("lr", "weight_decay"))
    if best.lr == min(rates) < max(rates):
        return replace(best, lr=best.lr / 2)
    if best.weight_decay == max(decays) > min(decays):
        return replace(best, weight_decay=round(best.weight_decay * 10 / 3, 6))
    return None


def following_any(start: Choice, done: Sequence[Trial]) -> Choice | None:
    """Return what to try after the trials `done` of a network for any channels, its best choice on RGB being `start`.

    As many as `following` returns; None after the last.
    """
    number = len(done)
    if number < len(BIASES):
        return replace(start, subset_bias=BIASES[number])
    best = _best(done).choice
    changes = {"places": 1}, {"strength": 1 - best.strength}, {"weight_decay": round(3 * best.weight_decay, 6)}
    return replace(best, **changes[number - len(BIASES)]) if number < len(BIASES) + len(changes) else None


def of(network: str, channels: str, trials: Iterable[Trial]) -> list[Trial]:
    """Return a network's trials, in their order: as the one for RGB or as the one for any channels."""
    return [trial for trial in trials if (trial.network, trial.channels) == (network, channels)]


def tuned(network: str, channels: str, trials: Iterable[Trial]) -> Choice:
    """Return the best choice of a network's trials. Raises ValueError where not all of them are there."""
    own = of(network, channels, trials)
    if not _is_whole(own):
        edge = ", and the best of them is at their edge" if len(own) >= TRIALS else ""
        raise ValueError(f"{network} on {channels} has {len(own)} of {TRIALS} trials{edge}")
    return _best(own).choice


def _is_whole(own: Sequence[Trial]) -> bool:
    """Return whether nothing follows the trials of a network."""
    return len(own) >= TRIALS and (own[0].channels != study.FULL or following(own) is None)


def best(networks: Iterable[str], trials: Sequence[Trial]) -> str:
    """Return which of some networks is the best on RGB. Raises ValueError where not all trials are there."""
    choices = {name: tuned(name, study.FULL, trials) for name in networks}
    return max(choices, key=lambda name: _best(of(name, study.FULL, trials)).accuracy)


def _best(trials: Iterable[Trial]) -> Trial:
    return max(trials, key=lambda trial: trial.accuracy)


def read(results: Path = study.RESULTS) -> list[Trial]:
    """Return the rows of the table of trials; none where there is no file."""
    return runs.read(results / TABLE, Trial)


def write(trials: Iterable[Trial], results: Path = study.RESULTS) -> None:
    """Write the table of trials: those on RGB first, by network in the order of `CONTENDERS` and number."""
    order = sorted(trials, key=lambda row: (row.channels != study.FULL, CONTENDERS.index(row.network), row.number))
    runs.write(results / TABLE, order)


def table(results: Path = study.RESULTS) -> str:
    """Return the table of all trials, the kept choice of a finished network in bold, and below it their commits."""
    rows = read(results)
    if not rows:
        return "Not measured yet."
    heads = ("network", "trained for", "rate", "weight decay", "augmentation", "few channels", "places", "epochs")
    heads += ("deciding", "flip avg.", "minutes")
    cells = []
    for row in rows:
        own = of(row.network, row.channels, rows)
        mark = "**" * (_is_whole(own) and row == _best(own))
        many = (f"{row.subset_bias:g}", "known" if row.places else "-") if row.channels == ANY else ("-", "-")
        settings = f"{row.lr:g}", f"{row.weight_decay:g}", ("usual", "strong")[row.strength], *many, str(row.epochs)
        found = f"{mark}{100 * row.accuracy:.1f}{mark}", f"{100 * row.flipped:.1f}", f"{row.train_seconds / 60:.0f}"
        if row.diverged:
            found = "diverged", "-", "-"
        cells.append((f"`{row.network}`", row.channels, *settings, *found))
    stamp = f"`{COMMAND}`: `bench/results/{TABLE}`; {study.stamps((row.commit, row.machine) for row in rows)}."
    return "\n\n".join([grid(Table("trials", heads, tuple(cells), 2)), wrapped(stamp)])


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
    few = {"train": _spread(parts["train"], PROBED), "val": _spread(parts["val"], 64)}
    runs.write_folder(out / "probe", images, few | {"test": few["val"]})


def _spread(split: Split, count: int) -> Split:
    """Return `count` images of a split, or all if it has fewer, at equal distances in its order."""
    total = len(split.paths)
    places = range(total) if total <= count else [place * total // count for place in range(count)]
    return Split(tuple(split.paths[place] for place in places), tuple(split.labels[place] for place in places))


def train(
    name: str,
    network: str,
    channels: str,
    choice: Choice,
    data: Path,
    out: Path,
    core: int | None,
    *,
    epochs: int,
    holdout: int = 0,
    seed: int = 0,
) -> tuple[RunFolder, str]:
    """Train a network by the recipe on one core, or go on with it; return its finished run and its name there.

    Args:
        channels: "RGB", "any", or the combination that a network is trained for alone.
    """
    entry = entry_of(network, channels, choice.places)
    settings = {"recipe": "strong", "models": entry, "data": data, **choice.settings, "epochs": epochs, "seed": seed}
    settings["precision"] = runs.PRECISION
    if channels != study.FULL:
        settings["channels"] = asked(channels)
    return runs.train(name, task_of(channels), out, core, settings | {"holdout": holdout}), entry


def task_of(channels: str) -> str:
    """Return the task whose recipe trains a network for these channels."""
    return "task2" if channels == study.FULL else "task1"


def asked(channels: str) -> str:
    """Return the `--channels` that a network for these channels is tested on."""
    return "all" if channels == ANY else channels


def entry_of(network: str, channels: str, places: int) -> str:
    """Return a network's name in the run that trains it for these channels."""
    return network + "+places" * places + "+alone" * (channels not in (study.FULL, ANY))


def _seconds_per_image(core: int | None, network: str, channels: str, out: Path, name: str) -> float:
    """Return the seconds of a training for each image of each epoch, on average over the sizes of growing images."""
    run, entry = train(name, network, channels, Choice(), out / "probe", out, core, epochs=PROBE_EPOCHS)
    return run.read_results()["models"][entry]["train_seconds"] / (PROBE_EPOCHS * PROBED)


def _words(network: str, channels: str) -> list[str]:
    return [network] if channels == study.FULL else [network, channels]


def _tune(
    core: int | None, network: str, channels: str, out: Path, minutes: float, seconds: float, results: Path, lock: Lock
) -> None:
    """Run the trials of a network that the table lacks, and add their rows."""
    images = len((out / "choices" / "train.txt").read_text(encoding="utf-8").splitlines())
    epochs = max(3, int(60 * minutes / (seconds * images)))
    while True:
        every = read(results)
        done = of(network, channels, every)
        choice = following(done) if channels == study.FULL else following_any(tuned(network, study.FULL, every), done)
        if choice is None:
            break
        number = len(done) + 1
        name = "-".join([*_words(network, channels), str(number)])
        try:
            run, entry = train(name, network, channels, choice, out / "choices", out, core, epochs=epochs)
        except runs.DivergedError:
            run, accuracies, took = RunFolder(out / task_of(channels) / name), (0.0, 0.0), 0.0
        else:
            found = run.read_results()["models"][entry]
            scores = (found[kind]["test"].values() for kind in ("scores", "flipped"))
            accuracies, took = (fmean(score["accuracy"] for score in each) for each in scores), found["train_seconds"]
        facts = run.read_environment()
        about = round(took, 1), study.commit(facts), study.machine(facts)
        row = Trial(network, channels, number, *asdict(choice).values(), epochs, seconds, *accuracies, *about)
        with lock:
            write([*read(results), row], results)
        print(f"{name}: {choice}, {epochs} epochs: {row.accuracy:.1%}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None, results: Path = study.RESULTS) -> int:
    """Run the trials that the table lacks, a network on each core at a time; return the exit status.

    Raises:
        UserError: the processor only emulates the runs' precision.
    """
    parser = runs.parser("trials", "tune each contender alike", MINUTES, CONTENDERS)
    given = parser.parse_args(arguments)
    runs.check_machine()
    given.out.mkdir(parents=True, exist_ok=True)
    make_folders(given.data, given.out)
    networks = [(network, study.FULL) for network in given.networks.split(",")]
    with runs.stoppable():
        _tune_all([*networks, *_one_for_all(read(results))], given.out, given.minutes, results)
        _tune_all(_one_for_all(read(results)), given.out, given.minutes, results)
    return 0


def _one_for_all(tried: Sequence[Trial]) -> list[tuple[str, str]]:
    ready = all(_is_whole(of(network, study.FULL, tried)) for network in FLAGSHIPS)
    return [(best(FLAGSHIPS, tried), ANY)] if ready else []


def _tune_all(networks: Sequence[tuple[str, str]], out: Path, minutes: float, results: Path) -> None:
    # All probes first: later the machine may be at other work. A network with a row has had its probe, perhaps on
    # another machine: a second probe would give its trials unequal epochs.
    tried = read(results)
    found = {(row.network, row.channels): row.seconds_per_image for row in tried}
    if new := [who for who in networks if who not in found]:
        found |= probed(new, next(iter(found.items()), None), out)
    seconds = [found[who] for who in networks]
    for (network, channels), each in zip(networks, seconds, strict=True):
        print(f"{network} on {channels}: {1000 * each:.2f} ms an image", file=sys.stderr, flush=True)
    lock = Lock()
    runs.on_cores(
        _tune, [(*who, out, minutes, each, results, lock) for who, each in zip(networks, seconds, strict=True)]
    )


def probed(
    new: Sequence[tuple[str, str]], known: tuple[tuple[str, str], float] | None, out: Path
) -> dict[tuple[str, str], float]:
    """Return the seconds for each image of networks, on the machine on which those of a network `known` were measured.

    Args:
        known: a network with what its trainings are for, and its seconds.
    """
    of_all = "-".join("-".join(_words(*who)) for who in new)
    again = [(*known[0], f"probe-{'-'.join(_words(*known[0]))}-beside-{of_all}")] if known else []
    named = [(*who, "-".join(["probe", *_words(*who)])) for who in new] + again
    count = len(runs.cores())
    tasks = [(network, channels, out, f"{name}-{place}") for network, channels, name in named for place in range(count)]
    seconds = runs.on_cores(_seconds_per_image, tasks)
    means = [fmean(seconds[start : start + count]) for start in range(0, len(seconds), count)]
    change = means[len(new)] / known[1] if known else 1.0
    return {who: round(mean / change, 6) for who, mean in zip(new, means, strict=False)}


if __name__ == "__main__":
    raise SystemExit(main())
