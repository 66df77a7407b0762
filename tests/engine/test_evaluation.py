"""What a model is shown in an evaluation, and what is made of its answers, against a loop over the images."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polychrome.engine.evaluation import evaluate

COMBINATIONS = {"RGB": (0, 1, 2), "BR": (2, 0), "G": (1,)}


class Corners(nn.Module):
    """A linear map of pixels near two corners: not the same upside down, mirrored, or with channels exchanged."""

    def __init__(self, any_channels):
        super().__init__()
        self.any_channels = any_channels
        self.weight = torch.linspace(-1, 1, 3 * 5 * 7 * 4).sin().view(3, 5, 7, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, mask=None):
        x = x if mask is None else x * mask[:, :, None, None]
        return self.dropout(3 * torch.einsum("bchw,chwk->bk", x[:, :, :5, :7], self.weight[: x.shape[1]]))


def seen(images, chosen, how):
    """Return what stands for `images` when only the channels `chosen` are present."""
    if how == "subset":
        return images[:, list(chosen)]
    kept = torch.zeros(3, dtype=torch.bool)
    kept[list(chosen)] = True
    return images * kept[:, None, None]


@pytest.mark.parametrize("how", ["subset", "zero-pad", "mask"])
def test_scores_are_those_of_the_answers_to_each_combination_and_its_mirror_image(loaders, how):
    _, val = loaders
    model = Corners(any_channels=how != "zero-pad").train()
    found = evaluate(model, val, COMBINATIONS, 4, nullcontext(), protocol=how, flip=True)
    assert model.training
    (batch,) = val.epoch(0)
    images, labels = batch.standardised(val.channels), batch.labels
    weights = model.weight
    for name, chosen in COMBINATIONS.items():
        shown = seen(images, chosen, how)
        plain, mirrored = (
            3 * torch.einsum("bchw,chwk->bk", x[:, :, :5, :7], weights[: x.shape[1]]) for x in (shown, shown.flip(3))
        )
        assert (plain - mirrored).abs().max() > 0.1
        for scores, logits in ((found.scores, plain), (found.flipped, (plain + mirrored) / 2)):
            assert scores[name].loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
            assert scores[name].accuracy == (logits.argmax(1) == labels).double().mean().item()
        if name == "RGB":
            assert found.predictions[batch.indices].tolist() == plain.argmax(1).tolist()
            cells = list(zip(labels.tolist(), plain.argmax(1).tolist(), strict=True))
            counts = [[cells.count((actual, predicted)) for predicted in range(4)] for actual in range(4)]
            assert found.confusion.tolist() == counts
