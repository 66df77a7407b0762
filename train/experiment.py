"""One experiment: train each model, test it on every channel combination, write the run's folder."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from polychrome.engine import console
from polychrome.engine.channels import masks
from polychrome.engine.channels.combinations import Combinations
from polychrome.engine.data.image_set import having
from polychrome.engine.data.opening import Opened
from polychrome.engine.data.sets import division
from polychrome.engine.errors import Interrupted, RunError, StorageError, UserError, one_line
from polychrome.engine.evaluation import Evaluation, evaluate, inputs
from polychrome.engine.history import TrainingHistory
from polychrome.engine.machine import distributed, hardware
from polychrome.engine.machine.memory import PeakMemory
from polychrome.engine.metrics import likeliest
from polychrome.engine.report import comparison, pages, plots
from polychrome.engine.run_folder import RunFolder
from polychrome.engine.training import compilation, state, trainer
from polychrome.engine.training.batch_size import largest_batch
from polychrome.engine.training.plan import Plan
from polychrome.engine.training.state import Position
from polychrome.engine.watch import profiling
from polychrome.engine.watch.idle import Idle
from polychrome.engine.watch.logger import Logger, Training
from polychrome.engine.watch.loggers import Loggers
from polychrome.engine.watch.remaining import Remaining
from polychrome.models.any_channels import ESTIMATED, AnyChannels
from polychrome.train import networks, systems
from polychrome.train.data import make_loader, restricted, summary
from polychrome.train.messages import again, at_start, beginning
from polychrome.train.networks import PADDED_ONE_PER_COMBINATION
from polychrome.train.preparation import Prepared, prepare
from polychrome.train.results import (
    add_ratio,
    confused,
    figures,
    named_predictions,
    predictions_of,
    scores_of,
    submission,
    tested_splits,
)
from polychrome.train.resume import epochs_shown
from polychrome.train.settings import changes, variants
from polychrome.train.settings.config import AUTO, Settings, described

SHOWN_PREDICTIONS = 18
# What is seen of a training while it runs, by the names in `results.json`.
OBSERVED = ("peak_memory_mb", "gpu_idle", "input_wait", "kernels")


def run(
    task: str,
    settings: Settings,
    resume: RunFolder | None = None,
    make: Callable[[Prepared], RunFolder] | None = None,
    data: Opened | None = None,
    whole: Mapping[str, Any] | None = None,
) -> Experiment:
    """Train and test all models of `settings`, write the run's folder, and return the experiment.

    With `resume`, models that this run has finished are not trained again, and others go on after their last whole
    epoch. Where there are several models, one that fails does not stop the others: its name and the reason are in
    "failed" of the results.

    Args:
        task: "task1", "task2", "cifar100" or "transfer".
        settings: effective settings, see `variants.resolve`.
        resume: the folder of the run to go on with.
        make: makes the folder of a new run, once all is checked; by default the folder is of the settings' `out`.
        data: the data set, where it is open already.
        whole: of a run that is one seed's, the settings in which the run of all seeds differs.

    Raises:
        UserError: data, a model, a channel or the output folder is not usable; nothing has been written then.
        Interrupted: Ctrl-C or SIGTERM asked for the end.
    """
    if resume is None and make is None and distributed.is_main():
        RunFolder.check_new(Path(settings.out), task, settings.name)
    prepared = prepare(task, settings, resume, data)
    if make is not None:
        folder = make(prepared)
    else:
        folder = resume or made_by_main(Path(prepared.settings.out), task, prepared.settings.name)
    experiment = Experiment(prepared, folder, whole)
    try:
        experiment.train_all()
    except (Interrupted, KeyboardInterrupt) as error:
        whole_run = folder.root if whole is None else folder.of_all_seeds.root
        said = f"{error}; go on" if isinstance(error, Interrupted) else "stopped; go on from the last checkpoint"
        raise Interrupted(f"{said}: {again(task, whole_run)}") from None
    return experiment


@dataclass(frozen=True)
class Network:
    """A network to train: an entry's only network, or the entry's network for one combination of channels.

    Attributes:
        name: the entry, followed by the combination where the entry has a network for each.
        protocol: how the network is shown a combination of channels, as `results.json` names it.
        plan: how to train it.
        settings: the entry's settings.
        combinations: the combinations of channels to test it on.
        data: the set with the images to train and to validate it on.
        checkpoints: the folder of its checkpoints.
        start: where its training begins or goes on.
    """

    name: str
    model: nn.Module
    protocol: str
    plan: Plan
    settings: Settings
    combinations: Combinations
    data: Opened
    checkpoints: Path
    start: state.Start


@dataclass(frozen=True)
class Course:
    """By which settings a network is trained.

    Attributes:
        before: the stages up to where this process goes on, see `settings.changes`.
        stages: the same with what this process trains by.
        mark: see `changes.mark`.
        anew: whether loggers know epochs that are no part of this training, or none.
    """

    before: changes.Stages
    stages: changes.Stages
    mark: str
    anew: bool


@dataclass(frozen=True)
class Outcome:
    """How a network was trained and what came of it: history, evaluations by split.

    `observed` has the peak memory and what its steps waited for and spent their time on, by the names in `OBSERVED`;
    nothing where this process has not trained it. The network itself is let go: an entry may have many.
    """

    protocol: str
    plan: Plan
    batch_size: int
    history: TrainingHistory
    tested: dict[str, Evaluation]
    observed: dict


class Experiment:
    """A prepared run at work: its folder, its results and history so far, and what it predicted for some images."""

    def __init__(self, prepared: Prepared, folder: RunFolder, whole: Mapping[str, Any] | None = None) -> None:
        self.task, self.settings, self.data = prepared.task, prepared.settings, prepared.data
        self.images, self.combinations, self.costs = prepared.images, prepared.combinations, prepared.costs
        self.history, self.folder = dict(prepared.history), folder
        self.done, self.stages = prepared.done, {entry: dict(own) for entry, own in prepared.stages.items()}
        self.shown = epochs_shown(folder)
        self.predictions: dict[str, list[plots.Prediction]] = {}
        self.environment = hardware.describe()
        self.environment["began"] = [*folder.began(), beginning(self.environment)]
        self.loggers, self.is_of_seeds = Loggers(self.settings.logger or (), self.settings.tensorboard), bool(whole)
        names = self.images.channels.names
        self.results = {
            "task": self.task,
            "seed": self.settings.seed,
            "device": self.environment["gpu" if self.settings.device == "cuda" else "cpu"],
            "data": summary(self.data) | {"changes": list(prepared.changes)},
            "combinations": {label: [names[i] for i in chosen or ()] for label, chosen in self.combinations.items()},
            "models": {},
            "failed": {},
        }
        # In every checkpoint, for `resume.mend`.
        self.copy = {"config": self.settings.to_toml(), "results": dict(self.results)}
        self.copy |= {"whole": replace(self.settings, **whole).to_toml()} if whole else {}
        trained = {entry: result | self._trained_with(entry) for entry, result in prepared.trained.items()}
        self.results |= {"models": trained, "failed": dict(prepared.left_out)}
        add_ratio(self.results)  # an earlier version's may be on other channels
        ended = [name for entry in self.done for name in self._networks(entry)]
        self.remaining = Remaining(self._work(), ended, self._seeds_after(whole or {}))
        if distributed.is_main():
            folder.check_writable(self.costs)
        folder.begin(self.settings.to_toml(), self.environment, self.results)
        for line in at_start(self.settings, self.results["data"], self.costs, self.results["device"], folder.root):
            console.say(line)
        if prepared.trained_on is not None:
            folder.write_trained_on(prepared.trained_on)
        if division.HOLDOUT in self.images.splits:
            held = self.images.splits[division.HOLDOUT]
            lines = (f"{path} {label}\n" for path, label in zip(held.paths, held.labels, strict=True))
            folder.write(folder.holdout, "".join(lines))

    def _work(self) -> dict[str, float]:
        """Return the work of each network, by its name: the multiply-adds of all epochs."""
        found = {}
        for entry, cost in self.costs.items():
            work = float(cost.macs * variants.of(self.settings, entry).epochs)
            found |= dict.fromkeys(self._networks(entry), work)
        return found

    def _networks(self, entry: str) -> list[str]:
        """Return the names of an entry's networks."""
        each = self._alone if networks.is_one_per_combination(entry) else [""]
        return [f"{entry} {label}".rstrip() for label in each]

    def _seeds_after(self, whole: Mapping[str, Any]) -> int:
        """Return how many seeds of the whole run are trained after this one."""
        return whole["seed"] + whole["seeds"] - 1 - self.settings.seed if whole else 0

    @property
    def _alone(self) -> list[str]:
        """The combinations that an entry with a network for each has networks for."""
        return [name for name, chosen in self.combinations.items() if chosen]

    def train_all(self) -> None:
        """Train and test every entry that is not done, and write the report."""
        for entry in self.costs:
            if entry not in self.done:
                self.attempt(entry)
        if self.results["models"]:
            self.report()

    def attempt(self, entry: str) -> None:
        """Train and test an entry; if there are others, a failure is written to the folder and the run goes on.

        Raises:
            RunError: another process than the first met wrong input.
        """
        try:
            self.train_and_test(entry)
        except Exception as error:
            if isinstance(error, UserError) and not distributed.is_main():
                # Of this process's share of the data: the first process, which reports wrong input, has not seen it.
                raise RunError(f"process {distributed.rank()}: {error}") from None
            ends_all = isinstance(error, (Interrupted, StorageError)) or distributed.world_size() > 1
            if len(self.costs) == 1 or ends_all:
                raise
            self.results["failed"][entry] = reason = one_line(error)
            where = self.folder.failure(entry)
            self.folder.write(where, traceback.format_exc())
            console.say(f"{entry} failed, going on: {reason} (details: {where})")
        self.folder.write_results(self.results)
        self.folder.write(self.folder.table, comparison.as_csv(self.results))

    def train_and_test(self, entry: str) -> None:
        """Train a model, test its best weights, and add both to the results."""
        settings = variants.of(self.settings, entry)
        each = self._alone if networks.is_one_per_combination(entry) else [None]
        outcomes = [self._outcome(entry, self._network(entry, settings, combination)) for combination in each]
        first, tested = outcomes[0], [outcome.tested for outcome in outcomes]
        best = first.history.best
        self.results["models"][entry] = (
            vars(self.costs[entry])
            | {
                "batch_size": first.batch_size,
                "epochs": len(first.history.epochs),
                "best_epoch": best.epoch,
                "train_seconds": round(sum(outcome.history.seconds for outcome in outcomes), 2),
                "images_per_second": round(first.history.images_per_second, 1),
                "protocol": first.protocol,
                "channel_sampling": first.plan.channel_sampling,
                "augmentations": list(settings.augmentations),
                "reported": {system.report: dict(system.reported) for system in self._reported(entry)},
                "val": {"loss": best.val_loss, "accuracy": best.val_accuracy},
            }
            | scores_of(tested)
            | self._trained_with(entry)
            | self._observed(entry, outcomes)
            | confused(first.tested["test"], self.images.class_names)
        )
        self._write_tested(entry, first.tested["test"])
        self.folder.write(self.folder.every_prediction(entry), predictions_of(tested, self.images.splits))
        add_ratio(self.results)

    def _observed(self, entry: str, outcomes: list[Outcome]) -> dict:
        """Return what was seen of the trainings of an entry's networks, by this process or an earlier one."""
        last = self.results["models"].get(entry, {})
        before = {name: last[name] for name in OBSERVED if name in last}
        now = [outcome.observed for outcome in outcomes]
        seen = now if all(now) else [before, *now]
        peaks = [each["peak_memory_mb"] for each in seen if "peak_memory_mb" in each]
        return (now[0] or before) | ({"peak_memory_mb": max(peaks)} if peaks else {})

    def _trained_with(self, entry: str) -> dict:
        """Return what the networks of an entry were trained with, and in words where that differs from the run's."""
        stages, now = self.stages[entry], changes.recorded(self.settings, entry)
        told = {name: changes.told(own, now) for name, own in stages.items()}
        if len({tuple(each.items()) for each in told.values()}) == 1:
            told = {entry: next(iter(told.values()))}
        return {"settings": stages, "differs": [[name, *row] for name, each in told.items() for row in each.items()]}

    def _reported(self, entry: str) -> list[systems.System]:
        """Return the reports' systems that an entry repeats; none on other data than the reports'."""
        there = systems.is_on_their_data(self.task, self.results["data"])
        return systems.reported(entry, self.task) if there else []

    def report(self) -> None:
        """Write the pictures of all models and both report pages."""
        if not distributed.is_main():
            return
        if self.settings.plots:
            pages.pictures(self.folder, self.results, self.history)
        else:
            self.folder.remove_pictures()
        pages.write(self.folder, self.results, self.environment)

    def _network(self, entry: str, settings: Settings, combination: str | None) -> Network:
        """Return a new network with its first weights, for one combination of channels where `combination` names one.

        A batch size and a compiler's mode that are "auto" are found here, by measurement.
        """
        name, folder, tested = entry, self.folder.checkpoints(entry), self.combinations
        names, protocol, data = self.images.channels.names, None, self.data
        count = len(names)
        if combination:
            chosen = self.combinations[combination]
            name, folder = f"{entry} {combination}", self.folder.checkpoints(entry, combination)
            tested = {combination: chosen}
            count, protocol = networks.for_one_combination(entry, settings, count, chosen)
            names, data = networks.shown(protocol, names, chosen), restricted(data, chosen)
        model = networks.initialised(entry, settings, len(self.images.class_names), count)
        plan = networks.plan(model, settings, data.images)
        if combination:
            padded = protocol == PADDED_ONE_PER_COMBINATION
            plan = replace(plan, channels=(combination, chosen), padded=padded, channel_sampling="off")
        shape = (plan.inputs(len(self.images.channels)), settings.image_size, settings.image_size)
        samples = len(data.images.splits["train"].paths)
        if settings.batch_size == AUTO:
            found = state.batch_size(folder) or distributed.of_main(largest_batch(model, shape, plan, samples))
            if not found:
                raise UserError(f"--batch-size auto: no batch of {name} fits into memory; take a smaller --image-size")
            console.say(f"{name}: batch size {found}")
            settings = replace(settings, batch_size=found)
        start = networks.start(settings, samples, folder)
        if not start.goes_on:
            networks.load_trained(model, entry, settings, names, self.images.class_names, console.say)
            if isinstance(model, AnyChannels) and model.fill == ESTIMATED and not combination:
                if distributed.is_main():
                    networks.measure_channels(model, name, data, settings)
                for own, measured in zip(model.measured, distributed.of_main(model.measured), strict=True):
                    own.copy_(measured)
        if settings.compile and settings.compile_mode == AUTO:
            steps = plan.epochs * plan.passes * samples // settings.batch_size
            share = -(-settings.batch_size // distributed.world_size())
            mode = compilation.mode(model, shape, share, plan, steps)
            plan = replace(plan, compile_mode=distributed.of_main(mode))
        return Network(name, model, protocol or masks.protocol(model), plan, settings, tested, data, folder, start)

    def _outcome(self, entry: str, network: Network) -> Outcome:
        """Train a network and test it on every split."""
        peak = PeakMemory(network.plan.device)  # of the training, not of the search for what fits
        course = self._course(entry, network)
        with self.loggers.of(self._training(network, course), self.folder.events(network.name)) as logger:
            history, observed = self._train(entry, network, course, logger)
            self._write_history(network.name, history)
            tested = {split: self._test(network, split) for split in tested_splits(self.settings)}
            pictures = {}
            if entry not in self.predictions and distributed.is_main():
                self._predict_some(entry, network)
                if self.settings.plots:
                    pictures["predictions"] = self._picture_of_predictions(entry)
            logger.result(len(history.epochs), figures(self.results, history.best, tested), pictures)
        trained = network.protocol, network.plan, network.settings.batch_size, history
        went_on = len(history.epochs) > network.start.epochs
        return Outcome(*trained, tested, observed | {"peak_memory_mb": round(peak.megabytes(), 1)} if went_on else {})

    def _course(self, entry: str, network: Network) -> Course:
        """Return by which settings a network was trained up to where it goes on, and how loggers know its training."""
        start, now = network.start, changes.recorded(self.settings, entry)
        known = self.stages.setdefault(entry, {}).get(network.name, [])
        known = start.run.get("settings", known)  # of a checkpoint of an earlier version, those of the run
        before = changes.begun(known, start.epochs + (not start.position.at_start)) if start.goes_on else []
        leaves = start.differs or changes.leaves(before, now)
        anew = not start.goes_on or (leaves and self.shown[network.name] > start.epochs)
        mark = start.run.get("course", "")
        if anew:
            mark = changes.mark(mark, start.epochs + 1, now, asdict(start.division))
        return Course(before, changes.continued(before, now, start.epochs + 1), mark, anew)

    def _training(self, network: Network, course: Course) -> Training:
        """Return what loggers know of a network's training before it begins."""
        root, name, seed = self.folder.root.resolve(), network.name, self.settings.seed
        if self.is_of_seeds:
            root, name = root.parents[1], f"{name} seed {seed}"
        begun, first_epoch = self.environment["began"][0].get("at", ""), network.start.epochs + 1
        settings = described(network.settings) | {
            "task": self.task,
            "model": network.name,
            "protocol": network.protocol,
            "channel_sampling": network.plan.channel_sampling,
        }
        return Training(self.task, root.name, name, begun, settings, first_epoch, course.mark, course.anew)

    def _train(self, entry: str, network: Network, course: Course, logger: Logger) -> tuple[TrainingHistory, dict]:
        """Train a network; return its history, and what was observed of its steps for the results."""
        name, plan, settings = network.name, network.plan, network.settings
        traced = settings.profile and distributed.is_main()
        validated = len(network.data.images.splits["val"].paths)
        images = partial(Position.images, division=network.start.division, passes=plan.passes, validated=validated)
        total = images(Position(plan.epochs + 1))
        self.remaining.begin(name, images(network.start.position) / total)
        with (
            make_loader(network.data, "train", settings, plan.augmentations, shared=True) as train,
            make_loader(network.data, "val", settings, shared=True) as val,
            console.training(name, total, plan.epochs, self.remaining.left) as bar,
            profiling.trace(self.folder.trace, name) if traced else nullcontext() as trace,
            Idle(plan.device) as idle,
        ):

            def on_step() -> None:
                idle.step()
                if trace is not None:
                    trace()

            def on_epoch(history: TrainingHistory) -> None:
                idle.epoch()
                self._record(name, plan, history)
                bar.tell(history.epochs[-1], plan.epochs)
                logger.epochs(history, idle.share)

            hooks = trainer.Hooks(
                batch=bar.advance,
                step=on_step,
                validated=trace.evaluated if trace else lambda: None,
                epoch=on_epoch,
                images=lambda images: logger.batch(images, train.channels),
                say=console.say,
                waiting=idle.waiting,
            )
            copy = self.copy | {"settings": course.stages, "course": course.mark}
            history = trainer.fit(name, network.model, train, val, plan, network.checkpoints, hooks, copy)
        went_on = len(history.epochs) > network.start.epochs or not course.before
        asked = changes.recorded(self.settings, entry)
        self.stages[entry][name] = course.stages if went_on else changes.tested(course.before, asked)
        console.say(f"{name}: {idle}")
        return history, idle.figures() | ({"kernels": trace.kernels} if trace and trace.kernels else {})

    def _test(self, network: Network, split: str) -> Evaluation:
        plan, settings = network.plan, network.settings
        with (
            make_loader(self.data, split, settings, shared=True) as images,
            console.progress(f"testing {network.name} on {split}", images.samples) as bar,
        ):
            precision = hardware.autocast(plan.device, plan.precision)
            how = plan.num_classes, precision, bar.advance, plan.protocol, settings.flip_test
            tested = evaluate(network.model, images, network.combinations, *how)
        if tested.fault:
            console.say(f"{network.name} on {split}: {tested.fault}")
        return tested

    def _write_tested(self, entry: str, tested: Evaluation) -> None:
        """Draw the confusion matrix on the first combination and write its predictions as CSV."""
        if not distributed.is_main():
            return
        if self.settings.plots:
            title = f"{entry}, channels {next(iter(tested.scores))}"
            path = self.folder.picture("confusion", entry)
            plots.attempt(plots.confusion, tested.confusion.numpy(), self.images.class_names, title, path)
        test = self.images.splits["test"]
        self.folder.write(self.folder.predictions(entry), named_predictions(tested, test, self.images.class_names))
        if self.settings.submission:
            positions = self.data.positions["test"] if self.data.positions else range(len(test.paths))
            first = self.images.first_label or 0
            self.folder.write(self.folder.submission(entry), submission(tested, positions, first))

    @torch.no_grad()
    def _predict_some(self, entry: str, network: Network) -> None:
        """Keep predictions for test images spread evenly over the list."""
        model, plan, settings = network.model, network.plan, network.settings
        test, names = having(self.images, "test", plan.channels[1] if plan.channels else ()), self.images.class_names
        if not test.paths:
            return
        chosen = np.unique(np.linspace(0, len(test.paths) - 1, SHOWN_PREDICTIONS).astype(int))
        few = test.at(chosen)
        found = []
        model.eval()
        shown = replace(self.data, images=replace(self.images, splits={"few": few}))
        with make_loader(shown, "few", settings) as loader_:
            for batch in loader_.epoch(0):
                images = batch.standardised(self.images.channels)
                chosen, protocol = plan.channels and plan.channels[1], plan.protocol or masks.protocol(model)
                given = inputs(model, images, chosen, protocol, batch.indices, batch.present)
                with hardware.autocast(plan.device, plan.precision):
                    logits = model(*given)
                share, guess = logits.float().softmax(1).amax(1), likeliest(logits)
                pictures = plots.as_pictures(batch.images, batch.present)
                columns = (each.tolist() for each in (batch.indices, batch.labels, guess, share))
                for picture, place, label, number, sure in zip(pictures, *columns, strict=True):
                    said = (names[number], sure) if number >= 0 else ("no class", 0.0)
                    found.append(plots.Prediction(few.paths[place], picture, names[label], *said))
        self.predictions[entry] = found

    def _picture_of_predictions(self, entry: str) -> Path:
        path = self.folder.picture("predictions", entry)
        if entry in self.predictions:
            plots.attempt(plots.predictions, self.predictions[entry], f"{entry} on test images", path)
        return path

    def _write_history(self, name: str, history: TrainingHistory) -> None:
        self.history[name] = history.epochs
        self.folder.write_history([row for rows in self.history.values() for row in rows])

    def _record(self, name: str, plan: Plan, history: TrainingHistory) -> None:
        self._write_history(name, history)
        row = history.epochs[-1]
        console.say(
            f"{name} epoch {row.epoch}/{plan.epochs}: loss {row.train_loss:.3f}, accuracy "
            f"{row.train_accuracy:.1%}; validation loss {row.val_loss:.3f}, accuracy {row.val_accuracy:.1%}; "
            f"{history.speeds[-1]:,.0f} img/s"
        )


def made_by_main(out: Path, task: str, name: str | None) -> RunFolder:
    """Return the new run folder that the first of all processes makes."""
    root = RunFolder.create(out, task, name).root if distributed.is_main() else None
    return RunFolder(distributed.of_main(root))
