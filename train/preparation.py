"""Prepare a run: open its data, check and measure its models, read the run that it resumes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date

from polychrome.engine.channels.combinations import Combinations
from polychrome.engine.data import loader
from polychrome.engine.data.image_set import ImageSet
from polychrome.engine.data.opening import Opened
from polychrome.engine.data.readers import choice
from polychrome.engine.errors import UserError
from polychrome.engine.history import EpochRow
from polychrome.engine.machine import distributed
from polychrome.engine.report import console
from polychrome.engine.run_folder import RunFolder
from polychrome.engine.training import checkpoint, state
from polychrome.engine.watch import loggers
from polychrome.models.complexity import Complexity
from polychrome.train import networks
from polychrome.train import resume as resuming
from polychrome.train.data import changed, combinations_to_test, moved, open_data
from polychrome.train.settings import variants
from polychrome.train.settings.config import Settings

# Settings that must not change where a model's training goes on: its checkpoints or results depend on them.
FIXED = ("image_size", "eval_crop", "precision", "optimizer", "init", "channel_sampling", "seed", "holdout")


@dataclass(frozen=True)
class Prepared:
    """A run that can begin: everything the user gave is checked, and no file is written.

    Attributes:
        task: "task1", "task2", "cifar100" or "transfer".
        settings: the effective settings; paths are whole, and the backend is one that is installed.
        data: the opened data set.
        combinations: the combinations of channels to test on.
        costs: parameters, multiply-adds and the like of each entry to train.
        left_out: why an entry of a sweep cannot be trained, by entry.
        trained: the results of entries that the resumed run has trained so far.
        history: the epochs that the resumed run has trained so far, by network.
        changes: what changed in the data since the resumed run began, a sentence for each time.
    """

    task: str
    settings: Settings
    data: Opened
    combinations: Combinations
    costs: dict[str, Complexity]
    left_out: dict[str, str]
    trained: dict[str, dict]
    history: dict[str, list[EpochRow]]
    changes: tuple[str, ...]

    @property
    def images(self) -> ImageSet:
        return self.data.images


def prepare(task: str, settings: Settings, resume: RunFolder | None = None, data: Opened | None = None) -> Prepared:
    """Return a checked run of `task`, which goes on with `resume` if given; `data` is the data set if it is open.

    Raises:
        UserError: data, a model, a channel or a setting is not usable, or `resume` is damaged or does not fit them.
    """
    networks.check_names(settings.models)
    for entry in settings.models:
        networks.check_schedule(variants.of(settings, entry))
    choice.resolve(settings.backend)
    loggers.check(settings.logger or ())
    settings = settings.with_whole_paths()
    data = data or open_data(settings, task)
    settings = replace(settings, backend=choice.resolve(settings.backend, data.images.stacks))
    loader.check_trainable(data.images)
    tested = combinations_to_test(settings.channels, data.images, ("test",), settings.division_seed)
    costs, left_out = _costs(settings, data.images, tested)
    if not costs:
        raise UserError(next(iter(left_out.values())))
    trained, history = _so_far(resume, settings, data, tested, tuple(costs)) if resume else ({}, {})
    changes = _changes(resume, settings, data, history) if resume else ()
    if task == "transfer":
        _check_weights(resume, settings, data.images, tuple(costs))
    settings = replace(settings, changed_data=False)  # of this start alone: the next change is told again
    return Prepared(task, settings, data, tested, costs, left_out, trained, history, changes)


def _costs(settings: Settings, images: ImageSet, tested: Combinations) -> tuple[dict[str, Complexity], dict[str, str]]:
    """Return the costs of the entries that can be trained, and why others of a sweep cannot."""
    costs, left_out = {}, {}
    for entry in settings.models:
        try:
            costs[entry] = networks.check(entry, variants.of(settings, entry), images, tested)
        except UserError as error:
            if not settings.sweep:
                raise
            left_out[entry] = str(error)
            console.say(f"left out: {error}")
    return costs, left_out


def _so_far(
    run: RunFolder, settings: Settings, data: Opened, tested: Combinations, entries: tuple[str, ...]
) -> tuple[dict[str, dict], dict[str, list[EpochRow]]]:
    """Return the results of a run by entry and its epochs by network.

    Raises:
        UserError: the run is damaged, or does not fit the data, the channels or the settings.
    """
    before = run.read_results()
    if before["data"]["class_names"] != list(data.images.class_names):
        raise UserError(f"{run.root} was trained on other classes than {data.images.root} has")
    if (known := before["data"].get("channels")) not in (None, list(data.images.channels.names)):
        now = ", ".join(data.images.channels.names)
        raise UserError(f"{run.root} was trained on channels {', '.join(known)}, {data.images.root} has {now}")
    if change := moved(before["data"], data):
        raise UserError(
            f"{run.root} cannot go on: {change}, and some may be among those it was trained on; put the files "
            "back, or start another run"
        )
    for entry in before["models"].values():
        alone = networks.has_several(entry["protocol"])  # no network for shuffled channels
        labels = list(entry["scores"]["test"])
        if labels != [name for name, chosen in tested.items() if chosen or not alone]:
            raise UserError(f"{run.root} was tested on channels {','.join(labels)}: leave --channels as it was")
    # The first process decides: it may already mend what another process would find.
    lacking = [entry for entry in before["models"] if _lacks_weights(run, entry)] if distributed.is_main() else None
    lacking = distributed.of_main(lacking)
    trained = {entry: found for entry, found in before["models"].items() if entry not in lacking}
    trained_with = Settings.of_run(run.config)
    for entry in entries:
        started = {path.parent for path in run.checkpoints(entry).rglob("*.pt")}
        if started:
            _check_fixed(entry, trained_with, settings, run)
        for folder in sorted(started) if not is_done(trained.get(entry), settings, entry) else ():
            state.newest(folder, None, lambda fault: None)
    return trained, resuming.history(run)


def _changes(run: RunFolder, settings: Settings, data: Opened, history: dict[str, list[EpochRow]]) -> tuple[str, ...]:
    """Return a sentence for each time that files of a run's data changed before it went on, this time too.

    Raises:
        UserError: files have changed, and the settings do not say to go on.
    """
    before = run.read_results()["data"]
    told = tuple(before.get("changes", ()))
    if not (change := changed(before, data)):
        return told
    if not settings.changed_data:
        raise UserError(
            f"{run.root} cannot go on: {change}; put the files back, or give --changed-data to go on with them as they "
            "are"
        )
    epochs = ", ".join(f"{name} had {len(rows)}" for name, rows in history.items() if rows) or "no model had any"
    line = f"{date.today()}: {change}. Epochs before: {epochs}"
    console.say(line)
    return (*told, line)


def _lacks_weights(run: RunFolder, entry: str) -> bool:
    """Return whether the best weights of a trained entry are damaged while other checkpoints are there to go on from.

    Damaged weights are told.
    """
    for path in sorted(run.checkpoints(entry).rglob(state.BEST)):
        if fault := checkpoint.fault(path):
            try:
                begun = state.epochs(path.parent) > 0
            except UserError:
                begun = False
            console.say(
                f"{path} is damaged ({fault}): "
                + (f"{entry} goes on from its other checkpoints" if begun else "its weights are lost, its figures stay")
            )
            if begun:
                return True
    return False


def is_done(result: dict | None, settings: Settings, entry: str) -> bool:
    """Return whether an entry's result, if there is one, is of as many epochs as the settings ask for."""
    return result is not None and result["epochs"] >= variants.of(settings, entry).epochs


def _check_fixed(entry: str, before: Settings, now: Settings, run: RunFolder) -> None:
    """Raise UserError where an entry that goes on has other settings than its checkpoints."""
    old, new = variants.of(before, entry), variants.of(now, entry)
    for name in FIXED:
        if getattr(old, name) not in (None, getattr(new, name)):
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{run.root} has {entry} with {flag} {getattr(old, name)}: leave it so, or start another run"
            )


def _check_weights(resume: RunFolder | None, settings: Settings, images: ImageSet, entries: tuple[str, ...]) -> None:
    """Raise UserError where the weights that an entry is to start from cannot be had."""
    for entry in entries:
        started = resume is not None and state.exists(resume.checkpoints(entry))
        own = variants.of(settings, entry)
        networks.initialised(entry, own, len(images.class_names), len(images.channels), started)
