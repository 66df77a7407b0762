"""The terminal: progress while a run works, tables when it is done."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from rich import box
from rich.columns import Columns
from rich.console import Console
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
from rich.table import Table as RichTable
from rich.text import Text

from engine.report.tables import Table

# A pipe or a file has no width of its own; tables should not be squeezed there.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


# Blank columns between two tables.
GAP = 4


class SpeedColumn(ProgressColumn):
    """Images a second over the last moments."""

    def render(self, task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} img/s", style="cyan")


@dataclass(frozen=True)
class Bar:
    """A moving bar: told either how many more images are done, or how many in all."""

    bars: Progress
    task: TaskID

    def advance(self, images: int) -> None:
        self.bars.advance(self.task, images)

    def reach(self, done: int, _total: int) -> None:
        self.bars.update(self.task, completed=done)


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
    # A pipe gets the finished lines only, no frames of a moving bar.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield Bar(bars, bars.add_task(description, total=total))


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """Show that something of unknown length is going on."""
    with console.status(Text(description)) if console.is_terminal else nullcontext():
        yield


def say(message: str) -> None:
    """Print one line of plain text."""
    console.print(_text(message), soft_wrap=True)


def show(*tables: Table, narrow: Table | None = None) -> None:
    """Print tables side by side; where the terminal is too narrow for that, `narrow` instead, if there is one."""
    rendered = [_render(table) for table in tables]
    width = sum(console.measure(table).maximum + GAP for table in rendered)
    if narrow is not None and width - GAP > console.width:
        rendered = [_render(narrow)]
    console.print(Columns(rendered, padding=(0, GAP)) if len(rendered) > 1 else rendered[0])


def _text(value: str) -> Text:
    # Names of files need not be valid text; such bytes are shown as escapes.
    return Text(value.encode("utf-8", "backslashreplace").decode())


def _render(table: Table) -> RichTable:
    rich = RichTable(title=Text(table.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for number, name in enumerate(table.columns):
        rich.add_column(Text(name), justify="right" if number else "left", no_wrap=bool(number), overflow="fold")
    for row in table.rows:
        rich.add_row(*(_text(cell) for cell in row))
    return rich
