"""Which convolutions torch computes correctly in a narrow dtype on this processor; the others run in float32."""

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


def _has_onednn(name: str) -> bool:
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)
    return supported is not None and supported()


FEW_CHANNELS, ENDLESS_KERNEL = 24, 15  # 24 channels, and kernels of 14, come to an end
_AMX = bfloat16_units() == "amx"
# The dtypes in which oneDNN has no convolutions here. Torch's own loops take 8 to 38 times as long as its float32, and
# sum the gradient of weights over the samples in the narrow dtype: in bfloat16 an error of 2% after 300 samples.
EMULATED = {dtype for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")) if not _has_onednn(name)}


def is_emulated(x: Tensor) -> bool:
    """Return whether torch convolves x by loops of its own, for want of instructions for its dtype."""
    return x.device.type == "cpu" and x.dtype in EMULATED


def is_trusted(x: Tensor, kernel: tuple[int, int], geometry: Geometry) -> bool:
    """Return whether torch's convolution of x [batch, channels, height, width] is right in x's dtype.

    With AMX units, torch 2.14 has wrong bfloat16 results, and memory read and written where it should not be, for some
    strides above 1 with an output one pixel wide, even kernel widths, padding beyond half a kernel, and dilation. None
    of 100,000 random calls that this function trusts was wrong. With AVX-512 its bfloat16 convolution of up to 16
    channels last, each with a kernel of its own of 15x15 or more, does not end.
    """
    if is_emulated(x):
        return False
    if x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return True
    stride, padding, dilation, groups = geometry
    if groups == x.shape[1] < FEW_CHANNELS and max(kernel) >= ENDLESS_KERNEL:
        return False
    if not _AMX:
        return True
    inside = all(max(padding[2 * axis : 2 * axis + 2]) <= kernel[axis] // 2 for axis in (0, 1))
    plain = tuple(dilation) == (1, 1) and max(stride) <= 2 and kernel[1] % 2 == 1
    _, width = geometry.output_size(x.shape[2:], kernel)
    return plain and inside and (stride[1] == 1 or width > 1)


def is_trusted_otherwise(x: Tensor) -> bool:
    """Return whether torch's other convolutions of x, transposed or of one or three dimensions, are right in its dtype.

    With AMX units none in bfloat16 is known to be.
    """
    if is_emulated(x):
        return False
    return x.dtype != torch.bfloat16 or x.device.type != "cpu" or not _AMX
