"""The tables of the comparisons of `bench.studies.comparison`, drawn from the committed predictions for each image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from bench.report.markdown import grid, wrapped
from bench.studies import paired, study, trials
from bench.studies.comparison import (
    ALONE,
    EQUAL_EPOCHS,
    EQUAL_MINUTES,
    FRESH,
    RIVALS,
    SEEDS,
    SEEDS_OF_EPOCHS,
    TABLE,
    Training,
    predictions,
    read,
    tested_on_fresh,
    wanted,
)
from polychrome.engine.channels.combinations import every
from polychrome.engine.report.tables import Table

MARGIN = -0.02  # of the accuracy of a network for one combination: the one network for all may be as far behind
NOTHING = "Not measured yet."


def equal_minutes(results: Path = study.RESULTS) -> str:
    """Return the table of all contenders on RGB after equal minutes, and below it the trainings' commits."""
    command = "python -m bench.studies.comparison --data DIR --out RUNS --fresh LIST"
    return _contenders(_study(results, EQUAL_MINUTES), command)


def equal_epochs(results: Path = study.RESULTS) -> str:
    """Return the table of contenders on RGB after equal epochs, and below it the trainings' commits."""
    command = "python -m bench.studies.comparison --data DIR --out RUNS --epochs N"
    return _contenders(_study(results, EQUAL_EPOCHS), command)


@dataclass(frozen=True)
class Study:
    """The rows of a comparison, and the trainings that it lacks: seed, network and channels; None: trials lack."""

    folder: Path
    rows: Sequence[Training]
    missing: Sequence[tuple[int, str, str]] | None
    untested: int

    @property
    def whole(self) -> bool:
        """Whether all trainings are there."""
        return self.missing is not None and not self.missing

    @property
    def final(self) -> str:
        """The split that decides: fresh images where all trainings are tested on them, else held-out ones."""
        return FRESH if self.whole and not self.untested else "holdout"

    def answers(self, network: str, channels: str, column: str, split: str | None = None) -> paired.Answers | None:
        """Return a network's answers on a split, by default the one that decides; None without trainings."""
        own = (row for row in self.rows if (row.network, row.channels) == (network, channels))
        files = [predictions(self.folder, row.name) for row in own]
        return paired.answers(files, split or self.final, column) if files else None

    def told(self, images: int) -> str:
        """Return in words which images decide, and what is missing."""
        which = f"{images:,} images of `{FRESH}`" if self.final == FRESH else f"{images:,} held-out images"
        words = f"Intervals, leads and flip averages are of the {which}."
        if self.missing is None:
            words = f"Trials are missing: not final. {words}"
        elif self.missing:
            words = f"{len(self.missing)} of {len(self.missing) + len(self.rows)} runs are missing: not final. {words}"
        return wrapped(words)


def _study(results: Path, place: Path) -> Study:
    folder = results / place
    rows, tried = read(folder), trials.read(results)
    done = {(row.seed, row.network, row.channels) for row in rows}
    try:
        seeds, epochs = (SEEDS_OF_EPOCHS, 1) if place == EQUAL_EPOCHS else (SEEDS, None)
        every = wanted(tried, seeds, epochs)
    except ValueError:
        missing = None
    else:
        missing = [each for each in every if each not in done]
    untested = sum(not tested_on_fresh(predictions(folder, row.name)) for row in rows)
    return Study(folder, rows, missing, untested)


def one_for_all(results: Path = study.RESULTS) -> str:
    """Return the table of the one network for every combination of channels against networks for one combination.

    A combination is met where the lower end of the 95% interval of the difference is above `MARGIN`.
    """
    made = _study(results, EQUAL_MINUTES)
    one = next((row.network for row in made.rows if row.channels == trials.ANY), None)
    if one is None:
        return NOTHING
    rivals = sorted({row.network for row in made.rows if row.channels in ALONE}, key=lambda name: (name != one, name))
    heads = ["channels", f"`{one}`, one for all"]
    heads += [f"`{name}`, {what}" for name in rivals for what in ("alone", "lead")]
    cells, count = [], 0
    for channels in every():
        ours, scores = made.answers(one, trials.ANY, channels), []
        count = len(ours.images)
        for name in rivals:
            theirs = made.answers(name, channels, channels)
            if theirs is None:
                scores += ["-", "-"]
            else:
                scores += [_range(paired.accuracy(theirs)), lead(ours, theirs) + _met(ours, theirs) * made.whole]
        cells.append((channels, _range(paired.accuracy(ours)), *scores))
    command = "python -m bench.studies.comparison --data DIR --out RUNS --fresh LIST"
    table = grid(Table("channels", tuple(heads), tuple(cells)))
    return "\n\n".join([made.told(count), table, _stamp(command, made.folder, made.rows)])


def _contenders(made: Study, command: str) -> str:
    rows = [row for row in made.rows if row.channels == study.FULL]
    if not rows:
        return NOTHING
    networks, final = list(dict.fromkeys(row.network for row in rows)), made.final
    heads = ["network", "epochs", "minutes", "taken", *([FRESH] * (final == FRESH)), "held-out", "test", "flip avg."]
    heads += [f"less `{name}`" for name in RIVALS if name in networks]
    heads += ["parameters", "mult-adds", "trained", "depth", "seeds"]
    cells = []
    for name in networks:
        own = [row for row in rows if row.network == name]
        found = {split: made.answers(name, study.FULL, study.FULL, split) for split in (final, "holdout", "test")}
        flipped = made.answers(name, study.FULL, f"{study.FULL} flipped")
        scores = [_range(paired.accuracy(found[final]))] * (final == FRESH)
        scores += [spread(found["holdout"]), spread(found["test"]), f"{100 * flipped.right.mean():.1f}"]
        for rival in (each for each in RIVALS if each in networks):
            theirs = made.answers(rival, study.FULL, study.FULL)
            scores.append("-" if rival == name else lead(found[final], theirs))
        first = own[0]
        written_out = "" if first.depth == first.depth_written_out else f"/{first.depth_written_out}"
        costs = f"{first.params:,}", f"{first.macs / 1e6:,.0f} M", f"{first.trained_macs / 1e15:.1f} P"
        minutes = [f"{fmean(each):.0f}" for each in ([row.minutes for row in own], [row.taken for row in own])]
        seeds = " ".join(str(row.seed) for row in own)
        cells.append((f"`{name}`", str(first.epochs), *minutes, *scores, *costs, f"{first.depth}{written_out}", seeds))
    table = grid(Table("comparison", tuple(heads), tuple(cells)))
    return "\n\n".join([made.told(len(found[final].images)), table, _stamp(command, made.folder, rows)])


def _stamp(command: str, folder: Path, rows: Iterable[Training]) -> str:
    place = f"`bench/results/mini50/{folder.name}`: `{TABLE}` and `predictions/`"
    return wrapped(f"`{command}`: {place}; {study.stamps((row.commit, row.machine) for row in rows)}.")


def _range(found: paired.Difference) -> str:
    return f"{100 * found.value:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def spread(found: paired.Answers) -> str:
    """Return the mean accuracy of trainings in percent, with its standard deviation."""
    each = 100 * found.right.mean(1)
    return f"{each.mean():.1f}" + (f" ± {each.std(ddof=1):.1f}" if len(each) > 1 else "")


def lead(ours: paired.Answers, theirs: paired.Answers) -> str:
    """Return a lead with its interval, and the largest p-value of any two trainings."""
    found, p = paired.difference(ours, theirs), paired.mcnemar(ours, theirs)
    told = "p < 0.001" if p < 0.001 else f"p {p:.3f}"
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f}; {told})"


def _met(ours: paired.Answers, theirs: paired.Answers) -> str:
    return ", met" if paired.difference(ours, theirs).low > MARGIN else ", not met"
