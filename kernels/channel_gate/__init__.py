"""Squeeze-excitation: a gate per channel, made from the channel means."""

from polychrome.kernels.channel_gate.api import channel_gate

__all__ = ["channel_gate"]
