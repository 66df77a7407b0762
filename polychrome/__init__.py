"""Convolutions whose kernels differ from sample to sample, and models and training for images of any channels.

The ops are here: `polychrome.dynamic_conv2d` and the others of `__all__`. `polychrome.kernels` has them too, and
layers; `polychrome.models` networks by name, `polychrome.engine` data, training loop and reports, `polychrome.train`
the command line. Nothing is imported before it is asked for.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polychrome.kernels import (
        augment,
        channel_gate,
        channel_stats,
        dynamic_conv2d,
        explain,
        fold_batch_norm,
        fuse,
        per_sample_conv2d,
        spatial_attention,
        spatial_gate,
        use_backend,
    )

__version__ = "0.1.0"
__all__ = [
    "augment",
    "channel_gate",
    "channel_stats",
    "dynamic_conv2d",
    "explain",
    "fold_batch_norm",
    "fuse",
    "per_sample_conv2d",
    "spatial_attention",
    "spatial_gate",
    "use_backend",
]

_folder = Path(__file__).resolve().parent
if not (_folder / "kernels").is_dir():  # in a clone the subpackages lie beside this folder, not in it
    __path__.append(str(_folder.parent))


def __getattr__(name: str):
    if name in __all__:
        return getattr(import_module("polychrome.kernels"), name)
    if name in ("kernels", "models", "engine", "train"):
        return import_module(f"polychrome.{name}")
    raise AttributeError(f"module 'polychrome' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "kernels", "models", "engine", "train"})
