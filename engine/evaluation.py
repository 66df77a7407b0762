"""Evaluation of a model on every channel combination in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.batch import normalise
from engine.channels import protocol, select
from engine.data.loader import Loader
from engine.metrics import Scorer, Scores


@dataclass(frozen=True)
class Evaluation:
    """Scores by channel combination, and the confusion matrix [true, predicted] of the first one."""

    scores: dict[str, Scores]
    confusion: Tensor


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    combinations: tuple[str, ...],
    num_classes: int,
    autocast: AbstractContextManager,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Evaluation:
    """Score `model` on each channel combination; each image is decoded once.

    Args:
        model: any-channel models see only the channels present ("subset"), others the absent ones as zeros.
        combinations: names such as ("RGB", "RG", "B").
        autocast: the precision context to run the model in.
        on_batch: called after each batch with its number of images.
    """
    how = protocol(model)
    scorers: dict[str, Scorer] = {}
    was_training = model.training
    model.eval()
    for batch in loader.epoch(0):
        images = normalise(batch.images)
        for combination in combinations:
            with autocast:
                logits = model(select(images, combination, how))
            scorer = scorers.setdefault(combination, Scorer(num_classes, images.device))
            scorer.update(logits, batch.labels)
        on_batch(len(images))
    model.train(was_training)
    return Evaluation(
        {combination: scorer.compute() for combination, scorer in scorers.items()},
        scorers[combinations[0]].confusion(),
    )
