"""Convolutions with a kernel per sample: given as such, or mixed per sample from shared experts."""

from polychrome.kernels.dynamic_conv.api import dynamic_conv2d, per_sample_conv2d

__all__ = ["dynamic_conv2d", "per_sample_conv2d"]
