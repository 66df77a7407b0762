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
    SEEDS,
    SEEDS_OF_EPOCHS,
    TABLE,
    Training,
    predictions,
    read,
    tested_on_fresh,
    wanted,
)
from bench.studies.trials import RIVALS
from polychrome.engine.channels.combinations import every
from polychrome.engine.report.tables import Table

MARGIN = -0.02  # of the accuracy of a network for one combination: the one network for all may be as far behind
LARGEST_P = 0.05  # of any two trainings by McNemar's test, where a lead is shown
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
    def lacks(self) -> str:
        """What keeps the study from being final, in words; empty where it is."""
        count = len(self.rows)
        if self.missing is None:
            return "Trials are missing"
        if self.missing:
            return f"{len(self.missing)} of {len(self.missing) + count} runs are missing"
        if self.untested and self.folder.name == EQUAL_MINUTES.name:
            return f"{self.untested} of {count} runs are not tested on `{FRESH}`"
        if len(codes := sorted({row.commit for row in self.rows})) > 1 or "changes" in codes[0]:
            return f"Runs are of the code of {', '.join(codes)}"
        return ""

    @property
    def final(self) -> str:
        """The split that decides: fresh images where all trainings are tested on them, else held-out ones."""
        return FRESH if not self.missing and self.missing is not None and not self.untested else "holdout"

    def answers(self, network: str, channels: str, column: str, split: str | None = None) -> paired.Answers | None:
        """Return a network's answers on a split, by default the one that decides; None without trainings."""
        own = (row for row in self.rows if (row.network, row.channels) == (network, channels))
        files = [predictions(self.folder, row.name) for row in own]
        return paired.answers(files, split or self.final, column) if files else None

    def told(self, images: int) -> str:
        """Return in words which images decide, and what is missing."""
        which = f"{images:,} images of `{FRESH}`" if self.final == FRESH else f"{images:,} held-out images"
        words = f"Intervals, leads and flip averages are of the {which}."
        return wrapped(f"{self.lacks}: not final. {words}" if self.lacks else words)


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

    A combination is met where the lower end of the 95% interval of the difference is above `MARGIN`, and refuted where
    the upper end is below it.
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
                found = paired.difference(ours, theirs)
                verdict = "" if made.lacks else f", {_verdict(found, MARGIN)}"
                scores += [_range(paired.accuracy(theirs)), _signed(found) + verdict]
        cells.append((channels, _range(paired.accuracy(ours)), *scores))
    command = "python -m bench.studies.comparison --data DIR --out RUNS --fresh LIST"
    table = grid(Table("channels", tuple(heads), tuple(cells)))
    trainings = {}
    for row in made.rows:
        if row.network in rivals and (row.channels in (study.FULL, trials.ANY, *ALONE)):
            trainings.setdefault((row.network, row.channels), []).append(row)
    costs = "; ".join(f"`{name}` for {channels} {_costs(own)}" for (name, channels), own in trainings.items())
    told = wrapped(f"Trainings: {costs}.")
    return "\n\n".join([made.told(count), table, told, _stamp(command, made.folder, made.rows)])


def _costs(own: Sequence[Training]) -> str:
    taken = f"{fmean(row.taken for row in own):.0f} minutes"
    return f"{own[0].epochs} epochs, {taken}, {len(own)} seed{'s' * (len(own) > 1)}"


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
    told = [made.told(len(found[final].images)), table]
    if not made.lacks and made.folder.name == EQUAL_MINUTES.name:
        told += [wrapped(line) for line in _claim(made)]
    return "\n\n".join([*told, _stamp(command, made.folder, rows)])


def _claim(made: Study) -> list[str]:
    """Return a line on whether the better flagship by its trials is ahead of both rivals: both leads have to hold."""
    ours = next((row.network for row in made.rows if row.channels == trials.ANY), None)
    if ours is None:
        return []
    own, verdicts = made.answers(ours, study.FULL, study.FULL), []
    for rival in RIVALS:
        theirs = made.answers(rival, study.FULL, study.FULL)
        found = _verdict(paired.difference(own, theirs), 0.0)
        chance = paired.mcnemar(own, theirs) >= LARGEST_P
        verdicts.append(f"{'not shown' if found == 'met' and chance else found} against `{rival}`")
    return [f"That `{ours}`, the better flagship by the trials, is more accurate: {', '.join(verdicts)}."]


def _stamp(command: str, folder: Path, rows: Iterable[Training]) -> str:
    place = f"`bench/results/mini50/{folder.name}`: `{TABLE}` and `predictions/`"
    return wrapped(f"`{command}`: {place}; {study.stamps((row.commit, row.machine) for row in rows)}.")


def _range(found: paired.Difference) -> str:
    return f"{100 * found.value:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def spread(found: paired.Answers) -> str:
    """Return the mean accuracy of trainings in percent, with its standard deviation."""
    each = 100 * found.right.mean(1)
    return f"{each.mean():.1f}" + (f" ± {each.std(ddof=1):.1f}" if len(each) > 1 else "")


def _signed(found: paired.Difference) -> str:
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def lead(ours: paired.Answers, theirs: paired.Answers) -> str:
    """Return a lead with its interval, and the largest p-value of any two trainings."""
    found, p = paired.difference(ours, theirs), paired.mcnemar(ours, theirs)
    told = "p < 0.001" if p < 0.001 else f"p {p:.3f}"
    return f"{_signed(found)[:-1]}; {told})"


def _verdict(found: paired.Difference, margin: float) -> str:
    """Return whether a difference is shown to be above a margin, shown to be below it, or neither."""
    return "met" if found.low > margin else "refuted" if found.high < margin else "not shown"
