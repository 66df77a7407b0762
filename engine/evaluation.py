"""Evaluation of a model on every channel combination in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from polychrome.engine.channels import masks
from polychrome.engine.channels.combinations import Combinations
from polychrome.engine.data.batches import gathered
from polychrome.engine.data.loader import Loader
from polychrome.engine.machine import distributed
from polychrome.engine.metrics import Scorer, Scores
from polychrome.engine.watch.profiling import decoded, span
from polychrome.kernels.augment import Recipe, draw


@dataclass(frozen=True)
class Evaluation:
    """Scores by channel combination; confusion matrix [true, predicted] and predictions on the first combination.

    `predictions` is int64 [images], the likeliest classes in the split's order; -1 for an image that could not be read.
    `flipped` has the scores of flip averaging, where asked for.
    """

    scores: dict[str, Scores]
    confusion: Tensor
    predictions: Tensor
    flipped: dict[str, Scores] = field(default_factory=dict)


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
    masked = loader.device.type == "cuda" and getattr(model, "any_channels", False)
    scorers = {name: Scorer(num_classes, loader.device) for name in combinations}
    flipped = {name: Scorer(num_classes, loader.device) for name in combinations if flip}
    first = next(iter(combinations))
    predictions = torch.full((loader.samples,), -1, dtype=torch.int64, device=loader.device)
    was_training = model.training
    model.eval()
    for batch in decoded(loader.epoch(0)):
        with span("evaluate"):
            images = batch.standardised(loader.channels)
            for name, chosen in combinations.items():
                shown, *present = _shown(model, images, chosen, protocol_of(protocol, chosen, masked), batch.indices)
                with autocast:
                    logits = model(shown, *present)
                    mirrored = model(shown.flip(3), *present) if flip else None
                scorers[name].update(logits, batch.labels)
                if flip:
                    flipped[name].update((logits.float() + mirrored.float()) / 2, batch.labels)
                if name == first:
                    device_indices = torch.from_numpy(batch.indices).to(images.device, non_blocking=True)
                    predictions.scatter_(0, device_indices, logits.argmax(1))
        on_batch(batch.total)
    model.train(was_training)
    return Evaluation(
        {name: scorer.compute() for name, scorer in scorers.items()},
        scorers[first].confusion(),
        distributed.largest(predictions).cpu(),
        {name: scorer.compute() for name, scorer in flipped.items()},
    )


def protocol_of(protocol: str, chosen: tuple[int, ...], masked: bool) -> str:
    """Return the protocol for a combination: "mask" for "subset" if `masked` and the scores are the same."""
    in_order = list(chosen) == sorted(chosen)  # a mask cannot reorder the channels
    return "mask" if masked and protocol == "subset" and in_order else protocol


def _shown(model: nn.Module, images: Tensor, chosen: tuple[int, ...], protocol: str, indices) -> tuple[Tensor, ...]:
    """Return the model's arguments when only the channels `chosen` are present.

    Without any, the choice and order of channels are random for each image, the same in every run.
    """
    if chosen:
        return masks.shown(images, chosen, protocol)
    device_indices = torch.from_numpy(indices).to(images.device, non_blocking=True)
    _, channels, *size = images.shape
    sources = draw(Recipe(channels="shuffle"), device_indices, tuple(size), seed=0, epoch=0, channels=channels).channels
    images = gathered(images, sources)
    return (images, sources >= 0) if getattr(model, "any_channels", False) else (images,)
