"""The terminal: progress while a run works, tables when it is done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from polychrome.engine.errors import shown
from polychrome.engine.history import EpochRow
from polychrome.engine.report import comparison, scores, tables
from polychrome.engine.report.tables import Table

# A pipe or a file has no width of its own; tables should not be squeezed there.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


# Blank columns between two tables.
GAP = 4
# In the bar of a training: the width from which the speed is shown, that of the speed, that of all but the name and the
# speed, and what a name has at least.
WITH_SPEED, SPEED, OTHERS, LEAST_NAME = 96, 14, 62, 12


class SpeedColumn(ProgressColumn):
    """Images a second over the last moments."""

    def render(self, task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} img/s", style="cyan")


class RunLeftColumn(ProgressColumn):
    """The time left of a training and, where others follow it, of the whole run."""

    def render(self, task) -> Text:
        left = task.time_remaining
        run = task.fields["left"](task.completed / task.total) if task.total else None
        if left is None or run is None:
            return Text("")
        # A run is not over before the training that is seen.
        text = f"{_clock(left)} left" if run < left + 2 else f"{_clock(left)} left, run {_clock(run)}"
        return Text(text, style="cyan")


@dataclass(frozen=True)
class Bar:
    """A moving bar, moved on by a number of images (`advance`) or to a number of images (`reach`)."""

    bars: Progress
    task: TaskID

    def advance(self, images: int) -> None:
        self.bars.advance(self.task, images)

    def reach(self, done: int, _total: int) -> None:
        self.bars.update(self.task, completed=done)

    def tell(self, row: EpochRow, epochs: int) -> None:
        """Show what came of an epoch, and the epoch that follows."""
        state = f", loss {row.train_loss:.3f}, val. {row.val_accuracy:.1%}"
        self.bars.update(self.task, epoch=min(row.epoch + 1, epochs), state=state)


@contextmanager
def silent() -> Iterator[None]:
    """Print nothing but faults."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


@contextmanager
def progress(description: str, total: int) -> Iterator[Bar]:
    """Show a bar over `total` images, with images a second and the time left."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        SpeedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with _bars(*columns) as bars:
        yield Bar(bars, bars.add_task(description, total=total))


@contextmanager
def training(name: str, total: int, epochs: int, left: Callable[[float], float | None]) -> Iterator[Bar]:
    """Show a bar over the `total` images of a training, with its epoch, the last losses, and the time left.

    `left` returns the seconds left of the whole run, given the share of this training that is done.
    """
    wide = console.width >= WITH_SPEED
    columns = (
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None),
        TextColumn(
            "epoch {task.fields[epoch]}/{task.fields[epochs]}{task.fields[state]}", table_column=Column(no_wrap=True)
        ),
        *([SpeedColumn(Column(no_wrap=True))] if wide else []),
        RunLeftColumn(Column(no_wrap=True)),
    )
    short = shown(name)
    if len(short) > (room := max(LEAST_NAME, console.width - (OTHERS + SPEED * wide))):
        short = f"{short[: room - 1]}…"
    with _bars(*columns, expand=True) as bars:
        yield Bar(bars, bars.add_task(escape(short), total=total, epoch=1, epochs=epochs, state="", left=left))


def _bars(*columns: ProgressColumn, expand: bool = False) -> Progress:
    # A pipe gets the finished lines only, no frames of a moving bar.
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal, expand=expand)


def _clock(seconds: float) -> str:
    """Return a time such as 0:40, 12:05 or 3:07:00."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """Show a sign of work of unknown length."""
    with console.status(Text(description)) if console.is_terminal else nullcontext():
        yield


def say(message: str) -> None:
    """Print one line of plain text."""
    console.print(_text(message), soft_wrap=True)


def warn(message: str) -> None:
    """Print one line of plain text about a fault; unlike `say` also in a process whose terminal is quiet."""
    print(_text(message).plain, file=sys.stderr) if console.quiet else say(message)


def show(*every: Table, narrow: Table | None = None) -> None:
    """Print tables side by side, or `narrow`, if given, where the terminal is too narrow for them.

    Of a table that is too wide on its own, the columns on the right follow below, each time after those on the left:
    no figure is cut off.
    """
    if narrow is not None and not _fits(*every):
        every = (narrow,)
    if len(every) > 1 and _fits(*every):
        console.print(Columns([_render(table) for table in every], padding=(0, GAP)))
        return
    for part in (part for table in every for part in _parts(table)):
        console.print(_render(part, whole=_fits(part)))


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
    room = console.width - min(_width(table.picked(range(table.left))), console.width // 2)
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
    return sum(_width(each) + GAP for each in every) - GAP <= console.width


def _width(table: Table) -> int:
    unlimited = console.options.update(max_width=sys.maxsize)
    return Measurement.get(console, unlimited, _render(table)).maximum


def _text(value: str) -> Text:
    return Text(shown(value))


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
