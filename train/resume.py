"""Going on with a run that was interrupted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from engine import distributed
from engine.errors import UserError
from engine.run_folder import RunFolder
from train.config import AUTO, Settings, without


def find(task: str, out: Path, wanted: str | None) -> RunFolder | None:
    """Return the run to go on with: the folder `wanted`, or for "auto" the newest unfinished one under `out`, if any.

    Where torchrun has restarted this process, that is the run that it began with before, whatever is wanted. Of several
    processes the first decides.

    Raises:
        UserError: the folder is no run, or a run of another task.
    """
    restarted = distributed.is_restarted()
    if restarted:
        wanted = AUTO
    elif wanted is None:
        return None
    if wanted != AUTO:
        folder = RunFolder.open(Path(wanted))
        if folder.read_results()["task"] != task:
            raise UserError(f"--resume {wanted}: that is a run of {folder.read_results()['task']}, not of {task}")
        return folder
    # The first makes a new folder where there is none, which the others must not take for an older one.
    found = distributed.of_main(_newest(task, out, restarted) if distributed.is_main() else None)
    return found and RunFolder(found)


def _newest(task: str, out: Path, restarted: bool) -> Path | None:
    runs = [RunFolder(path.parent) for path in (out / task).glob("*/results.json")]
    unfinished = [run for run in runs if run.config.is_file() and not run.finished]
    if restarted:
        unfinished = [run for run in unfinished if run.read_environment().get("launch") == distributed.launch()]
    newest = max(unfinished, key=lambda run: run.config.stat().st_mtime, default=None)
    return newest and newest.root


def check_same(folder: RunFolder, given: Settings, names: Iterable[str], flags: Iterable[str], task: str) -> None:
    """Raise UserError where a run's settings of these names are not the given ones, which come from files.

    A command with --resume auto can so be repeated as it stands; what is to change in a run stands on the command line,
    as one of the `flags`.
    """
    own = Settings.from_toml(folder.config).resolve(task)
    own = replace(own, model={entry: without(table, flags) for entry, table in own.model.items()})
    for name in sorted(names):
        if name != "sweep" and getattr(own, name) != getattr(given, name):
            raise UserError(
                f"{folder.root} goes on with its own settings, and --config or --recipe has another {name}: leave them "
                "out, or start another run"
            )


def merge(folder: RunFolder, flags: dict[str, Any]) -> dict[str, Any]:
    """Return the run's settings, overridden by what stands on this command line, for single entries too."""
    settings = Settings.from_toml(folder.config)
    values = {item.name: getattr(settings, item.name) for item in fields(settings)} | flags
    return values | {"model": {entry: without(table, flags) for entry, table in values["model"].items()}}
