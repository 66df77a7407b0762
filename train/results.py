"""A model's scores in the results of a run, made of the evaluations of its networks."""

from __future__ import annotations

from collections.abc import Iterable

from polychrome.engine.channels import names
from polychrome.engine.data.sets import division
from polychrome.engine.evaluation import Evaluation
from polychrome.engine.report import scores
from polychrome.train.settings.config import Settings


def tested_splits(settings: Settings) -> tuple[str, ...]:
    """Return the splits that the networks of a run are tested on, in the order of its table."""
    held_out = (division.HOLDOUT,) if settings.holdout and settings.test_holdout else ()
    return ("val", *held_out, "test")


def scores_of(networks: Iterable[dict[str, Evaluation]]) -> dict:
    """Return "scores" by split and combination and, of flip averaging, "flipped", of an entry's networks.

    Each network is given by its evaluations by split.
    """
    found: dict[str, dict] = {"scores": {}, "flipped": {}}
    for evaluations in networks:
        for split, each in evaluations.items():
            for kind, by_combination in (("scores", each.scores), ("flipped", each.flipped)):
                rows = {name: row.as_dict() for name, row in by_combination.items()}
                found[kind].setdefault(split, {}).update(rows)
    if not any(found["flipped"].values()):
        del found["flipped"]
    return found


def add_ratio(results: dict) -> None:
    """Add each model's test accuracy relative to ResNet34's, where ResNet34 was trained in the same run."""
    plain = (name for name, chosen in results["combinations"].items() if chosen)
    found, combination = results["models"], next(plain, names.SHUFFLED)
    reference = scores.of_split(scores.resnet34(found)).get(combination, {}).get("accuracy")
    for entry in found.values():
        entry.pop("ratio_to_resnet34", None)  # of a run that goes on
        if reference:
            entry["ratio_to_resnet34"] = scores.of_split(entry)[combination]["accuracy"] / reference
