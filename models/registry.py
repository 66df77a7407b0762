"""Name -> constructor. A new model is a line here."""

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# name -> "module:constructor", called as constructor(num_classes=..., in_channels=..., **options)
MODELS = {
    "attention_cnn": "models.attention_cnn:AttentionCNN",
    "baseline_cnn": "models.shallow_cnn:BaselineCNN",
    "dynamic_cnn_v1": "models.dynamic_cnn:DynamicCNNv1",
    "dynamic_cnn_v2": "models.dynamic_cnn:DynamicCNNv2",
    "pool_attention_cnn": "models.pool_attention_cnn:PoolAttentionCNN",
    "resnet34": "models.resnet:resnet34",
    "se_2layer_cnn": "models.shallow_cnn:SE2LayerCNN",
    "simple_2layer_cnn": "models.shallow_cnn:Simple2LayerCNN",
    "simple_4layer_cnn": "models.shallow_cnn:Simple4LayerCNN",
    "simple_cnn": "models.simple_cnn:SimpleCNN",
}


class UnknownModelError(ValueError):
    """No model has this name; the message, one line, lists the names and the closest one."""


def names() -> list[str]:
    """Return the names `create` takes, sorted."""
    return sorted(MODELS)


def create(name: str, num_classes: int = 50, in_channels: int = 3, **options) -> "nn.Module":
    """Return a new network with its own initialisation, in training mode, in float32 on the CPU.

    It maps [batch, in_channels, height, width] to logits [batch, num_classes]. `model.any_channels` says whether it
    takes any number of channels; its forward then also takes `mask`, [batch, channels] bool, of those present.
    `options` go to the model's constructor.

    Raises:
        UnknownModelError: no model is called `name`.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(str(name), MODELS, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UnknownModelError(f"no model is called {name!r}, the models are {', '.join(names())}{hint}")
    module, constructor = MODELS[name].split(":")
    return getattr(import_module(module), constructor)(num_classes=num_classes, in_channels=in_channels, **options)
