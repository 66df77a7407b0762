"""The models by name. A new model is a line here."""

import difflib
import inspect
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# name -> "module:constructor", the module in this package, called as constructor(num_classes=..., in_channels=...,
# **options), and with image_size=... where it has such a parameter
MODELS = {
    "adaptive_channel_cnn": "adaptive_channel_cnn:AdaptiveChannelCNN",
    "attention_cnn": "attention_cnn:AttentionCNN",
    "attention_separable_cnn": "attention_separable_cnn:AttentionSeparableCNN",
    "base_net": "base_net:BaseNet",
    "baseline_cnn": "shallow_cnn:BaselineCNN",
    "dwg_densenet121": "dwg_densenet:DWGDenseNet121",
    "dynamic_cnn_v1": "dynamic_cnn:DynamicCNNv1",
    "dynamic_cnn_v2": "dynamic_cnn:DynamicCNNv2",
    "googlenet": "googlenet:googlenet",
    "naive_cnn": "naive_cnn:NaiveCNN",
    "pool_attention_cnn": "pool_attention_cnn:PoolAttentionCNN",
    "prism4": "prism:Prism",
    "prism4_small": "prism:prism4_small",
    "resnet18": "resnet:resnet18",
    "resnet34": "resnet:resnet34",
    "resnet50": "resnet:resnet50",
    "resnetv2": "resnetv2:resnetv2",
    "rrdb": "rrdb:RRDB",
    "rrdb_rnn": "rrdb:RRDBRNN",
    "se_2layer_cnn": "shallow_cnn:SE2LayerCNN",
    "simple_2layer_cnn": "shallow_cnn:Simple2LayerCNN",
    "simple_4layer_cnn": "shallow_cnn:Simple4LayerCNN",
    "simple_cnn": "simple_cnn:SimpleCNN",
    "vgg19": "vgg:vgg19",
    "vgg_resnet_concat": "vgg_resnet:VGGResNetConcat",
    "vgg_resnet_sum": "vgg_resnet:VGGResNetSum",
    "vgg_slim": "vgg:VGGSlim",
}


class UnknownModelError(ValueError):
    """No model has this name; the message, one line, lists the names and the closest one."""


def names() -> list[str]:
    """Return the names `create` takes, sorted."""
    return sorted(MODELS)


def create(
    name: str,
    num_classes: int = 50,
    in_channels: int = 3,
    image_size: int | None = None,
    *,
    any_channels: bool | str = False,
    **options,
) -> "nn.Module":
    """Return a new network with its own initialisation, in training mode, in float32 on the CPU.

    It maps [batch, in_channels, height, width] to logits [batch, num_classes]. `model.any_channels` says whether it
    takes any number of channels; its forward then also takes `mask`, [batch, channels] bool, true for present channels.
    `image_size`, the height and width of the images in pixels, matters only to models made for one size; other models
    ignore it, and raise when images that are too small reach them. None means the model's default. With `any_channels`
    a model for a fixed number of channels is made to take any of them (`polychrome.models.AnyChannels`): an absent one
    is the "nearest", as with True, or "estimated". `options` go to the model's constructor.

    Raises:
        UnknownModelError: no model is called `name`.
        ValueError: the model is made for one size, and `image_size` is too small for it, or an option is out of range;
            `any_channels` is no way to fill in channels, or the nearest of a model that takes any channels already.
        TypeError: the constructor has no such option, or a value of an option is of a wrong type.
        KeyError: `weights`, in torchvision's models, has no such name.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(str(name), MODELS, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UnknownModelError(f"no model is called {name!r}, the models are {', '.join(names())}{hint}")
    module, attribute = MODELS[name].split(":")
    constructor = getattr(import_module(f"polychrome.models.{module}"), attribute)
    if image_size is not None and "image_size" in inspect.signature(constructor).parameters:
        options["image_size"] = image_size
    model = constructor(num_classes=num_classes, in_channels=in_channels, **options)
    if not any_channels:
        return model
    from polychrome.models.any_channels import NEAREST, AnyChannels

    return AnyChannels(model, in_channels, NEAREST if any_channels is True else any_channels)
