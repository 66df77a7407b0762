"""Prepare a run: open its data, check and measure its models, read the run that it resumes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np

from polychrome.engine import console
from polychrome.engine.channels.combinations import Combinations
from polychrome.engine.data import loader
from polychrome.engine.data.image_set import ImageSet
from polychrome.engine.data.opening import Opened
from polychrome.engine.data.readers import choice
from polychrome.engine.data.sets import repeats
from polychrome.engine.data.stores.uniform import UniformImages
from polychrome.engine.errors import UserError
from polychrome.engine.history import EpochRow, TrainingHistory
from polychrome.engine.machine import distributed
from polychrome.engine.run_folder import RunFolder
from polychrome.engine.training import checkpoint, state
from polychrome.engine.watch import loggers
from polychrome.models.complexity import Complexity
from polychrome.train import networks
from polychrome.train import resume as resuming
from polychrome.train.data import (
    changed,
    channels_of,
    check_fits,
    combinations_to_test,
    known_classes,
    moved,
    open_data,
    stored_size,
)
from polychrome.train.settings import changes, variants
from polychrome.train.settings.changes import Stages
from polychrome.train.settings.config import Settings


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
        done: entries of the resumed run that are neither trained nor tested again.
        stages: what the networks of the resumed run were trained with, by entry and network, see `settings.changes`.
        changes: what changed in the data since the resumed run began, a sentence for each time.
        trained_on: fingerprints of all images that its networks are trained on, up to now and by their first weights,
            uint64 [images]; None where those of an earlier start are not known.
    """

    task: str
    settings: Settings
    data: Opened
    combinations: Combinations
    costs: dict[str, Complexity]
    left_out: dict[str, str]
    trained: dict[str, dict]
    history: dict[str, list[EpochRow]]
    done: frozenset[str]
    stages: dict[str, dict[str, Stages]]
    changes: tuple[str, ...]
    trained_on: np.ndarray | None

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
        own = variants.of(settings, entry)
        networks.check_schedule(own)
        if unused := networks.augmentations(own).unused:
            console.say(f"{entry}: --one-at-a-time has too few epochs ({own.epochs}) to use {', '.join(unused)}")
    if unused := variants.unused_tables(settings):
        console.say(
            f"tables of settings for models that are not trained: {', '.join(f'[model.{each}]' for each in unused)}"
        )
    choice.resolve(settings.backend)
    loggers.check(settings.logger or ())
    settings = settings.with_whole_paths()
    data = data or _opened(settings, task, resume)
    settings = replace(settings, backend=choice.resolve(settings.backend, data.images.stacks))
    if resume is None and isinstance(data.store, UniformImages) and data.store.side:
        settings = replace(settings, cache_size=data.store.side)  # the run is tested again on the same pixels
    loader.check_trainable(data.images)
    tested = combinations_to_test(settings.channels, data.images, ("test",), settings.division_seed)
    costs, left_out = _costs(settings, data.images, tested)
    if not costs:
        raise UserError(next(iter(left_out.values())))
    so_far = _so_far(resume, settings, data, tested, tuple(costs)) if resume else ({}, {}, frozenset(), {})
    in_data = _changes(resume, settings, data, so_far[1]) if resume else ()
    by_weights = None
    if task == "transfer":
        _check_weights(resume, settings, data.images, tested, tuple(costs))
        if settings.weights and any(variants.of(settings, entry).transfer != "scratch" for entry in costs):
            data, by_weights = _noted(data, settings, resume)
    trained_on = _trained_on(data.images, resume, in_data, by_weights)
    settings = replace(settings, changed_data=False)  # of this start alone: the next change is told again
    return Prepared(task, settings, data, tested, costs, left_out, *so_far, in_data, trained_on)


def _opened(settings: Settings, task: str, resume: RunFolder | None) -> Opened:
    """Return the opened data of a run: of one that goes on as its networks know it, and kept in the same size."""
    if resume is None:
        return open_data(settings, task)
    before = resume.read_results()["data"]
    known = known_classes(before)
    begun = channels_of(before) if resume.has_checkpoints and "channels" in before else None
    side = settings.cache_size or stored_size(settings)
    own = known if known.are_shifted else None
    return open_data(replace(settings, cache_size=side), task, known=own, begun=begun)


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
) -> tuple[dict[str, dict], dict[str, list[EpochRow]], frozenset[str], dict[str, dict[str, Stages]]]:
    """Return the results of a run by entry, its epochs by network, the entries that are done, and all stages.

    Raises:
        UserError: the run is damaged, or does not fit the data, the channels or the settings.
    """
    before = run.read_results()
    check_fits(before["data"], data.images, run.root)
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
    history = resuming.history(run)
    stages = resuming.stages(run, before, dict.fromkeys((*entries, *trained)))
    done = set()
    for entry, own in stages.items():
        goes_on = GoingOn(run, entry, settings, trained.get(entry), history, own)
        goes_on.check(asked=entry in entries)
        if entry in entries and goes_on.is_done():
            done.add(entry)
        elif entry in entries:
            for folder in sorted({path.parent for path in run.checkpoints(entry).rglob("*.pt")}):
                goes_on.check_end(folder)
    return trained, history, frozenset(done), stages


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
    """Return whether best weights of a trained entry are damaged or gone while other checkpoints can be gone on from.

    Such weights are told.
    """
    for folder in sorted({path.parent for path in run.checkpoints(entry).rglob("*.pt")}):
        path = folder / state.BEST
        if fault := checkpoint.fault(path):
            try:
                begun = state.epochs(folder) > 0
            except UserError:
                begun = False
            console.say(
                f"{path} is {f'damaged ({fault})' if path.exists() else 'gone'}: "
                + (f"{entry} goes on from its other checkpoints" if begun else "its weights are lost, its figures stay")
            )
            if begun:
                return True
    return False


class GoingOn:
    """An entry of a run that goes on: what its networks were trained with, beside what is asked for now."""

    def __init__(
        self,
        run: RunFolder,
        entry: str,
        settings: Settings,
        result: dict | None,
        history: dict[str, list[EpochRow]],
        stages: dict[str, Stages],
    ) -> None:
        self.run, self.entry, self.result = run, entry, result
        self.now = changes.recorded(settings, entry)
        self.rows = {name: rows for name, rows in history.items() if name.partition(" ")[0] == entry}
        self.differing = {name: changes.differing(own[-1]["settings"], self.now) for name, own in stages.items()}

    def check(self, asked: bool) -> None:
        """Say what a training goes on with that it was not begun with, and which networks stay as they were trained.

        Raises:
            UserError: checkpoints do not fit the settings, or trained networks would be called by others than theirs.
        """
        for name, differing in self.differing.items():
            for fixed in changes.FIXED if asked else changes.FIXED_FOR_ALL:
                if fixed in differing:
                    flag = "--" + fixed.replace("_", "-")
                    raise UserError(
                        f"{self.run.root} has {self.entry} with {flag} {differing[fixed][0]}: leave it so, or start "
                        "another run"
                    )
            of_course = changes.of_course(differing, self.now)
            before = ", ".join(f"{key} = {old}" for key, (old, _) in of_course.items())
            if of_course and not asked:
                console.say(f"{name} stays as it was trained, with {before}")
            elif of_course and self._is_over(name):
                raise UserError(
                    f"{self.run.root} has {name} trained with {before}{self._ended_early(name)}: leave that so, name "
                    "other models alone by --models, or start another run"
                )
            elif of_course:
                after = ", ".join(f"{key} = {new}" for key, (_, new) in of_course.items())
                console.say(f"{name} goes on with {after}; up to here it was {before}")

    def check_end(self, folder: Path) -> None:
        """Raise UserError where checkpoints are damaged, or no epoch follows and none has the last epoch's weights."""
        now = self.now
        state.check_end(folder, now["epochs"], now["patience"], now["keep"])

    def is_done(self) -> bool:
        """Return whether all networks are trained, and tested as the settings ask for; say where patience ended one.

        Raises:
            UserError: trained networks are to be tested otherwise, and their checkpoints are gone.
        """
        if self.result is None or not all(map(self._is_over, self.rows or [self.entry])):
            return False
        if again := {key for differing in self.differing.values() for key in differing if key in changes.OF_TESTS}:
            folders = {path.parent for path in self.run.checkpoints(self.entry).rglob("*.pt")}
            if not folders or not all(map(state.exists, folders)):
                flags = ", ".join("--" + key.replace("_", "-") for key in sorted(again))
                raise UserError(
                    f"{self.run.root} has another {flags}, and {self.entry} cannot be tested again: its checkpoints "
                    "are gone"
                )
            return False
        for name in self.rows:
            if early := self._ended_early(name):
                console.say(f"{name} is not trained further{early}")
        return True

    def _ended_early(self, name: str) -> str:
        """Return in words that patience ended the training of a network, or nothing."""
        history = TrainingHistory(list(self.rows.get(name, ())), keep=self.now["keep"])
        if history.is_over(self.now["epochs"], 0) or not history.is_over(self.now["epochs"], self.now["patience"]):
            return ""
        return f"; it {history.ended_early(self.now['patience'])}"

    def _is_over(self, name: str) -> bool:
        """Return whether no epoch of a network follows; a network without rows is judged by the entry's result."""
        history = TrainingHistory(list(self.rows.get(name, ())))
        # Of several networks the result has the most epochs that any had.
        of_result = name == self.entry or not history.epochs
        if of_result and self.result is not None and self.result["epochs"] >= self.now["epochs"]:
            return True
        return history.is_over(self.now["epochs"], self.now["patience"])


def _trained_on(
    images: ImageSet, resume: RunFolder | None, changes: tuple[str, ...], by_weights: np.ndarray | None
) -> np.ndarray | None:
    """Return the fingerprints of the training images, of those before `changes` of the data, and of the first weights'.

    None where images have no digests, or those before a change are not known.
    """
    before = resume and resume.read_trained_on()
    if not images.digests or (changes and before is None):
        return None
    every = repeats.fingerprints(images, "train"), before, by_weights
    return np.unique(np.concatenate([each for each in every if each is not None]))


def _noted(data: Opened, settings: Settings, resume: RunFolder | None) -> tuple[Opened, np.ndarray | None]:
    """Return the data with a note on images to test on that --weights were trained on, and all that are known of these.

    What the images of --weights were is known of a run of this version; of another the division of its data.
    """
    images, (known, before) = data.images, networks.trained_before(settings)
    trained, splits = f"--weights {settings.weights}", [split for split in images.splits if split != "train"]
    gone = known is None and before is None
    if gone and resume and (of_run := resume.read_trained_on()) is not None:
        known = np.setdiff1d(of_run, repeats.fingerprints(images, "train"))
    note = ""
    if known is not None:
        note = repeats.trained_on(images, splits, known, trained)
    elif before is not None:
        divided = before.get("division", {})
        if differing := [split for split in splits if divided.get(split) != data.division[split]]:
            some = f"some images of {', '.join(differing)} may be among those that {trained} was trained on"
            note = f"{some}, which are not known"
    if note and note not in images.notes:
        console.say(note)
        data = replace(data, images=replace(images, notes=(*images.notes, note)))
    return data, known


def _check_weights(
    resume: RunFolder | None, settings: Settings, images: ImageSet, tested: Combinations, entries: tuple[str, ...]
) -> None:
    """Raise UserError where the weights that a network is to start from cannot be had."""
    channels, classes, samples = images.channels.names, images.class_names, len(images.splits["train"].paths)
    for entry in entries:
        own, alone = variants.of(settings, entry), networks.is_one_per_combination(entry)
        for label, chosen in tested.items() if alone else [(None, None)]:
            if alone and not chosen:
                continue
            if resume is not None and networks.start(own, samples, resume.checkpoints(entry, label)).goes_on:
                continue
            count, names = len(channels), channels
            if alone:
                count, protocol = networks.for_one_combination(entry, own, count, chosen)
                names = networks.shown(protocol, names, chosen)
            model = networks.initialised(entry, own, len(classes), count)
            networks.load_trained(model, entry, own, names, classes)
