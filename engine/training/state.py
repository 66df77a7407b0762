"""The state of a training, saved in checkpoints at the ends of epochs and within them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from polychrome.engine.errors import StorageError, UserError
from polychrome.engine.history import EpochRow, TrainingHistory
from polychrome.engine.machine import distributed
from polychrome.engine.machine.files import rename
from polychrome.engine.training import checkpoint

BEST, LAST, PREVIOUS, WITHIN, NEXT = "best.pt", "last.pt", "previous.pt", "step.pt", "next.pt"
NEXT_BEST = "next_best.pt"


@dataclass
class Position:
    """The next batch: number `batch` of pass `turn` of an epoch; epochs count from 1, passes and batches from 0."""

    epoch: int = 1
    turn: int = 0
    batch: int = 0

    @property
    def at_start(self) -> bool:
        """Whether the epoch has not begun."""
        return (self.turn, self.batch) == (0, 0)

    def images(self, division: Division, passes: int, validated: int) -> int:
        """Return how many images were trained on and validated before this position, `validated` after each epoch."""
        within = min(self.batch * division.batch_size, division.samples)
        return (self.epoch - 1) * (passes * division.samples + validated) + self.turn * division.samples + within


class Totals:
    """The loss and the correct predictions of an epoch so far, summed on the device by each process for its images."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.count = 0
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self._copy: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    @torch.no_grad()
    def add(self, loss: Tensor, hits: Tensor, images: int, total: int, step: int) -> None:
        """Add a batch: its mean loss [] over `images`, its hits [], its images in all processes, and its number."""
        self.loss += loss * images
        self.correct += hits
        self.count += total
        self.first_bad = torch.where((self.first_bad < 0) & ~loss.isfinite(), step, self.first_bad)

    def seen_bad(self) -> bool:
        """Return whether a loss was not finite; on a GPU a few steps late, as the host does not wait for the device."""
        if not self.first_bad.is_cuda:
            return bool(self.first_bad >= 0)
        if self._copied is not None and not self._copied.query():
            return False
        found = self._copied is not None and bool(self._copy >= 0)
        if self._copied is None:
            self._copy, self._copied = torch.empty((), dtype=torch.int64, pin_memory=True), torch.cuda.Event()
        self._copy.copy_(self.first_bad, non_blocking=True)
        self._copied.record()
        return found

    def means(self) -> tuple[float, float]:
        """Return loss and accuracy over all processes; the host waits for the device here.

        Raises UserError where no image could be read.
        """
        loss, correct = distributed.summed(self.loss, self.correct)
        if not self.count:
            raise UserError("none of the images to train on could be read")
        return loss.item() / self.count, correct.item() / self.count

    def as_dict(self) -> dict:
        """Return the sums over all processes."""
        loss, correct = distributed.summed(self.loss, self.correct)
        return {"loss": loss, "correct": correct, "count": self.count}

    def load(self, values: dict) -> None:
        """Restore the sums of `as_dict`, on the first process for all processes."""
        self.count = values["count"]
        if distributed.is_main():
            self.loss.copy_(values["loss"])
            self.correct.copy_(values["correct"])


@dataclass(frozen=True)
class Division:
    """How the training images are divided into batches and processes, and the device that draws random numbers.

    A checkpoint from the middle of an epoch can be continued only under the same division: its position counts batches
    of this size, and its generator states belong to these processes and this device.
    """

    samples: int
    batch_size: int
    accumulate: int
    world_size: int
    device: str = "cpu"

    @classmethod
    def of(cls, samples: int, batch_size: int, accumulate: int, device: torch.device) -> Division:
        """Return the division of `samples` images among the processes that there are."""
        return cls(samples, batch_size, accumulate, distributed.world_size(), device.type)


@dataclass(frozen=True)
class Start:
    """Where a training begins or goes on.

    Attributes:
        division: how the training images are divided now.
        goes_on: whether there is a checkpoint to go on from.
        position: the next batch.
        run: what that checkpoint tells of its run, see `trainer.fit`.
        differs: whether that checkpoint, or a newer one that is passed over, was saved under another division.
    """

    division: Division
    goes_on: bool = False
    position: Position = field(default_factory=Position)
    run: dict = field(default_factory=dict)
    differs: bool = False

    @property
    def epochs(self) -> int:
        """The number of whole epochs that are trained."""
        return self.position.epoch - 1


@dataclass
class State:
    """Everything that changes while a model is trained."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None
    totals: Totals
    division: Division
    plan: dict
    run: dict = field(default_factory=dict)  # what is needed to go on where the run's other files are damaged
    history: TrainingHistory = field(default_factory=TrainingHistory)
    position: Position = field(default_factory=Position)
    elapsed: float = 0.0  # seconds of the epoch so far, up to the last save within it
    unsaved: tuple[int, dict] | None = None  # the best epoch and its weights, in host memory, where no file has them

    @property
    def validated(self) -> nn.Module:
        """The model that is validated and saved as the best: the averaged model if weights are averaged."""
        return self.model if self.ema is None else self.ema.module

    def remember_best(self, ends: bool) -> None:
        """Copy the weights after an epoch to host memory if they are the best, for the next save to write.

        Where the last weights are kept, these are the best only if the training `ends`.
        """
        epoch = self.history.epochs[-1].epoch
        is_best = epoch == self.history.best.epoch and (ends or self.history.keep == "loss")
        if distributed.is_main() and is_best:
            weights = self.validated.state_dict()
            self.unsaved = epoch, {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}

    def save_epoch(self, folder: Path) -> None:
        """Write `last.pt` after an epoch, and `best.pt` of a better epoch; the old `last.pt` is `previous.pt`.

        Raises:
            StorageError: a file cannot be written; earlier files are intact.
        """
        self._save(folder, NEXT)

    def save_within(self, folder: Path) -> None:
        """Write `step.pt` in the middle of an epoch, and `best.pt` of a better epoch before it."""
        self._save(folder, WITHIN)

    def _save(self, folder: Path, name: str) -> None:
        """Write, in the main process, a checkpoint and the best weights that no file has.

        The best weights get their name after the checkpoint that tells of them: of a run that is killed in between,
        `keep_best` finds them under either name.
        """
        content = self._content()  # to which every process contributes
        if not distributed.is_main():
            return
        if self.unsaved is not None:
            self._write_best(folder / NEXT_BEST, *self.unsaved)
        checkpoint.save(folder / name, content)
        if name == NEXT:
            _put_in_place(folder)
        if self.unsaved is not None:
            _renamed(folder / NEXT_BEST, folder / BEST)
            self.unsaved = None

    def keep_best(self, folder: Path, say: Callable[[str], None]) -> None:
        """See to it that `best.pt` is whole and of the best epoch, of which another checkpoint may have the weights.

        Where none has them, the best is chosen among the epochs from then on, and `say` is told so.
        """
        if self.history.best is None:
            return
        if distributed.is_main():
            self._mend_best(folder, say)
            with suppress(OSError):  # it is passed over where it stays
                (folder / NEXT_BEST).unlink(missing_ok=True)
        self.history.lost = distributed.of_main(self.history.lost)

    def _mend_best(self, folder: Path, say: Callable[[str], None]) -> None:
        path, wanted, found = folder / BEST, self.history.best.epoch, None
        try:
            content = checkpoint.load(path)
            if self._is_of(content, wanted):
                return
            found = content.get("epoch")
            fault = f"{path} is of epoch {found}{' of another training' * (found == wanted)}, the best is {wanted}"
        except UserError as error:
            fault = str(error)
        with suppress(UserError):
            if self._is_of(checkpoint.load(folder / NEXT_BEST), wanted):
                return _renamed(folder / NEXT_BEST, path)
        ends = dict(reversed(_ends_of_epochs(folder)))
        if wanted not in ends:
            # The weights of the best epoch are gone: the best of the last epochs, whose weights are there, counts.
            self.history.lost = len(self.history.epochs)
            while self.history.lost in ends:
                self.history.lost -= 1
            first = self.history.lost + 1
            say(f"{fault}; no other checkpoint has epoch {wanted}: the best epoch from {first} on will be tested")
        elif found is None:
            say(f"{fault}: written again from {ends[wanted][0].name}")
        if (best := self.history.best) is not None:
            content = ends[best.epoch][1]
            weights = content["model"] if content["ema"] is None else _without_prefix(content["ema"])
            self._write_best(path, best.epoch, weights)

    def _write_best(self, path: Path, epoch: int, weights: dict) -> None:
        content = {"name": self.name, "epoch": epoch, "model": weights, "run": self.run}
        checkpoint.save(path, content | {"training": self.history.digest(epoch)})

    def _is_of(self, best: dict, epoch: int) -> bool:
        """Return whether best weights are of an epoch of this training; those of earlier versions tell no more."""
        return best.get("epoch") == epoch and best.get("training") in (None, self.history.digest(epoch))

    def resume(self, folder: Path, say: Callable[[str], None] = lambda message: None) -> bool:
        """Resume from the newest intact checkpoint in `folder` that fits; return whether there is a checkpoint.

        Skipped checkpoints are named by `say`.

        Raises:
            UserError: there are checkpoints, but all are damaged or belong to another model.
            StorageError: a checkpoint cannot be renamed, or the best weights written.
        """
        path, content, _ = newest(folder, self.division, say)
        if content is None:
            return False
        if content["format"] < checkpoint.FORMAT:
            say(f"{path} was written by an earlier version: from here on flips and channels are drawn as today")
        checkpoint.restore(self.model, content, path)
        try:
            self.history = TrainingHistory.from_dict(content["course"], self.history.keep)
            self._resume_optimizer(content["optimizer"])
            self.scaler.load_state_dict(content["scaler"])
            self.position = Position(**content["position"])
            self._resume_average(content["ema"])
            if not self.position.at_start:
                self.totals.load(content["totals"])
                self.elapsed = content["elapsed"]
                self._set_generators(content["generators"][distributed.rank()])
            elif (before := Division(**content["division"])) != self.division:
                say(f"{path} was saved with {_changes(before, self.division)}")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a checkpoint to go on from ({type(error).__name__}: {error})") from None
        if path.name == NEXT:
            distributed.wait()  # until all have read it
            if distributed.is_main():
                _put_in_place(folder)
        if self.history.keep == "loss":
            self.keep_best(folder, say)
        return True

    def _content(self) -> dict:
        return {
            "name": self.name,
            "epoch": len(self.history.epochs),
            "model": self.model.state_dict(),
            "ema": self.ema and self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "course": self.history.as_dict(),
            "position": asdict(self.position),
            "totals": self.totals.as_dict(),
            "elapsed": self.elapsed,
            "generators": distributed.everyones(self._generators()),
            "division": asdict(self.division),
            "plan": self.plan,
            "run": self.run,
        }

    def _generators(self) -> dict:
        found = {"cpu": torch.get_rng_state()}
        if self.totals.loss.is_cuda:
            found["cuda"] = torch.cuda.get_rng_state()
        return found

    def _set_generators(self, states: dict) -> None:
        torch.set_rng_state(states["cpu"].cpu())
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"].cpu())

    def _resume_optimizer(self, content: dict) -> None:
        # Rates, decay and the like are the plan's, not the checkpoint's.
        own = [{key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(content)
        for group, options in zip(self.optimizer.param_groups, own, strict=True):
            group |= options

    def _resume_average(self, content: dict | None) -> None:
        if self.ema is None:
            return
        if content is None:  # the run had no average so far: the average begins with the weights
            self.ema.module.load_state_dict(self.model.state_dict())
        else:
            self.ema.load_state_dict(content)


def _put_in_place(folder: Path) -> None:
    """Make a written `next.pt` the last checkpoint; a kill in between leaves it to be found as it is."""
    if (folder / LAST).exists():
        _renamed(folder / LAST, folder / PREVIOUS)
    _renamed(folder / NEXT, folder / LAST)
    try:
        (folder / WITHIN).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{folder / WITHIN} cannot be removed: {error.strerror}") from error


def _renamed(path: Path, target: Path) -> None:
    """Rename a file. Raises StorageError where it cannot be."""
    try:
        rename(path, target)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}") from error


def _ends_of_epochs(folder: Path) -> list[tuple[int, tuple[Path, dict]]]:
    """Return the intact checkpoints of ends of epochs, newest first: epoch, path and content of each."""
    found = []
    for path in (folder / NEXT, folder / LAST, folder / PREVIOUS):
        with suppress(UserError, KeyError, TypeError):
            content = checkpoint.load(path)
            found.append((content["position"]["epoch"] - 1, (path, content)))
    return found


def _without_prefix(averaged: dict) -> dict:
    """Return the weights of a model from the state of its average."""
    prefix = "module."
    return {key.removeprefix(prefix): value for key, value in averaged.items() if key.startswith(prefix)}


def exists(folder: Path) -> bool:
    """Return whether `folder` has a checkpoint that a training can resume from."""
    return any((folder / name).exists() for name in (WITHIN, NEXT, LAST, PREVIOUS))


def start(folder: Path, division: Division) -> Start:
    """Return where `State.resume` lets a training of this division begin or go on.

    Raises:
        UserError: there are checkpoints, but all are damaged.
    """
    _, content, differs = newest(folder, division)
    if content is None:
        return Start(division, differs=differs)
    return Start(division, True, Position(**content["position"]), content.get("run") or {}, differs)


def batch_size(folder: Path) -> int | None:
    """Return the batch size of the training whose checkpoints are in `folder`; None without a checkpoint.

    Raises:
        UserError: all checkpoints are damaged.
    """
    content = newest(folder).content
    return content and content["division"]["batch_size"]


def epochs(folder: Path) -> int:
    """Return the number of whole epochs of the newest checkpoint in `folder`; raises as `batch_size`."""
    content = newest(folder).content
    return len(content["course"]["history"]) if content else 0


def course(folder: Path) -> tuple[str, list[EpochRow], dict] | None:
    """Return name, completed epochs and copy of the run of the network in `folder`; None without a checkpoint.

    The copy is what `trainer.fit` was given of the run; it is empty in checkpoints of earlier versions.
    """
    for content in _intact(folder):
        with suppress(KeyError, TypeError):
            return content["name"], TrainingHistory.from_dict(content["course"]).epochs, content.get("run") or {}
    return None


def run_of(folder: Path) -> dict:
    """Return what a checkpoint in `folder` tells of its run, see `trainer.fit`; empty where none does."""
    return next((content["run"] for content in _intact(folder) if content.get("run")), {})


def _intact(folder: Path) -> Iterator[dict]:
    """Yield the checkpoints that can be read, the newest first: that within an epoch goes with the epoch's end."""
    for name in (NEXT, WITHIN, LAST, PREVIOUS):
        with suppress(UserError):
            yield checkpoint.load(folder / name)


class Newest(NamedTuple):
    """A checkpoint to go on from, its content (None: there is none), and whether divisions differ, see `Start`."""

    path: Path
    content: dict | None
    differs: bool


def newest(folder: Path, division: Division | None = None, say: Callable[[str], None] = lambda message: None) -> Newest:
    """Return the newest intact checkpoint; within an epoch it must fit the division of the data, if one is given.

    Raises:
        UserError: there are checkpoints, but all are damaged.
    """
    faults, found, misfit = [], {}, None
    for name in (WITHIN, NEXT, LAST, PREVIOUS):
        if not (folder / name).exists() or (name == PREVIOUS and LAST in found):
            continue
        try:
            content = checkpoint.load(folder / name)  # in host memory, which has room for two checkpoints
            position, before = Position(**content["position"]), Division(**content["division"])
            if name != WITHIN or division in (None, before):
                found[name] = content
            else:
                changes = _changes(before, division)
                misfit = f"{folder / name} stands in the middle of epoch {position.epoch} and was saved with {changes}"
        except (KeyError, TypeError) as error:
            faults.append(f"{folder / name} is not a checkpoint to go on from ({type(error).__name__}: {error})")
        except UserError as error:
            faults.append(str(error))
    if not found:
        if faults:
            raise UserError(faults[0])
        if misfit:
            say(f"{misfit}: beginning again")
        return Newest(folder, None, misfit is not None)
    name = max(found, key=lambda name: tuple(found[name]["position"].values()))
    if misfit:
        say(f"{misfit}: going on from {_progress(found[name])}")
    for fault in faults:
        say(f"{fault}: going on from {name}, {_progress(found[name])}")
    differs = misfit is not None or division not in (None, Division(**found[name]["division"]))
    return Newest(folder / name, found[name], differs)


def check_end(folder: Path, epochs: int, patience: int, keep: str) -> None:
    """Raise UserError where no epoch would follow, see `TrainingHistory.is_over`, and the weights to keep are nowhere.

    Raises:
        UserError: also where there are checkpoints, but all are damaged.
    """
    if (content := newest(folder).content) is None:
        return
    history = TrainingHistory.from_dict(content["course"], keep)
    trained = len(history.epochs)
    if Position(**content["position"]).at_start or not history.is_over(epochs, patience):
        return
    there = {epoch for epoch, _ in _ends_of_epochs(folder)}
    for path in (folder / BEST, folder / NEXT_BEST):
        with suppress(UserError):
            there.add(checkpoint.load(path).get("epoch"))
    if not there & {trained, history.best and history.best.epoch}:
        stale = history.is_over(trained + 1, patience)
        raise UserError(
            f"{folder} stands within epoch {trained + 1}, and no file has the weights after epoch {trained}: give "
            f"--epochs {trained + 1} or more{' and --patience 0' * stale}"
        )


def _progress(content: dict) -> str:
    position = Position(**content["position"])
    return f"the end of epoch {position.epoch - 1}" if position.at_start else f"within epoch {position.epoch}"


def _changes(before: Division, now: Division) -> str:
    differ = [key for key, value in asdict(before).items() if value != getattr(now, key)]
    words = ((key.replace("_", " "), getattr(before, key), getattr(now, key)) for key in differ)
    return ", ".join(f"{key} {old} (now {new})" for key, old, new in words)
