"""Whether gates and dynamic convolutions earn their place: `python -m bench.studies.forms --data DIR --out RUNS`.

The better one of the flagships is trained in its plain form and in those of `bench/forms.toml`, with several seeds that
no trial had, by what the plain form's trials on RGB found and for as many epochs, whatever a form costs. The images
that decide on trials decide.
Rows and predictions go to `bench/results/mini50/forms`; what has a row is not trained again.
"""

from __future__ import annotations

import lzma
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from bench.report.markdown import grid, wrapped
from bench.studies import paired, runs, study, trials
from bench.studies.comparison_tables import lead, spread
from bench.studies.trials import Choice
from polychrome.engine.machine.files import write_atomically
from polychrome.engine.report.tables import Table

PLAIN = "plain"
FORMS = (PLAIN, "gates", "dynamic")
SEEDS = (1, 2, 3)  # the best trial, of the plain form with seed 0, was chosen for its luck, too
CONFIG = Path(__file__).resolve().parents[1] / "forms.toml"
FOLDER = Path("mini50/forms")
COMMAND = "python -m bench.studies.forms --data DIR --out RUNS"


@dataclass(frozen=True)
class Form:
    """A row of `forms.csv`: a training of a form."""

    network: str
    form: str
    seed: int
    lr: float
    weight_decay: float
    strength: int
    epochs: int
    params: int
    macs: int
    depth: int
    train_seconds: float
    commit: str
    machine: str

    def predictions(self, folder: Path) -> Path:
        """Return the path of the training's predictions for the deciding images, the split "test"."""
        return folder / "predictions" / f"{self.network}-{self.form}-seed{self.seed}.csv.xz"


def read(results: Path = study.RESULTS) -> list[Form]:
    """Return the rows of the study; none where there is no file."""
    return runs.read(results / FOLDER / "forms.csv", Form)


def check_choices(rows: Iterable[Form], network: str, choice: Choice, epochs: int) -> None:
    """Raise ValueError where a row is not of the network, or not trained by the choice and for as many epochs."""
    for row in rows:
        used = row.network, row.lr, row.weight_decay, row.strength, row.epochs
        if used != (best := (network, choice.lr, choice.weight_decay, choice.strength, epochs)):
            raise ValueError(f"{row.form} of seed {row.seed} was trained by {used}, and the best trial is now {best}")


def write(rows: list[Form], results: Path) -> None:
    """Write the rows of the study, by form and seed."""
    order = sorted(rows, key=lambda row: (row.network, FORMS.index(row.form), row.seed))
    runs.write(results / FOLDER / "forms.csv", order)


def train(core: int | None, seed: int, form: str, network: str, out: Path, results: Path) -> Form:
    """Train a form, or go on with it, keep its predictions, and return its row."""
    tried = trials.read(results)
    choice, epochs = trials.tuned(network, study.FULL, tried), trials.of(network, study.FULL, tried)[0].epochs
    entry = network if form == PLAIN else f"{network}+{form}"
    flags = {"recipe": "strong", "config": CONFIG, "models": entry, "data": out / "choices", **choice.settings}
    flags |= {"epochs": epochs, "seed": seed, "holdout": 0, "precision": runs.PRECISION}
    run = runs.train(f"{network}-{form}-seed{seed}", "task2", out, core, flags)
    found, facts = run.read_results()["models"][entry], run.read_environment()
    costs = found["epochs"], found["params"], found["macs"], found["depth"], round(found["train_seconds"], 1)
    tuned = choice.lr, choice.weight_decay, choice.strength
    row = Form(network, form, seed, *tuned, *costs, study.commit(facts), study.machine(facts))
    path = row.predictions(results / FOLDER)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lzma.compress(run.every_prediction(entry).read_bytes()))
    return row


def table(results: Path = study.RESULTS) -> str:
    """Return the table of the forms, their lead over the plain one, and below it the trainings' commits."""
    rows, folder = read(results), results / FOLDER
    if not rows:
        return "Not measured yet."
    hits = {
        form: paired.answers([row.predictions(folder) for row in rows if row.form == form], "test", study.FULL)
        for form in FORMS
        if any(row.form == form for row in rows)
    }
    heads = ("network", "form", "deciding", "less plain", "parameters", "mult-adds", "minutes", "seeds")
    cells = []
    for form, found in hits.items():
        own = [row for row in rows if row.form == form]
        ahead = "-" if form == PLAIN or PLAIN not in hits else lead(found, hits[PLAIN])
        minutes = f"{sum(row.train_seconds for row in own) / len(own) / 60:.0f}"
        costs = f"{own[0].params:,}", f"{own[0].macs / 1e6:,.0f} M", minutes, " ".join(str(row.seed) for row in own)
        cells.append((f"`{own[0].network}`", form, spread(found), ahead, *costs))
    stamp = f"`{COMMAND}`: `bench/results/{FOLDER}`; {study.stamps((row.commit, row.machine) for row in rows)}."
    count = len(SEEDS) * len(FORMS)
    told = [f"{count - len(rows)} of {count} runs are missing: not final."] * (len(rows) < count)
    return "\n\n".join([*told, grid(Table("forms", heads, tuple(cells), 2)), wrapped(stamp)])


def main(arguments: list[str] | None = None, results: Path = study.RESULTS) -> int:
    """Train what the study lacks, a form on each core at a time; return the exit status.

    Raises:
        ValueError: trials are missing or have another best one than before.
        UserError: the processor only emulates the runs' precision.
    """
    parser = runs.parser("forms", "gates and dynamic convolutions against plain ones")
    asked, lock = parser.parse_args(arguments), Lock()
    runs.check_machine()
    asked.out.mkdir(parents=True, exist_ok=True)
    trials.make_folders(asked.data, asked.out)
    tried = trials.read(results)
    network = trials.best(trials.FLAGSHIPS, tried)
    epochs = trials.of(network, study.FULL, tried)[0].epochs
    check_choices(read(results), network, trials.tuned(network, study.FULL, tried), epochs)

    def work(core: int | None, seed: int, form: str) -> None:
        row = train(core, seed, form, network, asked.out, results)
        with lock:
            write([*read(results), row], results)
        print(f"{form} of seed {seed}: {row.train_seconds / 60:.0f} min", file=sys.stderr, flush=True)

    done = {(row.seed, row.form) for row in read(results)}
    every = [(seed, form) for seed in SEEDS for form in FORMS]
    with runs.stoppable():
        runs.on_cores(work, [each for each in every if each not in done])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
