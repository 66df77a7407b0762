"""What each task prints when its experiment is done."""

from __future__ import annotations

from engine.report import console, tables
from engine.run_folder import RunFolder
from train import experiment
from train.config import Settings


def run(task: str, settings: Settings, resume: RunFolder | None = None) -> None:
    """Run a task and print its tables."""
    folder, results = experiment.run(task, settings, resume)
    entries = results["models"]
    console.show(
        *(tables.combinations(name, entry["protocol"], entry["test"]) for name, entry in entries.items()),
        narrow=tables.accuracies(entries),
    )
    console.show(tables.models(results))
    console.say(f"report: {folder.root / 'report.html'}")
