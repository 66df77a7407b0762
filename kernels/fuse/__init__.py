"""Faster models written elsewhere: modules that compute the same as an op are made to call it."""

from polychrome.kernels.fuse.api import fuse
from polychrome.kernels.fuse.report import Left, Report, Swap

__all__ = ["Left", "Report", "Swap", "fuse"]
