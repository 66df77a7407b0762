"""How a model is trained: everything that a run decides before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace

import torch
from torch import nn

from polychrome.engine.data.augmentation import Augmentations
from polychrome.engine.history import EpochRow
from polychrome.engine.training import optimizers, schedules
from polychrome.engine.training.hyperparameters import Hyperparameters
from polychrome.engine.training.transfer import head_of
from polychrome.kernels.augment import Recipe

# The ways of channel sampling by what they draw of each image; the last two are of whole batches.
SAMPLINGS = {"off": "all", "on": "subset", "shuffle": "shuffle", "drop": "all", "cycle": "all"}


@dataclass(frozen=True, kw_only=True)
class Plan(Hyperparameters):
    """How one network is trained: the hyperparameters, all of them decided, and what follows from data and machine.

    schedule: one of `engine.training.schedules.NAMES`, or "plateau", which begins anew in each pass of augmentations
        that come one at a time.
    ema: with a moving average, its weights are those that are validated and kept as best.
    channel_sampling: "off", all channels in their order; "on", of each image how many channels are present, then which,
        drawn uniformly (hierarchical channel sampling, ChannelViT, arXiv 2309.16108); "shuffle", the same, the present
        ones first and in random order (report B); "drop", see `engine.channels.masks.dropped`; "cycle", a pass over the
        data for each combination of `cycle` in an epoch (report C).
    channels: name and positions of the only ones that the model is shown, where these are not all: it is made for
        them, or, with `padded`, for all of them and sees zeros in place of the others.
    frozen: only the classifier's last layer is trained, the rest stays as it is, its statistics too.

    Raises:
        ValueError: a hyperparameter is not decided, or there is no such way of channel sampling.
    """

    num_classes: int
    device: torch.device
    optimizer: str = "adam"
    channel_sampling: str = "off"
    compile_mode: str = "default"
    cycle: tuple[tuple[int, ...], ...] = ()
    channels: tuple[str, tuple[int, ...]] | None = None
    padded: bool = False
    augmentations: Augmentations = field(default_factory=Augmentations)
    frozen: bool = False

    def __post_init__(self):
        if open_ := [item.name for item in fields(Hyperparameters) if getattr(self, item.name) is None]:
            raise ValueError(f"a plan needs {', '.join(open_)}")
        if self.channel_sampling not in SAMPLINGS:
            raise ValueError(f"channel_sampling must be one of {', '.join(SAMPLINGS)}, got {self.channel_sampling!r}")

    @property
    def passes(self) -> int:
        """Passes over the training data in an epoch."""
        return len(self.cycle) if self.channel_sampling == "cycle" else 1

    @property
    def consistent(self) -> bool:
        """Whether a batch holds each training image twice, with some of its channels and with all of them.

        The consistency loss then pulls the model's answers on some channels towards its answers on all. It needs
        channel subsets in the data's order: with sampling "off", "shuffle" or fixed channels it is not used.
        """
        return self.consistency > 0 and self.channel_sampling in ("on", "drop", "cycle") and self.channels is None

    @property
    def protocol(self) -> str | None:
        """How the model is shown `channels`, "subset" or "zero-pad"; None where it is shown all."""
        return None if self.channels is None else "zero-pad" if self.padded else "subset"

    def inputs(self, channels: int) -> int:
        """Return how many channels the model's input has, of data with so many."""
        return channels if self.protocol in (None, "zero-pad") else len(self.channels[1])

    def draw(self, epoch: int, turn: int) -> int:
        """Return the number that a pass's order and its images' augmentations and channels are drawn by."""
        return (epoch - 1) * self.passes + turn + 1

    def recipe(self, epoch: int) -> Recipe:
        """Return what is drawn of each image in an epoch."""
        channels = "all" if self.channels else SAMPLINGS[self.channel_sampling]
        return replace(self.augmentations.recipe(epoch), channels=channels, channel_bias=self.subset_bias)

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return a new optimiser of the model's parameters, of the head's alone where the rest is frozen."""
        only = head_of(model)[1].parameters() if self.frozen else None
        return optimizers.create(self.optimizer, model, self.lr, self.weight_decay, only)

    def rates(self, history: Sequence[EpochRow]) -> Callable[[float], float]:
        """Return the rates of the epoch that follows `history`, as a function of the share of it that is over.

        They follow from the history alone: a training that goes on has no other state to restore.
        """
        name, base = self.schedule, self.lr
        if name == "plateau":
            current = self.augmentations.pass_of(len(history) + 1)
            seen = [row.val_accuracy for row in history if self.augmentations.pass_of(row.epoch) == current]
            name, base = "constant", schedules.plateau(seen, self.lr)
        return lambda done: base * schedules.factor(name, len(history) + done, self.epochs, self.warmup)

    def described(self) -> dict:
        """Return the plan as plain values, as a checkpoint keeps it."""
        return asdict(self) | {"device": str(self.device)}
