"""What the results of a run say of an evaluation."""

import pytest
import torch

from polychrome.engine.data.image_set import Split
from polychrome.engine.evaluation import Evaluation
from polychrome.engine.history import EpochRow
from polychrome.engine.metrics import Scores
from polychrome.engine.report.scores import MOST_COMBINATIONS
from polychrome.train.results import PAIRS, confused, figures, named_predictions, predictions_of

NAMES = ("cat", "dog", "bus")


def evaluated(confusion):
    return Evaluation({}, torch.tensor(confusion), {}, torch.empty(0))


def test_the_pairs_that_most_images_were_confused_in_are_listed_with_the_images_of_the_class():
    counts = [[50, 7, 0], [3, 40, 7], [0, 1, 9]]
    assert confused(evaluated(counts), NAMES) == {
        "confused": [
            {"true": "cat", "predicted": "dog", "images": 7, "of": 57},
            {"true": "dog", "predicted": "bus", "images": 7, "of": 50},
            {"true": "dog", "predicted": "cat", "images": 3, "of": 50},
            {"true": "bus", "predicted": "dog", "images": 1, "of": 10},
        ]
    }


def test_at_most_ten_pairs_are_listed_and_a_model_without_error_has_none():
    many = torch.arange(400).view(20, 20).tolist()
    assert len(confused(evaluated(many), [str(number) for number in range(20)])["confused"]) == PAIRS
    assert confused(evaluated(torch.eye(3, dtype=torch.int64).tolist()), NAMES) == {"confused": []}


def on_combinations(accuracies):
    every = {label: Scores(*[accuracy] * len(Scores.__dataclass_fields__)) for label, accuracy in accuracies.items()}
    return {"val": evaluated([[1]]), "test": Evaluation(every, torch.empty(0), {}, torch.empty(0))}


def test_loggers_get_the_accuracy_on_each_combination_or_of_many_the_means_by_number_of_channels():
    best = EpochRow("m", 3, 0.1, 0.5, 0.75, 0.625, 0.5)
    kept = {"result/validation loss": 0.625, "result/validation accuracy": 0.5}
    few = {"RG": 1.0, "R": 0.5, "shuffled": 0.25}
    assert figures({}, best, on_combinations(few)) == kept | {
        f"test accuracy/{label}": value for label, value in few.items()
    }
    names = [f"c{number}" for number in range(MOST_COMBINATIONS)]
    combinations = {"all": names} | {name: [name] for name in names}
    many = {"all": 1.0} | {name: number / 4 for number, name in enumerate(names)}
    assert figures({"combinations": combinations}, best, on_combinations(many)) == kept | {
        f"test accuracy/{MOST_COMBINATIONS} channels": 1.0,
        "test accuracy/1 channel": pytest.approx((MOST_COMBINATIONS - 1) / 8),
    }


def test_an_image_without_a_class_has_empty_fields():
    split = Split(("a.jpg", "b.jpg"), (0, 1), None)
    tested = Evaluation({}, torch.empty(0), {"RGB": torch.tensor([-1, 1])}, torch.tensor([0.0, 0.75]))
    assert named_predictions(tested, split, NAMES).splitlines()[1:] == ["a.jpg,cat,,", "b.jpg,dog,dog,0.750000"]
    assert predictions_of([{"test": tested}], {"test": split}).splitlines()[1:] == ["test,a.jpg,0,", "test,b.jpg,1,1"]
