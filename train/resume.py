"""Resume a run that was interrupted."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from polychrome.engine import console
from polychrome.engine.errors import UserError
from polychrome.engine.history import EpochRow
from polychrome.engine.machine import distributed
from polychrome.engine.machine.files import hold
from polychrome.engine.run_folder import RunFolder
from polychrome.engine.training import state
from polychrome.train.settings import changes, variants
from polychrome.train.settings.changes import Stages
from polychrome.train.settings.config import AUTO, Settings, without

# Flags that, where given, must equal a run's settings for `--resume auto` to choose the run.
LIKE = ("data", "models", "name")


def find(task: str, out: Path, wanted: str | None, like: Mapping[str, Any]) -> RunFolder | None:
    """Return the run to resume: the folder `wanted`, or for "auto" the newest unfinished run under `out`, if any.

    For "auto" the run's settings equal those in `like`, and no other process is at work in its folder. Where torchrun
    has restarted this process, the run is the one that the process began before, whatever is wanted. Of several
    processes the first decides.

    Raises:
        UserError: the folder is not a run's, or is of a run of another task.
    """
    restarted = distributed.is_restarted()
    if restarted:
        wanted = AUTO
    elif wanted is None:
        return None
    if wanted != AUTO:
        mend(RunFolder(Path(wanted)))
        folder = RunFolder.open(Path(wanted))
        if folder.read_results()["task"] != task:
            raise UserError(f"--resume {wanted}: that is a run of {folder.read_results()['task']}, not of {task}")
        return folder
    # Without a run to resume the first process makes a new folder, which the others must not take for an older run.
    found = distributed.of_main(_newest(task, out, restarted, like) if distributed.is_main() else None)
    return found and RunFolder(found)


def _newest(task: str, out: Path, restarted: bool, like: Mapping[str, Any]) -> Path | None:
    roots = {path.parent for name in ("config.toml", "results.json") for path in (out / task).glob(f"*/{name}")}
    unfinished = [run for run in map(RunFolder, roots) if not run.finished]
    for run in sorted(unfinished, key=_begun_at, reverse=True):
        try:
            if restarted:
                wanted = run.read_environment().get("launch") == distributed.launch()
            else:
                wanted = not like or _is_like(run, like)
            if wanted and hold(run.root):
                _mend(run)
                RunFolder.open(run.root).read_results()
                Settings.of_run(run.config)
                return run.root
        except (UserError, OSError) as error:
            console.say(f"{run.root} is passed over: {error}")
    return None


def _begun_at(run: RunFolder) -> float:
    return max((path.stat().st_mtime for path in (run.config, run.results) if path.exists()), default=0.0)


def _is_like(run: RunFolder, like: Mapping[str, Any]) -> bool:
    try:
        own = Settings.of_run(run.config)
    except UserError:
        if (copy := _copy(run)) is None:
            raise
        own = Settings.from_text(copy["config"], str(run.config))
    return all(getattr(own, name) == value for name, value in like.items())


def mend(run: RunFolder) -> None:
    """Write `config.toml` and `results.json` of a run, and of its seeds, again where they are damaged or gone.

    Their content is the copy in a checkpoint; nothing is written where no checkpoint has a copy. The models of mended
    results are tested again. Of several processes the first mends.

    Raises:
        StorageError: a file cannot be written.
    """
    if distributed.is_main():
        _mend(run)
    distributed.wait()


def _mend(run: RunFolder) -> None:
    for each in (*run.seeds.values(), run):
        _mend_one(each)


def _mend_one(run: RunFolder) -> None:
    faults = {}
    for path, read in ((run.config, lambda: Settings.of_run(run.config)), (run.results, run.read_results)):
        try:
            read()
        except UserError as error:
            faults[path] = error
    if (copy := _copy(run)) is None:
        return
    if run.config not in faults:
        _tell_changes(run, Settings.from_text(copy["config"], "the copy of the settings in a checkpoint"))
    for path, fault in faults.items():
        console.say(f"{fault}: written again from a checkpoint")
        if path == run.config:
            run.write(path, copy["config"])
        else:
            run.write_results(copy["results"])


def _tell_changes(run: RunFolder, before: Settings) -> None:
    """Print the settings of a run that are others than when its newest checkpoint was written."""
    now = Settings.of_run(run.config)
    pairs = {item.name: (getattr(before, item.name), getattr(now, item.name)) for item in fields(Settings)}
    # Those without effect change by a command, such as --seeds 3, which writes them into the file.
    told = (name for name, (old, new) in pairs.items() if old != new and name not in changes.WITHOUT_EFFECT)
    if words := [f"{name} {pairs[name][0]!r} is now {pairs[name][1]!r}" for name in told]:
        console.say(f"{run.config} has changed since the last checkpoint: {', '.join(words)}")


def _copy(run: RunFolder) -> dict | None:
    """Return "config" and "results" of a run as the newest of its checkpoints has them; None where none has."""
    for root, config in ((run.root, "config"), *((seed.root, "whole") for seed in run.seeds.values())):
        folders = {path.parent: path.stat().st_mtime for path in (root / "checkpoints").rglob("*.pt")}
        for folder in sorted(folders, key=folders.__getitem__, reverse=True):
            if config in (found := state.run_of(folder)):
                return {"config": found[config], "results": found["results"]}
    return None


def history(run: RunFolder) -> dict[str, list[EpochRow]]:
    """Return the epochs of a run by network, from its checkpoints; of networks without any, from `history.csv`.

    A damaged `history.csv` is told and left out: it is written again as the run goes on.
    """
    found: dict[str, list[EpochRow]] = {}
    try:
        for row in map(EpochRow.from_text, run.read_history()):
            found.setdefault(row.model, []).append(row)
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        found = {}
        console.say(f"{run.history} is damaged ({type(error).__name__}: {error}): written again from the checkpoints")
    for entry in Settings.of_run(run.config).models or ():
        found |= {name: epochs for name, epochs, _ in _courses(run, entry)}
    return found


def epochs_shown(run: RunFolder) -> Counter[str]:
    """Return how many epochs of each network earlier processes have shown, of which checkpoints may lack the last."""
    try:
        return Counter(row.get("model") for row in run.read_history())
    except (OSError, ValueError, csv.Error):
        return Counter()


def stages(run: RunFolder, results: dict, entries: Iterable[str]) -> dict[str, dict[str, Stages]]:
    """Return the stages of the networks of some entries, see `changes`, by entry and network; a new one has none.

    They are those of the results, or those of the checkpoints where they are more. For runs of earlier versions they
    are made of the settings of the run.
    """
    found: dict[str, dict[str, Stages]] = {}
    for entry in entries:
        known = dict(results["models"].get(entry, {}).get("settings", {}))
        for name, _, copy in _courses(run, entry):
            if len(own := copy.get("settings", ())) > len(known.get(name, ())):
                known[name] = own
            elif name not in known:
                before = Settings.from_text(copy["config"], str(run.config)) if copy else Settings.of_run(run.config)
                known[name] = [{"epoch": 1, "settings": changes.recorded(before, entry)}]
        if not known and entry in results["models"]:
            known[entry] = [{"epoch": 1, "settings": changes.recorded(Settings.of_run(run.config), entry)}]
        found[entry] = known
    return found


def _courses(run: RunFolder, entry: str) -> Iterator[tuple[str, list[EpochRow], dict]]:
    folder = run.checkpoints(entry)
    for each in (folder, *sorted(path for path in folder.glob("*") if path.is_dir())):
        if (course := state.course(each)) is not None:
            yield course


def check_same(folder: RunFolder, given: Settings, names: Iterable[str], flags: Iterable[str], task: str) -> None:
    """Raise UserError where the settings `names` of a run differ from the given ones, which come from files.

    So a command with --resume auto can be repeated unchanged; a setting that is to change in a run is given on the
    command line, as one of the `flags`.
    """
    own = variants.resolve(Settings.of_run(folder.config), task)
    own = replace(own, model={entry: without(table, flags) for entry, table in own.model.items()})
    given = given.with_whole_paths()
    if given.backend == AUTO:
        given = replace(given, backend=own.backend)
    for name in sorted({*names} - {"sweep", "changed_data"}):  # which the settings of a run never have
        if getattr(own, name) != getattr(given, name):
            raise UserError(
                f"{folder.root} goes on with its own settings, and --config or --recipe has another {name}: leave them "
                "out, or start another run"
            )


def merge(folder: RunFolder, flags: dict[str, Any]) -> dict[str, Any]:
    """Return the run's settings, overridden by the flags of this command line, in tables of single entries too."""
    settings = Settings.of_run(folder.config)
    values = {item.name: getattr(settings, item.name) for item in fields(settings)} | flags
    return values | {"model": {entry: without(table, flags) for entry, table in values["model"].items()}}
