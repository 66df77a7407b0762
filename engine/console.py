"""The terminal: what a run says, and bars while it works."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
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
from rich.text import Text

from polychrome.engine.errors import shown
from polychrome.engine.history import EpochRow

# A pipe or a file has no width of its own; tables should not be squeezed there.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


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


@contextmanager
def _bars(*columns: ProgressColumn, expand: bool = False) -> Iterator[Progress]:
    # A pipe gets the finished lines only, no frames of a moving bar; rich before 14.3 ends even a disabled bar by an
    # empty line, so that one is not begun.
    bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal, expand=expand)
    with bars if console.is_terminal else nullcontext():
        yield bars


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


def _text(value: str) -> Text:
    return Text(shown(value))
