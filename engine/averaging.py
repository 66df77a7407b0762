"""The moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of `model` whose weights and statistics follow it: after each step, decay x own + rest x model's.

    The first steps count more: after n of them the decay is at most (1 + n) / (10 + n), as in TensorFlow's
    ExponentialMovingAverage, or the first weights would linger in short trainings.
    """

    def update(own: Sequence[Tensor], new: Sequence[Tensor], steps: Tensor) -> None:
        count = int(steps)  # kept on the host
        get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(own, new, steps)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
