"""The ops as modules, each a drop-in for the layers it replaces.

Layers inside the modules (`conv`, `fc1`, `fc2`) are not called as long as they are plain: the op takes their
parameters. Layers with hooks, and replaced layers, are called between other ops; a graph of torch.fx always calls them,
as they may be replaced later.
"""

from polychrome.kernels.modules.cbam import CBAM
from polychrome.kernels.modules.dynamic import DynamicConv1d, DynamicConv2d
from polychrome.kernels.modules.experts import ExpertAttention, anneal_temperature
from polychrome.kernels.modules.gates import ECA, ChannelGate, ChannelStats, SpatialAttention, SpatialGate
from polychrome.kernels.modules.modulated import ModulatedConv2d
from polychrome.kernels.modules.omni_dimensional import ODConv2d, OmniDimensionalAttention
from polychrome.kernels.modules.per_sample import PerSampleConv1d, PerSampleConv2d

__all__ = [
    "CBAM",
    "ECA",
    "ChannelGate",
    "ChannelStats",
    "DynamicConv1d",
    "DynamicConv2d",
    "ExpertAttention",
    "ModulatedConv2d",
    "ODConv2d",
    "OmniDimensionalAttention",
    "PerSampleConv1d",
    "PerSampleConv2d",
    "SpatialAttention",
    "SpatialGate",
    "anneal_temperature",
]
