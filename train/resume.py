"""Resume a run that was interrupted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from polychrome.engine.errors import UserError
from polychrome.engine.machine import distributed
from polychrome.engine.machine.files import hold
from polychrome.engine.run_folder import RunFolder
from polychrome.train.settings import variants
from polychrome.train.settings.config import AUTO, Settings, without

# Flags that, where given, must equal a run's settings for `--resume auto` to choose the run.
LIKE = ("data", "models", "name")


def find(task: str, out: Path, wanted: str | None, like: Mapping[str, Any]) -> RunFolder | None:
    """Return the run to resume: the folder `wanted`, or for "auto" the newest unfinished run under `out`, if any.

    For "auto" the run's settings equal those in `like`, and no other process is at work in its folder. Where torchrun
    has restarted this process, the run is the one that the process began before, whatever is wanted. Of several
    processes the first decides.

    Raises:
        UserError: the folder is not a run's, or is of a run of another task.
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
    # Without a run to resume the first process makes a new folder, which the others must not take for an older run.
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
    """Raise UserError where the settings `names` of a run differ from the given ones, which come from files.

    So a command with --resume auto can be repeated unchanged; a setting that is to change in a run is given on the
    command line, as one of the `flags`.
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
    """Return the run's settings, overridden by the flags of this command line, in tables of single entries too."""
    settings = Settings.from_toml(folder.config)
    values = {item.name: getattr(settings, item.name) for item in fields(settings)} | flags
    return values | {"model": {entry: without(table, flags) for entry, table in values["model"].items()}}
