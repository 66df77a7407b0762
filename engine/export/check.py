"""A comparison of an exported file with its model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polychrome.engine.channels.masks import present, protocol, shown
from polychrome.engine.data.batches import normalise
from polychrome.engine.errors import RunError
from polychrome.engine.export.classifier import Description
from polychrome.engine.metrics import likeliest

TOLERANCE = 1e-3


class ExportError(RunError):
    """An exported file differs from its model; the message says by how much."""


@dataclass(frozen=True)
class Check:
    """The result of comparing an exported file with its model.

    images: how many were shown, one by one and together.
    difference: the largest absolute difference of two logits.
    largest_logit: the largest absolute logit of the model.
    agreement: the share of images that file and model put into the same class.
    """

    images: int
    difference: float
    largest_logit: float
    agreement: float

    @property
    def passed(self) -> bool:
        """Whether no two logits differ by more than 1e-3, or than 1e-3 of the largest logit where it is above 1."""
        return self.difference <= TOLERANCE * max(1.0, self.largest_logit)

    def __str__(self) -> str:
        return f"largest difference of logits {self.difference:.1e}, same class for {self.agreement:.0%} of the images"


@torch.no_grad()
def compare(run: Callable[..., Tensor], model: nn.Module, description: Description, images: Tensor) -> Check:
    """Compare an exported file with the model it was made of.

    Args:
        run: the file, loaded.
        model: the network without standardisation, in evaluation, in float32.
        images: [n, channels, height, width], the values stored, uint8 or float32.

    With a mask, some channels absent is also compared with the network on a tensor of the present channels alone.
    """
    pairs = list(_results(run, model, description, images))
    given, wanted = (torch.cat([pair[side].float().cpu() for pair in pairs]) for side in (0, 1))
    return Check(
        images=len(images),
        difference=(given - wanted).abs().max().item(),
        largest_logit=wanted.abs().max().item(),
        agreement=agreement(given, wanted),
    )


def agreement(given: Tensor, wanted: Tensor) -> float:
    """Return the share of images that two outputs [images, classes] put into the same class; NaN puts into none."""
    classes = likeliest(given)
    return ((classes == likeliest(wanted)) & (classes >= 0)).double().mean().item()


def _results(run, model, description, images) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the file's logits and the model's for all images, for the first alone, and with channels absent."""
    values = images.float() / description.scale
    standardised = normalise(images, description.channels)
    count = len(description.channels)
    chosen = [tuple(range(count))]
    if description.any_channels and count > 1:
        chosen += [chosen[0][1:], chosen[0][:1]]
    for channels in chosen:
        wanted = model(*shown(standardised, channels, protocol(model)))
        mask = present(channels, count, images.device).repeat(len(images), 1)
        for part in (slice(None), slice(1)):
            arguments = (values[part], mask[part]) if description.any_channels else (values[part],)
            yield run(*arguments), wanted[part]
