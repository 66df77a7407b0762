"""What the networks of a run were trained with, stage by stage: settings may change as a run goes on, labels may not.

A stage is a dict: "epoch", the first that was trained so, and "settings", see `recorded`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from polychrome.train.settings import variants
from polychrome.train.settings.config import Settings, described

# Checkpoints or results depend on these: they stay as they are where a training goes on.
FIXED = ("image_size", "eval_crop", "precision", "optimizer", "init", "channel_sampling", "seed", "holdout", "weights")
# Those of them that belong to the whole run, or that a network of the run is used with, even if it is not asked for.
FIXED_FOR_ALL = ("image_size", "eval_crop", "precision", "seed", "holdout")
# How a trained network is tested and what is written of it: both are done again where one of these changes.
OF_TESTS = ("flip_test", "keep", "submission", "test_holdout")
# How far a training goes. Where its course depends on the number of epochs, that is a setting like others.
LENGTHS = ("epochs", "patience")
# A run may go on on another machine.
OF_MACHINE = ("backend", "cache", "cache_size", "compile", "device")
# What comes of these is compared: images, labels, classes, channels.
OF_DATA = ("channel_files", "channels", "data", "group_by", "num_classes", "split_seed", "strict")
# These change no figure: files, speed, which networks are trained.
WITHOUT_EFFECT = (
    *("changed_data", "compile_mode", "logger", "models", "name", "out", "plots", "profile", "save_every", "seeds"),
    *("sweep", "tensorboard", "workers"),
)
# Settings in parts: of a model's constructor, of single entries, of an entry's name, of some entries of transfer.
IN_PARTS = ("options", "model", "transfer", "weights")
# All others are recorded: a new setting is, until it is named above.
RECORDED = sorted({item.name for item in fields(Settings)}.difference(OF_DATA, WITHOUT_EFFECT, IN_PARTS))

# The seeds of a run may differ in these: what comes of the data is compared, and other machines round otherwise. Epochs
# may be more where that leaves a course as it is.
OF_A_SEED = (*WITHOUT_EFFECT, "compile", "data", "device", "epochs", "strict", "submission")
SAME_FOR_SEEDS = sorted({item.name for item in fields(Settings)}.difference(OF_A_SEED))

Stages = list[dict[str, Any]]


def recorded(settings: Settings, entry: str) -> dict[str, Any]:
    """Return what an entry is trained and tested with, by name, as plain values."""
    own = variants.of(settings, entry)
    found = described(own, RECORDED)
    del found["data"]  # which is compared by its content
    return found | ({"weights": str(own.weights)} if own.transfer in ("frozen", "finetuned") else {})


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, by name, each before and now; one that is missing has its default."""
    pairs = {name: (_value(before, name), _value(now, name)) for name in sorted(before.keys() | now.keys())}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def depends_on_epochs(settings: Mapping[str, Any]) -> bool:
    """Return whether an epoch of a training, by its recorded settings, is another where more epochs follow it."""
    in_turn = settings["one_at_a_time"] and "," in settings["augmentations"]
    return settings["schedule"] in ("cosine", "linear", "onecycle") or settings["progressive"] < 1 or in_turn


def continued(stages: Stages, now: dict[str, Any], epoch: int) -> Stages:
    """Return the stages of a training that goes on with `epoch`, its number from 1, by the settings `now`."""
    if not stages:
        return [{"epoch": epoch, "settings": now}]
    if leaves(stages, now):
        return [*stages, {"epoch": epoch, "settings": now}]
    return _with(stages, now, _quiet(now))


def begun(stages: Stages, epoch: int) -> Stages:
    """Return the stages that begin at `epoch` or earlier; later stages belong to a training that was abandoned."""
    return [stage for stage in stages if stage["epoch"] <= epoch]


def leaves(stages: Stages, now: Mapping[str, Any]) -> bool:
    """Return whether a training that goes on by the settings `now` takes another course than by its last stage's."""
    return bool(stages) and bool(differing(stages[-1]["settings"], now).keys() - _quiet(now))


def mark(before: str, epoch: int, now: Mapping[str, Any], division: Mapping[str, Any]) -> str:
    """Return a short digest that identifies the course of a training which is another from `epoch` on.

    `before` is the digest of the course up to there. The same settings and division of the images give the same digest,
    as they give the same training.
    """
    course = {name: value for name, value in now.items() if name not in _quiet(now)}
    text = json.dumps([before, epoch, course, division], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def tested(stages: Stages, now: dict[str, Any]) -> Stages:
    """Return the stages of a training that is tested by the settings `now` and does not go on."""
    return _with(stages, now, OF_TESTS)


def told(stages: Stages, now: Mapping[str, Any]) -> dict[str, str]:
    """Return in words what a network was trained with where that was not always as in the settings `now`, by name."""
    found = {}
    for name in sorted({*now, *(name for stage in stages for name in stage["settings"])}):
        values: list[tuple[int, Any]] = []
        for stage in stages[-1:] if name in _quiet(now) else stages:
            value = _value(stage["settings"], name)
            if not values or values[-1][1] != value:
                values.append((stage["epoch"], value))
        if len(values) > 1 or values[-1][1] != _value(now, name):
            (_, first), *later = values
            found[name] = ", ".join([str(first), *(f"from epoch {epoch} {value}" for epoch, value in later)])
    return found


def of_course(differing: Mapping[str, tuple], now: Mapping[str, Any]) -> dict[str, tuple]:
    """Return those of the settings that differ which decide on the course of a training, whatever the machine."""
    return {name: pair for name, pair in differing.items() if name not in {*_quiet(now), *OF_MACHINE}}


def _with(stages: Stages, now: Mapping[str, Any], names: Iterable[str]) -> Stages:
    """Return the stages with some settings of the last as they are now."""
    last = stages[-1]
    return [*stages[:-1], last | {"settings": last["settings"] | {name: now[name] for name in names}}]


def _quiet(settings: Mapping[str, Any]) -> set[str]:
    """Return the names of settings whose change leaves a training on its course."""
    return {*OF_TESTS, *LENGTHS} - ({"epochs"} if depends_on_epochs(settings) else set())


def _value(settings: Mapping[str, Any], name: str) -> Any:
    return settings.get(name, _DEFAULTS.get(name))


_DEFAULTS = described(Settings(), RECORDED)
