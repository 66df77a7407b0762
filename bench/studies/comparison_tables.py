"""The tables of the comparisons of `bench.studies.comparison`, drawn from the committed predictions for each image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bench.report.markdown import grid, wrapped
from bench.studies import paired, study, trials
from bench.studies.comparison import (
    ALONE,
    EQUAL_EPOCHS,
    EQUAL_MINUTES,
    FRESH,
    LONG,
    RIVALS,
    SEEDS,
    TABLE,
    Training,
    predictions,
    read,
    tested_on_fresh,
)
from polychrome.engine.channels.combinations import every
from polychrome.engine.report.tables import Table

MARGIN = -0.02  # of the accuracy of a network for one combination: the one network for all may be as far behind
NOTHING = "Not measured yet."


def equal_minutes(results: Path = study.RESULTS) -> str:
    """Return the table of all contenders on RGB after equal minutes, and below it the trainings' commits."""
    command = "python -m bench.studies.comparison --data DIR --out RUNS --fresh LIST"
    return _contenders(results / EQUAL_MINUTES, command, trials.CONTENDERS)


def equal_epochs(results: Path = study.RESULTS) -> str:
    """Return the table of contenders on RGB after equal epochs, and below it the trainings' commits."""
    command = "python -m bench.studies.comparison --data DIR --out RUNS --epochs N"
    return _contenders(results / EQUAL_EPOCHS, command, LONG)


def one_for_all(results: Path = study.RESULTS) -> str:
    """Return the table of the one network for every combination of channels against networks for one combination.

    A combination is met where the lower end of the 95% interval of the difference is above `MARGIN`.
    """
    folder = results / EQUAL_MINUTES
    rows = read(folder)
    one = next((row.network for row in rows if row.channels == trials.ANY), None)
    if one is None:
        return NOTHING
    shown = _files(rows, one, trials.ANY, folder)
    rivals = sorted({row.network for row in rows if row.channels in ALONE}, key=lambda name: (name != one, name))
    alone = [(name, channels) for name in rivals for channels in (study.FULL, *ALONE)]
    final = _final(rows, [(one, trials.ANY), *alone], folder)
    heads = ["channels", f"`{one}`, one for all"]
    heads += [f"`{name}`, {what}" for name in rivals for what in ("alone", "lead")]
    cells = []
    for channels in every():
        ours, scores = paired.right(shown, final, channels), []
        for name in rivals:
            files = _files(rows, name, channels, folder)
            theirs = paired.right(files, final, channels) if files else None
            scores += ["-", "-"] if theirs is None else [_range(paired.accuracy(theirs)), _met(ours, theirs)]
        cells.append((channels, _range(paired.accuracy(ours)), *scores))
    command = "python -m bench.studies.comparison --data DIR --out RUNS --fresh LIST"
    return "\n\n".join([grid(Table("channels", tuple(heads), tuple(cells))), _stamp(command, folder, rows)])


def _contenders(folder: Path, command: str, contenders: Iterable[str]) -> str:
    rows = [row for row in read(folder) if row.channels == study.FULL]
    if not rows:
        return NOTHING
    networks = list(dict.fromkeys(row.network for row in rows))
    files = {name: _files(rows, name, study.FULL, folder) for name in networks}
    final = _final(rows, [(name, study.FULL) for name in contenders], folder)
    heads = ["network", "epochs", "minutes", *([FRESH] * (final == FRESH)), "held-out", "test", "flip avg."]
    heads += [f"less `{name}`" for name in RIVALS if name in networks]
    heads += ["parameters", "mult-adds", "trained", "depth", "seeds"]
    cells = []
    for name in networks:
        own = [row for row in rows if row.network == name]
        hits = {split: paired.right(files[name], split, study.FULL) for split in (final, "holdout", "test")}
        scores = [_range(paired.accuracy(hits[final]))] * (final == FRESH)
        scores += [spread(hits["holdout"]), spread(hits["test"])]
        scores += [f"{100 * paired.right(files[name], final, f'{study.FULL} flipped').mean():.1f}"]
        for rival in (each for each in RIVALS if each in networks):
            theirs = paired.right(files[rival], final, study.FULL)
            scores.append("-" if rival == name else lead(hits[final], theirs))
        first = own[0]
        written_out = "" if first.depth == first.depth_written_out else f"/{first.depth_written_out}"
        costs = f"{first.params:,}", f"{first.macs / 1e6:,.0f} M", f"{first.trained_macs / 1e15:.1f} P"
        minutes = f"{sum(row.minutes for row in own) / len(own):.0f}"
        seeds = " ".join(str(row.seed) for row in own)
        cells.append((f"`{name}`", str(first.epochs), minutes, *scores, *costs, f"{first.depth}{written_out}", seeds))
    return "\n\n".join([grid(Table("comparison", tuple(heads), tuple(cells))), _stamp(command, folder, rows)])


def _files(rows: Iterable[Training], network: str, channels: str, folder: Path) -> list[Path]:
    own = (row for row in rows if (row.network, row.channels) == (network, channels))
    return [predictions(folder, row.name) for row in own]


def _final(rows: Sequence[Training], wanted: Iterable[tuple[str, str]], folder: Path) -> str:
    """Return the split that decides: fresh images where all seeds of all wanted are tested on them, else held-out ones.

    Args:
        wanted: the networks of the table and the channels that they are trained for.
    """
    every = [_files(rows, *who, folder) for who in wanted]
    whole = all(len(files) >= SEEDS and all(map(tested_on_fresh, files)) for files in every)
    return FRESH if whole else "holdout"


def _stamp(command: str, folder: Path, rows: Iterable[Training]) -> str:
    place = f"`bench/results/mini50/{folder.name}`: `{TABLE}` and `predictions/`"
    return wrapped(f"`{command}`: {place}; {study.stamps((row.commit, row.machine) for row in rows)}.")


def _range(found: paired.Difference) -> str:
    return f"{100 * found.value:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def spread(hits: np.ndarray) -> str:
    """Return the mean accuracy of trainings, bool [trainings, images], in percent, with its standard deviation."""
    each = 100 * hits.mean(1)
    return f"{each.mean():.1f}" + (f" ± {each.std(ddof=1):.1f}" if len(each) > 1 else "")


def lead(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Return a lead with its interval, and the largest p-value of pairs of trainings, in the order of their seeds."""
    found = paired.difference(ours, theirs)
    p = max(paired.mcnemar(*each) for each in zip(ours, theirs, strict=False))
    told = "p < 0.001" if p < 0.001 else f"p {p:.3f}"
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f}; {told})"


def _met(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Return a lead as `lead` does, and whether it keeps the margin."""
    return f"{lead(ours, theirs)}, {'met' if paired.difference(ours, theirs).low > MARGIN else 'not met'}"
