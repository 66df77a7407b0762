"""Evaluation of a model on every channel combination in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from polychrome.engine.channels import masks
from polychrome.engine.channels.combinations import Combinations
from polychrome.engine.data.batches import Batch, gathered
from polychrome.engine.data.loader import Loader
from polychrome.engine.errors import some_of
from polychrome.engine.machine import distributed
from polychrome.engine.metrics import Scorer, Scores, confidence
from polychrome.engine.watch.profiling import decoded, span
from polychrome.kernels.augment import Recipe, draw

# An image that this process has not tested. Below the -1 of an image without a likeliest class, so that the maximum
# over processes keeps what the process has that tested the image.
UNTESTED = -2


@dataclass(frozen=True)
class Evaluation:
    """Scores and predictions by channel combination; confusion matrix [true, predicted] on the first combination.

    Predictions are int64 [images], the likeliest classes in the split's order; -1 for an image that could not be read,
    lacks a channel of the combination or has no likeliest class. `probabilities`, float32 [images], are those of the
    predictions on the first combination. `flipped` and `flipped_predictions` are of flip averaging, where asked for.
    `no_class` has the files that have no likeliest class on some combination.
    """

    scores: dict[str, Scores]
    confusion: Tensor
    predictions: dict[str, Tensor]
    probabilities: Tensor
    flipped: dict[str, Scores] = field(default_factory=dict)
    flipped_predictions: dict[str, Tensor] = field(default_factory=dict)
    no_class: tuple[str, ...] = ()

    @property
    def fault(self) -> str | None:
        """A line on the files in `no_class`; None where there is none."""
        if not self.no_class:
            return None
        return (
            f"no class for {len(self.no_class):,} image{'s' * (len(self.no_class) > 1)}, as logits are not finite; "
            f"counted as wrong: {some_of(self.no_class)}"
        )


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    combinations: Combinations,
    num_classes: int,
    autocast: AbstractContextManager,
    on_batch: Callable[[int], None] = lambda images: None,
    protocol: str | None = None,
    flip: bool = False,
) -> Evaluation:
    """Return the scores of `model` on each channel combination; each image is decoded once, by one of the processes.

    Where images have different channels, a combination is tested on the images that have all of it, and left out of the
    result where none has.

    Args:
        model: any-channel models see only the channels present ("subset") or all channels and a mask of the channels
            present ("mask"), other models see zeros for absent channels ("zero-pad"); see
            `engine.channels.masks.protocol`.
        combinations: names and channels such as {"RGB": (0, 1, 2), "RG": (0, 1)}, see
            `engine.channels.combinations.parse`.
        autocast: the precision context to run the model in.
        on_batch: called after each batch with its number of images.
        protocol: by default the model's own. On a GPU an any-channel model under "subset" gets all channels
            and a mask for combinations in the order of the data: the scores are the same, and as the inputs then have
            one shape, the model is compiled once and one CUDA graph serves all of these combinations.
        flip: also score flip averaging: the mean of the logits of each image and of its mirror image.
    """
    protocol = protocol or masks.protocol(model)
    scorers = {name: Scorer(num_classes, loader.device) for name in combinations}
    flipped = {name: Scorer(num_classes, loader.device) for name in combinations if flip}
    shape = 1 + flip, len(combinations), loader.samples
    guesses = torch.full(shape, UNTESTED, dtype=torch.int64, device=loader.device)
    sure = torch.zeros(loader.samples, device=loader.device)
    was_training = model.training
    model.eval()
    for batch in decoded(loader.epoch(0)):
        with span("evaluate"):
            images = batch.standardised(loader.channels)
            for number, (name, chosen) in enumerate(combinations.items()):
                rows, own, labels, present = _having(batch, images, chosen, loader.present)
                if not len(rows):
                    continue
                how = protocol_on(loader.device, model, protocol, chosen)
                arguments = inputs(model, own, chosen, how, batch.indices[rows], present)
                with autocast:
                    logits = model(*arguments)
                    mirrored = model(arguments[0].flip(3), *arguments[1:]) if flip else None
                where = _on(images.device, batch.indices[rows])
                found = scorers[name].update(logits, labels)
                guesses[0, number].scatter_(0, where, found)
                if not number:
                    sure.scatter_(0, where, confidence(logits, found))
                if flip:
                    both = (logits.float() + mirrored.float()) / 2
                    guesses[1, number].scatter_(0, where, flipped[name].update(both, labels))
        on_batch(batch.total)
    model.train(was_training)
    confusion = next(iter(scorers.values())).confusion()
    guesses, sure = distributed.largest(guesses).cpu(), distributed.largest(sure).cpu()
    no_class = loader.files((guesses == -1).flatten(0, 1).any(0).nonzero().flatten().numpy())
    found = [dict(zip(combinations, each, strict=True)) for each in guesses.clamp_min(-1)]
    flips = _computed(flipped), found[1] if flip else {}
    return Evaluation(_computed(scorers), confusion, found[0], sure, *flips, tuple(no_class))


def _computed(scorers: dict[str, Scorer]) -> dict[str, Scores]:
    found = {name: scorer.compute() for name, scorer in scorers.items()}
    return {name: scores for name, scores in found.items() if scores.images}


def _having(
    batch: Batch, images: Tensor, chosen: tuple[int, ...] | None, table: np.ndarray | None
) -> tuple[np.ndarray, Tensor, Tensor, Tensor | None]:
    """Return the rows of a batch with all channels `chosen`, and their images, labels and channels present.

    `table` is bool [images of the split, channels], the channels of each, see `Loader.present`.
    """
    every = np.arange(len(batch)), images, batch.labels, batch.present
    if table is None or not chosen:
        return every
    has = table[batch.indices][:, list(chosen)].all(1)
    if has.all():
        return every
    rows = np.flatnonzero(has)
    where = _on(images.device, rows)
    return rows, images[where], batch.labels[where], batch.present[where]


def _on(device: torch.device, indices: np.ndarray) -> Tensor:
    return torch.from_numpy(indices).to(device, non_blocking=True)


def protocol_on(device: torch.device, model: nn.Module, protocol: str, chosen: tuple[int, ...] | None) -> str:
    """Return the protocol for a combination on a device: on a GPU "mask" for "subset" where the scores are the same."""
    # A network for a combination alone that knows its channels' places takes no other channels.
    masked = device.type == "cuda" and masks.protocol(model) == "subset"
    in_order = list(chosen or ()) == sorted(chosen or ())  # a mask cannot reorder the channels
    return "mask" if masked and protocol == "subset" and in_order else protocol


def inputs(
    model: nn.Module,
    images: Tensor,
    chosen: tuple[int, ...] | None,
    protocol: str,
    indices: np.ndarray,
    present: Tensor | None,
) -> tuple[Tensor, ...]:
    """Return the model's arguments when only the channels `chosen` are present: None for all that each image has.

    Of none the choice and order of channels are random for each image, the same in every run.

    Args:
        images: [batch, channels, height, width], standardised, zero where an image lacks a channel.
        protocol: see `engine.channels.masks.protocol`.
        indices: int64 [batch], the images' positions in the split.
        present: bool [batch, channels], the channels that each image has; None where all have all.
    """
    _, channels, *size = images.shape
    if chosen is None and present is None:
        chosen = tuple(range(channels))
    if chosen:
        return masks.shown(images, chosen, protocol)
    takes_mask = getattr(model, "any_channels", False)
    if chosen is None:
        return (images, present) if takes_mask else (images,)
    recipe, where = Recipe(channels="shuffle"), _on(images.device, indices)
    sources = draw(recipe, where, tuple(size), seed=0, epoch=0, channels=channels, present=present).channels
    images = gathered(images, sources)
    return (images, sources >= 0) if takes_mask else (images,)
