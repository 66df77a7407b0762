"""Dynamic convolution as products of matrices: each sample's patches, laid out as columns, with its mixed weights.

Columns and weights have the taps outside and the channels inside: the weights are mixed in this order, and with one tap
the columns are the image itself.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from polychrome.kernels.dynamic_conv.eager.mixing import add_products, at_tap, mixer
from polychrome.kernels.dynamic_conv.problem import Geometry
from polychrome.kernels.dynamic_conv.reference import mix
from polychrome.kernels.tensors import empty_as

SLICE_BYTES, BLOCK_BYTES, TAPS_BYTES = 16 << 20, 4 << 20, 4 << 20
SAMPLES = 32  # that share what a block of experts costs
CHANNELS = 32  # of a block at the least: what products of matrices like


def forward(x, experts, mixing, bias, geometry: Geometry) -> Tensor:
    """Return each sample convolved with its mix, laid out as x."""
    groups, whole = geometry.groups, tuple(slice(0, taps) for taps in experts.shape[3:])
    y = empty_as(x, geometry.output_shape(x, experts))
    by_pixel = y.unflatten(1, (groups, -1)).flatten(3).transpose(2, 3)  # [batch, groups, pixels, out/groups]
    biases = None if bias is None else mix(mixing, bias).unflatten(1, (groups, 1, -1))
    experts = experts.unflatten(1, (groups, -1))
    for samples in _slices(y, experts[0, 0, 0].numel(), groups):
        columns = _patches(_padded(x[samples], geometry), whole, y.shape[2:], geometry)
        for channels in _blocks(samples, experts):
            weights = mixer(experts[:, :, channels].flatten(1, 2), mixing[samples], channels_last=True)[:]
            rows = weights.permute(0, 1, 3, 4, 2).unflatten(1, (groups, -1)).flatten(3).flatten(0, 1).transpose(1, 2)
            if bias is None:
                product = columns @ rows
            else:
                product = biases[samples, ..., channels].flatten(0, 1).baddbmm(columns, rows)
            by_pixel[samples, ..., channels] = product.unflatten(0, (-1, groups))
    return y


def expert_gradient(grad, x, experts, mixing, dmixing, for_experts, geometry: Geometry) -> Tensor | None:
    """Return the gradient of experts, if needed, and add to dmixing, if not None, a few taps at a time."""
    groups, kernel = geometry.groups, experts.shape[3:]
    by_channel = grad.unflatten(1, (groups, -1)).flatten(3).flatten(0, 1)  # [batch * groups, out/groups, pixels]
    padded = _padded(x, geometry)
    experts = experts.permute(0, 1, 3, 4, 2).contiguous()
    dexperts = torch.empty_like(experts) if for_experts else None
    for row in range(kernel[0]):
        for places in _places(kernel[1], len(x) * experts[0, :, 0, 0].numel() * x.element_size()):
            patches = _patches(padded, (slice(row, row + 1), places), grad.shape[2:], geometry)
            product = by_channel @ patches
            product = product.view(len(x), experts.shape[1], -1, experts.shape[4])
            for tap, some in _of_one_mix(mixing, kernel, row, places):
                rows = experts[:, :, row, some].flatten(1)
                found = torch.empty_like(rows) if for_experts else None
                gradient = product[:, :, some.start - places.start : some.stop - places.start].flatten(1)
                add_products(gradient, rows, at_tap(mixing, tap), at_tap(dmixing, tap), found)
                if for_experts:
                    dexperts[:, :, row, some] = found.view_as(dexperts[:, :, row, some])
    return dexperts.permute(0, 1, 4, 2, 3) if for_experts else None


def _places(width: int, tap_bytes: int) -> list[slice]:
    """Return slices of a kernel's columns whose gradients of all samples stay in cache."""
    step = max(1, TAPS_BYTES // tap_bytes)
    return [slice(start, min(start + step, width)) for start in range(0, width, step)]


def _of_one_mix(mixing: Tensor, kernel, row: int, places: slice) -> list[tuple[int, slice]]:
    """Return (tap, places) of the parts of `places` in a kernel's row that have one mix."""
    if mixing.dim() == 2:
        return [(0, places)]
    return [(row * kernel[1] + place, slice(place, place + 1)) for place in range(places.start, places.stop)]


def _padded(x: Tensor, geometry: Geometry) -> Tensor:
    """Return x with its borders as [batch, height, width, groups, in_channels/groups]."""
    top, bottom, left, right = geometry.padding
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, left, right, top, bottom)).unflatten(3, (geometry.groups, -1))


def _patches(padded: Tensor, taps: tuple[slice, slice], size, geometry: Geometry) -> Tensor:
    """Return the patches under some rows and columns of taps, [batch * groups, pixels, taps * in_channels/groups]."""
    stride, _, dilation, groups = geometry
    by_sample, by_row, by_column, by_group, by_channel = padded.stride()
    steps = by_row * stride[0], by_column * stride[1], by_row * dilation[0], by_column * dilation[1]
    counts = [some.stop - some.start for some in taps]
    offset = padded.storage_offset() + sum(some.start * step for some, step in zip(taps, steps[2:], strict=True))
    strided = padded.as_strided(
        (len(padded), groups, *size, *counts, padded.shape[4]), (by_sample, by_group, *steps, by_channel), offset
    )
    return strided.reshape(len(padded) * groups, size[0] * size[1], -1)


def _slices(y: Tensor, patch: int, groups: int) -> list[slice]:
    """Return slices of the batch whose columns, `patch` elements for each output pixel and group, fill a slice."""
    elements = SLICE_BYTES // y.element_size()
    size = min(SAMPLES, max(1, elements // (groups * patch * y.shape[2] * y.shape[3])))
    return [slice(start, min(start + size, len(y))) for start in range(0, len(y), size)]


def _blocks(samples: slice, experts: Tensor) -> list[slice]:
    """Return slices of a group's output channels whose mixed weights stay in cache; experts is [n, groups, out, ..]."""
    _, groups, channels = experts.shape[:3]
    each = (samples.stop - samples.start) * groups * experts[0, 0, 0].numel()
    size = max(1, BLOCK_BYTES // (each * experts.element_size()) // CHANNELS) * CHANNELS
    return [slice(start, min(start + size, channels)) for start in range(0, channels, size)]
