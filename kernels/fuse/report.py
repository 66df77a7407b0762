"""The report of `fuse`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Swap:
    """A module that now calls `op`: its path in the model, its class's name, and a note."""

    path: str
    module: str
    op: str
    note: str = ""


@dataclass(frozen=True)
class Left:
    """A module that was left as it was: its path in the model, its class's name, and why."""

    path: str
    module: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The modules that `fuse` changed, and known or candidate modules that it left alone; `str` is a table."""

    swapped: tuple[Swap, ...] = ()
    left: tuple[Left, ...] = ()

    def __str__(self) -> str:
        count = f"{len(self.swapped)} swapped, {len(self.left)} left alone"
        if not self.swapped and not self.left:
            return f"{count}: no module here is known to fuse"
        rows = [(_shown(s.path), s.module, f"{s.op} ({s.note})" if s.note else s.op) for s in self.swapped]
        rows += [(_shown(one.path), one.module, f"left: {one.reason}") for one in self.left]
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        return "\n".join([count, *(f"  {path:<{first}}  {module:<{second}}  {what}" for path, module, what in rows)])


def _shown(path: str) -> str:
    return path or "(the model)"
