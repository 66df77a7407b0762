"""A finished run, opened for use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from polychrome.engine.channels.combinations import Combinations
from polychrome.engine.channels.names import RGB, Channels
from polychrome.engine.data.image_set import ImageSet
from polychrome.engine.errors import UserError
from polychrome.engine.machine import hardware
from polychrome.engine.run_folder import RunFolder
from polychrome.engine.training import checkpoint
from polychrome.train import networks, variants
from polychrome.train.config import Settings


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
        found = variants.of(settings or self.settings, name)
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
        model = networks.create(name, variants.of(self.settings, name), self.num_classes, in_channels)
        checkpoint.restore(model, content, path)
        return model.to(self.device, memory_format=torch.channels_last).eval()
