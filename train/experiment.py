"""One experiment: train each model, test it on every channel combination, write the run's folder."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

import models
from engine import channels, checkpoint, complexity, hardware, profiling, training
from engine.batch import normalise
from engine.data import loader
from engine.data.listing import Split
from engine.errors import UserError
from engine.evaluation import Evaluation, evaluate
from engine.report import console, pages, plots
from engine.run_folder import RunFolder
from train.config import Settings
from train.data import make_loader, open_data

SHOWN_PREDICTIONS = 18


def run(task: str, settings: Settings, resume: RunFolder | None = None) -> tuple[RunFolder, dict]:
    """Train and test all models of `settings`; return the run's folder and the content of its `results.json`.

    With `resume`, the models that this run has finished are kept, and others go on after their last whole epoch.

    Raises:
        UserError: data, a model, a channel or the output folder is not usable; nothing has been written then.
    """
    experiment = Experiment(task, settings, resume)
    for name in experiment.settings.models:
        if not experiment.is_done(name):
            experiment.train_and_test(name)
    experiment.report()
    return experiment.folder, experiment.results


class Experiment:
    """Data, settings, run folder and results so far. Everything of the user's is checked before a file is written."""

    def __init__(self, task: str, settings: Settings, resume: RunFolder | None) -> None:
        # The run's folder must tell where the data is from anywhere.
        root = settings.data and str(Path(settings.data).expanduser().absolute())
        self.settings = replace(settings, data=root, backend=loader.resolve(settings.backend))
        self.combinations = channels.parse(settings.channels)
        check_models(settings.models)
        data = open_data(self.settings)
        loader.check_trainable(data.images)
        self.images = data.images
        self.costs = {
            name: measure(name, len(self.images.class_names), settings.image_size) for name in settings.models
        }
        self.results = {"task": task, "seed": settings.seed, "data": data.summary(), "models": {}}
        self.history: dict[str, list[training.EpochRow]] = {}
        if resume:
            self._go_on_from(resume)
        self.environment = hardware.describe()
        self.folder = resume or RunFolder.create(Path(settings.out), task, settings.name)
        self.folder.begin(self.settings.to_toml(), self.environment, self.results)

    def _go_on_from(self, run: RunFolder) -> None:
        """Take over what a run has; raise UserError where it is damaged or does not fit the data or the channels."""
        before = run.read_results()
        if before["data"]["class_names"] != self.results["data"]["class_names"]:
            raise UserError(f"{run.root} was trained on other classes than {self.images.root} has")
        for entry in before["models"].values():
            if tuple(entry["test"]) != self.combinations:
                raise UserError(
                    f"{run.root} was tested on channels {','.join(entry['test'])}: leave --channels as it was"
                )
        self.results["models"] = before["models"]
        for name in self.settings.models:
            last = run.checkpoints(name) / "last.pt"
            if not self.is_done(name) and last.exists():
                checkpoint.load(last)
        try:
            for row in map(training.EpochRow.from_text, run.read_history()):
                self.history.setdefault(row.model, []).append(row)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{run.history} is damaged ({type(error).__name__}: {error})") from None

    def is_done(self, name: str) -> bool:
        """Return whether the run that is resumed has tested this model after as many epochs as are asked for now."""
        entry = self.results["models"].get(name)
        return entry is not None and entry["epochs"] >= self.settings.epochs

    def train_and_test(self, name: str) -> None:
        """Train a model, test its best weights, and add both to the results."""
        settings = self.settings
        memory = hardware.PeakMemory(torch.device(settings.device))
        torch.manual_seed(settings.seed)
        model = models.create(name, num_classes=len(self.images.class_names))
        plan = make_plan(model, settings, len(self.images.class_names))
        course = self._train(name, model, plan)
        self._write_history(name, course)
        tested = self._test(name, model, plan)
        self.results["models"][name] = vars(self.costs[name]) | {
            "epochs": len(course.history),
            "best_epoch": course.best.epoch,
            "train_seconds": round(course.seconds, 2),
            "images_per_second": round(course.images_per_second, 1),
            "peak_memory_mb": round(memory.megabytes(), 1),
            "protocol": channels.protocol(model),
            "channel_sampling": plan.sample_channels,
            "val": {"loss": course.best.val_loss, "accuracy": course.best.val_accuracy},
            "test": {combination: scores.as_dict() for combination, scores in tested.scores.items()},
        }
        add_ratio(self.results["models"], self.combinations[0])
        self.folder.write_json(self.folder.results, self.results)

    def report(self) -> None:
        """Write the pictures of all models and both report pages."""
        plots.curves(self.history, self.folder.plots / "curves.png")
        accuracy = {
            name: {combination: row["accuracy"] for combination, row in entry["test"].items()}
            for name, entry in self.results["models"].items()
        }
        plots.combinations(accuracy, 1 / len(self.images.class_names), self.folder.plots / "combinations.png")
        pages.write(self.folder, self.results, self.environment)

    def _train(self, name: str, model: torch.nn.Module, plan: training.Plan) -> training.Fit:
        settings = self.settings
        profiler = (
            profiling.trace(self.folder.trace / f"{name}.json") if settings.profile else nullcontext(lambda: None)
        )
        with (
            make_loader(self.images, "train", settings, train=True) as train,
            make_loader(self.images, "val", settings) as val,
            console.progress(f"training {name}", plan.epochs * (train.samples + val.samples)) as bar,
            profiler as step,
        ):
            return training.fit(
                name,
                model,
                train,
                val,
                plan,
                self.folder.checkpoints(name),
                on_batch=bar.advance,
                on_step=step,
                on_epoch=partial(self._record, name),
            )

    def _test(self, name: str, model: torch.nn.Module, plan: training.Plan) -> Evaluation:
        precision = hardware.autocast(plan.device, plan.precision)
        with (
            make_loader(self.images, "test", self.settings) as test,
            console.progress(f"testing {name}", test.samples) as bar,
        ):
            tested = evaluate(model, test, self.combinations, plan.num_classes, precision, bar.advance)
        title = f"{name}, channels {self.combinations[0]}"
        path = self.folder.plots / f"confusion-{name}.png"
        plots.confusion(tested.confusion.numpy(), self.images.class_names, title, path)
        shown = self._predict_some(model, plan)
        plots.predictions(shown, f"{name} on test images", self.folder.plots / f"predictions-{name}.png")
        return tested

    @torch.no_grad()
    def _predict_some(self, model: torch.nn.Module, plan: training.Plan) -> list[plots.Prediction]:
        """Return predictions for test images spread evenly over the list."""
        test, names = self.images.splits["test"], self.images.class_names
        chosen = np.unique(np.linspace(0, len(test.paths) - 1, SHOWN_PREDICTIONS).astype(int))
        few = Split(*(column and tuple(column[i] for i in chosen) for column in (test.paths, test.labels, test.sizes)))
        found = []
        model.eval()
        with make_loader(replace(self.images, splits={"few": few}), "few", self.settings) as loader_:
            for batch in loader_.epoch(0):
                with hardware.autocast(plan.device, plan.precision):
                    logits = model(normalise(batch.images))
                share, guess = logits.float().softmax(1).max(1)
                pictures = batch.images.permute(0, 2, 3, 1).cpu().numpy()
                for row in zip(pictures, batch.labels.tolist(), guess.tolist(), share.tolist(), strict=True):
                    found.append(plots.Prediction(row[0], names[row[1]], names[row[2]], row[3]))
        return found

    def _write_history(self, name: str, course: training.Fit) -> None:
        self.history[name] = course.history
        self.folder.write_history([row for rows in self.history.values() for row in rows])

    def _record(self, name: str, course: training.Fit) -> None:
        self._write_history(name, course)
        row = course.history[-1]
        console.say(
            f"{name} epoch {row.epoch}/{self.settings.epochs}: loss {row.train_loss:.3f}, accuracy "
            f"{row.train_accuracy:.1%}; validation loss {row.val_loss:.3f}, accuracy {row.val_accuracy:.1%}; "
            f"{course.speeds[-1]:,.0f} img/s"
        )


def check_models(names: tuple[str, ...]) -> None:
    """Raise UserError where a model's name is unknown or given twice."""
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"--models names {name} {count} times")
        try:
            with torch.device("meta"):
                models.create(name)
        except models.UnknownModelError as error:
            raise UserError(str(error)) from None


def measure(name: str, num_classes: int, size: int) -> complexity.Complexity:
    """Return a model's costs for an image [3, size, size].

    Raises:
        UserError: the image is too small for the model.
    """
    with torch.device("meta"):
        model = models.create(name, num_classes=num_classes)
    try:
        return complexity.measure(model, len(channels.RGB), size)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name} cannot take {size} px images ({reason}); try a larger --image-size") from None


def make_plan(model: torch.nn.Module, settings: Settings, num_classes: int) -> training.Plan:
    """Return how to train `model`: any-channel models see random channel subsets unless the user says otherwise."""
    sample = {"on": True, "off": False, "auto": getattr(model, "any_channels", False)}[settings.channel_sampling]
    return training.Plan(
        epochs=settings.epochs,
        lr=settings.lr,
        patience=settings.patience,
        sample_channels=sample,
        num_classes=num_classes,
        precision=settings.precision,
        compile=settings.compile,
        device=torch.device(settings.device),
        seed=settings.seed,
    )


def add_ratio(entries: dict[str, dict], combination: str) -> None:
    """Add each model's test accuracy relative to ResNet34's, where that was trained in the same run."""
    reference = entries.get("resnet34", {}).get("test", {}).get(combination, {}).get("accuracy")
    if reference:
        for entry in entries.values():
            entry["ratio_to_resnet34"] = entry["test"][combination]["accuracy"] / reference
