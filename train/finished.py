"""Trained models, of a run or of a single checkpoint, for the commands that use them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path

import torch

from polychrome.engine.channels import masks
from polychrome.engine.channels.combinations import Combinations
from polychrome.engine.channels.names import join
from polychrome.engine.data.conventions import Conventions, Trained
from polychrome.engine.data.image_set import ImageSet
from polychrome.engine.errors import UserError
from polychrome.engine.machine import hardware
from polychrome.engine.run_folder import RunFolder
from polychrome.engine.training import checkpoint
from polychrome.engine.training.state import BEST
from polychrome.models.any_channels import AnyChannels
from polychrome.train import networks, pretrained
from polychrome.train.data import channels_of, check_fits
from polychrome.train.results import best
from polychrome.train.settings import variants
from polychrome.train.settings.config import Settings


def opened(place: str | Path, device: str | torch.device, model: str | None = None) -> Source:
    """Return the trained networks of a run's folder, of a checkpoint, or of a pretrained network's name.

    A file or folder that is there wins over a pretrained network of the same name.

    Args:
        model: the model that is asked for: of a checkpoint, NAME+any_channels of a network for a fixed number of
            channels alone.

    Raises:
        UserError: there is no such run, checkpoint, pretrained network, model or device, or a file is damaged.
    """
    device = hardware.device(device)  # before a file is read to it
    path = Path(place)
    if not path.exists():
        if str(place) not in pretrained.FILES:
            raise UserError(
                f"{place}: no such run folder or best.pt; pretrained networks: {', '.join(pretrained.FILES)}"
            )
        path = pretrained.FILES[str(place)]
    if path.is_dir():
        return Run(path, device)
    checkpoint = Checkpoint(path, device)
    if model is not None and checkpoint.bare(model) == model:
        raise UserError(f"{place} has one network: leave out model={model!r}")
    return checkpoint


class Source(ABC):
    """Trained networks, and what is known of their data.

    NAME+any_channels names a model, too, where NAME is one that was trained to be shown zeros for absent channels: its
    networks are those of NAME, and are shown the nearest channels instead.

    Attributes:
        place: the run's folder, or the checkpoint.
        results: the content of `results.json`: of a checkpoint alone, as it was when the training began.
        settings: those of the run, for this machine's device.
        precision: of the run, or "fp32" where the device would only emulate it, at a tenth of the speed.
        channels: of the data, with their statistics.
        dtype: the type of its values, "uint8" or "float32".
        conventions: what its files were taken for.
        class_names: in the order of the logits.
    """

    def __init__(self, place: Path, results: dict, settings: Settings, device: str | torch.device) -> None:
        self.place, self.results, self.device = place, results, hardware.device(device)
        self.settings = replace(settings, device=self.device.type)
        self.precision = settings.precision if hardware.is_native(settings.precision, self.device) else "fp32"
        data = results["data"]
        self.num_classes, self.class_names = data["classes"], data["class_names"]
        self.channels, self.dtype = channels_of(data), data.get("dtype", "uint8")
        self.conventions = Conventions.of(data)

    @property
    def data(self) -> Trained:
        """What is known of the data that the models were trained on."""
        root = self.results["data"].get("root")
        apart = self.settings.channel_files
        return Trained(self.channels, self.dtype, self.conventions, Path(root) if root else None, apart)

    def autocast(self):
        return hardware.autocast(self.device, self.precision)

    @property
    def own_channels(self) -> str | None:
        """The combination of channels that images have by default; None for all."""
        return None

    @property
    def arithmetic(self) -> str | None:
        """What differs from the training's arithmetic, in words; None where nothing does."""
        before = self.settings.precision
        return f"in {self.precision}, as {before} is only emulated here" if self.precision != before else None

    @abstractmethod
    def best(self) -> str:
        """Return the name of the model that is used by default: the most accurate one on the validation images."""

    @abstractmethod
    def is_trained(self, name: str) -> bool:
        """Return whether a model of this name was trained."""

    @abstractmethod
    def _protocol(self, name: str) -> str:
        """Return the protocol of a model that was trained. Raises UserError where there is no such model."""

    @abstractmethod
    def _networks(self, name: str, wanted: Combinations) -> list[tuple[Combinations, torch.nn.Module]]:
        """Return the networks of a model that was trained, see `networks`."""

    def bare(self, name: str) -> str:
        """Return the name that a model was trained by: NAME of NAME+any_channels that was trained as NAME."""
        bare = name.removesuffix(variants.FILLED)
        is_filled = not self.is_trained(name) and self.is_trained(bare) and self._protocol(bare) == "zero-pad"
        return bare if is_filled else name

    def protocol(self, name: str) -> str:
        """Return a model's protocol, as `results.json` names it. Raises UserError where there is no such model."""
        bare = self.bare(name)
        return self._protocol(name) if bare == name else "mask"

    def networks(self, name: str, wanted: Combinations) -> list[tuple[Combinations, torch.nn.Module]]:
        """Return a model's networks with their best weights, each with the combinations to use it for.

        The list has one network for all wanted combinations or, of a model with a network for each combination, the
        networks of the wanted combinations.

        Raises:
            UserError: there is no such model, no network for any wanted combination, or a checkpoint is damaged or of
                another model.
        """
        found, bare = self._networks(self.bare(name), wanted), self.bare(name)
        if bare == name:
            return found
        return [(part, AnyChannels(network, len(self.channels))) for part, network in found]

    @abstractmethod
    def export(self, name: str, file_format: str) -> Path:
        """Return the path that an exported network has by default."""

    def check_fits(self, images: ImageSet) -> None:
        """Raise UserError where the images differ in classes, channels or kind of values from those of the training."""
        check_fits(self.results["data"], images, self.place)

    def has_several(self, name: str) -> bool:
        """Return whether a model has a network for each combination of channels."""
        return networks.has_several(self.protocol(name))

    def shown_as(self, name: str) -> str:
        """Return how a model is shown a combination of channels: "subset", "mask" or "zero-pad"."""
        protocol = self.protocol(name).rpartition(", ")[2]
        return "subset" if protocol == networks.ONE_PER_COMBINATION else protocol

    def entry_settings(self, name: str, settings: Settings | None = None) -> Settings:
        """Return the settings of a model; a batch size of "auto" is replaced by the size that was found."""
        bare = self.bare(name)
        found = variants.of(settings or self.settings, bare)
        options = found.options if bare == name else found.options | {"any_channels": True}
        size = self.results["models"].get(bare, {}).get("batch_size", found.batch_size)
        return replace(found, batch_size=size, options=options)

    def _loaded(self, name: str, content: dict, path: Path, in_channels: int) -> torch.nn.Module:
        """Return a network of a model with the weights of a checkpoint, in evaluation."""
        model = networks.create(name, variants.of(self.settings, name), self.num_classes, in_channels)
        checkpoint.restore(model, content, path)
        return model.to(self.device, memory_format=torch.channels_last).eval()


class Checkpoint(Source):
    """The one network of a `best.pt`, wherever it lies.

    Raises:
        UserError: the file is no checkpoint of ours, is damaged, is of a version that kept only weights in it, or is
            the state of a training, whose weights are not those that were tested.
    """

    def __init__(self, path: Path, device: str | torch.device) -> None:
        self._content = checkpoint.load(path, hardware.device(device))
        if "optimizer" in self._content:
            raise UserError(f"{path} is the state of a training, for --resume: give the best.pt beside it")
        if not (copy := self._content.get("run")):
            raise UserError(f"{path} has weights alone: give the folder of its run")
        settings = Settings.from_text(copy["config"], f"{path}: the copy of the settings")
        super().__init__(path, copy["results"], settings, device)
        self.name, _, self._label = self._content["name"].partition(" ")
        self._protocols: dict[str, str] = {}  # every prediction asks, and finding one takes longer than a small network

    def best(self) -> str:
        return self.name

    def is_trained(self, name: str) -> bool:
        return name == self.name

    def _protocol(self, name: str) -> str:
        if name not in self._protocols:
            self._protocols[name] = self._found_protocol(name)
        return self._protocols[name]

    def _found_protocol(self, name: str) -> str:
        count, settings = len(self.channels), variants.of(self.settings, name)
        if self._label:
            return networks.for_one_combination(name, settings, count, self._own())[1]
        with torch.device("meta"):
            return masks.protocol(networks.create(name, settings, self.num_classes, count))

    def _networks(self, name: str, wanted: Combinations) -> list[tuple[Combinations, torch.nn.Module]]:
        if not self._label:
            return [(wanted, self._loaded(name, self._content, self.place, len(self.channels)))]
        own = self._own()
        fitting = [label for label, chosen in wanted.items() if chosen and set(chosen) == set(own)]
        fitting.sort(key=lambda label: wanted[label] != own)
        if not fitting:
            raise UserError(f"{self.place} is the network for {self._label}, not for {', '.join(wanted)}")
        in_channels, _ = networks.for_one_combination(name, self.entry_settings(name), len(self.channels), own)
        return [({fitting[0]: own}, self._loaded(name, self._content, self.place, in_channels))]

    def export(self, name: str, file_format: str) -> Path:
        return Path(f"{name}.{file_format}")

    @property
    def own_channels(self) -> str | None:
        if not self._label or len(own := self._own()) == len(self.channels):
            return None
        return join([self.channels.names[place] for place in own], self.channels.names)

    def _own(self) -> tuple[int, ...]:
        """Return the channels that the network takes, of a model with a network for each combination."""
        return tuple(map(self.channels.names.index, self.results["combinations"][self._label]))


class Run(Source):
    """The settings, results and best checkpoints of a run.

    Raises:
        UserError: the folder is not a run's, has several seeds or no trained model, or is damaged.
    """

    def __init__(self, root: Path, device: str | torch.device) -> None:
        self.folder = RunFolder.open(root)
        if own := self.folder.seeds:
            raise UserError(f"{root} has a run for each of {len(own)} seeds: give one of them, {own[min(own)].root}")
        results = self.folder.read_results()
        super().__init__(root, results, Settings.of_run(self.folder.config), device)
        if not results["models"]:
            raise UserError(f"{root} has no trained model yet; go on with it by --resume {root}")

    def best(self) -> str:
        return best(self.results["models"])

    def is_trained(self, name: str) -> bool:
        return name in self.results["models"]

    def _protocol(self, name: str) -> str:
        if not self.is_trained(name):
            raise UserError(f"the run has no model {name!r}; it trained {', '.join(self.results['models'])}")
        return self.results["models"][name]["protocol"]

    def export(self, name: str, file_format: str) -> Path:
        return self.folder.export(name, file_format)

    def _networks(self, name: str, wanted: Combinations) -> list[tuple[Combinations, torch.nn.Module]]:
        if not self.has_several(name):
            return [(wanted, self._network(name, self.folder.checkpoints(name) / BEST, len(self.channels)))]
        index = self.channels.names.index
        trained = {
            label: tuple(map(index, self.results["combinations"][label]))
            for label in self.results["models"][name]["scores"]["test"]
        }
        # Of several orders of the same channels each has its network; another order gets the first.
        label_of = {chosen: label for label, chosen in trained.items()}
        any_order = {frozenset(chosen): label for chosen, label in reversed(label_of.items())}
        found = []
        for combination, chosen in wanted.items():
            own = label_of.get(chosen) or any_order.get(frozenset(chosen or ()))
            if chosen and own is not None:
                in_channels, _ = networks.for_one_combination(
                    name, self.entry_settings(name), len(self.channels), chosen
                )
                network = self._network(name, self.folder.checkpoints(name, own) / BEST, in_channels)
                found.append(({combination: trained[own]}, network))
        if not found:
            raise UserError(f"{name} has a network for each of {', '.join(trained)}, none for {', '.join(wanted)}")
        return found

    def _check_settings(self, name: str, copy: dict | None, path: Path) -> None:
        """Raise UserError where the run differs from a checkpoint's copy in what the network's input depends on.

        A run that goes on cannot change these settings; a damaged file can.
        """
        if not copy:  # of an earlier version
            return
        before = variants.of(Settings.from_text(copy["config"], f"{path}: the copy of the settings"), name)
        now = variants.of(self.settings, name)
        for setting in ("image_size", "eval_crop", "precision"):
            if (old := getattr(before, setting)) != (new := getattr(now, setting)):
                raise UserError(
                    f"{self.folder.config} is damaged: {setting} is {new}, and {path} was trained with {old}"
                )
        data = copy["results"].get("data", {})
        own = channels_of(data) if "channels" in data else self.channels
        if (own.mean, own.std) != (self.channels.mean, self.channels.std):
            raise UserError(
                f"{self.folder.results} has other means and deviations of channels than {path} was trained with, as "
                "where an earlier version went on with changed data: give best.pt itself"
            )

    def _network(self, name: str, path: Path, in_channels: int) -> torch.nn.Module:
        content = checkpoint.load(path, self.device)
        self._check_settings(name, content.get("run"), path)
        return self._loaded(name, content, path, in_channels)
