"""Going on with a run that was interrupted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from polychrome.engine.errors import UserError
from polychrome.engine.machine import distributed
from polychrome.engine.machine.files import hold
from polychrome.engine.run_folder import RunFolder
from polychrome.train import variants
from polychrome.train.config import AUTO, Settings, without

# What a run must have in common with the command for "auto" to go on with it, where the command says it.
LIKE = ("data", "models", "name")


def find(task: str, out: Path, wanted: str | None, like: Mapping[str, Any]) -> RunFolder | None:
    """Return the run to go on with: the folder `wanted`, or for "auto" the newest unfinished one under `out`, if any.

    For "auto" it is one whose settings are those of `like`, and in which no other process is at work. Where torchrun
    has restarted this process, it is the run that it began with before, whatever is wanted. Of several processes the
    first decides.

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
    found = distributed.of_main(_newest(task, out, restarted, like) if distributed.is_main() else None)
    return found and RunFolder(found)


def _newest(task: str, out: Path, restarted: bool, like: Mapping[str, Any]) -> Path | None:
    runs = [RunFolder(path.parent) for path in (out / task).glob("*/results.json")]
    unfinished = [run for run in runs if run.config.is_file() and not run.finished]
    if restarted:
        unfinished = [run for run in unfinished if run.read_environment().get("launch") == distributed.launch()]
    else:
        unfinished = [run for run in unfinished if _is_like(run, like)]
    newest_first = sorted(unfinished, key=lambda run: run.config.stat().st_mtime, reverse=True)
    return next((run.root for run in newest_first if hold(run.root)), None)


def _is_like(run: RunFolder, like: Mapping[str, Any]) -> bool:
    if not like:
        return True
    own = Settings.from_toml(run.config)
    return all(getattr(own, name) == value for name, value in like.items())


def check_same(folder: RunFolder, given: Settings, names: Iterable[str], flags: Iterable[str], task: str) -> None:
    """Raise UserError where a run's settings of these names are not the given ones, which come from files.

    A command with --resume auto can so be repeated as it stands; what is to change in a run stands on the command line,
    as one of the `flags`.
    """
    own = variants.resolve(Settings.from_toml(folder.config), task)
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
