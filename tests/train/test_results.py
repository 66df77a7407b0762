"""What the results of a run say of an evaluation."""

import torch

from polychrome.engine.evaluation import Evaluation
from polychrome.train.results import PAIRS, confused

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
