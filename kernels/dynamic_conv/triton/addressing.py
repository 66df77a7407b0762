"""What the kernels of a convolution share: its geometry as constants, and the taps of a phase."""

from math import gcd

import triton
import triton.language as tl

from polychrome.kernels.dynamic_conv.problem import Geometry


def constants(kernel: tuple[int, int], geometry: Geometry) -> dict[str, int]:
    """Return the kernel's size and the geometry by the names the kernels give them."""
    stride, padding, dilation, _ = geometry
    by_name = {"KERNEL": kernel, "STRIDE": stride, "PADDING": padding[::2], "DILATION": dilation}
    return {f"{name}_{axis}": pair[i] for name, pair in by_name.items() for i, axis in enumerate("HW")}


def walk(geometry: Geometry, transposed: bool) -> dict[str, int]:
    """Return how a kernel goes over the taps: from one to the next it meets (STEP), and over pixels with it (MOVE).

    The gradient of x meets every tap that reaches its phase, and moves back over y's pixels.
    """
    found = {}
    for axis, s, d in zip("HW", geometry.stride, geometry.dilation, strict=True):
        found[f"STEP_{axis}"] = s // gcd(s, d) if transposed else 1
        found[f"MOVE_{axis}"] = -(d // gcd(s, d)) if transposed else d
    return found


@triton.jit
def first_tap(
    phase,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    STEP: tl.constexpr,
):
    """Return the first tap that reaches input pixels of this phase, how many do, and the output pixel it meets."""
    first = tl.full((), KERNEL, tl.int32)
    for tap in tl.static_range(STEP):
        first = tl.where((phase + PADDING - tap * DILATION) % STRIDE == 0, tap, first)
    taps = tl.maximum(KERNEL - first + STEP - 1, 0) // STEP
    return first, taps, (phase + PADDING - first * DILATION) // STRIDE


@triton.jit
def lies_in(h, w, height, width):
    """Return whether pixels (h, w) lie in an image: below it is above it where the sign is taken for a digit."""
    return (h.to(tl.uint32) < tl.cast(height, tl.uint32)) & (w.to(tl.uint32) < tl.cast(width, tl.uint32))
