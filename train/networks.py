"""The networks of a run: created, measured, initialised, and how each is to be trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from polychrome import models
from polychrome.engine import console
from polychrome.engine.channels import combinations, masks
from polychrome.engine.channels.names import RGB, listed
from polychrome.engine.data import augmentation
from polychrome.engine.data.augmentation import Augmentations
from polychrome.engine.data.image_set import ImageSet, having
from polychrome.engine.data.opening import Opened
from polychrome.engine.errors import UserError, first_line, one_line
from polychrome.engine.machine.files import expanded
from polychrome.engine.run_folder import RunFolder
from polychrome.engine.run_folder import check_names as check_names_of_files
from polychrome.engine.training import checkpoint, schedules, state, transfer
from polychrome.engine.training.hyperparameters import AUTO, Hyperparameters
from polychrome.engine.training.plan import Plan
from polychrome.engine.training.state import BEST
from polychrome.models import complexity, initialise
from polychrome.models.any_channels import AnyChannels
from polychrome.train.data import make_loader
from polychrome.train.results import best
from polychrome.train.settings import variants
from polychrome.train.settings.config import Settings

LARGEST_TRIED = 512
OF_TORCHVISION = "torchvision's weights of"
ONE_PER_COMBINATION = "one-per-combination"
PADDED_ONE_PER_COMBINATION = "one-per-combination, zero-pad"
MOST_NETWORKS = 15  # networks of an entry
MEASURED = 2048  # training images that tell how channels vary together


def create(entry: str, settings: Settings, num_classes: int, in_channels: int, size: int | None = None) -> nn.Module:
    """Return a new network for an entry of a run, by its settings; `size` is another image size than the settings'.

    Raises:
        UserError: no model has this name, or it cannot be made for such images.
    """
    try:
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.options.items()}
        size = size or settings.image_size
        return models.create(variants.model_name(entry), num_classes, in_channels, size, **options)
    except TypeError as error:
        if not settings.options:
            raise
        raise UserError(f"{entry} cannot be made with options {settings.options}: {error}") from None
    except (models.UnknownModelError, ValueError) as error:
        raise UserError(str(error)) from None


def check_names(names: tuple[str, ...]) -> None:
    """Raise UserError where the model of an entry is unknown."""
    for entry in names:
        if (name := variants.model_name(entry)) not in models.names():
            try:
                models.create(name)
            except models.UnknownModelError as error:
                raise UserError(str(error)) from None


def check_schedule(settings: Settings) -> None:
    """Raise UserError where an entry's epochs have no room for its schedule."""
    name = "constant" if settings.schedule == "plateau" else settings.schedule
    try:
        schedules.factor(name, 0.0, settings.epochs, settings.warmup)
    except ValueError as error:
        raise UserError(f"--schedule {settings.schedule}, --warmup {settings.warmup:g}: {error}") from None


def check(
    entry: str, settings: Settings, images: ImageSet, combinations: combinations.Combinations
) -> complexity.Complexity:
    """Return the costs of an entry that can be trained with these settings on these images.

    Raises:
        UserError: the entry cannot be trained so.
    """
    count, classes = len(images.channels), len(images.class_names)
    augmentation.check(settings.augmentations, images.dtype, count, bool(images.channels.sensors))
    costs = measure(entry, settings, classes, count)
    if settings.progressive < 1:
        _check_first_size(entry, settings, classes, count)
    with torch.device("meta"):
        plan(create(entry, settings, classes, count), settings, images)
    if settings.batch_size == 1 and settings.transfer != "frozen":
        _check_lone_images(entry, settings, classes, count)
    plain = [name for name, chosen in combinations.items() if chosen]
    check_names_of_files(entry, plain if is_one_per_combination(entry) else ())
    if is_one_per_combination(entry) and not 1 <= len(plain) <= MOST_NETWORKS:
        raise UserError(
            f"{entry} is a network for each combination of channels: name 1 to {MOST_NETWORKS} by --channels, "
            f"not {len(plain)}"
        )
    for name in plain if is_one_per_combination(entry) and images.channels.sensors else ():
        for split in ("train", "val"):
            if (count := len(having(images, split, combinations[name]).paths)) < 2:
                raise UserError(
                    f"{entry} has a network for {name}: {count} images of {split} have these channels, wanted 2 or more"
                )
    return costs


def _check_lone_images(entry: str, settings: Settings, num_classes: int, in_channels: int) -> None:
    """Raise UserError where a network in training cannot take a batch of one image."""
    size = augmentations(settings).size(1, settings.image_size)
    with torch.device("meta"):
        model = create(entry, settings, num_classes, in_channels)
        try:
            model.train()(torch.empty(1, in_channels, size, size))
        except ValueError as error:  # batch normalisation of a single value has no variance
            raise UserError(f"--batch-size 1: {entry} cannot be trained on single images: {one_line(error)}") from None


def _check_first_size(entry: str, settings: Settings, num_classes: int, in_channels: int) -> None:
    """Raise UserError where a network cannot take the smaller images of the first epoch."""
    first = augmentations(settings).size(1, settings.image_size)
    with torch.device("meta"):
        model = create(entry, settings, num_classes, in_channels)
    try:
        complexity.measure(model, in_channels, first)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{entry} cannot take the {first} px images that --progressive {settings.progressive:g} begins with; give "
            f"it progressive = 1 in a table [model.{entry}] ({first_line(error)})"
        ) from None


def is_one_per_combination(entry: str) -> bool:
    """Return whether an entry has a network for each channel combination."""
    return variants.is_alone(entry) or _takes_one_combination(entry)


def has_several(protocol: str) -> bool:
    """Return whether a model of this protocol has a network for each channel combination."""
    return protocol.startswith(ONE_PER_COMBINATION)


def for_one_combination(entry: str, settings: Settings, channels: int, combination: tuple[int, ...]) -> tuple[int, str]:
    """Return the number of input channels and the protocol of a network for one combination of the data's channels.

    A model with the attribute `one_per_combination` takes the combination's channels alone, and so does one that a mask
    would name its channels to, as they are always there. Other models take all channels and are shown zeros for absent
    ones, except models for any number of channels, which are shown a subset.
    """
    if _takes_one_combination(entry):
        return len(combination), ONE_PER_COMBINATION
    with torch.device("meta"):
        protocol = masks.protocol(create(entry, settings, 2, channels))
    count = len(combination) if protocol == "mask" else channels
    return count, PADDED_ONE_PER_COMBINATION if protocol == "zero-pad" else ONE_PER_COMBINATION


def shown(protocol: str, names: tuple[str, ...], combination: tuple[int, ...]) -> tuple[str, ...]:
    """Return the names of the channels that a network for one combination is shown, in order, of those of the data."""
    return names if protocol == PADDED_ONE_PER_COMBINATION else tuple(names[place] for place in combination)


def _takes_one_combination(entry: str) -> bool:
    with torch.device("meta"):
        return getattr(models.create(variants.model_name(entry)), "one_per_combination", False)


def measure(entry: str, settings: Settings, num_classes: int, in_channels: int) -> complexity.Complexity:
    """Return the costs of an entry's model for an image of its settings.

    Raises:
        UserError: the model cannot be made by its settings, or the image is too small for it; the message then names a
            size that is large enough.
    """
    with torch.device("meta"):
        create(entry, settings, num_classes, in_channels, LARGEST_TRIED)  # so that no size is blamed for wrong options
    try:
        return _measured(entry, settings, num_classes, in_channels, settings.image_size)
    except (RuntimeError, ValueError, UserError) as error:
        size, smallest = settings.image_size, _smallest(entry, settings, num_classes, in_channels)
        advice = f"it needs at least {smallest} px: --image-size {smallest}" if smallest else first_line(error)
        raise UserError(f"{entry} cannot take {size} px images; {advice}") from None


def _measured(entry: str, settings: Settings, num_classes: int, in_channels: int, size: int) -> complexity.Complexity:
    with torch.device("meta"):
        model = create(entry, settings, num_classes, in_channels, size)
    return complexity.measure(model, in_channels, size)


def _smallest(entry: str, settings: Settings, num_classes: int, in_channels: int) -> int | None:
    """Return the smallest workable image size above the settings', or None up to `LARGEST_TRIED`."""
    for larger in range(settings.image_size + 1, LARGEST_TRIED + 1):
        try:
            _measured(entry, settings, num_classes, in_channels, larger)
        except (RuntimeError, ValueError, UserError):
            continue
        return larger
    return None


def initialised(
    entry: str,
    settings: Settings,
    num_classes: int,
    in_channels: int,
) -> nn.Module:
    """Return a new network with random weights, those of the settings' seed."""
    torch.manual_seed(settings.seed)
    model = create(entry, settings, num_classes, in_channels)
    if settings.init == "he":
        initialise.he_(model)
    return model


def start(settings: Settings, samples: int, folder: Path) -> state.Start:
    """Return where a network's training on `samples` images begins, or goes on from a checkpoint in `folder`.

    A batch size of "auto" is the one of the checkpoints.

    Raises:
        UserError: all checkpoints are damaged.
    """
    size = state.batch_size(folder) if settings.batch_size == AUTO else settings.batch_size
    return state.start(
        folder, state.Division.of(samples, size or 0, settings.accumulate, torch.device(settings.device))
    )


def measure_channels(model: AnyChannels, name: str, data: Opened, settings: Settings) -> None:
    """Take how channels vary together from training images spread evenly over the list; where it fails, say so."""
    images, train = data.images, data.images.splits["train"]
    few = train.at(np.unique(np.linspace(0, len(train.paths) - 1, MEASURED).astype(int)))
    shown = replace(data, images=replace(images, splits={"few": few}))
    with (
        make_loader(shown, "few", settings) as loader,
        console.progress(f"measuring the channels of {name}", loader.samples) as bar,
    ):

        def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
            for batch in loader.epoch(0):
                yield batch.standardised(images.channels), batch.present
                bar.advance(batch.total)

        try:
            model.measure(batches())
        except ValueError as error:
            console.say(f"{name}: {error}; absent channels are filled in with the nearest")


def load_trained(
    model: nn.Module,
    entry: str,
    settings: Settings,
    channels: Sequence[str],
    classes: Sequence[str],
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Load the trained weights that an entry is to begin with, if any, and tell `say` which.

    `channels` and `classes` are the names of the network's, in order.

    Raises:
        UserError: the weights cannot be read or downloaded, or are of another architecture, or of other channels.
    """
    if settings.transfer in ("frozen", "finetuned"):
        weights, source, about = _weights(variants.model_name(entry), settings)
        known_channels, known_classes = _known(about)
        taken = _channels_taken(model, source, known_channels, tuple(channels))
        say(f"{entry} starts from {transfer.load(model, weights, source, (known_classes, classes))}{taken}")


def _channels_taken(model: nn.Module, source: str, before: tuple[str, ...], now: tuple[str, ...]) -> str:
    """Return in words how a model takes channels that are others than those of its weights; empty where none is.

    Raises:
        UserError: the model would take a channel for another.
    """
    if not before or before == now:
        return ""
    both = f"{listed(before)}, the data has {listed(now)}"
    if any(names == tuple(map(str, range(len(names)))) for names in (before, now)):
        return f"; channels without names are taken by their places: its were {both}"
    if source.startswith(OF_TORCHVISION) and {*before} != {*now}:  # as false-colour composites usually are trained
        return f"; its channels were {both}, which are taken by their places"
    if masks.protocol(model) == "subset" and {*before} != {*now}:
        return f"; its channels were {both}"
    raise UserError(f"{source}: its channels were {both}: wanted the same in the same order")


def _known(about: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the channels that a network takes, and of its classes, in order; empty where not known.

    `about` is what is known of its weights, see `transfer.read`.
    """
    description = about.get("description") or {}
    if {"any_channels", "channels", "classes"} <= description.keys():  # by `export`
        return tuple(description["channels"]["names"]), tuple(description["classes"])
    if not isinstance(copy := about.get("run"), dict) or "results" not in copy:
        return (), ()
    data = copy["results"]["data"]
    channels, (entry, _, label) = tuple(data.get("channels", ())), about["name"].partition(" ")
    if label:
        chosen = copy["results"]["combinations"][label]
        own = variants.of(Settings.from_text(copy["config"], "the copy of the settings in the weights"), entry)
        places = tuple(map(channels.index, chosen))
        channels = shown(for_one_combination(entry, own, len(channels), places)[1], channels, places)
    return channels, tuple(data["class_names"])


def _weights(name: str, settings: Settings) -> tuple[dict[str, torch.Tensor], str, dict[str, Any]]:
    """Return trained weights for a model, a note on their origin, and what is known of them."""
    if settings.weights is None:
        found = transfer.of_torchvision(name)
        if found is None:
            raise UserError(
                f"torchvision has no weights of {name}: give --weights FILE, a state dict or the folder of a run that "
                f"trained {name}"
            )
        about = {"any_channels": False, "channels": {"names": RGB.names}, "classes": ()}
        return found, f"{OF_TORCHVISION} {name}", {"description": about}
    source = expanded(settings.weights)
    if not source.is_dir():
        weights, about = transfer.read(source)
        return weights, f"--weights {source}", about
    folder = RunFolder.open(source)
    if own := folder.seeds:
        raise UserError(f"--weights {source}: give the run of one of its seeds, such as {own[min(own)].root}")
    results = folder.read_results()["models"]
    trained = [entry for entry in results if variants.model_name(entry) == name]
    if not trained:
        raise UserError(f"--weights {source}: that run trained {', '.join(results)}, no {name}")
    if has_several(results[trained[0]]["protocol"]):
        raise UserError(
            f"--weights {source}: {name} has a network for each combination there; give one best.pt of them"
        )
    path = folder.checkpoints(best({entry: results[entry] for entry in trained})) / BEST
    content = checkpoint.load(path)
    return content["model"], f"--weights {path}", content


def trained_before(settings: Settings) -> tuple[np.ndarray | None, dict[str, Any] | None]:
    """Return the fingerprints of the images that --weights were trained on, and the "data" of their run's results.

    None for what is not known: of a checkpoint outside its run's folder the former, of other weights both.

    Raises:
        UserError: the path begins with `~`, and no home folder is known.
    """
    place = expanded(settings.weights)
    run = next((run for each in (place, *place.parents[:4]) if (run := RunFolder(each)).begun), None)
    known, data = run and run.read_trained_on(), None
    with suppress(UserError):  # damaged, which is told where the weights are needed
        copy = {"results": run.read_results()} if run else transfer.read(place)[1].get("run")
        data = copy["results"]["data"] if isinstance(copy, dict) and "results" in copy else None
    return known, data


def plan(model: nn.Module, settings: Settings, images: ImageSet) -> Plan:
    """Return the training plan of `model` by an entry's settings.

    Any-channel models see random channel subsets unless the settings say otherwise.

    Raises:
        UserError: settings do not fit each other.
    """
    sampling = settings.channel_sampling
    if sampling == "auto":
        sampling = "on" if getattr(model, "any_channels", False) else "off"
    if settings.consistency and sampling == "shuffle":
        raise UserError("--consistency: with --channel-sampling shuffle no image is shown with all channels in order")
    given = {item.name: getattr(settings, item.name) for item in fields(Hyperparameters)}
    return Plan(
        **given | {"channel_sampling": sampling},
        num_classes=len(images.class_names),
        device=torch.device(settings.device),
        cycle=combinations.in_turn(images.channels.names) if sampling == "cycle" else (),
        augmentations=augmentations(settings),
        frozen=settings.transfer == "frozen",
        class_counts=tuple(np.bincount(images.splits["train"].labels, minlength=len(images.class_names)).tolist()),
    )


def augmentations(settings: Settings) -> Augmentations:
    """Return the augmentations of training images by an entry's settings."""
    return Augmentations(
        names=settings.augmentations,
        one_at_a_time=settings.one_at_a_time,
        epochs=settings.epochs,
        crop_scale=(settings.crop_scale, 1.0 if settings.crop == "resized" else settings.crop_scale),
        crop_ratio=(3 / 4, 4 / 3) if settings.crop == "resized" else (1.0, 1.0),
        progressive=settings.progressive,
    )
