"""Training: one model, one loop, best checkpoint by validation loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine import checkpoint
from engine.batch import normalise
from engine.channels import FULL, sample_masks
from engine.data.loader import Batch, Loader
from engine.errors import NotFiniteError, UserError
from engine.evaluation import evaluate
from engine.hardware import autocast


@dataclass(frozen=True)
class Plan:
    """How to train: at most `epochs`, Adam at `lr`, stopping after `patience` epochs without a better validation loss
    (0: never), on random channel subsets or not."""

    epochs: int
    lr: float
    patience: int
    sample_channels: bool
    num_classes: int
    precision: str
    compile: bool
    device: torch.device
    seed: int


@dataclass(frozen=True)
class EpochRow:
    """A row of `history.csv`. It has no times, so that equal runs write equal files."""

    model: str
    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float

    @classmethod
    def from_text(cls, row: dict[str, str]) -> EpochRow:
        """Return a row read from `history.csv`."""
        return cls(row["model"], int(row["epoch"]), **{item.name: float(row[item.name]) for item in fields(cls)[2:]})


@dataclass
class Fit:
    """The course of a training: a row and a speed (images a second of training) per epoch, and the seconds in all."""

    history: list[EpochRow] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def best(self) -> EpochRow:
        """The row of least validation loss, the earliest of equals."""
        return min(self.history, key=lambda row: row.val_loss)

    @property
    def waited(self) -> int:
        """Epochs since the best one."""
        return self.history[-1].epoch - self.best.epoch if self.history else 0

    @property
    def images_per_second(self) -> float:
        # The first epoch warms up caches, compilers and worker processes.
        return median(self.speeds[1:] or self.speeds)


def fit(
    name: str,
    model: nn.Module,
    train: Loader,
    val: Loader,
    plan: Plan,
    checkpoints: Path,
    on_batch: Callable[[int], None] = lambda images: None,
    on_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[Fit], None] = lambda course: None,
) -> Fit:
    """Train `model`, from `last.pt` in `checkpoints` where there is one; the model ends with the weights of `best.pt`.

    Order, crops, channel sampling and dropout follow from (seed, epoch), so a continued run equals an unbroken one.

    Args:
        on_batch: called after each training or validation batch with its number of images.
        on_step: called after each training step.
        on_epoch: called after each epoch with the course so far.

    Raises:
        NotFiniteError: a loss is NaN or infinite; the checkpoints of the epoch before are kept.
        UserError: `last.pt` is damaged or belongs to another model.
    """
    model.to(plan.device, memory_format=torch.channels_last)
    step_model = torch.compile(model) if plan.compile else model
    optimizer = torch.optim.Adam(model.parameters(), lr=plan.lr, fused=True)
    scaler = torch.amp.GradScaler(plan.device.type, enabled=plan.precision == "fp16")
    precision = autocast(plan.device, plan.precision)
    course = _resume(checkpoints / "last.pt", model, optimizer, scaler, plan.device)
    for group in optimizer.param_groups:
        group["lr"] = plan.lr  # the plan's, not the one the checkpoint was trained with
    if course.history:
        on_batch(len(course.history) * (train.samples + val.samples))
    for epoch in range(len(course.history) + 1, plan.epochs + 1):
        if plan.patience and course.waited >= plan.patience:
            break
        started = time.perf_counter()
        loss, accuracy = train_epoch(step_model, train, optimizer, scaler, plan, epoch, on_batch, on_step)
        course.speeds.append(train.samples / (time.perf_counter() - started))
        scores = evaluate(step_model, val, (FULL,), plan.num_classes, precision, on_batch).scores[FULL]
        row = EpochRow(name, epoch, plan.lr, loss, accuracy, scores.loss, scores.accuracy)
        if not math.isfinite(loss + scores.loss):
            raise NotFiniteError(
                f"{name}: epoch {epoch} ended with training loss {loss} and validation loss {scores.loss}; "
                "try a smaller --lr or --precision fp32"
            )
        course.history.append(row)
        course.seconds += time.perf_counter() - started
        _save(checkpoints, name, model, optimizer, scaler, course)
        on_epoch(course)
    best = checkpoints / "best.pt"
    checkpoint.restore(model, checkpoint.load(best, plan.device), best)
    return course


def _save(checkpoints: Path, name: str, model: nn.Module, optimizer, scaler, course: Fit) -> None:
    epoch = course.history[-1].epoch
    content = {"name": name, "epoch": epoch, "model": model.state_dict()}
    # The best goes first: a run that is killed in between repeats the epoch and writes the same file again.
    if course.best.epoch == epoch:
        checkpoint.save(checkpoints / "best.pt", content)
    state = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(), "course": asdict(course)}
    checkpoint.save(checkpoints / "last.pt", content | state)


def _resume(path: Path, model: nn.Module, optimizer, scaler, device: torch.device) -> Fit:
    """Return the course so far, with weights and optimiser restored; an empty one where there is no checkpoint."""
    if not path.exists():
        return Fit()
    content = checkpoint.load(path, device)
    checkpoint.restore(model, content, path)
    try:
        course = content["course"]
        optimizer.load_state_dict(content["optimizer"])
        scaler.load_state_dict(content["scaler"])
        return Fit([EpochRow(**row) for row in course["history"]], course["speeds"], course["seconds"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no checkpoint to go on from ({type(error).__name__}: {error})") from None


def train_epoch(
    model: nn.Module,
    loader: Loader,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    plan: Plan,
    epoch: int,
    on_batch: Callable[[int], None],
    on_step: Callable[[], None],
) -> tuple[float, float]:
    """Take one step per batch and return the epoch's mean loss and accuracy; the host waits only at its end."""
    model.train()
    torch.manual_seed(_mix(plan.seed, epoch))
    generator = torch.Generator(plan.device).manual_seed(_mix(plan.seed, epoch))
    total_loss = torch.zeros((), device=plan.device)
    correct = torch.zeros((), dtype=torch.int64, device=plan.device)
    count = 0
    for batch in loader.epoch(epoch):
        with autocast(plan.device, plan.precision):
            logits = _forward(model, batch, plan, generator)
        loss = F.cross_entropy(logits.float(), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            total_loss += loss.detach() * len(batch.labels)
            correct += (logits.argmax(1) == batch.labels).sum()
        count += len(batch.labels)
        on_batch(len(batch.labels))
        on_step()
    return total_loss.item() / count, correct.item() / count


def _forward(model: nn.Module, batch: Batch, plan: Plan, generator: torch.Generator) -> Tensor:
    if not plan.sample_channels:
        return model(normalise(batch.images))
    mask = sample_masks(*batch.images.shape[:2], generator)
    if getattr(model, "any_channels", False):
        return model(normalise(batch.images), mask)
    return model(normalise(batch.images, mask))


def _mix(seed: int, epoch: int) -> int:
    """Return a seed of its own for each pair of seed and epoch."""
    return (seed * 1_000_003 + epoch) % 2**63
