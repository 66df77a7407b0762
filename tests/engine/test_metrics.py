import math

import pytest
import torch

from engine.metrics import Scorer

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
