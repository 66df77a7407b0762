import math

import pytest
import torch

from polychrome.engine.metrics import Scorer, likeliest

# Predictions 0 0 1 1 2 against labels 0 1 1 1 0, of four classes.
LOGITS = torch.tensor(
    [[2.0, 0, 0, 0], [2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 2.0, 0, 0], [0, 0, 2.0, 0]],
)
LABELS = torch.tensor([0, 1, 1, 1, 0])


def test_scores_equal_hand_computed_ones_over_several_batches():
    scorer = Scorer(4, torch.device("cpu"))
    scorer.update(LOGITS[:2], LABELS[:2])
    scorer.update(LOGITS[2:], LABELS[2:])
    scores = scorer.compute()
    # Class 0: precision 1/2, recall 1/2. Class 1: 2/2, 2/3. Class 2: 0/1, no labels. Class 3 does not occur.
    assert scores.accuracy == pytest.approx(3 / 5)
    assert scores.balanced_accuracy == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores.images == 5
    assert scores.precision == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert scores.recall == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert scores.f1 == pytest.approx((1 / 2 + 4 / 5 + 0) / 3)
    normaliser = math.log(math.exp(2) + 3)
    assert scores.loss == pytest.approx((5 * normaliser - 3 * 2) / 5, rel=1e-6)
    assert scorer.confusion().tolist() == [[1, 0, 1, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_loss_of_half_precision_logits_is_computed_in_float32():
    scorer = Scorer(4, torch.device("cpu"))
    scorer.update(LOGITS.bfloat16(), LABELS)
    assert scorer.compute().loss == pytest.approx((5 * math.log(math.exp(2) + 3) - 6) / 5, rel=1e-6)


def test_scores_equal_torchmetrics():
    classification = pytest.importorskip("torchmetrics.functional.classification")
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 9, generator=generator), torch.randint(7, (200,), generator=generator)
    logits[:, 8] = -9  # the last class neither occurs nor is predicted
    scorer = Scorer(9, torch.device("cpu"))
    for part in (slice(150), slice(150, None)):
        scorer.update(logits[part], labels[part])
    scores = scorer.compute()
    assert scores.accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    for name, score in (("precision", scores.precision), ("recall", scores.recall), ("f1_score", scores.f1)):
        expected = getattr(classification, f"multiclass_{name}")(logits, labels, 9, average="macro")
        assert score == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(scorer.confusion(), classification.multiclass_confusion_matrix(logits, labels, 9))


NAN, INF = float("nan"), float("inf")
NO_NUMBERS = [[NAN] * 4, [0.0, NAN, 9.0, 1.0], [NAN, 0.0, 0.0, 0.0], [0.0, INF, 1.0, 0.0], [-INF] * 4, [INF] * 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_logits_without_a_finite_greatest_value_have_no_class(dtype):
    assert likeliest(torch.tensor(NO_NUMBERS, dtype=dtype)).tolist() == [-1] * 6
    assert likeliest(LOGITS.to(dtype)).tolist() == [0, 0, 1, 1, 2]
    assert likeliest(torch.tensor([[-INF, 0.0, 3.0, -INF]], dtype=dtype)).tolist() == [2]
    assert likeliest(torch.tensor([[7e4, 1.0, 0.0, 0.0]]).half()).tolist() == [-1]


@pytest.mark.parametrize("label", range(4))
def test_an_image_without_a_class_is_wrong_whatever_its_label(label):
    scorer = Scorer(4, torch.device("cpu"))
    scorer.update(LOGITS, LABELS)
    assert scorer.update(torch.tensor(NO_NUMBERS), torch.full((6,), label)).tolist() == [-1] * 6
    scores = scorer.compute()
    assert (scores.images, scores.no_class) == (11, 6)
    assert scores.accuracy == pytest.approx(3 / 11)
    right, of = {0: 1, 1: 2}, {0: 2, 1: 3}
    of[label] = of.get(label, 0) + 6
    assert scores.balanced_accuracy == pytest.approx(sum(right.get(c, 0) / of[c] for c in of) / len(of))
    assert scores.precision == pytest.approx((1 / 2 + 1) / (4 if label == 3 else 3))
    assert not math.isfinite(scores.loss)
    assert scorer.confusion().tolist() == [[1, 0, 1, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
