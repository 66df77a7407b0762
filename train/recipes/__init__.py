"""Settings that belong together, the reports' and our own: one TOML file each with a table per task."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

from polychrome.engine.errors import UserError
from polychrome.train.settings.config import RECIPES, checked, read_text, toml_of
from polychrome.train.settings.variants import TASKS


def load(name: str, task: str) -> dict[str, Any]:
    """Return the settings that a recipe, named or a TOML file, has for a task.

    Raises:
        UserError: there is no such recipe, it has no table for the task, or a setting in it is wrong.
    """
    source = Path(name) if name.endswith(".toml") else resources.files(__name__) / f"{name}.toml"
    if not source.is_file():
        raise UserError(
            f"--recipe {name}: there is no such recipe; there are {', '.join(RECIPES)}, or give a .toml file"
        )
    tables = toml_of(read_text(source), f"--recipe {name}")
    for key in tables:
        if key not in TASKS:
            close = get_close_matches(key, TASKS, n=1)
            raise UserError(
                f"--recipe {name}: {key!r} is no task, and settings stand in tables of tasks, "
                + (f"did you mean [{close[0]}]?" if close else f"here [{task}]")
            )
    if not isinstance(tables.get(task), dict):
        raise UserError(f"--recipe {name} has nothing for {task}; it has {', '.join(tables)}")
    return checked(tables[task], f"{name}: [{task}]")
