"""Going on with a run that was interrupted."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.run_folder import RunFolder
from train.config import Settings


def find(task: str, out: Path, wanted: str) -> RunFolder | None:
    """Return the run to go on with: the folder `wanted`, or for "auto" the newest unfinished one under `out`, if any.

    Raises:
        UserError: the folder is no run, or a run of another task.
    """
    if wanted != "auto":
        folder = RunFolder.open(Path(wanted))
        if folder.read_results()["task"] != task:
            raise UserError(f"--resume {wanted}: that is a run of {folder.read_results()['task']}, not of {task}")
        return folder
    runs = [RunFolder(path.parent) for path in (out / task).glob("*/results.json")]
    unfinished = [run for run in runs if run.config.is_file() and not run.finished]
    return max(unfinished, key=lambda run: run.config.stat().st_mtime, default=None)


def merge(folder: RunFolder, flags: dict[str, Any]) -> dict[str, Any]:
    """Return the run's settings, overridden by what stands on this command line."""
    settings = Settings.from_toml(folder.config)
    return {item.name: getattr(settings, item.name) for item in fields(settings)} | flags
