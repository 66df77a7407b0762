"""Convolutions whose kernels differ from sample to sample, and models and training for images of any channels.

This package has the ops, `polychrome.dynamic_conv2d` and the other names of `__all__`, and `load`, which returns a
trained network of a run ready for use. `polychrome.kernels` has the ops and layers, `polychrome.models` networks by
name, `polychrome.engine` data, training loop and reports, `polychrome.train` the command line. Everything is imported
on first use.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polychrome import engine as engine
    from polychrome import kernels as kernels
    from polychrome import models as models
    from polychrome import train as train

    # From the defining modules: in a package, a type checker takes a name for the submodule of the same name.
    from polychrome.kernels.augment.api import augment
    from polychrome.kernels.backend import use_backend
    from polychrome.kernels.channel_gate.api import channel_gate
    from polychrome.kernels.dynamic_conv.api import dynamic_conv2d, per_sample_conv2d
    from polychrome.kernels.dynamic_conv.borders import pad_kernels
    from polychrome.kernels.dynamic_conv.dimensions import (
        dynamic_conv1d,
        dynamic_conv3d,
        per_sample_conv1d,
        per_sample_conv3d,
    )
    from polychrome.kernels.dynamic_conv.transposed import dynamic_conv_transpose2d, per_sample_conv_transpose2d
    from polychrome.kernels.explain import explain
    from polychrome.kernels.fold import fold_batch_norm
    from polychrome.kernels.fuse.api import fuse
    from polychrome.kernels.modulated import modulated_conv2d
    from polychrome.kernels.spatial_attention.api import channel_stats, spatial_attention, spatial_gate
    from polychrome.train.trained import TrainedModel

__version__ = "0.2.0"
__all__ = [
    "augment",
    "channel_gate",
    "channel_stats",
    "dynamic_conv1d",
    "dynamic_conv2d",
    "dynamic_conv3d",
    "dynamic_conv_transpose2d",
    "explain",
    "fold_batch_norm",
    "fuse",
    "load",
    "modulated_conv2d",
    "pad_kernels",
    "per_sample_conv1d",
    "per_sample_conv2d",
    "per_sample_conv3d",
    "per_sample_conv_transpose2d",
    "spatial_attention",
    "spatial_gate",
    "use_backend",
]

_folder = Path(__file__).resolve().parent
if not (_folder / "kernels").is_dir():  # in a clone the subpackages lie beside this folder, not in it
    __path__.append(str(_folder.parent))


def load(
    source: "str | Path",
    model: "str | None" = None,
    channels: "str | None" = None,
    device: str = "auto",
    workers: int = 1,
) -> "TrainedModel":
    """Return a trained network with everything that its images need: `predict` classifies files and arrays.

    See `polychrome.train.trained.load`, and docs/use.md.

    Args:
        source: the folder of a run, a `best.pt`, wherever it lies, or the name of a network that comes with the
            package, such as "prism4_small-shapes". A file or folder of this name in the working directory wins.
        model: which of the run's models, by name; by default the most accurate one on the validation images.
        channels: the combination of channels that images have, such as "RG" or "red+nir"; by default all.
        device: "auto" (a GPU where there is one), "cpu", "cuda" or, of several GPUs, such as "cuda:1".
        workers: how many processes decode files, where a call has more than 64. More than one need the calls of a
            script to stand below `if __name__ == "__main__":`.

    Raises:
        polychrome.engine.errors.UserError: there is no such run, checkpoint, pretrained network, model, channel or
            device, or a file is damaged or the state of a training.
        ModuleNotFoundError: a package of training is not installed.
    """
    try:
        trained = import_module("polychrome.train.trained")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "polychrome"):
            raise
        message = f"polychrome.load needs {package}: pip install 'polychrome[train]'"
        raise ModuleNotFoundError(message, name=package) from error
    return trained.load(source, model, channels, device, workers)


if not TYPE_CHECKING:  # else a type checker would accept any name

    def __getattr__(name: str):
        if name in __all__:
            return getattr(import_module("polychrome.kernels"), name)
        if name in ("kernels", "models", "engine", "train"):
            return import_module(f"polychrome.{name}")
        raise AttributeError(f"module 'polychrome' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "kernels", "models", "engine", "train"})
