"""Batch normalisation over the images of all processes, on any device."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with statistics over all processes in training; torch's `SyncBatchNorm` knows only GPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x [batch, channels, height, width] standardised per channel."""
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        axes, values = (0, 2, 3), x.float()
        count = _Sum.apply(values.new_tensor(values[:, 0].numel()))
        mean = _Sum.apply(values.sum(axes)) / count
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum(axes)) / count
        if self.track_running_stats:
            self._follow(mean.detach(), (variance * count / (count - 1)).detach())
        y = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            y = y * self.weight[:, None, None] + self.bias[:, None, None]
        return y.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is summed too, as every process uses the sum."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model with batch normalisations that use the statistics of all processes.

    Parameters and buffers are kept. On CUDA this is torch's `SyncBatchNorm`.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return _converted(model, (nn.BatchNorm2d,), SyncBatchNorm2d)


def alone(model: nn.Module) -> nn.Module:
    """Return the model with batch normalisations over this process's images: it waits for no other process."""
    return _converted(model, (SyncBatchNorm2d, nn.SyncBatchNorm), nn.BatchNorm2d)


def _converted(model: nn.Module, kinds: tuple[type, ...], kind: type[nn.BatchNorm2d]) -> nn.Module:
    if type(model) in kinds:
        return _made(kind, model)
    for name, child in model.named_children():
        setattr(model, name, _converted(child, kinds, kind))
    return model


def _made(kind: type[nn.BatchNorm2d], layer: nn.BatchNorm2d | nn.SyncBatchNorm) -> nn.BatchNorm2d:
    options = {"affine": layer.affine, "track_running_stats": layer.track_running_stats}
    made = kind(layer.num_features, layer.eps, layer.momentum, **options)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(made, name, getattr(layer, name))
    return made.train(layer.training)
