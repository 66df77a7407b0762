"""Mean and max over channels, the attention map made from them, and x times a map."""

from polychrome.kernels.spatial_attention.api import channel_stats, spatial_attention, spatial_gate

__all__ = ["channel_stats", "spatial_attention", "spatial_gate"]
