"""`--seeds N`: the whole run with one seed after another, and one report of means and standard deviations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from polychrome.engine import console
from polychrome.engine.data.opening import Opened
from polychrome.engine.errors import UserError
from polychrome.engine.history import EpochRow
from polychrome.engine.machine import distributed, hardware
from polychrome.engine.report import comparison, pages, seeds
from polychrome.engine.run_folder import RunFolder
from polychrome.train import experiment
from polychrome.train import resume as resuming
from polychrome.train.data import changed, moved
from polychrome.train.messages import beginning
from polychrome.train.preparation import Prepared
from polychrome.train.results import add_ratio
from polychrome.train.settings import changes, variants
from polychrome.train.settings.config import AUTO, Settings


def run(task: str, settings: Settings, resume: RunFolder | None = None) -> Repeated:
    """Train and test all models of `settings` with each of its seeds, and write the run's folder.

    Each seed has a run folder of its own in the run's `seeds/`. With `resume`, finished seeds are not trained again,
    and an interrupted seed goes on.

    Raises:
        UserError: as `experiment.run`, or the run to go on with has a single seed.
    """
    repeated = Repeated(task, settings, resume)
    for seed in range(settings.seed, settings.seed + settings.seeds):
        repeated.run(seed)
    repeated.report()
    return repeated


class Repeated:
    """A run of several seeds: its folder, the folders of its seeds, and the results so far."""

    def __init__(self, task: str, settings: Settings, resume: RunFolder | None) -> None:
        self.task, self.folder = task, resume
        if resume is None and distributed.is_main():
            RunFolder.check_new(Path(settings.out), task, settings.name)
        self.settings = settings if resume is None else unchanged(task, settings, resume)
        self.environment = hardware.describe()
        self.environment["began"] = [*(resume.began() if resume else ()), beginning(self.environment)]
        self.begun = False
        self._whole = {name: getattr(settings, name) for name in ("seed", "seeds", "split_seed")}
        self.data: Opened | None = None
        self.done: dict[int, RunFolder] = {}
        self.predictions: dict = {}
        self.results: dict = {}

    def run(self, seed: int) -> None:
        """Train and test with one seed, as far as the seed's run is not finished."""
        own = replace(self.settings, seed=seed, seeds=1, split_seed=self.settings.division_seed)
        folder = self.folder and self.folder.of_seed(seed)
        console.say(f"seed {seed}")
        # The first process decides: it may already write files that another process would find.
        found = (folder is not None and folder.begun, folder is not None and is_finished(folder, own))
        begun, finished = distributed.of_main(found if distributed.is_main() else None)
        if not finished:
            resumed = folder if begun else None
            made = experiment.run(self.task, own, resumed, self._made, self.data, self._whole)
            self.data, folder = made.data, made.folder
            self.predictions = self.predictions or made.predictions
        self.done[seed] = folder
        distributed.wait()  # for the first process's files
        self.results = seeds.combined([run.read_results() for run in self.done.values()])
        if self.results["models"]:
            add_ratio(self.results)
        self.folder.write_results(self.results)
        self.folder.write(self.folder.table, comparison.as_csv(self.results))

    def _made(self, prepared: Prepared) -> RunFolder:
        """Return the folder of a checked seed's run; the first call also writes the files of the whole run.

        Raises:
            UserError: the data is not that of a finished seed.
        """
        own = prepared.settings
        for seed, run in self.done.items():
            before = run.read_results()["data"]
            if change := moved(before, prepared.data) or changed(before, prepared.data):
                raise UserError(
                    f"{self.folder.root} cannot go on: its seeds must agree, and seed {seed} is done, but {change}; "
                    "put the files back, or start another run"
                )
        if self.folder is None:
            self.folder = experiment.made_by_main(Path(own.out), self.task, own.name)
        if not self.begun:
            self.begun = True
            settings = replace(own, **self._whole)
            nothing = {"task": self.task, "data": {"classes": 0, "class_names": []}, "models": {}}
            if distributed.is_main():
                self.folder.check_writable(())
            self.folder.begin(settings.to_toml(), self.environment, self.results or nothing)
        folder = self.folder.of_seed(own.seed)
        if distributed.is_main():
            folder.plots.mkdir(parents=True, exist_ok=True)
        return folder

    def report(self) -> None:
        """Write the learning curves and both report pages of all seeds."""
        rows = [
            replace(row, model=f"{name} seed {seed}")
            for seed, folder in self.done.items()
            for name, epochs in resuming.history(folder).items()
            for row in epochs
        ]
        if not rows or not distributed.is_main():
            return
        self.folder.write_history(rows)
        history: dict[str, list[EpochRow]] = {}
        for row in rows:
            history.setdefault(row.model, []).append(row)
        if self.settings.plots:
            pages.pictures(self.folder, self.results, history)
        else:
            self.folder.remove_pictures()
        pages.write(self.folder, self.results, self.environment)


def is_finished(folder: RunFolder, settings: Settings) -> bool:
    """Return whether a seed's run came to its end by these settings, which fit it: see `unchanged`."""
    if not folder.begun or not folder.finished:
        return False
    before, results = Settings.of_run(folder.config), folder.read_results()
    there = results["models"].keys() | (results.get("failed", {}).keys() if settings.sweep else set())
    trained = {entry: variants.of(before, entry).epochs for entry in there}
    same_files = before.submission == settings.submission
    return same_files and all(trained.get(entry, 0) >= variants.of(settings, entry).epochs for entry in settings.models)


def unchanged(task: str, settings: Settings, run: RunFolder) -> Settings:
    """Return the settings that a run goes on with, whole paths and the run's backend in place of "auto".

    Raises:
        UserError: they differ from those of its seeds.
    """
    before = variants.resolve(Settings.of_run(run.config), task)
    if before.seeds == 1:
        raise UserError(f"{run.root} is a run of one seed: leave --seeds out, or start another run")
    if settings.seeds < before.seeds:
        raise UserError(f"{run.root} has --seeds {before.seeds}: give as many or more, or start another run")
    backend = before.backend if settings.backend == AUTO else settings.backend
    settings = replace(settings.with_whole_paths(), backend=backend)
    begun = [seed for seed in run.seeds.values() if seed.begun]
    of_seeds = [variants.resolve(Settings.of_run(seed.config), task) for seed in begun]
    for name in changes.SAME_FOR_SEEDS:
        every = (before, *(() if name in ("seed", "split_seed") else of_seeds))
        if any(getattr(each, name) != getattr(settings, name) for each in every):
            setting = f"table [{name}]" if name in ("model", "options") else "--" + name.replace("_", "-")
            raise UserError(f"{run.root} has another {setting}: its seeds must agree, leave it so or start another run")
    for seed, own in zip(begun, of_seeds, strict=True):
        results = seed.read_results()["models"]
        for entry in settings.models:
            recorded = [stages[-1]["settings"] for stages in results.get(entry, {}).get("settings", {}).values()]
            if not recorded and entry in own.models:
                recorded = [changes.recorded(own, entry)]
            for each in recorded:
                _check_epochs(run, entry, each["epochs"], changes.recorded(settings, entry))
    return settings


def _check_epochs(run: RunFolder, entry: str, before: int, now: dict) -> None:
    """Raise UserError where seeds that are trained by now would not be seeds of one and the same course."""
    if now["epochs"] < before:
        raise UserError(f"{run.root} has {entry} with --epochs {before}: give as many or more, or start another run")
    if now["epochs"] > before and changes.depends_on_epochs(now):
        raise UserError(
            f"{run.root} has {entry} with --epochs {before}, on which its course depends (--schedule, --progressive or "
            "--one-at-a-time): leave it so, or start another run"
        )
