"""The command `predict`: classify images by a trained model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from polychrome.engine.channels.combinations import parse
from polychrome.engine.channels.names import ALL, SENSORS, SHUFFLED, Channels, listed
from polychrome.engine.data.image_set import ImageSet, Split
from polychrome.engine.data.opening import Opened, Wanted, are_photos
from polychrome.engine.data.sets import scan
from polychrome.engine.data.sets.inspection import Stack
from polychrome.engine.errors import UserError
from polychrome.engine.evaluation import inputs
from polychrome.engine.report import console
from polychrome.engine.report.tables import Table
from polychrome.train import networks
from polychrome.train.commands.finished import Run
from polychrome.train.data import make_loader


@torch.no_grad()
def predict_images(run: Path, images: tuple[Path, ...], model: str | None, channels: str | None, top: int) -> None:
    """Print the likeliest classes of each image.

    Raises:
        UserError: the folder is not a run's, the model was not trained there, or an image cannot be read.
    """
    trained = Run(run, "auto")
    if channels in (ALL, SHUFFLED, SENSORS):
        raise UserError(f"predict takes one combination of channels, not {channels!r}")
    everything = {trained.channels.full: trained.channels.everything}
    wanted = parse((channels,), trained.channels.names, 0, trained.channels.sensors) if channels else everything
    name = model or trained.best()
    ((part, network),) = trained.networks(name, wanted)
    ((combination, chosen),) = part.items()
    class_names = trained.results["data"]["class_names"]
    settings = trained.entry_settings(name)
    shares = []
    named = tuple(trained.channels.names[place] for place in chosen or ())
    given = as_image_set(images, trained.channels, trained.dtype, named)
    if given.dtype != trained.dtype:
        raise UserError(f"{images[0]} has values of type {given.dtype}, the run was trained on {trained.dtype}")
    for path, file in zip(given.splits["images"].paths, images, strict=True):
        absent = [trained.channels.names[place] for place in chosen or () if place not in given.present(path)]
        if absent and (channels or networks.has_several(trained.results["models"][name]["protocol"])):
            raise UserError(f"{file} lacks {listed(absent)} of channels {combination}: name others by --channels")
        if absent:
            console.say(f"{file} lacks {listed(absent)}: the model is shown the channels that it has")
            combination, chosen = ALL, None
    for note in given.notes:
        console.say(note)
    opened = Opened(given, Wanted("torch", trained.device, workers=0))
    with make_loader(opened, "images", settings) as loader:
        for batch in loader.epoch(0):
            standardised = batch.standardised(trained.channels)
            shown = inputs(network, standardised, chosen, trained.shown_as(name), batch.indices, batch.present)
            with trained.autocast():
                logits = network(*shown)
            shares.append(logits.float().softmax(1).cpu())
    best = torch.cat(shares).topk(min(top, len(class_names)))
    rows = tuple(
        (str(path), *(f"{class_names[index]} {share:.1%}" for index, share in zip(indices, values, strict=True)))
        for path, indices, values in zip(images, best.indices.tolist(), best.values.tolist(), strict=True)
    )
    console.show(Table(f"{name}, channels {combination}", ("image", *map(str, range(1, len(rows[0])))), rows))


def as_image_set(
    files: tuple[Path, ...], channels: Channels, dtype: str = "uint8", named: tuple[str, ...] = ()
) -> ImageSet:
    """Return an image set of these files in one split, "images", with the statistics of `channels`.

    The files are read as photos where `channels` and the values' `dtype` are those of photos, else as stacks. Stacks
    may have some of the channels: those that a file names, or `named` where it names none and has as many.

    Raises:
        UserError: a file cannot be decoded, or its channels are not known or others than `channels`.
    """
    root = Path("/")
    paths = tuple(path.resolve().relative_to(root).as_posix() for path in files)
    photos = are_photos(channels, dtype)
    given = {"channels": len(channels), "photos": photos, "measured": not photos}
    report = scan.scan(root, paths, workers=1, cache=False, **given)
    reasons = {item.path: item.reason for item in report.rejected}
    for path, file in zip(paths, files, strict=True):
        if path in reasons:
            raise UserError(f"{file}: {reasons[path]}")
    report = replace(report, stacks={path: _named(stack, named) for path, stack in report.stacks.items()})
    found = scan.apply(ImageSet(root, ("",), {"images": Split(paths, (0,) * len(paths))}), report, channels)
    if len(found.channels) != len(channels):
        raise UserError(f"{files[0]} has {len(found.channels)} channels, wanted {len(channels)}")
    return replace(found, notes=(*found.notes, *scan.remarks(report, by_dali=False)))


def _named(stack: Stack, names: tuple[str, ...]) -> Stack:
    return replace(stack, names=names) if not stack.names and stack.channels == len(names) else stack
