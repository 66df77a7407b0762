"""Convolutions with a kernel per sample: given as such, or mixed per sample from shared experts."""

from polychrome.kernels.dynamic_conv.api import dynamic_conv2d, per_sample_conv2d
from polychrome.kernels.dynamic_conv.borders import pad_kernels
from polychrome.kernels.dynamic_conv.dimensions import (
    dynamic_conv1d,
    dynamic_conv3d,
    per_sample_conv1d,
    per_sample_conv3d,
)
from polychrome.kernels.dynamic_conv.transposed import dynamic_conv_transpose2d, per_sample_conv_transpose2d

__all__ = [
    "dynamic_conv1d",
    "dynamic_conv2d",
    "dynamic_conv3d",
    "dynamic_conv_transpose2d",
    "pad_kernels",
    "per_sample_conv1d",
    "per_sample_conv2d",
    "per_sample_conv3d",
    "per_sample_conv_transpose2d",
]
