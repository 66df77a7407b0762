"""The command `evaluate`: test the networks of a finished run again."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

from polychrome.engine import console
from polychrome.engine.channels.combinations import Combinations, parse
from polychrome.engine.data.opening import Opened
from polychrome.engine.data.sets import division, repeats
from polychrome.engine.errors import UserError
from polychrome.engine.evaluation import evaluate
from polychrome.engine.machine.memory import keep_freed
from polychrome.engine.report import comparison, printed, seeds
from polychrome.engine.run_folder import RunFolder
from polychrome.train.data import (
    changed,
    combinations_to_test,
    known_classes,
    make_loader,
    moved,
    open_data,
    open_undivided,
    with_sensors,
)
from polychrome.train.finished import Run
from polychrome.train.results import predictions_of, scores_of, tested_splits
from polychrome.train.settings.config import Settings

# The parts of a model's results that testing makes.
SCORES = ("scores", "flipped", "spread", "ratio_to_resnet34")


def evaluate_run(
    run: Path,
    channels: tuple[str, ...],
    split: str | None,
    data: str | None,
    backend: str | None,
    device: str,
    model: str | None = None,
) -> None:
    """Test the best checkpoints of a run's models, or of one `model`, for every seed, and print and write the scores.

    Of a folder `data` without splits that is not the run's own all images are tested.

    Writes `evaluation.json`, which names the data, and, in the form of the run's `table.csv`, `evaluation.csv` into the
    run's folder, and `evaluation/<model>.csv` with every prediction, of several seeds into the folder of each. Of the
    run's own images the figures are compared with those of `table.csv`.

    Raises:
        UserError: the folder is not a run's, it has no such model, or its data, a checkpoint, a channel or the split is
            not usable.
    """
    folder = RunFolder.open(run)
    every = [Run(each.root, device) for each in folder.seeds.values()] or [Run(run, device)]
    keep_freed(every[0].device)
    opened, whole, others, found, repeated = None, False, False, [], []
    if every[0].arithmetic:
        console.warn(f"not to the digit the run's figures: {every[0].arithmetic}")
    for trained in every:
        changes = {"data": data or trained.settings.data, "backend": backend or trained.settings.backend}
        settings = replace(trained.settings, **changes)
        splits = (split,) if split else tested_splits(settings)
        if division.HOLDOUT in splits and not settings.holdout:
            raise UserError(f"{run} was trained without --holdout: it has no images held out")
        wanted = parse(channels, trained.channels.names, settings.division_seed, trained.channels.sensors)
        names = (model,) if model else tuple(trained.results["models"])
        for name in names:
            trained.networks(name, wanted)  # a damaged checkpoint is found before the data is read
        if data and opened is None and split in (None, "test"):
            opened = open_undivided(settings, trained.results["data"], trained.data)
            whole = opened is not None
        splits = ("test",) if whole else splits
        known = known_classes(trained.results["data"])
        own = known if data or known.are_shifted else None
        opened = opened or open_data(settings, trained.results["task"], splits, trained.data, own)
        repeated.append(_repeated(trained, opened, [each for each in splits if data or each != "train"], run))
        other = whole
        if not whole and (other := moved(trained.results["data"], opened, splits)):
            may = ", and some may be among those it was trained on" if repeated[-1] is None else ""
            console.warn(f"not the run's figures: {other}{may}")
        elif not whole and (other := changed(trained.results["data"], opened, splits)):
            console.warn(f"not the run's figures: {other}")
        others = others or bool(other)
        trained.check_fits(opened.images)
        how = opened.images, splits, settings.division_seed, trained.channels
        found.append(_evaluated(trained, names, settings, opened, combinations_to_test(channels, *how), splits))
    for line in dict.fromkeys(filter(None, repeated)):
        console.warn(line)
    results = seeds.combined(found) if folder.seeds else found[0]
    _show(results, splits)
    table = _written(folder, results, opened, splits)
    if others:
        which = ", other images than the run's,"
        if any(repeated):
            which = ""
        elif None in repeated:
            which = ", of which some may be among those the run was trained on,"
        console.say(f"these are figures of {opened.images.root}{which} and not of {folder.table}")
    elif folder.table.is_file():
        _compare(folder.table, table)


def _show(results: dict, splits: tuple[str, ...]) -> None:
    """Print the scores on the splits."""
    if len(splits) == 1:
        printed.show_scores(results, splits[0])
    else:
        printed.show_scores(results)
        printed.show_comparison(results)


def _written(folder: RunFolder, results: dict, opened: Opened, splits: tuple[str, ...]) -> str:
    """Write the scores into a run's folder, and return those of `evaluation.csv`."""
    images = {"data": str(opened.images.root), "splits": list(splits)}
    content = images | {"models": {name: _scores(row) for name, row in results["models"].items()}}
    folder.write_json(folder.root / "evaluation.json", content)
    table = comparison.as_csv(results)
    folder.write(folder.root / "evaluation.csv", table)
    return table


def _compare(file: Path, table: str) -> None:
    """Say how many figures of a table are those of a run's `table.csv`."""
    try:
        figures, equal = comparison.agreement(file.read_text(encoding="utf-8"), table)
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        console.warn(f"{file} is damaged and not compared with ({type(error).__name__}: {error})")
    else:
        if figures:  # none of the training images, nor of a model that the run did not test
            console.say(f"{equal} of {figures} figures are those of {file}, to the digit")


def _repeated(trained: Run, opened: Opened, splits: list[str], run: Path) -> str | None:
    """Return in words how many images of some splits a run was trained on, or nothing; None where that is not known."""
    known = trained.folder.read_trained_on()
    if known is None or not opened.images.digests:
        return None
    return repeats.trained_on(opened.images, splits, known, str(run))


def _evaluated(
    trained: Run,
    names: tuple[str, ...],
    settings: Settings,
    opened: Opened,
    wanted: Combinations,
    splits: tuple[str, ...],
) -> dict:
    """Return a run's results with scores of models measured anew on `splits`, and without all other scores."""
    opened = replace(opened, images=replace(opened.images, channels=with_sensors(trained.channels, opened.images)))
    models = {}
    for name in names:
        entry = trained.results["models"][trained.bare(name)] | {"protocol": trained.protocol(name)}
        own, how = trained.entry_settings(name, settings), (trained.shown_as(name), settings.flip_test)
        tested = []
        for part, model in trained.networks(name, wanted):
            scores = {}
            for split in splits:
                with (
                    make_loader(opened, split, own) as loader,
                    console.progress(f"evaluating {name} on {split}", loader.samples) as bar,
                ):
                    given = (loader, part, trained.num_classes, trained.autocast(), bar.advance)
                    scores[split] = found = evaluate(model, *given, *how)
                if found.fault:
                    console.say(f"{name} on {split}: {found.fault}")
            tested.append(scores)
        where = trained.folder.every_prediction(name, "evaluation")
        trained.folder.write(where, predictions_of(tested, opened.images.splits))
        models[name] = {key: value for key, value in entry.items() if key not in SCORES} | scores_of(tested)
    shown = {label: [trained.channels.names[place] for place in chosen or ()] for label, chosen in wanted.items()}
    return trained.results | {"models": models, "combinations": shown, "failed": {}}


def _scores(entry: dict) -> dict:
    """Return the protocol and the scores by split of a model's results, as `evaluation.json` has them."""
    more = {key: entry[key] for key in ("flipped", "spread", "seeds") if key in entry}
    return {"protocol": entry["protocol"]} | entry["scores"] | more
