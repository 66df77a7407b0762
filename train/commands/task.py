"""Run a task and print its tables."""

from __future__ import annotations

from polychrome.engine import console
from polychrome.engine.errors import FailedModelsError
from polychrome.engine.machine import distributed, hardware, memory
from polychrome.engine.report import printed, tables
from polychrome.engine.run_folder import RunFolder
from polychrome.train import experiment, seeds
from polychrome.train.messages import at_end
from polychrome.train.settings.config import Settings


def run(task: str, settings: Settings, resume: RunFolder | None = None) -> None:
    """Run a task and print its tables.

    Raises:
        FailedModelsError: some of several models failed; the others are trained and reported.
    """
    console.console.quiet = not distributed.is_main()
    memory.keep_freed(hardware.device(settings.device))
    repeats = settings.seeds > 1 or (resume is not None and Settings.of_run(resume.config).seeds > 1)
    done = (seeds if repeats else experiment).run(task, settings, resume)
    results = done.results
    if entries := results["models"]:
        printed.summarise(results)
        if task == "transfer" and done.predictions:
            printed.show(tables.predictions(done.predictions))
        for line in at_end(results, done.folder):
            console.say(line)
    if failed := results["failed"]:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        count = len({*failed, *entries}) if not repeats else len(settings.models) * settings.seeds
        raise FailedModelsError(f"{len(failed)} of {count} models failed: {reasons}")
