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
from engine.augmentation import Augmentations
from engine.batch import normalise
from engine.channels import Combinations, places, sources
from engine.data.loader import Batch, Loader
from engine.errors import NotFiniteError, UserError
from engine.evaluation import evaluate
from engine.hardware import autocast
from engine.transfer import head_of

MOMENTUM = 0.9  # of sgd


@dataclass(frozen=True)
class Plan:
    """How to train: at most `epochs`, stopping after `patience` epochs without a better validation loss (0: never).

    optimizer: "adam", or "sgd" with momentum 0.9; both add `weight_decay` times the weights to the gradients.
    schedule: "constant"; "plateau", a tenth of the rate when more than 3 epochs bring no better validation accuracy,
        from the start in each pass of augmentations one at a time; "cosine", falling to 0 over `epochs`.
    channel_sampling: see `engine.channels.sources`; "cycle" makes a pass over the data for each of `cycle` in an epoch.
    channels: name and positions of those the model is made for, where it is not given all.
    frozen: only the classifier's last layer is trained, the rest stays as it is, its statistics too.
    """

    epochs: int
    lr: float
    patience: int
    num_classes: int
    precision: str
    compile: bool
    device: torch.device
    seed: int
    optimizer: str = "adam"
    weight_decay: float = 0.0
    schedule: str = "constant"
    label_smoothing: float = 0.0
    channel_sampling: str = "off"
    cycle: tuple[tuple[int, ...], ...] = ()
    channels: tuple[str, tuple[int, ...]] | None = None
    augmentations: Augmentations = field(default_factory=Augmentations)
    frozen: bool = False

    @property
    def passes(self) -> int:
        """Passes over the training data in an epoch."""
        return len(self.cycle) if self.channel_sampling == "cycle" else 1

    def draw(self, epoch: int, turn: int) -> int:
        """Return the number that order, crops and augmentations of a pass are drawn by."""
        return (epoch - 1) * self.passes + turn + 1

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return a new optimiser of the model's parameters, of the head's alone where the rest is frozen."""
        parameters = (head_of(model)[1] if self.frozen else model).parameters()
        options = {"lr": self.lr, "weight_decay": self.weight_decay, "fused": True}
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, momentum=MOMENTUM, **options)
        return torch.optim.Adam(parameters, **options)

    def learning_rate(self, history: list[EpochRow]) -> float:
        """Return the rate of the epoch that follows `history`."""
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * min(len(history) / self.epochs, 1))) / 2
        if self.schedule == "constant":
            return self.lr
        # Replayed from the history: a resumed run has no other state to restore.
        replay = torch.optim.SGD([torch.zeros(1)], lr=self.lr)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(replay, mode="max", factor=0.1, patience=3)
        current = self.augmentations.pass_of(len(history) + 1)
        for row in history:
            if self.augmentations.pass_of(row.epoch) == current:
                scheduler.step(row.val_accuracy)
        return replay.param_groups[0]["lr"]


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
    optimizer = plan.make_optimizer(model)
    scaler = torch.amp.GradScaler(plan.device.type, enabled=plan.precision == "fp16")
    precision = autocast(plan.device, plan.precision)
    course = _resume(checkpoints / "last.pt", model, optimizer, scaler, plan.device)
    name_of_all, everything = plan.channels or (val.channels.full, tuple(range(len(val.channels))))
    validated: Combinations = {name_of_all: everything}
    if course.history:
        on_batch(len(course.history) * (plan.passes * train.samples + val.samples))
    for epoch in range(len(course.history) + 1, plan.epochs + 1):
        if plan.patience and course.waited >= plan.patience:
            break
        started = time.perf_counter()
        lr = plan.learning_rate(course.history)
        for group in optimizer.param_groups:
            group |= {"lr": lr, "weight_decay": plan.weight_decay}  # the plan's, not those of the checkpoint
        if hasattr(model, "start_epoch"):
            model.start_epoch(epoch)
        loss, accuracy = train_epoch(step_model, train, optimizer, scaler, plan, epoch, on_batch, on_step)
        course.speeds.append(plan.passes * train.samples / (time.perf_counter() - started))
        how = "subset" if plan.channels else None
        tested = evaluate(step_model, val, validated, plan.num_classes, precision, on_batch, how)
        scores = tested.scores[name_of_all]
        row = EpochRow(name, epoch, lr, loss, accuracy, scores.loss, scores.accuracy)
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
    _train_mode(model, plan)
    torch.manual_seed(_mix(plan.seed, epoch))
    generator = torch.Generator(plan.device).manual_seed(_mix(plan.seed, epoch))
    total_loss = torch.zeros((), device=plan.device)
    correct = torch.zeros((), dtype=torch.int64, device=plan.device)
    count = 0
    for turn in range(plan.passes):
        for batch in loader.epoch(epoch, draw=plan.draw(epoch, turn)):
            inputs = _inputs(model, batch, loader, plan, epoch, turn, generator)
            with autocast(plan.device, plan.precision):
                logits = model(*inputs)
            loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=plan.label_smoothing)
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


def _train_mode(model: nn.Module, plan: Plan) -> None:
    model.train(not plan.frozen)
    if plan.frozen:
        model.requires_grad_(False)
        head_of(model)[1].train().requires_grad_()


def _inputs(
    model: nn.Module, batch: Batch, loader: Loader, plan: Plan, epoch: int, turn: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Return the model's arguments: the images, augmented, and for any-channel models which channels are present."""
    images = batch.images
    count, channels, *size = images.shape
    parameters = {}
    if plan.augmentations.concern_batches(epoch):
        indices = torch.from_numpy(batch.indices).to(images.device, non_blocking=True)
        parameters = plan.augmentations.parameters(indices, tuple(size), plan.seed, epoch, plan.draw(epoch, turn))
    if "vflips" in parameters:
        images = torch.where(parameters.pop("vflips")[:, None, None, None], images.flip(2), images)
    if plan.channels:
        return (normalise(images, loader.channels, places(plan.channels[1], images.device), **parameters),)
    if plan.channel_sampling == "cycle":
        present = places(plan.cycle[turn], images.device)
        chosen = torch.full((channels,), -1, device=images.device).scatter(0, present, present).expand(count, -1)
    else:
        chosen = sources(plan.channel_sampling, count, channels, generator)
    images = normalise(images, loader.channels, chosen, **parameters)
    if chosen is not None and getattr(model, "any_channels", False):
        return images, chosen >= 0
    return (images,)


def _mix(seed: int, epoch: int) -> int:
    """Return a seed of its own for each pair of seed and epoch."""
    return (seed * 1_000_003 + epoch) % 2**63
