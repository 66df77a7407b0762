"""Convolutions with a kernel per sample: given as such, or mixed per sample from shared experts."""

from polychrome.kernels.dynamic_conv.api import dynamic_conv2d, per_sample_conv2d
from polychrome.kernels.dynamic_conv.transposed import dynamic_conv_transpose2d, per_sample_conv_transpose2d

__all__ = ["dynamic_conv2d", "dynamic_conv_transpose2d", "per_sample_conv2d", "per_sample_conv_transpose2d"]
