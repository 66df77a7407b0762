import math

import numpy as np
import pytest
import torch

from polychrome.engine.metrics import Scorer, guessed, likeliest

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
    # All five have the probability 0.711, in the bin up to 0.733, and three are right.
    assert scores.calibration_error == pytest.approx(math.exp(2) / (math.exp(2) + 3) - 3 / 5, abs=1e-6)
    assert scores.top5_accuracy is None
    assert "top5_accuracy" not in scores.as_dict()
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
    top = classification.multiclass_accuracy(logits, labels, 9, average="micro", top_k=5)
    assert scores.top5_accuracy == pytest.approx(top.item(), rel=1e-6)
    error = classification.multiclass_calibration_error(logits.softmax(1), labels, 9, n_bins=15)
    assert scores.calibration_error == pytest.approx(error.item(), rel=1e-5)


def test_the_calibration_error_is_the_mean_over_images_of_their_bins_distance():
    shares = torch.tensor([0.59, 0.59, 0.65, 0.95, 0.94])  # the bins up to 0.6, 0.667 and 1
    right = torch.tensor([True, False, True, True, False])
    scorer = Scorer(2, torch.device("cpu"))
    scorer.update(torch.stack([shares, 1 - shares], 1).log(), (~right).long())
    bins = [abs(1 / 2 - 0.59) * 2, abs(1 - 0.65), abs(1 / 2 - 0.945) * 2]
    assert scorer.compute().calibration_error == pytest.approx(sum(bins) / 5, abs=1e-6)


def test_the_five_likeliest_of_equal_logits_are_the_first():
    for label, hit in enumerate([1, 1, 1, 1, 1, 0, 0]):
        scorer = Scorer(7, torch.device("cpu"))
        scorer.update(torch.zeros(1, 7), torch.tensor([label]))
        assert scorer.compute().top5_accuracy == hit


def test_calibration_does_not_depend_on_the_order_of_images_or_the_size_of_batches():
    logits, labels = torch.randn(999, 6), torch.randint(6, (999,))
    found = set()
    for size in (1, 10, 999):
        scorer, order = Scorer(6, torch.device("cpu")), torch.randperm(999)
        for part in order.split(size):
            scorer.update(logits[part], labels[part])
        scores = scorer.compute()
        found.add((scores.calibration_error, scores.top5_accuracy))
    assert len(found) == 1


def test_no_image_has_no_scores():
    scores = Scorer(6, torch.device("cpu")).compute()
    assert math.isnan(scores.calibration_error)
    assert math.isnan(scores.top5_accuracy)


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
    # Of six images the probability is 0, which none of them is right by.
    assert scores.calibration_error == pytest.approx(5 / 11 * (math.exp(2) / (math.exp(2) + 3) - 3 / 5), abs=1e-6)
    assert scorer.confusion().tolist() == [[1, 0, 1, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def of_confusion(counts):
    """Return the scores of predictions with a confusion matrix [true, predicted]."""
    counts = torch.tensor(counts)
    labels, predicted = (counts.nonzero().repeat_interleave(counts[counts > 0], 0)).T
    scorer = Scorer(len(counts), torch.device("cpu"))
    scorer.update(torch.nn.functional.one_hot(predicted, len(counts)).float(), labels)
    return scorer.compute()


def test_what_guessing_reaches_is_of_the_class_with_few_images():
    scores = of_confusion([[980, 10], [9, 1]])
    assert (scores.accuracy, scores.largest_class) == (0.981, 0.99)
    assert scores.balanced_accuracy == pytest.approx((980 / 990 + 0.1) / 2)
    # The rates are 0.989 and 0.011, so the small class's share alone has a deviation of 0.033, and half of it counts.
    rates, images = (0.989, 0.011), (990, 10)
    variance = sum(p * (1 - p) / n for p, n in zip(rates, images, strict=True)) / 4
    third = sum(p * (1 - p) * (1 - 2 * p) / n**2 for p, n in zip(rates, images, strict=True)) / 8
    assert scores.guessed == pytest.approx(0.5 + 1.96 * math.sqrt(variance) + 2.8416 / 6 * third / variance)
    assert scores.balanced_accuracy < scores.guessed < 0.56


def test_one_answer_for_all_images_is_what_guessing_reaches():
    scores = of_confusion([[7, 0, 0], [5, 0, 0], [0, 0, 0]])
    assert scores.guessed == scores.balanced_accuracy == 0.5


def exceeding(images, rates):
    """Return the share of 1,000 models that exceed what guessing reaches; `rates` are [true, given]."""
    rng, images = np.random.default_rng(0), np.array(images)
    counts = np.stack([rng.multinomial(count, rate, 1000) for count, rate in zip(images, rates, strict=True)], 1)
    reached = counts.diagonal(axis1=1, axis2=2) / images
    given = torch.tensor(counts.sum(1) / images.sum())
    bounds = np.array([guessed(each, torch.tensor(images).double()) for each in given])
    return np.mean(reached.mean(1) > bounds + 1e-9)


SIZES = [(990, 10), (99, 1), (12, 3, 3), (500, 50, 5), (9,) * 50, (20,) * 10, (3,) * 3]


@pytest.mark.parametrize("images", SIZES)
@pytest.mark.parametrize(
    "share",
    [
        *(0.01, 0.1, "equal", "frequency"),
        *(pytest.param(share, marks=pytest.mark.slow) for share in (0.003, 0.03, 0.5, 0.9)),
    ],
)
def test_at_most_one_guesser_in_twenty_exceeds_what_guessing_reaches(images, share):
    """Guessers give the last class in a share of cases, or each as often as the others, or as often as it occurs."""
    others = len(images) - 1
    rates = {"equal": [1 / len(images)] * len(images), "frequency": np.array(images) / sum(images)}
    given = rates.get(share) if isinstance(share, str) else [(1 - share) / others] * others + [share]
    assert exceeding(images, [given] * len(images)) <= 0.05


@pytest.mark.parametrize("images", [size for size in SIZES if size != (99, 1)])
def test_a_good_model_exceeds_what_guessing_reaches(images):
    wrong = 0.1 / (len(images) - 1)
    rates = np.full((len(images), len(images)), wrong) + np.eye(len(images)) * (0.9 - wrong)
    assert exceeding(images, rates) >= 0.99
