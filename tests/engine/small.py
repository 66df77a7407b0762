"""A plan and networks for trainings that take no time."""

from dataclasses import replace

import torch
from torch import nn

from polychrome.engine.training.plan import Plan

PLAN = Plan(
    epochs=3,
    lr=0.1,
    patience=0,
    num_classes=4,
    precision="fp32",
    compile=False,
    device=torch.device("cpu"),
    seed=0,
    save_every=0,
)
# On the noise of `loaders` the processor, by rounding, decides whether the second epoch of `PLAN` is the better one.
# Here the validation loss falls up to the third epoch, or rises, by far more than processors differ.
FALLING, RISING = replace(PLAN, lr=0.02), replace(PLAN, optimizer="sgd", lr=3.0)


class Net(nn.Sequential):
    """A small network with batch normalisation."""

    def __init__(self, width=6):
        torch.manual_seed(0)
        pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
        super().__init__(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), *pool)


class Recorder(nn.Module):
    """A tiny network that keeps what it is given in training."""

    any_channels = True

    def __init__(self, in_channels=3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, 4)
        self.seen, self.started = [], []

    def start_epoch(self, epoch):
        self.started.append(epoch)

    def forward(self, x, mask=None):
        if self.training or not self.head.training:
            self.seen.append((x.detach().clone(), mask))
        return self.head(self.stem(x).mean((2, 3)))
