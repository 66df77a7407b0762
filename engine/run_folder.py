"""A run's folder, `<out>/<task>/<name>/`: the files in it and how they are written."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable
from dataclasses import astuple, fields
from datetime import datetime
from pathlib import Path

import numpy as np

from polychrome.engine.errors import StorageError, UserError
from polychrome.engine.machine import distributed
from polychrome.engine.machine.files import check_writable, csv_text, hold, remove_unfinished, within, write_atomically

CHECKSUM = "checksum"  # of all else in `results.json`
ROOM = 64  # bytes that names of files have beside the name of a model


class RunFolder:
    """Paths and files of a run; of several processes only the first writes.

    `config.toml`, `environment.json`, `history.csv`, `results.json`, `report.md`, `report.html`, `plots/`,
    `table.csv`, `predictions-<model>.csv`, `submission-<model>.csv`, `predictions/<model>.csv`,
    `checkpoints/<model>/{last,best,previous,step}.pt`, `tensorboard/<model>/`, `trace/`; `trained-on.npz`, fingerprints
    of the training images, see `repeats.fingerprints`; `holdout.txt` where images are held out. A run with several
    seeds has a folder like this for each, `seeds/<seed>/`, and no checkpoints of its own.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.toml"
        self.environment = root / "environment.json"
        self.history = root / "history.csv"
        self.results = root / "results.json"
        self.html = root / "report.html"
        self.table = root / "table.csv"
        self.holdout = root / "holdout.txt"
        self.trained_on = root / "trained-on.npz"
        self.plots = root / "plots"
        self.trace = root / "trace"
        self.tensorboard = root / "tensorboard"

    @classmethod
    def create(cls, out: Path, task: str, name: str | None = None) -> RunFolder:
        """Return a new, empty run folder; by default its name is the date and time.

        Raises:
            UserError: the folder cannot be written, the name is a path, or a run of this name is there already.
        """
        cls.check_new(out, task, name)
        parent, root = out / task, out / task / (name or "")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            if name is not None:
                root.mkdir()
            else:
                root = _make_dated(parent)
            (root / "plots").mkdir()
        except FileExistsError as error:
            raise UserError(f"{error.filename} is there already; choose another --name or --out") from None
        except OSError as error:
            raise UserError(f"the output folder {out} cannot be written: {error.strerror}") from None
        return cls(root)

    @classmethod
    def check_new(cls, out: Path, task: str, name: str | None) -> None:
        """Raise UserError as `create` does, and make nothing: before hours of work on the data."""
        if name is not None:
            try:
                root = within(out / task, name)
            except UserError as error:
                raise UserError(f"--name must be a plain folder name: {error}") from None
            if name != name.strip():
                raise UserError(f"--name must be a plain folder name: {name!r} begins or ends with a space")
            if os.path.lexists(root):
                raise UserError(f"{root} is there already; choose another --name or --out")
        try:
            check_writable(out)
        except UserError as error:
            raise UserError(f"the output folder {error}") from None

    @classmethod
    def open(cls, root: Path) -> RunFolder:
        """Return an existing run.

        Raises:
            UserError: the folder is missing or is not a run's.
        """
        folder = cls(root)
        if not root.is_dir():
            raise UserError(f"{root}: no such run folder")
        for path in (folder.config, folder.results):
            if not path.is_file():
                raise UserError(f"{root} is not a run folder: it has no {path.name}")
        return folder

    def begin(self, config: str, environment: dict, results: dict) -> None:
        """Write the files known before training: the settings as TOML, the machine, and the results so far.

        Raises:
            UserError: another process is at work in the folder.
        """
        if distributed.is_main():
            if not hold(self.root):
                raise UserError(
                    f"{self.root}: another process is training there; let that process end, or start another run"
                )
            self.html.unlink(missing_ok=True)
            remove_unfinished(self.root / "checkpoints")
        self.write(self.config, config)
        self.write_json(self.environment, environment)
        self.write_results(results)

    def check_writable(self, models: Iterable[str]) -> None:
        """Raise UserError where a folder cannot be written that a run of these models needs to the end.

        Logs and traces are not needed: where they cannot be written, a line says so.
        """
        there = [Path(path) for path, _, _ in os.walk(self.root)]
        spared = (self.tensorboard, self.trace)
        needed = [path for path in there if not any(path.is_relative_to(folder) for folder in spared)]
        predictions = self.every_prediction("any").parent
        for folder in (*needed, self.plots, predictions, *map(self.checkpoints, models)):
            check_writable(folder)

    @property
    def finished(self) -> bool:
        """Whether the run is complete: the report is written last, and removed when a run is resumed."""
        return self.html.exists()

    @property
    def seeds(self) -> dict[int, RunFolder]:
        """The runs of single seeds by seed, in the folder of a run with several seeds; else empty."""
        names = sorted(int(path.name) for path in (self.root / "seeds").glob("*") if path.name.isdecimal())
        return {seed: self.of_seed(seed) for seed in names}

    def of_seed(self, seed: int) -> RunFolder:
        """Return the folder of a seed within a run with several seeds; it need not exist yet."""
        return RunFolder(self.root / "seeds" / str(seed))

    @property
    def of_all_seeds(self) -> RunFolder:
        """The folder of the run with several seeds that this run is a seed's of."""
        return RunFolder(self.root.parents[1])

    @property
    def begun(self) -> bool:
        """Whether the folder has the files that a run can be resumed from."""
        return self.config.is_file() and self.results.is_file()

    @property
    def has_checkpoints(self) -> bool:
        """Whether a network has been trained, if for a part of an epoch."""
        return any((self.root / "checkpoints").rglob("*.pt"))

    def checkpoints(self, model: str, combination: str | None = None) -> Path:
        """Return the folder of a model's checkpoints, or of those of its network for a combination of channels.

        Raises:
            UserError: the name of the model or of the combination is a path.
        """
        folder = within(self.root / "checkpoints", model)
        return folder if combination is None else within(folder, combination)

    def picture(self, kind: str, model: str) -> Path:
        """Return the path of a model's picture. Raises UserError for a name that is a path."""
        return within(self.plots, f"{kind}-{model}.png")

    def remove_pictures(self) -> None:
        """Remove the pictures of an earlier start, which show figures of then."""
        for path in self.plots.iterdir() if self.plots.is_dir() else ():
            path.unlink()

    def events(self, network: str) -> Path:
        """Return the folder of a network's TensorBoard logs. Raises UserError for a name that is a path."""
        return within(self.tensorboard, network)

    def predictions(self, model: str) -> Path:
        """Return the path of a model's predictions for the test images. Raises UserError for a name that is a path."""
        return within(self.root, f"predictions-{model}.csv")

    def submission(self, model: str) -> Path:
        """Return the path of a model's predictions as numbers. Raises UserError for a name that is a path."""
        return within(self.root, f"submission-{model}.csv")

    def every_prediction(self, model: str, tested_by: str = "predictions") -> Path:
        """Return the path of a model's predictions for all images of all splits, by the run or by "evaluation".

        Raises:
            UserError: the name is a path.
        """
        return within(self.root / tested_by, f"{model}.csv")

    def failure(self, model: str) -> Path:
        """Return the path of the file that says why a model failed. Raises UserError for a name that is a path."""
        return within(self.root, f"failed-{model}.txt")

    def export(self, name: str, file_format: str) -> Path:
        """Return the path of an exported network. Raises UserError for a name that is a path."""
        return within(self.root / "export", f"{name}.{file_format}")

    def write_history(self, rows: list) -> None:
        """Write `history.csv` from dataclass rows of one type."""
        heads = [item.name for item in fields(rows[0])]
        self.write(self.history, csv_text(heads, map(astuple, rows)))

    def read_history(self) -> list[dict[str, str]]:
        """Return the rows of `history.csv` as text by column; an empty list without a file."""
        if not self.history.exists():
            return []
        with open(self.history, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def write(self, path: Path, text: str) -> None:
        """Write a text file whole or not at all; a folder of the run that it lies in is made.

        Raises:
            StorageError: the file cannot be written; an earlier file is intact.
        """
        if not distributed.is_main():
            return
        if path.parent.parent == self.root:
            try:
                path.parent.mkdir(exist_ok=True)
            except OSError as error:
                raise StorageError(f"{path} cannot be written: {error.strerror}") from error
        write_atomically(path, text)

    def write_json(self, path: Path, content: dict) -> None:
        """Write a JSON file whole or not at all; NaN and infinity become null."""
        self.write(path, json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_trained_on(self, fingerprints: np.ndarray) -> None:
        """Write `trained-on.npz`, uint64 [images]; raises StorageError where the file cannot be written."""
        content = io.BytesIO()
        np.savez(content, fingerprints=fingerprints)
        if distributed.is_main():
            write_atomically(self.trained_on, content.getbuffer())

    def read_trained_on(self) -> np.ndarray | None:
        """Return the content of `trained-on.npz`, uint64 [images]; None where the file is missing or damaged."""
        try:
            with np.load(self.trained_on) as content:
                return content["fingerprints"].astype(np.uint64, casting="no")
        except Exception:  # the reader answers damaged bytes with errors of every kind
            return None

    def read_environment(self) -> dict:
        """Return the content of `environment.json`; empty where the file cannot be read."""
        try:
            found = json.loads(self.environment.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def began(self) -> list[dict]:
        """Return when and by which commands the run was begun and gone on with; empty of a new or an older run."""
        found = self.read_environment().get("began", [])
        return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []

    def write_results(self, results: dict) -> None:
        """Write `results.json`. There a model's "scores" by split are "test" and, of all other splits, "splits"."""
        models = {name: _with_test_apart(entry) for name, entry in results["models"].items()}
        content = json.loads(json.dumps(_finite(results | {"models": models})))
        self.write_json(self.results, content | {CHECKSUM: _checksum(content)})

    def read_results(self) -> dict:
        """Return the content of `results.json` as `write_results` takes it: a model's "scores" by split in one dict.

        Raises:
            UserError: the file is damaged.
        """
        try:
            results = json.loads(self.results.read_text(encoding="utf-8"))
            if results.pop(CHECKSUM, None) not in (None, _checksum(results)):
                raise ValueError("its checksum is wrong, or it was edited")
            missing = {"task", "data", "models"} - results.keys() or {"classes", "class_names"} - results["data"].keys()
            for entry in results["models"].values():
                missing |= {"protocol", "epochs", "val", "test"} - entry.keys()
            if missing:
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            models = {name: _with_test_among(entry) for name, entry in results["models"].items()}
            for name in models:
                check_names(name)
        except (OSError, ValueError, AttributeError, TypeError, RecursionError, UserError) as error:
            raise UserError(f"{self.results} is damaged: {error}") from None
        return results | {"models": models}


def check_names(model: str, combinations: Iterable[str] = ()) -> None:
    """Raise UserError where a model, or its network for one of the combinations, cannot have files of its name."""
    for name in (model, *combinations, *(f"{model} {combination}" for combination in combinations)):
        within(Path(), name, room=ROOM)


def _make_dated(parent: Path) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        root = parent / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            root.mkdir()
        except FileExistsError:
            continue
        return root
    raise FileExistsError(None, None, str(parent / stamp))


def _checksum(content: dict) -> str:
    """Return a digest of JSON content, whatever the order and layout of its text."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _with_test_apart(entry: dict) -> dict:
    scores = entry["scores"]
    others = {split: found for split, found in scores.items() if split != "test"}
    return {name: entry[name] for name in entry if name != "scores"} | {"test": scores["test"], "splits": others}


def _with_test_among(entry: dict) -> dict:
    scores = entry.get("splits", {}) | {"test": entry["test"]}
    return {name: entry[name] for name in entry if name not in ("test", "splits")} | {"scores": scores}


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
