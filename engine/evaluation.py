"""Evaluation of a model on every channel combination in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.batch import gathered, normalise
from engine.channels import Combinations, protocol, select
from engine.data.loader import Loader
from engine.metrics import Scorer, Scores
from kernels.augment import Recipe, draw


@dataclass(frozen=True)
class Evaluation:
    """Scores by channel combination, and of the first one the confusion matrix [true, predicted] and the predictions.

    `predictions` is int64 [images], the likeliest class of each, in the split's order.
    """

    scores: dict[str, Scores]
    confusion: Tensor
    predictions: Tensor


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    combinations: Combinations,
    num_classes: int,
    autocast: AbstractContextManager,
    on_batch: Callable[[int], None] = lambda images: None,
    how: str | None = None,
) -> Evaluation:
    """Score `model` on each channel combination; each image is decoded once.

    Args:
        model: any-channel models see only the channels present ("subset"), others the absent ones as zeros.
        combinations: names and channels such as {"RGB": (0, 1, 2), "RG": (0, 1)}, see `engine.channels.parse`.
        autocast: the precision context to run the model in.
        on_batch: called after each batch with its number of images.
        how: the protocol, where it is not to follow from the model.
    """
    how = how or protocol(model)
    scorers: dict[str, Scorer] = {}
    first, predictions = next(iter(combinations)), []
    was_training = model.training
    model.eval()
    for batch in loader.epoch(0):
        images = normalise(batch.images, loader.channels)
        for name, chosen in combinations.items():
            with autocast:
                logits = model(select(images, chosen, how)) if chosen else _of_shuffled(model, images, batch.indices)
            scorer = scorers.setdefault(name, Scorer(num_classes, images.device))
            scorer.update(logits, batch.labels)
            if name == first:
                predictions.append(logits.argmax(1))
        on_batch(len(images))
    model.train(was_training)
    return Evaluation(
        {name: scorer.compute() for name, scorer in scorers.items()},
        scorers[first].confusion(),
        torch.cat(predictions).cpu(),
    )


def _of_shuffled(model: nn.Module, images: Tensor, indices) -> Tensor:
    """Return the logits for a random choice and order of each image's channels, by its place: always the same."""
    places = torch.from_numpy(indices).to(images.device)
    _, channels, *size = images.shape
    sources = draw(Recipe(channels="shuffle"), places, tuple(size), seed=0, epoch=0, channels=channels).channels
    images = gathered(images, sources)
    return model(images, sources >= 0) if getattr(model, "any_channels", False) else model(images)
