"""What a model is shown in an evaluation, and what is made of its answers, against a loop over the images."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polychrome.engine.data import loader
from polychrome.engine.data.arrangement import Arrangement
from polychrome.engine.data.image_set import ImageSet, Split
from polychrome.engine.evaluation import evaluate
from tests.engine.small import Recorder

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
        assert found.predictions[name][batch.indices].tolist() == plain.argmax(1).tolist()
        assert found.flipped_predictions[name][batch.indices].tolist() == (plain + mirrored).argmax(1).tolist()
        if name == "RGB":
            cells = list(zip(labels.tolist(), plain.argmax(1).tolist(), strict=True))
            counts = [[cells.count((actual, predicted)) for predicted in range(4)] for actual in range(4)]
            assert found.confusion.tolist() == counts


@pytest.mark.parametrize("how", ["subset", "zero-pad", "mask"])
def test_a_combination_is_tested_on_the_images_that_have_it(sensors, how):
    _, val = sensors
    model = Corners(any_channels=how != "zero-pad").eval()
    wanted = {"all": None, "RGB": (0, 1, 2), "GR": (1, 0), "B": (2,), "BR": (2, 0), "shuffled": ()}
    found = evaluate(model, val, wanted, 4, nullcontext(), protocol=how, flip=True)
    (batch,) = val.epoch(0)
    images, labels = batch.standardised(val.channels), batch.labels
    of = {"all": range(8), "RGB": (0, 3, 6), "GR": (0, 1, 3, 4, 6, 7), "B": (0, 2, 3, 5, 6), "BR": (0, 3, 6)}
    for name, rows in of.items():
        rows = list(rows)
        shown = images[rows] if name == "all" else seen(images[rows], wanted[name], how)
        logits = model(shown)
        assert found.scores[name].images == found.flipped[name].images == len(rows)
        assert found.scores[name].loss == pytest.approx(F.cross_entropy(logits, labels[rows]).item(), rel=1e-5)
        assert found.scores[name].accuracy == (logits.argmax(1) == labels[rows]).double().mean().item()
    assert found.scores["shuffled"].images == 8
    assert found.confusion.sum() == 8
    for name, rows in of.items():
        for guesses in (found.predictions, found.flipped_predictions):
            assert (guesses[name] >= 0).nonzero().flatten().tolist() == list(rows)
    assert not evaluate(model, val, {"RGB": (0, 1, 2)}, 4, nullcontext(), protocol=how).flipped_predictions


def test_a_combination_that_no_image_has_is_left_out(tmp_path):
    few = ImageSet(tmp_path, tuple("abcd"), {"val": Split(("x", "y"), (0, 1), ((16, 16),) * 2)})
    few = replace(few, arrangements={"x": Arrangement((0, 1, -1)), "y": Arrangement((-1, -1, 0))})
    with loader.Loader(few, "val", size=16, batch_size=8, train=False, backend="synthetic") as made:
        found = evaluate(Corners(True), made, {"RG": (0, 1), "RGB": (0, 1, 2)}, 4, nullcontext())
    assert list(found.scores) == ["RG"]
    assert found.scores["RG"].images == 1


class Broken(nn.Module):
    """Names class 0, surely; of images whose first pixel is above a value, a logit is NaN or infinite."""

    def __init__(self, above, fault, mirrored=False):
        super().__init__()
        self.above, self.fault, self.mirrored = above, fault, mirrored

    def forward(self, x):
        logits = x.new_tensor([4.0, 0, 0, 0]).repeat(len(x), 1)
        logits[x[:, 0, 0, -1 if self.mirrored else 0] > self.above] = torch.tensor(self.fault)
        return logits


@pytest.mark.parametrize("fault", [[float("nan")] * 4, [float("inf"), 0.0, 0.0, 0.0], [0.0, 0.0, float("nan"), 0.0]])
@pytest.mark.parametrize("mirrored", [False, True])
def test_an_image_without_finite_logits_has_no_class_is_wrong_and_is_named(loaders, fault, mirrored):
    _, val = loaders
    (batch,) = val.epoch(0)
    corner = batch.standardised(val.channels)[:, 0, 0, -1 if mirrored else 0]
    above = corner.median().item()
    bad, zeros = corner > above, batch.labels == 0
    assert 0 < bad.sum() < 8
    assert (bad & zeros).any()
    found = evaluate(Broken(above, fault, mirrored), val, {"RGB": (0, 1, 2), "R": (0,)}, 4, nullcontext(), flip=True)
    for name in ("RGB", "R"):
        assert found.predictions[name].tolist() == [-1 if each else 0 for each in bad]
        assert found.scores[name].accuracy == (zeros & ~bad).sum() / 8
        assert found.scores[name].no_class == bad.sum()
        assert (found.flipped_predictions[name][bad] == -1).all()
        assert found.flipped[name].no_class >= bad.sum()
    assert (found.probabilities[bad] == 0).all()
    assert (found.probabilities[~bad] > 0.9).all()
    assert found.confusion.sum() == 8 - bad.sum()
    flipped = found.flipped_predictions["RGB"] == -1
    assert list(found.no_class) == [f"val{index}" for index in range(8) if bad[index] or flipped[index]]
    assert found.fault == (
        f"no class for {len(found.no_class)} images, as logits are not finite; counted as wrong: "
        f"{', '.join(found.no_class[:3])} and {len(found.no_class) - 3} more"
    )


def test_finite_logits_have_no_fault(loaders):
    found = evaluate(Broken(1e9, [0.0] * 4), loaders[1], {"RGB": (0, 1, 2)}, 4, nullcontext())
    assert (found.no_class, found.fault, found.scores["RGB"].no_class) == ((), None, 0)


def test_the_model_is_told_which_channels_each_image_has(sensors):
    _, val = sensors
    model = Recorder()
    model.head.eval()
    evaluate(model, val, {"all": None, "shuffled": ()}, 4, nullcontext())
    (whole, told), (mixed, some) = model.seen
    (batch,) = val.epoch(0)
    assert torch.equal(told, batch.present)
    assert torch.equal(whole.flatten(2).any(2), told)
    assert torch.equal(mixed.flatten(2).any(2), some)
    assert (some.sum(1) <= batch.present.sum(1)).all()
    assert evaluate(Corners(False), val, {"all": None}, 4, nullcontext()).scores["all"].images == 8
