"""The entries of `--models`: a model's name, with variants that change its settings."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import accumulate
from typing import Any

from polychrome.engine.errors import UserError
from polychrome.train import systems
from polychrome.train.settings.config import Settings, merged


@dataclass(frozen=True)
class TaskDefaults:
    """The settings of a task that the user does not give."""

    models: tuple[str, ...]
    epochs: int
    generated_epochs: int
    image_size: int = 256
    generated_image_size: int = 64
    batch_size: int = 64
    lr: float = 1e-3
    optimizer: str = "adam"


# Report A's protocol on real data, report E's for the last two; the generated set is sized for a first run of minutes
# on two cores.
TASKS = {
    "task1": TaskDefaults(models=("simple_cnn", "pool_attention_cnn"), epochs=25, generated_epochs=8),
    "task2": TaskDefaults(models=("resnet34", "attention_cnn"), epochs=50, generated_epochs=8),
    "cifar100": TaskDefaults(
        models=("base_net", "vgg_slim"), epochs=15, generated_epochs=15, image_size=32, generated_image_size=32
    ),
    "transfer": TaskDefaults(
        models=("resnet50",),
        epochs=25,
        generated_epochs=2,
        image_size=224,
        batch_size=8,
        lr=0.01,
        optimizer="sgd",
    ),
}


SWEEP = ("all",)


TRANSFERS = ("frozen", "finetuned", "scratch")

ALMOST = 0.75  # likeness, from which on a name is taken to be misspelt

FILLED = "+any_channels"  # of a model that is shown zeros for absent channels: it is shown the nearest ones

# The settings that NAME+VARIANT changes. A later variant wins over an earlier one, so NAME+a+b is a step after NAME+a.
VARIANTS = {
    "off": {"channel_sampling": "off"},
    "sampling": {"channel_sampling": "on"},
    "drop": {"channel_sampling": "drop"},
    "shuffle": {"channel_sampling": "shuffle"},
    "cycle": {"channel_sampling": "cycle"},
    "alone": {},  # a network for each channel combination, see `is_alone`
    "consistency": {"consistency": 1.0},
    "progressive": {"progressive": 0.6},
    "fullsize": {"progressive": 1.0},
    "noaug": {"augmentations": ("none",)},
    "allaug": {"augmentations": ("all",), "one_at_a_time": False},
    "onebyone": {"augmentations": ("all",), "one_at_a_time": True},
    "smoothing": {"label_smoothing": 0.1},
    "balanced": {"class_weights": "balanced"},
    "plateau": {"schedule": "plateau"},
    "cosine": {"schedule": "cosine"},
    "he": {"init": "he"},
    "small_stem": {"options": {"small_stem": True}},
    "any_channels": {"options": {"any_channels": True}},
    "estimated": {"options": {"any_channels": "estimated"}},
    "places": {"options": {"fixed_places": True}},
    **{name: {"transfer": name} for name in TRANSFERS},
}


def augmentations(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of augmentations, with "all" and "none" replaced.

    Raises:
        UserError: an augmentation does not exist, or is named twice.
    """
    from polychrome.engine.data.augmentation import NAMES

    if names in (("all",), ("none",), ()):
        return NAMES if names == ("all",) else ()
    for name in names:
        if name not in NAMES:
            raise UserError(f"no augmentation is named {name!r}; there are {', '.join(NAMES)}, all and none")
        if names.count(name) > 1:
            raise UserError(f"augmentation {name} is named {names.count(name)} times")
    return names


def loggers(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Return the names of loggers, each once; None for "none".

    Raises:
        UserError: a logger does not exist.
    """
    from polychrome.engine.watch.loggers import KINDS

    if names in (("none",), None):
        return None
    for name in names:
        if name not in KINDS:
            hint = "; TensorBoard is on without it" if name == "tensorboard" else ""
            raise UserError(f"no logger is named {name!r}; there are {', '.join(KINDS)} and none{hint}")
    return tuple(dict.fromkeys(names))


def model_name(entry: str) -> str:
    """Return the registered name of an entry's model."""
    return entry.partition("+")[0]


def is_alone(entry: str) -> bool:
    """Return whether an entry has a network for each channel combination, trained on the combination alone."""
    return "alone" in _variants(entry)


def expanded(task: str, settings: Settings) -> Settings:
    """Return settings whose models are entries: "all" becomes the task's systems, transfer's models come in each mode.

    Raises:
        UserError: an entry is given twice, has an unknown variant, or cannot belong to this task.
    """
    entries = settings.models
    if entries == SWEEP:
        entries, settings = systems.names(task), replace(settings, sweep=True)
    if task == "transfer":
        entries = tuple(
            found
            for entry in entries
            for found in ([entry] if _variants(entry) & set(TRANSFERS) else [f"{entry}+{mode}" for mode in TRANSFERS])
        )
    for entry, count in Counter(entries).items():
        if count > 1:
            raise UserError(f"--models names {entry} {count} times")
        _check_name(entry, f"--models {entry}")
        # Any variant is allowed where the entry, up to it or whole, has a table of settings: it names the table.
        for step in _steps(entry)[1:] if entry not in settings.model else ():
            variant = step.rpartition("+")[2]
            if variant not in VARIANTS and step not in settings.model:
                close = get_close_matches(variant, VARIANTS, n=1)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(VARIANTS)}"
                raise UserError(f"--models {entry}: no variant is named {variant!r}; {hint}")
        if task != "transfer" and _variants(entry) & set(TRANSFERS):
            raise UserError(f"--models {entry}: only task transfer starts from weights")
    if task != "transfer" and settings.weights is not None:
        raise UserError("--weights: only task transfer starts from weights")
    settings = replace(settings, models=entries)
    unused = unused_tables(settings)
    for entry in settings.model:
        _check_table(entry, entry in unused)
    return settings


def unused_tables(settings: Settings) -> list[str]:
    """Return the entries that have a table of settings and are neither trained nor a step to an entry that is."""
    used = {step for entry in settings.models for step in _steps(entry)}
    return [entry for entry in settings.model if entry not in used]


def _check_name(entry: str, source: str) -> None:
    """Raise UserError where an entry cannot be the name of folders and files."""
    for variant in entry.split("+")[1:]:
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*", variant):
            raise UserError(f"{source}: a variant is named by letters, digits, '_', '-' and '.', not {variant!r}")


def _check_table(entry: str, unused: bool) -> None:
    """Raise UserError where a table of settings names an unknown model, or is unused and has a variant misspelt."""
    from polychrome import models

    _check_name(entry, f"[model.{entry}]")
    if model_name(entry) not in models.names():
        close = get_close_matches(model_name(entry), models.names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"[model.{entry}]: no model has this name{hint}")
    for variant in _variants(entry) - VARIANTS.keys() if unused else ():
        if close := get_close_matches(variant, VARIANTS, n=1, cutoff=ALMOST):
            raise UserError(f"[model.{entry}]: no variant is named {variant!r}; did you mean {close[0]}?")


def of(settings: Settings, entry: str) -> Settings:
    """Return the settings of one entry: the run's, changed by its model's, then variant after variant.

    Each step, as NAME+a before NAME+a+b, has what its variant changes, then its table. Of `options` each name is a
    setting of its own.
    """
    changes: dict[str, Any] = {"options": settings.options}
    for step in _steps(entry):
        _, plus, variant = step.rpartition("+")
        changes = merged(changes, VARIANTS.get(variant, {}) if plus else {})
        changes = merged(changes, settings.model.get(step, {}))
    if "augmentations" in changes:
        changes["augmentations"] = augmentations(changes["augmentations"])
    return replace(settings, **changes)


def _steps(entry: str) -> list[str]:
    """Return the entries on the way to an entry: the model's name, then with one variant after the other."""
    return list(accumulate(entry.split("+"), "{}+{}".format))


def _variants(entry: str) -> set[str]:
    return set(entry.split("+")[1:])


def resolve(settings: Settings, task: str) -> Settings:
    """Return the effective settings: every `None` is replaced, and the device checked against the machine.

    Raises:
        UserError: the device is not there, or an entry, augmentation or table of settings is wrong.
    """
    from polychrome.engine.machine.distributed import local_world_size
    from polychrome.engine.machine.hardware import device, native_precision
    from polychrome.engine.machine.workers import cpus

    if settings.seed + settings.seeds > 2**32:
        raise UserError(f"--seed {settings.seed} --seeds {settings.seeds}: the last seed is above 4294967295")
    defaults = TASKS[task]
    generated = settings.data is None
    on = device(settings.device)
    effective = replace(
        settings,
        models=settings.models or defaults.models,
        epochs=settings.epochs or (defaults.generated_epochs if generated else defaults.epochs),
        image_size=settings.image_size or (defaults.generated_image_size if generated else defaults.image_size),
        batch_size=settings.batch_size or defaults.batch_size,
        lr=settings.lr or defaults.lr,
        optimizer=settings.optimizer or defaults.optimizer,
        augmentations=augmentations(settings.augmentations),
        logger=loggers(settings.logger),
        device=on.type,
        precision=settings.precision or native_precision(on),
        compile=on.type == "cuda" if settings.compile is None else settings.compile,
        workers=settings.workers or max(1, cpus() // local_world_size()),
    )
    return expanded(task, effective)
