"""One experiment: train each model, test it on every channel combination, write the run's folder."""

from __future__ import annotations

import csv
import io
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from polychrome.engine.channels import combinations, masks, names
from polychrome.engine.channels.combinations import Combinations
from polychrome.engine.data import loader
from polychrome.engine.data.image_set import Split
from polychrome.engine.data.opening import Opened
from polychrome.engine.data.readers import choice
from polychrome.engine.data.sets import division
from polychrome.engine.errors import Interrupted, RunError, StorageError, UserError
from polychrome.engine.evaluation import Evaluation, evaluate
from polychrome.engine.history import EpochRow, TrainingHistory
from polychrome.engine.machine import distributed, hardware
from polychrome.engine.machine.memory import PeakMemory
from polychrome.engine.report import comparison, console, pages, plots, scores
from polychrome.engine.run_folder import RunFolder
from polychrome.engine.training import compilation, state, trainer
from polychrome.engine.training.batch_size import largest_batch
from polychrome.engine.training.plan import Plan
from polychrome.engine.watch import profiling
from polychrome.engine.watch.idle import Idle
from polychrome.engine.watch.tensorboard import Scalars
from polychrome.train import networks, systems, variants
from polychrome.train.config import AUTO, Settings
from polychrome.train.data import make_loader, moved, open_data, summary
from polychrome.train.networks import PADDED_ONE_PER_COMBINATION, has_several

SHOWN_PREDICTIONS = 18
# What a model that is gone on with keeps, as its checkpoints or its results depend on it.
KEPT = ("image_size", "eval_crop", "precision", "optimizer", "init", "channel_sampling", "seed", "holdout")


def run(
    task: str,
    settings: Settings,
    resume: RunFolder | None = None,
    make: Callable[[Settings], RunFolder] | None = None,
    data: Opened | None = None,
) -> Experiment:
    """Train and test all models of `settings` and write the run's folder.

    With `resume`, the models that this run has finished are kept, and others go on after their last whole epoch. Where
    there are several models, one that fails does not stop the others: its name and the reason are in "failed".
    `make` returns the folder once all is checked, where it is not to be that of `settings` or `resume`; `data` is what
    is opened already.

    Raises:
        UserError: data, a model, a channel or the output folder is not usable; nothing has been written then.
        Interrupted: Ctrl-C or SIGTERM asked for the end.
    """
    experiment = Experiment(task, settings, resume, make, data)
    try:
        for entry in experiment.entries:
            if not experiment.is_done(entry):
                experiment.attempt(entry)
        if experiment.results["models"]:
            experiment.report()
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; --resume auto goes on from the last checkpoint in {experiment.folder.root}"
        ) from None
    return experiment


@dataclass(frozen=True)
class Outcome:
    """One trained network: how it is shown channels, how it was trained, its history, its scores by split, its memory
    in MB, and figures of what its steps spent their time on, by their names in the results."""

    protocol: str
    plan: Plan
    batch_size: int
    history: TrainingHistory
    tested: dict[str, Evaluation]
    peak_memory_mb: float
    observed: dict


class Experiment:
    """Data, settings, run folder and results so far. Everything of the user's is checked before a file is written."""

    def __init__(
        self,
        task: str,
        settings: Settings,
        resume: RunFolder | None,
        make: Callable[[Settings], RunFolder] | None = None,
        data: Opened | None = None,
    ) -> None:
        self.task = task
        networks.check_names(settings.models)
        for entry in settings.models:
            networks.check_schedule(variants.of(settings, entry))
        choice.resolve(settings.backend)
        self.settings = settings.with_whole_paths()
        self.data = data = data or open_data(self.settings, task)
        backend = choice.resolve(settings.backend, data.images.stacks)
        self.settings = replace(self.settings, backend=backend)
        loader.check_trainable(data.images)
        self.images = data.images
        self.test_places = data.positions["test"] if data.positions else range(len(data.images.splits["test"].paths))
        self.channel_names = self.images.channels.names
        self.combinations = combinations.parse(settings.channels, self.channel_names, settings.division_seed)
        self.failed: dict[str, str] = {}
        self.costs = {entry: cost for entry in settings.models if (cost := self._checked(entry)) is not None}
        if not self.costs:
            raise UserError(next(iter(self.failed.values())))
        chosen = {name: [self.channel_names[i] for i in places] for name, places in self.combinations.items()}
        self.environment = hardware.describe()
        self.results = {
            "task": task,
            "seed": settings.seed,
            "device": self.environment["gpu" if settings.device == "cuda" else "cpu"],
            "data": summary(data),
            "combinations": chosen,
            "models": {},
            "failed": self.failed,
        }
        self.history: dict[str, list[EpochRow]] = {}
        self.predictions: dict[str, list[plots.Prediction]] = {}
        if resume:
            self._go_on_from(resume)
        if task == "transfer":
            self._check_weights(resume)
        if make is not None:
            self.folder = make(self.settings)
        else:
            self.folder = resume or made_by_main(Path(settings.out), task, settings.name)
        self.folder.begin(self.settings.to_toml(), self.environment, self.results)
        if division.HOLDOUT in self.images.splits:
            held = self.images.splits[division.HOLDOUT]
            lines = (f"{path} {label}\n" for path, label in zip(held.paths, held.labels, strict=True))
            self.folder.write(self.folder.holdout, "".join(lines))

    @property
    def entries(self) -> tuple[str, ...]:
        """The entries to train: those of the settings without what a sweep has left out."""
        return tuple(self.costs)

    def _checked(self, entry: str):
        """Return an entry's costs; None where it cannot be trained and others of a sweep can."""
        try:
            return networks.checked(entry, variants.of(self.settings, entry), self.images, self.combinations)
        except UserError as error:
            if not self.settings.sweep:
                raise
            self.failed[entry] = str(error)
            console.say(f"left out: {error}")
            return None

    def _go_on_from(self, run: RunFolder) -> None:
        """Take over what a run has; raise UserError where it is damaged or does not fit the data or the channels."""
        before = run.read_results()
        if before["data"]["class_names"] != self.results["data"]["class_names"]:
            raise UserError(f"{run.root} was trained on other classes than {self.images.root} has")
        if change := moved(before["data"], self.data):
            raise UserError(
                f"{run.root} cannot go on: {change}, and some may be among those it was trained on; put the files "
                "back, or start another run"
            )
        for entry in before["models"].values():
            alone = has_several(entry["protocol"])  # no network for shuffled channels
            if list(entry["test"]) != [name for name, chosen in self.combinations.items() if chosen or not alone]:
                raise UserError(
                    f"{run.root} was tested on channels {','.join(entry['test'])}: leave --channels as it was"
                )
        self.results["models"] = before["models"]
        trained_with = Settings.from_toml(run.config)
        for entry in self.entries:
            started = {path.parent for path in run.checkpoints(entry).rglob("*.pt")}
            if started:
                check_unchanged(entry, trained_with, self.settings, run)
            for folder in sorted(started) if not self.is_done(entry) else ():
                state.newest(folder, None, lambda fault: None)
        try:
            for row in map(EpochRow.from_text, run.read_history()):
                self.history.setdefault(row.model, []).append(row)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{run.history} is damaged ({type(error).__name__}: {error})") from None

    def _check_weights(self, resume: RunFolder | None) -> None:
        """Raise UserError where an entry that is to start from trained weights cannot."""
        for entry in self.entries:
            settings = variants.of(self.settings, entry)
            started = resume is not None and state.exists(resume.checkpoints(entry))
            networks.prepared(entry, settings, len(self.images.class_names), len(self.channel_names), started)

    def is_done(self, entry: str) -> bool:
        """Return whether the run that is resumed has tested this model after as many epochs as are asked for now."""
        found = self.results["models"].get(entry)
        return found is not None and found["epochs"] >= variants.of(self.settings, entry).epochs

    def attempt(self, entry: str) -> None:
        """Train and test an entry; where it fails and is not the only one, write why and go on."""
        try:
            self.train_and_test(entry)
        except Exception as error:
            if isinstance(error, UserError) and not distributed.is_main():
                # Of its share of the data, which the first process, the only one to speak of wrong input, has not seen.
                raise RunError(f"process {distributed.rank()}: {error}") from None
            ends_all = isinstance(error, (Interrupted, StorageError)) or distributed.world_size() > 1
            if len(self.entries) == 1 or ends_all:
                raise
            self.failed[entry] = " ".join((str(error) or type(error).__name__).split())
            where = self.folder.root / f"failed-{entry}.txt"
            self.folder.write(where, traceback.format_exc())
            console.say(f"{entry} failed, going on: {self.failed[entry]} (details: {where})")
        self.folder.write_json(self.folder.results, self.results)
        self.folder.write(self.folder.table, comparison.as_csv(self.results))

    def train_and_test(self, entry: str) -> None:
        """Train a model, test its best weights, and add both to the results."""
        settings = variants.of(self.settings, entry)
        if networks.is_one_per_combination(entry):
            outcomes = [self._outcome(entry, settings, name) for name, chosen in self.combinations.items() if chosen]
        else:
            outcomes = [self._outcome(entry, settings)]
        first = outcomes[0]
        best = first.history.best
        self.results["models"][entry] = (
            vars(self.costs[entry])
            | {
                "batch_size": first.batch_size,
                "epochs": max(len(outcome.history.epochs) for outcome in outcomes),
                "best_epoch": best.epoch,
                "train_seconds": round(sum(outcome.history.seconds for outcome in outcomes), 2),
                "images_per_second": round(first.history.images_per_second, 1),
                "peak_memory_mb": round(max(outcome.peak_memory_mb for outcome in outcomes), 1),
                "protocol": first.protocol,
                "channel_sampling": first.plan.channel_sampling,
                "augmentations": list(settings.augmentations),
                "reported": {system.report: dict(system.reported) for system in systems.reported(entry, self.task)},
                "val": {"loss": best.val_loss, "accuracy": best.val_accuracy},
            }
            | figures([outcome.tested for outcome in outcomes])
            | first.observed
        )
        self._show(entry, first.tested["test"])
        add_ratio(self.results)

    def report(self) -> None:
        """Write the pictures of all models and both report pages."""
        if not distributed.is_main():
            return
        pages.pictures(self.folder, self.results, self.history)
        pages.write(self.folder, self.results, self.environment)

    def _outcome(self, entry: str, settings: Settings, combination: str | None = None) -> Outcome:
        """Train a new network, for one combination of channels where that is given, and test it."""
        name, folder, tested = entry, self.folder.checkpoints(entry), self.combinations
        count, protocol = len(self.channel_names), None
        if combination:
            chosen = self.combinations[combination]
            name, folder, tested = f"{entry} {combination}", folder / combination, {combination: chosen}
            count, protocol = networks.shown(entry, settings, count, chosen)
        started = state.exists(folder)
        model = networks.prepared(entry, settings, len(self.images.class_names), count, started)
        plan = networks.plan(model, settings, self.images)
        if combination:
            padded = protocol == PADDED_ONE_PER_COMBINATION
            plan = replace(plan, channels=(combination, chosen), padded=padded, channel_sampling="off")
        settings, plan = self._fitted(name, model, plan, settings, folder)
        peak = PeakMemory(plan.device)  # of the training, not of the search for what fits
        history, observed = self._train(name, model, plan, settings, folder)
        self._write_history(name, history)
        scored = {split: self._test(name, model, plan, settings, tested, split) for split in self.tested_splits}
        if entry not in self.predictions and distributed.is_main():
            self._predict_some(entry, name, model, plan, settings)
        protocol = protocol or masks.protocol(model)
        return Outcome(protocol, plan, settings.batch_size, history, scored, peak.megabytes(), observed)

    @property
    def tested_splits(self) -> tuple[str, ...]:
        """The splits that trained networks are tested on, in the order of the table."""
        return tested_splits(self.settings)

    def _fitted(
        self, name: str, model: nn.Module, plan: Plan, settings: Settings, folder: Path
    ) -> tuple[Settings, Plan]:
        """Return settings and plan with what is to be found by measurement: the batch size and the compiler's mode."""
        count = plan.inputs(len(self.channel_names))
        shape, samples = (count, settings.image_size, settings.image_size), len(self.images.splits["train"].paths)
        if settings.batch_size == AUTO:
            found = state.batch_size(folder) or distributed.of_main(largest_batch(model, shape, plan, samples))
            if not found:
                raise UserError(f"--batch-size auto: no batch of {name} fits into memory; take a smaller --image-size")
            console.say(f"{name}: batch size {found}")
            settings = replace(settings, batch_size=found)
        if settings.compile and settings.compile_mode == AUTO:
            steps = plan.epochs * plan.passes * samples // settings.batch_size
            mode = compilation.mode(model, shape, settings.batch_size, plan, steps)
            plan = replace(plan, compile_mode=distributed.of_main(mode))
        return settings, plan

    def _train(
        self, name: str, model: nn.Module, plan: Plan, settings: Settings, checkpoints: Path
    ) -> tuple[TrainingHistory, dict]:
        """Train a model; return its history, and what was observed of it for the results."""
        main, first_epoch = distributed.is_main(), state.epochs(checkpoints) + 1
        scalars = Scalars(self.folder.tensorboard / name, settings.tensorboard and main, first_epoch)
        with (
            self._loader("train", settings, plan) as train,
            self._loader("val", settings) as val,
            console.progress(f"training {name}", plan.epochs * (plan.passes * train.samples + val.samples)) as bar,
            profiling.trace(self.folder.trace, name) if settings.profile and main else nullcontext() as trace,
            Idle(plan.device) as idle,
            scalars,
        ):

            def on_step() -> None:
                idle.step()
                if trace is not None:
                    trace()

            def on_epoch(history: TrainingHistory) -> None:
                idle.epoch()
                self._record(name, plan, history)
                scalars.epoch(history.epochs[-1], history.speeds[-1], idle.share)

            hooks = trainer.Hooks(
                batch=bar.advance,
                step=on_step,
                validated=trace.evaluated if trace else lambda: None,
                epoch=on_epoch,
                images=lambda images: scalars.batch(images, train.channels),
                say=console.say,
                waiting=idle.waiting,
            )
            history = trainer.fit(name, model, train, val, plan, checkpoints, hooks)
        console.say(f"{name}: {idle}")
        return history, idle.figures() | ({"kernels": trace.kernels} if trace and trace.kernels else {})

    def _loader(self, split: str, settings: Settings, plan: Plan | None = None) -> loader.Loader:
        augmentations = plan.augmentations if plan else None
        return make_loader(self.data, split, settings, augmentations, shared=True)

    def _test(
        self, name: str, model: nn.Module, plan: Plan, settings: Settings, combinations: Combinations, split: str
    ) -> Evaluation:
        precision = hardware.autocast(plan.device, plan.precision)
        with (
            self._loader(split, settings) as images,
            console.progress(f"testing {name} on {split}", images.samples) as bar,
        ):
            how = (plan.protocol, settings.flip_test)
            return evaluate(model, images, combinations, plan.num_classes, precision, bar.advance, *how)

    def _show(self, entry: str, tested: Evaluation) -> None:
        """Draw the confusion matrix on the first combination and write the predictions as CSV."""
        if not distributed.is_main():
            return
        title = f"{entry}, channels {next(iter(tested.scores))}"
        path = self.folder.plots / f"confusion-{entry}.png"
        plots.confusion(tested.confusion.numpy(), self.images.class_names, title, path)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [("ID", "Category"), *zip(self.test_places, tested.predictions.tolist(), strict=True)]
        )
        self.folder.write(self.folder.root / f"predictions-{entry}.csv", text.getvalue())

    @torch.no_grad()
    def _predict_some(self, entry: str, name: str, model: nn.Module, plan: Plan, settings: Settings) -> None:
        """Draw predictions for test images spread evenly over the list."""
        test, names = self.images.splits["test"], self.images.class_names
        chosen = np.unique(np.linspace(0, len(test.paths) - 1, SHOWN_PREDICTIONS).astype(int))
        few = Split(*(column and tuple(column[i] for i in chosen) for column in (test.paths, test.labels, test.sizes)))
        found = []
        model.eval()
        shown = replace(self.data, images=replace(self.images, splits={"few": few}))
        with make_loader(shown, "few", settings) as loader_:
            for batch in loader_.epoch(0):
                images = batch.standardised(self.images.channels)
                if plan.channels:
                    images = masks.select(images, plan.channels[1], plan.protocol)
                with hardware.autocast(plan.device, plan.precision):
                    logits = model(images)
                share, guess = logits.float().softmax(1).max(1)
                pictures = plots.as_pictures(batch.images)
                for row in zip(pictures, batch.labels.tolist(), guess.tolist(), share.tolist(), strict=True):
                    found.append(plots.Prediction(row[0], names[row[1]], names[row[2]], row[3]))
        self.predictions[entry] = found
        picture = self.folder.plots / f"predictions-{entry}.png"
        plots.predictions(found, f"{entry} on test images", picture)
        epoch = len(self.history[name])
        with Scalars(self.folder.tensorboard / name, settings.tensorboard, epoch + 1) as scalars:
            scalars.picture("predictions", picture, epoch)

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


def check_unchanged(entry: str, before: Settings, now: Settings, run: RunFolder) -> None:
    """Raise UserError where an entry of a run that goes on has other settings than its checkpoints."""
    old, new = variants.of(before, entry), variants.of(now, entry)
    for name in KEPT:
        if getattr(old, name) not in (None, getattr(new, name)):
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{run.root} has {entry} with {flag} {getattr(old, name)}: leave it so, or start another run"
            )


def tested_splits(settings: Settings) -> tuple[str, ...]:
    """Return the splits that the networks of a run are tested on, in the order of its table."""
    held_out = (division.HOLDOUT,) if settings.holdout and settings.test_holdout else ()
    return ("val", *held_out, "test")


def figures(tested: Sequence[dict[str, Evaluation]]) -> dict:
    """Return an entry's scores by split and combination, as `results.json` has them, of its networks' evaluations."""
    plain: dict[str, dict] = {}
    flipped: dict[str, dict] = {}
    for splits in tested:
        for split, found in splits.items():
            for all_scores, each in ((plain, found.scores), (flipped, found.flipped)):
                rows = {name: row.as_dict() for name, row in each.items()}
                all_scores.setdefault(split, {}).update(rows)
    others = {split: rows for split, rows in plain.items() if split != "test"}
    mirrored = {"flipped": flipped} if any(flipped.values()) else {}
    return {"test": plain.get("test", {}), "splits": others} | mirrored


def add_ratio(results: dict) -> None:
    """Add each model's test accuracy relative to ResNet34's, where that was trained in the same run."""
    plain = (name for name, chosen in results["combinations"].items() if chosen)
    found, combination = results["models"], next(plain, names.SHUFFLED)
    reference = scores.resnet34(found).get("test", {}).get(combination, {}).get("accuracy")
    for entry in found.values():
        entry.pop("ratio_to_resnet34", None)  # of a run that goes on
        if reference:
            entry["ratio_to_resnet34"] = entry["test"][combination]["accuracy"] / reference
