"""The command `export`: write a trained model as a file for use elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polychrome.engine import console, export
from polychrome.engine.channels.combinations import parse
from polychrome.engine.channels.names import Channels, join
from polychrome.engine.data import sampling
from polychrome.engine.data.files import stacks
from polychrome.engine.data.readers.resizing import cropped
from polychrome.engine.data.sets import generated
from polychrome.engine.errors import UserError
from polychrome.train import networks
from polychrome.train.data import known_classes, make_loader, open_data
from polychrome.train.finished import Source, opened
from polychrome.train.settings import variants

IMAGES = 16


def export_run(
    run: Path,
    file_format: str,
    model: str | None,
    channels: str | None,
    output: Path | None,
    data: str | None,
    device: str | None,
    preprocessing: bool = False,
) -> None:
    """Write the best checkpoint of a model in another format, and print how close the file's outputs are.

    With `preprocessing` an ONNX file takes images as they are stored and gives probabilities.

    Raises:
        UserError: there is no such run, checkpoint or pretrained network, it has no such model or network, `data` is
            not the run's data, or the file cannot be written.
        ExportError: the file's outputs differ from the model's; the file is removed.
    """
    if device is not None and file_format != "pt2":
        raise UserError(f"--device: a pt2 is compiled for a device, {file_format} files are for any")
    if preprocessing and file_format != "onnx":
        raise UserError(f"--preprocessing goes into onnx files alone, not into {file_format}")
    trained = opened(run, device or "cpu", model)
    name = model or trained.best()
    network, chosen = _network(trained, name, channels)
    own = Channels(*(tuple(row[index] for index in chosen) for row in _table(trained.channels)))
    alone = name if len(chosen) == len(trained.channels) else f"{name}-{join(own.names, trained.channels.names)}"
    path = output or trained.export(alone + "-whole" * preprocessing, file_format)
    if path.suffix != f".{file_format}":
        raise UserError(f"--output {path} must end in .{file_format}")
    export.check_target(path)
    description = _description(trained, name, network, own)
    images, pixels, note = _images(trained, name, data)
    images, pixels = images[:, list(chosen)], [image[..., list(chosen)] for image in pixels]
    with console.waiting(f"exporting {alone}"):
        if preprocessing:
            check = export.save_whole(network, description, path, images, pixels, note)
        else:
            check = export.save(network, description, path, images, note)
    console.say(f"{path}: {check}, on {len(images)} {note}")


def _network(trained: Source, name: str, channels: str | None) -> tuple[torch.nn.Module, tuple[int, ...]]:
    """Return a network of a model with its best weights, and the indices of the channels it takes."""
    everything = {trained.channels.full: tuple(range(len(trained.channels)))}
    if channels is None:
        channels = trained.own_channels
    elif not trained.has_several(name):
        raise UserError(f"--channels picks one of several networks; {name} is one for all channels: leave it out")
    known = trained.channels
    wanted = everything if channels is None else parse((channels,), known.names, 0, known.sensors)
    if len(wanted) != 1 or not all(wanted.values()):
        raise UserError(f"export takes one combination of channels, not {channels!r}")
    ((part, network),) = trained.networks(name, wanted)
    ((label, chosen),) = part.items()
    if trained.shown_as(name) == "zero-pad":
        # It takes all channels in the order of the data, whatever the order in the combination's name.
        if len(chosen) < len(trained.channels):
            raise UserError(
                f"--channels {label}: {name} has a network there that takes all channels and is shown zeros for the "
                "others, which a file cannot do; export one that takes any channels, or train naive_cnn"
            )
        chosen = tuple(range(len(chosen)))
    return network, chosen


def _table(channels: Channels) -> tuple[tuple, ...]:
    return channels.names, channels.mean, channels.std


def _description(trained: Source, name: str, network: torch.nn.Module, channels: Channels) -> export.Description:
    settings, count = trained.entry_settings(name), len(channels)
    made_for, _ = networks.for_one_combination(name, settings, len(trained.channels), tuple(range(count)))
    return export.Description(
        model=variants.model_name(name),
        image_size=settings.image_size,
        classes=tuple(trained.class_names),
        channels=channels,
        dtype=trained.dtype,
        any_channels=getattr(network, "any_channels", False),
        crop=settings.eval_crop,
        options=settings.options,
        made_for=made_for if made_for > count else 0,
    )


def _images(trained: Source, name: str, data: str | None) -> tuple[Tensor, list[np.ndarray], str]:
    """Return images [16, channels, size, size], in the stored type, the same before they are resized, and their origin.

    They are the first images of the run's test split, fewer where the split has fewer; of a training on the generated
    set they are drawn anew, as the whole set need not be there. Where the split cannot be read and `data` is None, they
    are random. Channels that an image lacks hold their mean.
    """
    if data is None and trained.settings.data is None and trained.results["task"] != "cifar100":
        return *_drawn(trained, name), "new images of the generated classes"
    try:
        return *first_tested(trained, name, data), "images of the test split"
    except UserError as error:
        if data is not None:
            raise
        console.say(f"the run's images cannot be read ({error}); checking on random ones, or say --data DIR")
    generator = torch.Generator().manual_seed(trained.settings.seed)
    size = trained.entry_settings(name).image_size
    shape = IMAGES, len(trained.channels), size, size
    if trained.dtype == "uint8":
        values = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    else:
        mean, std = torch.tensor([trained.channels.mean, trained.channels.std])[:, :, None, None]
        values = mean + std * torch.randn(shape, generator=generator)
    return values.to(trained.device), _as_pixels(values), "random images"


def _drawn(trained: Source, name: str) -> tuple[Tensor, list[np.ndarray]]:
    """Return images of the generated classes: as the network takes them, and before they are cropped and resized."""
    settings, rng = trained.entry_settings(name), np.random.default_rng(trained.settings.seed)
    pixels = [generated.draw(label, rng) for label in rng.permutation(len(generated.NAMES))[:IMAGES]]
    crops = sampling.center_crops(np.array([image.shape[:2] for image in pixels]), settings.eval_crop)
    parts = [cropped(image, crop, False, settings.image_size) for image, crop in zip(pixels, crops, strict=True)]
    return torch.stack(parts).to(trained.device), pixels


def _as_pixels(images: Tensor) -> list[np.ndarray]:
    return list(images.permute(0, 2, 3, 1).contiguous().cpu().numpy())


def first_tested(trained: Source, name: str, data: str | None) -> tuple[Tensor, list[np.ndarray]]:
    """Return the first images of the test split, as `_images` does; raises UserError where they cannot be read."""
    settings = trained.settings
    backend = settings.backend if settings.backend == "synthetic" else "torch"
    settings = replace(settings, data=data or settings.data, backend=backend, cache="none", workers=1)
    known = known_classes(trained.results["data"])
    own = known if known.are_shifted else None
    test = open_data(settings, trained.results["task"], ("test",), trained.data, own)
    trained.check_fits(test.images)
    settings = replace(trained.entry_settings(name, settings), batch_size=IMAGES)
    with make_loader(test, "test", settings) as loader:
        batch = next(iter(loader.epoch(0)))
    images, present = batch.images, batch.present
    mean = (np.array(trained.channels.mean) * (255 if trained.dtype == "uint8" else 1)).astype(trained.dtype)
    if present is not None:
        images = images.where(present[:, :, None, None], torch.from_numpy(mean).to(images)[:, None, None])
    if test.store is not None or settings.backend == "synthetic":  # there are no files
        return images, _as_pixels(images)
    read = stacks.opener(test.images)
    pixels = [read(path) for path in test.images.splits["test"].paths[:IMAGES]]
    if present is not None:
        pixels = [np.where(own, each, mean) for own, each in zip(present.cpu().numpy(), pixels, strict=True)]
    return images, pixels
