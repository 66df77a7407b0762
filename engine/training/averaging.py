"""The moving average of a model's weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class MovingAverage(AveragedModel):
    """A copy of `model` that averages its weights and statistics: decay x own + (1 - decay) x model's in each step.

    Buffers that a module names in `SCHEDULED`, such as a temperature, are set by a schedule: they are copied.

    The first steps count more: after n steps the decay is at most (1 + n) / (10 + n), as in TensorFlow's
    ExponentialMovingAverage, or the first weights would linger in short trainings. The count of steps stays on the
    host, where torch's own class copies it to the device and back.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay
        scheduled = set(map(id, _scheduled(self.module)))
        # Of whole numbers, such as a table of indices, there is no mean.
        self.copied = [id(value) in scheduled or not value.is_floating_point() for value in _values(self.module)]

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Follow `model`, on the device of this average, by one step."""
        groups: dict[torch.dtype, tuple[list, list]] = {}
        for own, new, copied in zip(_values(self.module), _values(model), self.copied, strict=True):
            if copied:
                own.copy_(new)
                continue
            owns, news = groups.setdefault(own.dtype, ([], []))
            owns.append(own.detach())
            news.append(new.detach())
        count = int(self.n_averaged)
        for owns, news in groups.values():
            if count:
                get_ema_multi_avg_fn(min(self.decay, (1 + count) / (10 + count)))(owns, news, None)
            else:
                torch._foreach_copy_(owns, news)
        self.n_averaged += 1


def _scheduled(model: nn.Module) -> list[torch.Tensor]:
    return [getattr(module, name) for module in model.modules() for name in getattr(module, "SCHEDULED", ())]


def _values(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
