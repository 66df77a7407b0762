"""Mean and max over channels, and the attention map made from them."""

from kernels.spatial_attention.api import channel_stats, spatial_attention

__all__ = ["channel_stats", "spatial_attention"]
