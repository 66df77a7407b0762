"""Fused operations for convolutions whose kernels differ per sample; needs neither a GPU nor Triton to import."""

from kernels import flops as _flops  # noqa: F401  (registers the FLOP formulas)
from kernels import namesake as _namesake
from kernels.augment import augment
from kernels.backend import use_backend
from kernels.channel_gate import channel_gate
from kernels.dynamic_conv import dynamic_conv2d, per_sample_conv2d
from kernels.explain import explain
from kernels.fuse import fuse
from kernels.spatial_attention import channel_stats, spatial_attention, spatial_gate

__all__ = [
    "augment",
    "channel_gate",
    "channel_stats",
    "dynamic_conv2d",
    "explain",
    "fuse",
    "per_sample_conv2d",
    "spatial_attention",
    "spatial_gate",
    "use_backend",
]

_namesake.admit(__path__)


def __getattr__(name: str):
    return _namesake.attribute(name)
