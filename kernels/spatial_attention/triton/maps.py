"""The gradients of the two maps and of the weight from the logits' gradient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polychrome.kernels.launch import cdiv, launch, next_power_of_2
from polychrome.kernels.spatial_attention.configs import (
    KERNEL_ROWS,
    PROGRAMS,
    SAMPLE_ELEMENTS,
    SampleTile,
    Strip,
    strip_tile,
)
from polychrome.kernels.spatial_attention.triton.backward import store_logit_gradient, store_spread
from polychrome.kernels.streaming import constants, pixel_groups, pixels_of, sample_start
from polychrome.kernels.sums import sum_rows
from polychrome.kernels.tensors import is_channels_last, needs_64_bits

# What the kernel is compiled with beside the maps where it does not go over the channels.
NO_SAMPLE = {
    "CHANNELS": 1,
    "VECTOR": 1,
    "CHANNELS_LAST": False,
    "BLOCK_P": 1,
    "BLOCK_C": 1,
    "BLOCK_X": 1,
    "TOGETHER": 1,
}


def map_gradients(
    dlogits: Tensor, stats: Tensor, weight: Tensor, for_maps: bool, for_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of the maps [batch, 2, height, width], float32, and of the weight, in its dtype, if asked.

    dlogits [batch, 1, height, width], stats [batch, 2, height, width], weight [1, 2, k, k]; all contiguous.
    """
    batch, _, height, width = stats.shape
    strip = strip_tile(batch, height, width, weight.shape[-1])
    dmaps = torch.empty_like(stats) if for_maps else None
    return dmaps, _go_over(strip, dlogits, stats, weight, dmaps, for_weight)


def sample_gradients(
    grad: Tensor,
    x: Tensor,
    gate: Tensor,
    argmax: Tensor,
    stats: Tensor,
    weight: Tensor,
    for_weight: bool,
    dx: Tensor,
    tile: SampleTile,
    strip: Strip,
) -> tuple[Tensor, Tensor | None]:
    """Fill `dx` and return the gradients of the logits, and of the weight if asked, in one launch before the sum.

    grad, x and dx are dense in one layout, all else is contiguous.
    """
    dlogits = torch.empty_like(gate)
    _, channels, height, width = x.shape
    beside = channels if is_channels_last(x) else height * width
    sizes = {
        **constants(x),
        "BLOCK_P": tile.block_p,
        "BLOCK_C": tile.block_c,
        "BLOCK_X": min(next_power_of_2(channels), SAMPLE_ELEMENTS // strip.block_w),
        # Of loads of single numbers fewer fit the registers.
        "TOGETHER": tile.together if beside % 4 == 0 else cdiv(tile.together, 2),
    }
    of_sample = (grad, x, gate, argmax, dx, pixel_groups(x))
    return dlogits, _go_over(strip, dlogits, stats, weight, None, for_weight, of_sample, sizes)


def _go_over(
    strip: Strip,
    dlogits: Tensor,
    stats: Tensor,
    weight: Tensor,
    dmaps: Tensor | None,
    for_weight: bool,
    of_sample: tuple = (None,) * 5 + (1,),
    sizes: dict = NO_SAMPLE,
) -> Tensor | None:
    batch, _, height, width = stats.shape
    kernel = weight.shape[-1]
    parts = cdiv(height, strip.rows), cdiv(width, strip.block_w)
    blocks = batch * parts[0] * parts[1]
    programs = min(blocks, PROGRAMS)
    partial = stats.new_empty((programs, 2, kernel * kernel)) if for_weight else None
    for first in range(0, kernel, KERNEL_ROWS):
        launch(
            maps_kernel,
            (programs,),
            dlogits,
            stats,
            weight,
            dmaps,
            partial,
            *of_sample,
            blocks,
            *parts,
            strip.rows,
            height,
            width,
            **sizes | {"INDEX64": needs_64_bits(stats[:1])},
            KERNEL=kernel,
            FIRST=first,
            ROWS=min(KERNEL_ROWS, kernel - first),
            COLUMNS=strip.columns,
            BLOCK_W=strip.block_w,
            num_warps=strip.warps,
        )
    return None if partial is None else sum_rows(partial, weight.dtype).view(weight.shape)


@triton.jit(do_not_specialize=["groups", "blocks", "parts_h", "parts_w", "rows", "height", "width"])
def maps_kernel(
    dlogits_ptr,
    stats_ptr,
    weight_ptr,
    dmaps_ptr,
    partial_ptr,
    grad_ptr,
    x_ptr,
    gate_ptr,
    argmax_ptr,
    dx_ptr,
    groups,
    blocks,
    parts_h,
    parts_w,
    rows,
    height,
    width,
    CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
    TOGETHER: tl.constexpr,
    KERNEL: tl.constexpr,
    FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """The part of `ROWS` rows of the kernel from `FIRST` on; the first part writes dmaps, later ones add to it.

    A block is a strip of an image, `rows` by `BLOCK_W` pixels, met from above: the logits' gradients that a pixel needs
    through one row of the kernel are those that the pixel above it needed through the row before.

    With x and dx each program has one block. It makes the logits' gradients of the whole sample itself, as the others
    of that sample do, and in place of dmaps it writes the gradient of the strip's pixels, over all channels.
    """
    AREA: tl.constexpr = KERNEL * KERNEL
    FOR_X: tl.constexpr = dmaps_ptr is not None or dx_ptr is not None
    # Through tap (i, j) pixel (h, w) met the logit at (h + HALF - i, w + HALF - j).
    HALF: tl.constexpr = KERNEL // 2
    column = tl.arange(0, COLUMNS)
    known = column < KERNEL
    for_mean, for_max, with_mean, with_max = (), (), (), ()
    for row in tl.static_range(ROWS):
        if FOR_X:
            weight_at = weight_ptr + (FIRST + row) * KERNEL + column
            for_mean = for_mean + (tl.load(weight_at, mask=known, other=0.0).to(tl.float32),)
            for_max = for_max + (tl.load(weight_at + AREA, mask=known, other=0.0).to(tl.float32),)
        if partial_ptr is not None:
            with_mean = with_mean + (tl.zeros((COLUMNS, BLOCK_W), tl.float32),)
            with_max = with_max + (tl.zeros((COLUMNS, BLOCK_W), tl.float32),)
    stride = tl.cast(width, tl.int64 if INDEX64 else tl.int32)
    pixels = stride * height
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        sample = block // (parts_h * parts_w)
        if x_ptr is not None:
            store_logit_gradient(
                grad_ptr,
                x_ptr,
                gate_ptr,
                dlogits_ptr,
                sample,
                pixels_of(groups, VECTOR, INDEX64),
                tl.arange(0, BLOCK_P),
                CHANNELS,
                CHANNELS_LAST,
                INDEX64,
                BLOCK_P,
                BLOCK_C,
                TOGETHER,
            )
            # They come back to other threads than those that stored them; other programs store the same numbers.
            tl.debug_barrier()
        top = block // parts_w % parts_h * rows
        at = block % parts_w * BLOCK_W + tl.arange(0, BLOCK_W)
        inside = at < width
        near_w = at[None, :] + HALF - column[:, None]
        held = known[:, None] & (near_w >= 0) & (near_w < width)
        dlogits_at = sample_start(dlogits_ptr, sample, pixels, 1) + near_w
        window = ()
        for row in tl.static_range(ROWS):
            near_h = top - 1 + HALF - FIRST - row
            seen = held & (near_h >= 0) & (near_h < height)
            window = window + (tl.load(dlogits_at + near_h * stride, mask=seen, other=0.0),)
        maps_at = sample_start(stats_ptr, sample, pixels, 2) + at
        near_h = top + HALF - FIRST
        seen = held & (near_h >= 0) & (near_h < height)
        below = tl.load(dlogits_at + near_h * stride, mask=seen, other=0.0)  # [COLUMNS, BLOCK_W]
        if partial_ptr is not None:
            mean_below = tl.load(maps_at + top * stride, mask=inside, other=0.0)
            highest_below = tl.load(maps_at + top * stride + pixels, mask=inside, other=0.0)
        for pixel_h in range(top, min(top + rows, height)):
            moved = (below,)
            # The next row is on its way while this one is used: loads do not pass the stores between them.
            near_h = pixel_h + 1 + HALF - FIRST
            seen = held & (near_h >= 0) & (near_h < height)
            below = tl.load(dlogits_at + near_h * stride, mask=seen, other=0.0)
            if partial_ptr is not None:
                mean, highest = mean_below, highest_below
                further = inside & (pixel_h + 1 < height)
                mean_below = tl.load(maps_at + (pixel_h + 1) * stride, mask=further, other=0.0)
                highest_below = tl.load(maps_at + (pixel_h + 1) * stride + pixels, mask=further, other=0.0)
            for row in tl.static_range(ROWS - 1):
                moved = moved + (window[row],)
            window = moved
            if partial_ptr is not None:
                mean_sums, max_sums = (), ()
                for row in tl.static_range(ROWS):
                    mean_sums = mean_sums + (with_mean[row] + window[row] * mean[None, :],)
                    max_sums = max_sums + (with_max[row] + window[row] * highest[None, :],)
                with_mean, with_max = mean_sums, max_sums
            if FOR_X:
                dmean = tl.zeros((COLUMNS, BLOCK_W), tl.float32)
                dmax = tl.zeros((COLUMNS, BLOCK_W), tl.float32)
                for row in tl.static_range(ROWS):
                    dmean += window[row] * for_mean[row][:, None]
                    dmax += window[row] * for_max[row][:, None]
                dmean, dmax = tl.sum(dmean, 0), tl.sum(dmax, 0)
            if dx_ptr is not None:
                store_spread(
                    dmean,
                    dmax,
                    argmax_ptr,
                    None,
                    grad_ptr,
                    gate_ptr,
                    dx_ptr,
                    sample,
                    pixels,
                    pixel_h * stride + at,
                    inside,
                    CHANNELS,
                    CHANNELS_LAST,
                    INDEX64,
                    BLOCK_X,
                )
            if dmaps_ptr is not None:
                dmaps_at = sample_start(dmaps_ptr, sample, pixels, 2) + pixel_h * stride + at
                if FIRST > 0:
                    dmean += tl.load(dmaps_at, mask=inside, other=0.0)
                    dmax += tl.load(dmaps_at + pixels, mask=inside, other=0.0)
                tl.store(dmaps_at, dmean, mask=inside)
                tl.store(dmaps_at + pixels, dmax, mask=inside)
    if partial_ptr is not None:
        for row in tl.static_range(ROWS):
            partial_at = partial_ptr + tl.program_id(0) * (2 * AREA) + (FIRST + row) * KERNEL + column
            tl.store(partial_at, tl.sum(with_mean[row], 1), mask=known)
            tl.store(partial_at + AREA, tl.sum(with_max[row], 1), mask=known)
