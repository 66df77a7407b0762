"""The plan of a training: everything that is decided before the first step."""

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

# What each kind of channel sampling draws for each image; "drop" and "cycle" choose channels for whole batches.
SAMPLINGS = {"off": "all", "on": "subset", "shuffle": "shuffle", "drop": "all", "cycle": "all"}


@dataclass(frozen=True, kw_only=True)
class Plan(Hyperparameters):
    """The settings of one network's training: all hyperparameters, and values that depend on the data and the machine.

    schedule: one of `engine.training.schedules.NAMES`, or "plateau", which starts again with each augmentation where
        augmentations are used one at a time.
    ema: if not 0, the averaged weights are validated and saved as the best weights.
    channel_sampling: "off", all channels in their order; "on", for each image a number of channels, then which
        channels, both drawn uniformly (hierarchical channel sampling, ChannelViT, arXiv 2309.16108); "shuffle", the
        same with the present channels first, in random order (report B); "drop", see `engine.channels.masks.dropped`;
        "cycle", in each epoch a pass over the data for each combination in `cycle` (report C).
    channels: name and indices of the channels that the model is shown; None: all. The model is built for these
        channels alone, or, with `padded`, for all channels, and the other channels are zero.
    frozen: only the last layer of the classifier is trained; other weights and batch statistics stay fixed.
    class_counts: the training images of each class, where `class_weights` is "balanced".

    Raises:
        ValueError: a hyperparameter is None, the kind of channel sampling is unknown, or class counts are missing.
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
    class_counts: tuple[int, ...] = ()

    def __post_init__(self):
        if open_ := [item.name for item in fields(Hyperparameters) if getattr(self, item.name) is None]:
            raise ValueError(f"a plan needs {', '.join(open_)}")
        if self.channel_sampling not in SAMPLINGS:
            raise ValueError(f"channel_sampling must be one of {', '.join(SAMPLINGS)}, got {self.channel_sampling!r}")
        if self.class_weights == "balanced" and len(self.class_counts) != self.num_classes:
            raise ValueError(f"a plan with class weights needs {self.num_classes} counts, got {self.class_counts}")

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The weight of an image of each class in the loss, of mean 1 over the training images; None: 1 for each."""
        if self.class_weights == "none":
            return None
        share = sum(self.class_counts) / sum(count > 0 for count in self.class_counts)
        return tuple(share / count if count else 0.0 for count in self.class_counts)

    @property
    def passes(self) -> int:
        """The number of passes over the training data in an epoch."""
        return len(self.cycle) if self.channel_sampling == "cycle" else 1

    @property
    def consistent(self) -> bool:
        """Whether the consistency loss is used: a batch then holds each image with some channels and with all channels.

        The loss pulls the logits on some channels towards the logits on all channels. It needs channel subsets in the
        order of the data: with sampling "off" or "shuffle" or with fixed channels the loss is not used.
        """
        return self.consistency > 0 and self.channel_sampling in ("on", "drop", "cycle") and self.channels is None

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return bool(self.mixup or self.cutmix)

    @property
    def protocol(self) -> str | None:
        """The protocol by which the model is shown `channels`, "subset" or "zero-pad"; None for all channels."""
        return None if self.channels is None else "zero-pad" if self.padded else "subset"

    def inputs(self, channels: int) -> int:
        """Return the number of input channels of the model for data with `channels` channels."""
        return channels if self.protocol in (None, "zero-pad") else len(self.channels[1])

    def set_training(self, model: nn.Module) -> None:
        """Put a model into training; of a frozen model the head alone, which alone gets gradients then."""
        model.train(not self.frozen)
        if self.frozen:
            model.requires_grad_(False)
            head_of(model)[1].train().requires_grad_()

    def draw(self, epoch: int, turn: int) -> int:
        """Return the number of a pass over the data, which seeds its order, augmentations and channels."""
        return (epoch - 1) * self.passes + turn + 1

    def recipe(self, epoch: int) -> Recipe:
        """Return the augmentations and the channel sampling of each image in an epoch."""
        channels = "all" if self.channels else SAMPLINGS[self.channel_sampling]
        subsets = {"channels": channels, "channel_bias": self.subset_bias, "channel_runs": self.subset_runs}
        return replace(self.augmentations.recipe(epoch), **subsets, cutout=self.cutout, gain=self.gain)

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return a new optimiser of the model's parameters, or of the last layer alone if the others are frozen."""
        only = head_of(model)[1].parameters() if self.frozen else None
        products = torch.bfloat16 if self.precision == "bf16" else torch.float32
        return optimizers.create(self.optimizer, model, self.lr, self.weight_decay, only, products)

    def rates(self, history: Sequence[EpochRow]) -> Callable[[float], float]:
        """Return the learning rate in the epoch after `history`, as a function of the completed share of the epoch.

        The rate depends on the history alone, so a resumed training has no other state to restore.
        """
        name, base = self.schedule, self.lr
        if name == "plateau":
            current = self.augmentations.pass_of(len(history) + 1)
            seen = [row.val_accuracy for row in history if self.augmentations.pass_of(row.epoch) == current]
            name, base = "constant", schedules.plateau(seen, self.lr)
        return lambda done: base * schedules.factor(name, len(history) + done, self.epochs, self.warmup)

    def described(self) -> dict:
        """Return the plan as plain values for a checkpoint."""
        return asdict(self) | {"device": str(self.device)}
