"""Trained networks that come with the package, each a checkpoint like any `best.pt`: docs/use.md has their figures."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent

# The checkpoint of each network by its name, as `polychrome.load` takes it.
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.pt"))}
