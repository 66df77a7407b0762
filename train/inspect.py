"""Commands that use what is there: `evaluate`, `predict` and `scan`."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import torch

import models
from engine import checkpoint, hardware
from engine.batch import normalise
from engine.channels import parse, select
from engine.data import listing, scan
from engine.data.listing import ImageSet, Split
from engine.errors import UserError
from engine.evaluation import evaluate
from engine.report import console
from engine.report.tables import Table, combinations
from engine.run_folder import RunFolder
from train.config import Settings
from train.data import make_loader, open_data


def evaluate_run(
    run: Path, channels: tuple[str, ...], split: str, data: str | None, backend: str | None, device: str
) -> None:
    """Test the best checkpoint of each model of a run and write `evaluation.json` into the run's folder.

    Raises:
        UserError: the folder is no run, or its data, a checkpoint or a channel is not usable.
    """
    trained = Run(run, device)
    wanted = parse(channels)
    settings = trained.settings
    settings = replace(settings, data=data or settings.data, backend=backend or settings.backend)
    networks = {name: trained.network(name) for name in trained.results["models"]}
    images = open_data(settings).images
    if list(images.class_names) != trained.results["data"]["class_names"]:
        raise UserError(f"{run} was trained on other classes than {images.root} has")
    found, shown = {}, []
    for name, model in networks.items():
        with (
            make_loader(images, split, settings) as loader,
            console.progress(f"evaluating {name}", loader.samples) as bar,
        ):
            tested = evaluate(model, loader, wanted, trained.num_classes, trained.autocast(), bar.advance)
        protocol = trained.results["models"][name]["protocol"]
        found[name] = {"protocol": protocol, split: {key: row.as_dict() for key, row in tested.scores.items()}}
        shown.append(combinations(name, protocol, found[name][split]))
    console.show(*shown)
    trained.folder.write_json(trained.folder.root / "evaluation.json", {"split": split, "models": found})


@torch.no_grad()
def predict_images(run: Path, images: tuple[Path, ...], model: str | None, channels: str, top: int) -> None:
    """Print the likeliest classes of each image.

    Raises:
        UserError: the folder is no run, the model was not trained there, or an image cannot be read.
    """
    trained = Run(run, "auto")
    if channels == "all":
        raise UserError("predict takes one combination of channels, not 'all'")
    (combination,) = parse((channels,))
    entries = trained.results["models"]
    name = model or min(entries, key=lambda key: entries[key]["val"]["loss"])
    network = trained.network(name)
    protocol, class_names = entries[name]["protocol"], trained.results["data"]["class_names"]
    shares = []
    with make_loader(as_image_set(images), "images", replace(trained.settings, backend="torch", workers=0)) as loader:
        for batch in loader.epoch(0):
            with trained.autocast():
                logits = network(select(normalise(batch.images), combination, protocol))
            shares.append(logits.float().softmax(1).cpu())
    best = torch.cat(shares).topk(min(top, len(class_names)))
    rows = tuple(
        (str(path), *(f"{class_names[index]} {share:.1%}" for index, share in zip(indices, values, strict=True)))
        for path, indices, values in zip(images, best.indices.tolist(), best.values.tolist(), strict=True)
    )
    console.show(Table(f"{name}, channels {combination}", ("image", *map(str, range(1, len(rows[0])))), rows))


def as_image_set(files: tuple[Path, ...]) -> ImageSet:
    """Return a set with the one split "images" of these files.

    Raises:
        UserError: one of them cannot be decoded.
    """
    root = Path("/")
    paths = tuple(path.resolve().relative_to(root).as_posix() for path in files)
    report = scan.scan(root, paths, workers=1, cache=False)
    reasons = {item.path: item.reason for item in report.rejected}
    for path, file in zip(paths, files, strict=True):
        if path in reasons:
            raise UserError(f"{file}: {reasons[path]}")
    sizes = tuple(report.sizes[path] for path in paths)
    return ImageSet(root, ("",), {"images": Split(paths, (0,) * len(paths), sizes)})


def scan_folder(folder: Path, workers: int | None, output: Path | None) -> None:
    """Decode every image under a folder, and every one its list files name, and list what cannot be used.

    Raises:
        UserError: the folder is missing or has no images, or the output cannot be written.
    """
    paths = listing.image_files(folder)
    if output is not None and not output.absolute().parent.is_dir():
        raise UserError(f"--output {output} cannot be written: no folder {output.absolute().parent}")
    with console.progress("decoding", len(paths)) as bar:
        report = scan.scan(folder, paths, workers, bar.reach, cache=False)
    rows = tuple((item.path, item.reason) for item in report.rejected)
    if output is not None:
        try:
            with open(output, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
                csv.writer(file).writerows([("path", "reason"), *rows])
        except OSError as error:
            raise UserError(f"--output {output} cannot be written: {error.strerror}") from None
    if rows:
        console.show(Table("Files that cannot be used", ("path", "reason"), rows))
    console.say(f"{len(paths)} files decoded, {len(rows)} cannot be used")


class Run:
    """A finished run, opened for use: its settings, results and best checkpoints."""

    def __init__(self, root: Path, device: str) -> None:
        self.folder = RunFolder.open(root)
        self.results = self.folder.read_results()
        self.device = hardware.device(device)
        self.settings = replace(Settings.from_toml(self.folder.config), device=self.device.type)
        self.num_classes = self.results["data"]["classes"]
        if None in (self.settings.image_size, self.settings.precision, self.settings.workers):
            raise UserError(f"{self.folder.config} is damaged: it lacks image_size, precision or workers")
        if not self.results["models"]:
            raise UserError(f"{root} has no trained model yet; go on with it by --resume {root}")

    def autocast(self):
        return hardware.autocast(self.device, self.settings.precision)

    def network(self, name: str) -> torch.nn.Module:
        """Return a model of the run with its best weights, in evaluation mode.

        Raises:
            UserError: the run has no such model, or the checkpoint is damaged or of another model.
        """
        if name not in self.results["models"]:
            raise UserError(f"the run has no model {name!r}; it trained {', '.join(self.results['models'])}")
        path = self.folder.checkpoints(name) / "best.pt"
        content = checkpoint.load(path, self.device)
        model = models.create(name, num_classes=self.num_classes)
        checkpoint.restore(model, content, path)
        return model.to(self.device, memory_format=torch.channels_last).eval()
