"""Commands that use what is there: `evaluate`, `predict` and `scan`."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import torch

from polychrome.engine.channels.combinations import Combinations, parse
from polychrome.engine.channels.masks import shown
from polychrome.engine.channels.names import ALL, RGB, SHUFFLED, Channels
from polychrome.engine.data.batches import normalise
from polychrome.engine.data.image_set import ImageSet, Split
from polychrome.engine.data.sets import division, listing, patches, scan
from polychrome.engine.errors import UserError
from polychrome.engine.evaluation import evaluate
from polychrome.engine.machine import hardware
from polychrome.engine.report import comparison, console, seeds
from polychrome.engine.report.tables import Table
from polychrome.engine.run_folder import RunFolder
from polychrome.engine.training import checkpoint
from polychrome.train import entries, networks
from polychrome.train.config import Settings
from polychrome.train.data import Data, make_loader, moved, open_data
from polychrome.train.experiment import figures, tested_splits

# What an entry of results.json has of the tests of its networks.
SCORES = ("test", "splits", "flipped", "spread", "ratio_to_resnet34")


def evaluate_run(
    run: Path, channels: tuple[str, ...], split: str | None, data: str | None, backend: str | None, device: str
) -> None:
    """Test the best checkpoint of each model of a run, and of each of its seeds.

    Writes `evaluation.json` and, in the form of the run's `table.csv`, `evaluation.csv` into the run's folder.

    Raises:
        UserError: the folder is no run, or its data, a checkpoint, a channel or the split is not usable.
    """
    folder = RunFolder.open(run)
    every = [Run(each.root, device) for each in folder.seeds.values()] or [Run(run, device)]
    opened, found = None, []
    for trained in every:
        changes = {"data": data or trained.settings.data, "backend": backend or trained.settings.backend}
        settings = replace(trained.settings, **changes)
        splits = (split,) if split else tested_splits(settings)
        if division.HOLDOUT in splits and not settings.holdout:
            raise UserError(f"{run} was trained without --holdout: it has no images held out")
        wanted = parse(channels, trained.channels.names, settings.division_seed)
        for name in trained.results["models"]:
            trained.networks(name, wanted)  # a damaged checkpoint is found before the data is read
        opened = opened or open_data(settings, trained.results["task"], splits)
        if change := moved(trained.results["data"], opened, splits):
            console.warn(f"not the run's figures: {change}, and some may be among those it was trained on")
        found.append(_evaluated(trained, settings, opened, wanted, splits))
    results = seeds.combined(found) if folder.seeds else found[0]
    if len(splits) == 1:
        models = {name: entry | entry["splits"] for name, entry in results["models"].items()}
        console.show_scores(results | {"models": models}, splits[0])
    else:
        console.show_scores(results)
        console.show_comparison(results)
    content = {"splits": list(splits), "models": {name: _scores(row) for name, row in results["models"].items()}}
    folder.write_json(folder.root / "evaluation.json", content)
    table = comparison.as_csv(results)
    folder.write(folder.root / "evaluation.csv", table)
    if folder.table.is_file():
        figures, equal = comparison.agreement(folder.table.read_text(encoding="utf-8"), table)
        console.say(f"{equal} of {figures} figures are those of {folder.table}, to the digit")


def _evaluated(trained: Run, settings: Settings, opened: Data, wanted: Combinations, splits: tuple[str, ...]) -> dict:
    """Return a run's results with the scores of its networks measured anew on these splits, and no others."""
    trained.check_fits(opened.images)
    images = replace(opened.images, channels=trained.channels)
    models = {}
    for name, entry in trained.results["models"].items():
        own, how = trained.entry_settings(name, settings), (trained.how(name), settings.flip_test)
        tested = []
        for part, model in trained.networks(name, wanted):
            scores = {}
            for split in splits:
                with (
                    make_loader(images, split, own, pixels=opened.pixels) as loader,
                    console.progress(f"evaluating {name} on {split}", loader.samples) as bar,
                ):
                    given = (loader, part, trained.num_classes, trained.autocast(), bar.advance)
                    scores[split] = evaluate(model, *given, *how)
            tested.append(scores)
        models[name] = {key: value for key, value in entry.items() if key not in SCORES} | figures(tested)
    names = {label: [trained.channels.names[place] for place in chosen] for label, chosen in wanted.items()}
    return trained.results | {"models": models, "combinations": names, "failed": {}}


def _scores(entry: dict) -> dict:
    """Return protocol and scores of a model's entry, by split, as `evaluation.json` has them."""
    plain = entry["splits"] | ({"test": entry["test"]} if entry["test"] else {})
    more = {key: entry[key] for key in ("flipped", "spread", "seeds") if key in entry}
    return {"protocol": entry["protocol"]} | plain | more


@torch.no_grad()
def predict_images(run: Path, images: tuple[Path, ...], model: str | None, channels: str | None, top: int) -> None:
    """Print the likeliest classes of each image.

    Raises:
        UserError: the folder is no run, the model was not trained there, or an image cannot be read.
    """
    trained = Run(run, "auto")
    if channels in (ALL, SHUFFLED):
        raise UserError(f"predict takes one combination of channels, not {channels!r}")
    everything = {trained.channels.full: tuple(range(len(trained.channels)))}
    wanted = parse((channels,), trained.channels.names) if channels else everything
    name = model or trained.best()
    ((part, network),) = trained.networks(name, wanted)
    ((combination, chosen),) = part.items()
    class_names = trained.results["data"]["class_names"]
    settings = replace(trained.entry_settings(name), backend="torch", workers=0)
    shares = []
    given = as_image_set(images, trained.channels)
    if given.dtype != trained.dtype:
        raise UserError(f"{images[0]} has values of type {given.dtype}, the run was trained on {trained.dtype}")
    with make_loader(given, "images", settings) as loader:
        for batch in loader.epoch(0):
            with trained.autocast():
                logits = network(*shown(normalise(batch.images, trained.channels), chosen, trained.how(name)))
            shares.append(logits.float().softmax(1).cpu())
    best = torch.cat(shares).topk(min(top, len(class_names)))
    rows = tuple(
        (str(path), *(f"{class_names[index]} {share:.1%}" for index, share in zip(indices, values, strict=True)))
        for path, indices, values in zip(images, best.indices.tolist(), best.values.tolist(), strict=True)
    )
    console.show(Table(f"{name}, channels {combination}", ("image", *map(str, range(1, len(rows[0])))), rows))


def as_image_set(files: tuple[Path, ...], channels: Channels) -> ImageSet:
    """Return a set with the one split "images" of these files, to be standardised as `channels` says.

    Raises:
        UserError: one of them cannot be decoded.
    """
    root = Path("/")
    paths = tuple(path.resolve().relative_to(root).as_posix() for path in files)
    report = scan.scan(root, paths, workers=1, cache=False, channels=len(channels))
    reasons = {item.path: item.reason for item in report.rejected}
    for path, file in zip(paths, files, strict=True):
        if path in reasons:
            raise UserError(f"{file}: {reasons[path]}")
    found = scan.apply(ImageSet(root, ("",), {"images": Split(paths, (0,) * len(paths))}), report, channels)
    if len(found.channels) != len(channels):
        raise UserError(f"{files[0]} has {len(found.channels)} channels, wanted {len(channels)}")
    return found


def cut_patches(scene: Path, folder: Path, size: int, seed: int) -> None:
    """Cut a labelled scene into a data folder of patches and say how many there are, and what was left out."""
    with console.waiting("dividing the scene"):
        lines = patches.cut(scene, folder, size, seed)
    for line in lines:
        console.say(line)


def scan_folder(folder: Path, workers: int | None, output: Path | None) -> None:
    """Decode every image under a folder, and every one its list files name, and list what cannot be used.

    Also shows each channel's mean and deviation where the images are stacks, and why they are no single data set where
    they differ in kind or in number of channels.

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
    if usable := tuple(path for path in paths if path in report.sizes):
        show_channels(ImageSet(folder, ("",), {"all": Split(usable, (0,) * len(usable))}), report)


def show_channels(images: ImageSet, report: scan.ScanReport) -> None:
    """Print what the channels of stacks are like, or why the images are no single data set."""
    try:
        images = scan.apply(images, report)
    except UserError as error:
        console.say(f"no single data set: {error}")
        return
    if images.stacks:
        columns = images.channels.names, images.channels.mean, images.channels.std
        rows = tuple((name, f"{mean:.6g}", f"{std:.6g}") for name, mean, std in zip(*columns, strict=True))
        kind = "0..1" if images.dtype == "uint8" else "as stored"
        console.show(Table(f"Channels, values {kind}", ("channel", "mean", "deviation"), rows))


class Run:
    """A finished run, opened for use: its settings, results and best checkpoints."""

    def __init__(self, root: Path, device: str) -> None:
        self.folder = RunFolder.open(root)
        if own := self.folder.seeds:
            raise UserError(f"{root} has a run for each of {len(own)} seeds: give one of them, {own[min(own)].root}")
        self.results = self.folder.read_results()
        self.device = hardware.device(device)
        self.settings = replace(Settings.from_toml(self.folder.config), device=self.device.type)
        self.num_classes = self.results["data"]["classes"]
        if None in (self.settings.image_size, self.settings.precision, self.settings.workers):
            raise UserError(f"{self.folder.config} is damaged: it lacks image_size, precision or workers")
        if not self.results["models"]:
            raise UserError(f"{root} has no trained model yet; go on with it by --resume {root}")
        data = self.results["data"]
        self.channels, self.dtype = RGB, data.get("dtype", "uint8")
        if "channels" in data:
            self.channels = Channels(tuple(data["channels"]), tuple(data["channel_mean"]), tuple(data["channel_std"]))

    def autocast(self):
        return hardware.autocast(self.device, self.settings.precision)

    def how(self, name: str) -> str:
        """Return how a model is shown a combination of channels: "subset", "mask" or "zero-pad"."""
        protocol = self.results["models"][name]["protocol"].rpartition(", ")[2]
        return "subset" if protocol == networks.ONE_PER_COMBINATION else protocol

    def best(self) -> str:
        """Return the model with the least validation loss."""
        found = self.results["models"]
        return min(found, key=lambda name: found[name]["val"]["loss"])

    def check_fits(self, images: ImageSet) -> None:
        """Raise UserError where the images differ in classes, channels or type of values from those of the run."""
        if list(images.class_names) != self.results["data"]["class_names"]:
            raise UserError(f"{self.folder.root} was trained on other classes than {images.root} has")
        if images.channels.names != self.channels.names:
            raise UserError(
                f"{self.folder.root} was trained on channels {', '.join(self.channels.names)}, {images.root} has "
                f"{', '.join(images.channels.names)}"
            )
        if images.dtype != self.dtype:
            raise UserError(
                f"{self.folder.root} was trained on values of type {self.dtype}, {images.root} has {images.dtype}"
            )

    def entry_settings(self, name: str, settings: Settings | None = None) -> Settings:
        """Return the settings of a model of the run, with the batch size that was found where it was to be."""
        found = entries.of(settings or self.settings, name)
        return replace(found, batch_size=self.results["models"][name].get("batch_size", found.batch_size))

    def networks(self, name: str, wanted: Combinations) -> list[tuple[Combinations, torch.nn.Module]]:
        """Return a model of the run with its best weights, and the combinations to use it for.

        That is one network for all that are wanted, or one for each of those that it was trained for.

        Raises:
            UserError: the run has no such model, trained it for none of the combinations, or a checkpoint is damaged
                or of another model.
        """
        if name not in self.results["models"]:
            raise UserError(f"the run has no model {name!r}; it trained {', '.join(self.results['models'])}")
        folder = self.folder.checkpoints(name)
        if not networks.has_several(self.results["models"][name]["protocol"]):
            return [(wanted, self._network(name, folder / "best.pt", len(self.channels)))]
        place = self.channels.names.index
        trained = {
            label: tuple(map(place, self.results["combinations"][label]))
            for label in self.results["models"][name]["test"]
        }
        label_of = {frozenset(chosen): label for label, chosen in trained.items()}
        found = []
        for combination, chosen in wanted.items():
            if (own := label_of.get(frozenset(chosen))) is not None:
                in_channels, _ = networks.shown(name, self.entry_settings(name), len(self.channels), chosen)
                network = self._network(name, folder / own / "best.pt", in_channels)
                found.append(({combination: trained[own]}, network))
        if not found:
            raise UserError(f"{name} has a network for each of {', '.join(trained)}, none for {', '.join(wanted)}")
        return found

    def _network(self, name: str, path: Path, in_channels: int) -> torch.nn.Module:
        content = checkpoint.load(path, self.device)
        model = networks.create(name, entries.of(self.settings, name), self.num_classes, in_channels)
        checkpoint.restore(model, content, path)
        return model.to(self.device, memory_format=torch.channels_last).eval()
