"""A run's tables in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.columns import Columns
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from polychrome.engine import console
from polychrome.engine.report import comparison, scores, tables
from polychrome.engine.report.tables import Table

GAP = 4  # blank columns between two tables


def show(*every: Table, narrow: Table | None = None) -> None:
    """Print tables side by side, or `narrow`, if given, where the terminal is too narrow for them.

    Of a table that is too wide on its own, the columns on the right follow below, each time after those on the left:
    no figure is cut off.
    """
    if narrow is not None and not _fits(*every):
        every = (narrow,)
    if len(every) > 1 and _fits(*every):
        console.console.print(Columns([_render(table) for table in every], padding=(0, GAP)))
        return
    for part in (part for table in every for part in _parts(table)):
        console.console.print(_render(part, whole=_fits(part)))


def show_scores(results: dict, split: str = "test") -> None:
    """Print the models' scores by channel combination, as fully as the terminal's width allows.

    By width, tables of all scores are printed side by side, or without those in `tables.MORE`, or a table of
    accuracies, or of mean accuracies by the number of channels kept; the last also where the combinations are too many.
    """
    entries = results["models"]
    each = [tables.combinations(name, entry, split) for name, entry in entries.items()]
    if not _fits(*each):
        each = [table.without(tables.MORE.__contains__) for table in each]
    kinds = scores.kinds(results, split)
    overview = [tables.accuracies(entries, split, kind) for kind in kinds]
    short = [tables.channels_kept_in_short(results, split, kind) for kind in kinds]
    if short[0].rows and (scores.is_long(results, split) or not (_fits(*each) or _fits(overview[0]))):
        _below(short)
    elif _fits(*each):
        show(*each)
    else:
        _below(overview)


def _below(every: Sequence[Table]) -> None:
    """Print tables one below the other."""
    for table in every:
        show(table)


def show_comparison(results: dict) -> None:
    """Print the accuracies of each split, where a run has more than the test scores of a single seed."""
    for table in comparison.tables(results) if comparison.says_more(results) else ():
        show(table)


def summarise(results: dict) -> None:
    """Print a finished run: scores, costs, variants, the kernels that took longest, and failures."""
    if results["models"]:
        show_scores(results)
        show_comparison(results)
        show(tables.models(results))
    for kind in scores.kinds(results):
        variants = tables.variants(results, kind)
        if variants.rows:
            show(variants, narrow=variants.without(lambda head: head.startswith("base")))
    for table in (tables.ablation(results), tables.settings(results), *tables.kernels(results), tables.failed(results)):
        if table.rows:
            show(table)


def _parts(table: Table) -> list[Table]:
    """Return a table in parts that fit, each with the columns on the left, which may take half of the width."""
    if _fits(table) or len(table.columns) <= table.left + 1:
        return [table]
    room = console.console.width - min(_width(table.picked(range(table.left))), console.console.width // 2)
    groups, used = [[]], 0
    for index in range(table.left, len(table.columns)):
        own = _width(table.picked([index]))
        if groups[-1] and used + own > room:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += own
    return [table.picked([*range(table.left), *group]) for group in groups]


def _fits(*every: Table) -> bool:
    return sum(_width(each) + GAP for each in every) - GAP <= console.console.width


def _width(table: Table) -> int:
    unlimited = console.console.options.update(max_width=sys.maxsize)
    return Measurement.get(console.console, unlimited, _render(table)).maximum


def _render(table: Table, whole: bool = True) -> RichTable:
    """Return a table to print: `whole` if it fits, else its cells are folded."""
    rich = RichTable(
        title=Text(table.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True
    )
    for number, name in enumerate(table.columns):
        left = number < table.left
        rich.add_column(Text(name), justify="left" if left else "right", no_wrap=whole and not left, overflow="fold")
    for row in table.rows:
        rich.add_row(*map(Text, row))
    return rich
