"""What a run says: at its start what is trained on what, at its end what came of it and what to do with it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from polychrome.engine.channels.names import listed
from polychrome.engine.data.conventions import Conventions
from polychrome.engine.machine import hardware
from polychrome.engine.report import scores
from polychrome.engine.run_folder import RunFolder
from polychrome.models.complexity import Complexity
from polychrome.train.networks import has_several
from polychrome.train.results import best
from polychrome.train.settings.config import Settings
from polychrome.train.settings.variants import FILLED

SPLITS = {"train": "images to train on", "val": "to validate on", "holdout": "held out", "test": "to test on"}
MOST = 6  # models, or classes, named in a line


def at_start(
    settings: Settings, data: Mapping, costs: Mapping[str, Complexity], device: str, folder: Path
) -> list[str]:
    """Return the lines on a run that begins.

    Args:
        data: the "data" of its results.
        costs: those of each entry.
        device: the name of the GPU or of the processor.
    """
    counts = ", ".join(f"{data[name]:,} {words}" for name, words in SPLITS.items() if name in data)
    origin = f"data: {data['root']}"
    if settings.data is None and data["root"]:
        origin = f"no --data, so what is in {data['root']}"
    named = [f"{name} ({cost.params:,} parameters)" for name, cost in costs.items()]
    more = [f"and {len(named) - MOST} more"] if len(named) > MOST else []
    epochs = f"{settings.epochs} epoch{'s' * (settings.epochs != 1)}"
    on, slow = hardware.device(settings.device), []
    if not hardware.is_native(settings.precision, on):
        slow = [f"{settings.precision} is emulated on {device}: many times slower than fp32, and with larger errors"]
    return [
        f"{origin}: {counts}; {in_words(data['class_names'])}; channels {listed(data['channels'])}",
        f"models: {', '.join(named[:MOST] + more)}",
        f"{epochs} of {settings.image_size} px images in batches of {settings.batch_size}, {settings.precision} on "
        f"{device}; results in {folder}",
        *slow,
    ]


def in_words(classes: Sequence[str]) -> str:
    """Return how many classes there are, and the names of the first, unless all are numbers."""
    named = ", ".join([*classes[:MOST], *["..."] * (len(classes) > MOST)])
    return f"{len(classes)} classes" + ("" if all(map(str.isdecimal, classes)) else f" ({named})")


def at_end(results: Mapping, folder: RunFolder) -> list[str]:
    """Return the lines on a run that has ended: the models in order, those at chance, and commands for what follows.

    Where the report, or the validation images, have another model first, a line says so.
    """
    report = f"report:    {folder.html}"
    entries, label = results["models"], scores.full_set(results)
    found = {name: scores.score(entry, label) for name, entry in entries.items()}
    order = sorted((name for name, share in found.items() if share is not None), key=lambda name: -found[name])
    if not order:
        return [report]
    lines = []
    ranked = [f"{number}. {name} {_tested(results, name, label)}" for number, name in enumerate(order[:MOST], 1)]
    more = [f"and {len(order) - MOST} more"] if len(order) > MOST else []
    on = scores.in_words(label) + (", which all were tested on" if label != scores.choices(results)[0] else "")
    lines.append(f"test accuracy on {on}: {', '.join(ranked + more)}")
    if without := [name for name in entries if name not in order]:
        lines.append(f"no test accuracy on {scores.in_words(label)}: {', '.join(without)}")
    lines += [_at_chance(results, name) for name in order if scores.is_at_chance(results, entries[name], label)]
    one, entries = _used(folder, entries)
    chosen = best(entries)
    lines += _other_firsts(results, order[0], chosen)
    several = has_several(entries[chosen]["protocol"])  # a network for each combination: one has to be named
    flag, argument = (f" --channels {shlex.quote(label)}", f', channels="{label}"') if several else ("", "")
    run, own, program = _quoted(folder.root), _quoted(one.root), _program()
    uses = [
        f"classify:  {program} predict {own} IMAGES{flag}   (by {chosen}, the best on validation images)",
        f'in Python: polychrome.load("{one.root}"{argument}).predict("photo.jpg")',
    ]
    if Conventions.of(results["data"]).apart:  # predict takes images of one file each
        uses = []
    return [
        *lines,
        report,
        *uses,
        f"again:     {program} evaluate {run}",
        *_filled(results, f"{program} evaluate {run} --model"),
        f"elsewhere: {program} export {own} --format onnx{flag}",
    ]


def _filled(results: Mapping, command: str) -> list[str]:
    """Return how to test the first of the models that saw zeros for absent channels with the nearest channels."""
    chosen, full = results["combinations"], scores.full_set(results)
    fewer = [label for label, names in chosen.items() if 0 < len(names) < len(chosen[full])]
    for name, entry in results["models"].items():
        if entry["protocol"] == "zero-pad" and any(scores.score(entry, label) is not None for label in fewer):
            return [f"nearest:   {command} {name}{FILLED}   ({name} saw zeros in place of absent channels)"]
    return []


def _used(folder: RunFolder, entries: Mapping) -> tuple[RunFolder, Mapping]:
    """Return the run that the commands name, of several seeds the first with a trained model, and its models."""
    found = ((run, run.read_results()["models"]) for run in folder.seeds.values())
    return next((each for each in found if each[1]), (folder, entries))


def _other_firsts(results: Mapping, first: str, chosen: str) -> list[str]:
    """Return a line where the report's first model, by its mean, is another, and one where the `chosen` model is."""
    means, lines = scores.ranked(results), []
    leader = next(iter(means), first)
    if leader != first:
        count = len(scores.shared(results))
        lines.append(
            f"{leader} is first in the report, which goes by the mean over {count} choices of channels: "
            f"{means[leader]:.1%}, {first} {means[first]:.1%}"
        )
    if chosen != first:
        lines.append(f"{chosen} is used below, the best on validation images: test images are not for choosing a model")
    return lines


def _tested(results: Mapping, name: str, label: str) -> str:
    entry = results["models"][name]
    share, count = scores.score(entry, label), scores.tested_on(results, entry, label)
    if not count:
        return f"{share:.1%}"
    low, high = scores.interval(share, count)
    return f"{share:.1%} (95% interval of {count:,} images: {low:.1%} to {high:.1%})"


def _at_chance(results: Mapping, name: str) -> str:
    classes, always = results["data"]["classes"], scores.always(results)
    more = f" ({always})" if always else ""
    on = f" on {scores.in_words(scores.full_set(results))}" if len(scores.choices(results)) > 1 else ""
    return (
        f"{name} is not clearly better than chance{on}, {1 / classes:.1%} for {classes} classes{more}: try more "
        "--epochs, another --lr, or a closer look at the images and their labels in the report"
    )


def beginning(environment: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the time now, the command that is run, and the code and device, for the environment of a run.

    A run that goes on may be on another machine then, or of another commit. Loggers tell runs of a name apart by the
    time, so it is to the microsecond: a script begins two runs in a second.

    Args:
        environment: as `hardware.describe` returns it.
    """
    context = click.get_current_context(silent=True)
    given = context.find_root().obj if context else None
    command = f"{_program()} {shlex.join(given)}" if given else ""
    where = {"commit": environment["commit"], "device": environment["gpu"] or environment["cpu"]}
    where |= {"torch": environment["versions"]["torch"]}
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    return {"at": now} | ({"command": command} if command else {}) | where


def again(task: str, run: Path) -> str:
    """Return the command that goes on with a run."""
    return f"{_program()} {task} --resume {_quoted(run)}"


def _quoted(path: Path) -> str:
    """Return a path as an argument of a command: no flag, though its name begin with a dash."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def _program() -> str:
    """Return the command that runs this program."""
    context = click.get_current_context(silent=True)
    return context.find_root().command_path if context else "python -m train.run"
