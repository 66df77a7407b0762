"""A model's scores in the results of a run, made of the evaluations of its networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf

from polychrome.engine.data.image_set import Split
from polychrome.engine.data.sets import division
from polychrome.engine.errors import spreadsheet_cell
from polychrome.engine.evaluation import Evaluation
from polychrome.engine.history import EpochRow
from polychrome.engine.machine.files import csv_text
from polychrome.engine.report import scores
from polychrome.train.settings.config import Settings

PAIRS = 10  # of classes that are confused, in the results


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


def figures(results: Mapping, best: EpochRow, evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """Return what came of a network, by name, for loggers: its kept epoch, and its test accuracies.

    Where the run has many combinations of channels, the accuracies are means by the number of channels kept.
    """
    found = {"result/validation loss": best.val_loss, "result/validation accuracy": best.val_accuracy}
    entry = scores_of([dict(evaluations)])
    by_name = {label: row["accuracy"] for label, row in entry["scores"]["test"].items()}
    if scores.is_long({"models": {"": entry}}):
        sizes = scores.by_size(dict(results), scores.by_combination(entry))
        by_name = {f"{size} channel{'s' * (size > 1)}": scores.mean(each) for size, each in sizes.items()}
    return found | {f"test accuracy/{name}": value for name, value in by_name.items()}


def predictions_of(networks: Iterable[dict[str, Evaluation]], splits: Mapping[str, Split]) -> str:
    """Return the predictions of an entry's networks as CSV, a row for each image of each split.

    The columns: split, image, label, then the predicted class for each combination of channels and, where flips are
    averaged, "COMBINATION flipped". A field is empty where the image was not tested on the combination, or has no
    likeliest class.
    """
    tested: dict[str, dict[str, list[int]]] = {}
    for evaluations in networks:
        for split, each in evaluations.items():
            flipped = {f"{name} flipped": guesses for name, guesses in each.flipped_predictions.items()}
            columns = {name: guesses.tolist() for name, guesses in (each.predictions | flipped).items()}
            tested.setdefault(split, {}).update(columns)
    names = dict.fromkeys(name for columns in tested.values() for name in columns)
    rows = []
    for split, columns in tested.items():
        for number, about in enumerate(zip(splits[split].paths, splits[split].labels, strict=True)):
            guesses = (columns[name][number] if name in columns else -1 for name in names)
            rows.append((split, *about, *("" if guess < 0 else guess for guess in guesses)))
    return csv_text(("split", "image", "label", *names), rows)


def named_predictions(tested: Evaluation, split: Split, class_names: Sequence[str]) -> str:
    """Return the predictions on the first combination as CSV, a row for each image of a split.

    The columns: path, true and predicted class by name, and the prediction's probability. The last two are empty where
    the image was not tested on the combination, or has no likeliest class.
    """
    guesses, shares, rows = _first(tested), tested.probabilities.tolist(), []
    for path, label, guess, share in zip(split.paths, split.labels, guesses, shares, strict=True):
        found = ("", "") if guess < 0 else (spreadsheet_cell(class_names[guess]), f"{share:.6f}")
        rows.append((spreadsheet_cell(path), spreadsheet_cell(class_names[label]), *found))
    return csv_text(("path", "true", "predicted", "probability"), rows)


def submission(tested: Evaluation, positions: Iterable[int], first: int = 0) -> str:
    """Return the predictions on the first combination as CSV of ID, an image's place in the list, and Category.

    The category is the number of the class, which counts from `first`; -1 of an image that was not tested on the
    combination, or has no likeliest class.
    """
    numbers = (guess if guess < 0 else guess + first for guess in _first(tested))
    return csv_text(("ID", "Category"), zip(positions, numbers, strict=True))


def confused(tested: Evaluation, class_names: Sequence[str]) -> dict[str, list[dict]]:
    """Return the pairs of classes that most images were confused in, as "confused" of an entry; the most images first.

    Each is a dict: "true" and "predicted" by name, "images", and "of", the images of the true class that were put into
    some class.
    """
    counts = tested.confusion.clone()
    total = counts.sum(1).tolist()
    counts.fill_diagonal_(0)
    least = int(counts.flatten().topk(min(PAIRS, counts.numel())).values[-1])  # a whole sort of many classes takes long
    pairs = (counts >= max(least, 1)).nonzero().tolist()
    pairs.sort(key=lambda pair: -counts[*pair].item())  # pairs of as many images in the order of the classes
    rows = [
        {"true": class_names[true], "predicted": class_names[predicted]}
        | {"images": int(counts[true, predicted]), "of": total[true]}
        for true, predicted in pairs[:PAIRS]
    ]
    return {"confused": rows}


def _first(tested: Evaluation) -> list[int]:
    return next(iter(tested.predictions.values())).tolist()


def best(entries: Mapping[str, dict]) -> str:
    """Return the name of the model that is most accurate on the validation images; of equal ones that of least loss.

    All are compared on the first combination of channels that all were tested on. Losses of different models are not
    compared first: label smoothing and confidence move them by more than accuracy.
    """
    label = next(iter(scores.shared({"models": entries}, "val")), "")

    def key(name: str) -> tuple[float, float]:
        found = scores.validation(entries[name], label) if label else entries[name]["val"]
        accuracy, loss = (scores.number(found.get(kind)) for kind in ("accuracy", "loss"))
        return -inf if accuracy is None else accuracy, -inf if loss is None else -loss

    return max(entries, key=key)


def add_ratio(results: dict) -> None:
    """Add each model's test accuracy on the report's full set relative to ResNet34's, where that was trained too."""
    found, full = results["models"], scores.full_set(results)
    reference = scores.score(scores.resnet34(found), full)
    for entry in found.values():
        entry.pop("ratio_to_resnet34", None)  # of a run that goes on
        accuracy = scores.score(entry, full)
        if reference and accuracy is not None:
            entry["ratio_to_resnet34"] = accuracy / reference
