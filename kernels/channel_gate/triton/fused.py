"""The whole op in one launch forward, and all but the layers' gradients in one backward, where a map is small.

Every program sums all pixels of its sample, so that none waits for another, and multiplies its share of the channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polychrome.kernels.channel_gate.configs import FusedConfig
from polychrome.kernels.channel_gate.triton.layers import bias_at, logit_gradient, rectified, softmax, weight_tile
from polychrome.kernels.channel_gate.triton.pixels import store_scaled, summands
from polychrome.kernels.launch import launch
from polychrome.kernels.streaming import constants, pixel_groups, pixels_of
from polychrome.kernels.tensors import empty_as


def fused_gate(
    x: Tensor, w1: Tensor | None, b1: Tensor | None, w2: Tensor, b2: Tensor | None, gate: str, config: FusedConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what `ops.channel_gate` does; x is dense, weights [out, in] and biases are contiguous."""
    y, pooled = empty_as(x, x.shape), x.new_empty(x.shape[:2], dtype=torch.float32)
    hidden = pooled.new_empty(0 if w1 is None else (x.shape[0], w1.shape[0]))
    scale = torch.empty_like(pooled)
    launch(
        fused_gate_kernel,
        (x.shape[0] * config.shares,),
        x,
        w1,
        b1,
        w2,
        b2,
        pooled,
        None if w1 is None else hidden,
        scale,
        y,
        pixel_groups(x),
        config.shares,
        **_constants(x, w2, gate, config),
    )
    return y, pooled, hidden, scale


def fused_gate_gradient(
    grad: Tensor,
    x: Tensor,
    w1: Tensor | None,
    w2: Tensor,
    hidden: Tensor,
    scale: Tensor,
    gate: str,
    for_layers: bool,
    config: FusedConfig,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return dx, and dlogits and dhidden as `layers.gate_gradient` does; grad and x are dense, in one layout."""
    dx = empty_as(x, x.shape)
    dlogits = torch.empty_like(scale) if for_layers else None
    dhidden = torch.empty_like(hidden) if for_layers and w1 is not None else None
    launch(
        fused_gate_gradient_kernel,
        (x.shape[0] * config.shares,),
        grad,
        x,
        w1,
        w2,
        None if w1 is None else hidden,
        scale,
        dlogits,
        dhidden,
        dx,
        pixel_groups(x),
        config.shares,
        **_constants(x, w2, gate, config),
    )
    return dx, dlogits, dhidden


def _constants(x: Tensor, w2: Tensor, gate: str, config: FusedConfig) -> dict[str, int | bool]:
    return {
        **constants(x),
        "HIDDEN": w2.shape[1],
        "SOFTMAX": gate == "softmax",
        "TILES": config.sums.count,
        "BLOCK_P": config.sums.block_p,
        "BLOCK_C": config.block_c,
        "BLOCK_H": config.block_h,
        "OWN_TILES": config.product.count,
        "OWN_P": config.product.block_p,
        "BLOCK_O": config.block_o,
        "num_warps": config.warps,
        "maxnreg": 128,  # given fewer of its own accord, the assembler has loads wait for those before
    }


@triton.jit(do_not_specialize=["groups", "shares"])
def fused_gate_kernel(
    x_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    pooled_ptr,
    hidden_ptr,
    scale_ptr,
    y_ptr,
    groups,
    shares,
    CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    HIDDEN: tl.constexpr,
    SOFTMAX: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    OWN_TILES: tl.constexpr,
    OWN_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    sample = (tl.program_id(0) // shares).to(tl.int64)
    share = tl.program_id(0) % shares
    pixels = pixels_of(groups, VECTOR, INDEX64)
    channels = tl.arange(0, BLOCK_C)
    outputs = share * BLOCK_O + tl.arange(0, BLOCK_O)
    bias = bias_at(b2_ptr, outputs, CHANNELS)
    if w1_ptr is not None:
        units = tl.arange(0, BLOCK_H)
        first_bias = bias_at(b1_ptr, units, HIDDEN)
        first = weight_tile(w1_ptr, units, channels, HIDDEN, CHANNELS)  # [BLOCK_H, BLOCK_C]
        last = weight_tile(w2_ptr, outputs, units, CHANNELS, HIDDEN)  # [BLOCK_O, BLOCK_H]
    else:
        last = weight_tile(w2_ptr, outputs, channels, CHANNELS, CHANNELS)  # [BLOCK_O, BLOCK_C]
    tl.debug_barrier()  # the layers arrive while the pixels do: the assembler would ask for them after the sums
    acc = _accumulated(x_ptr, None, sample, channels, pixels, CHANNELS, CHANNELS_LAST, INDEX64, TILES, BLOCK_P, BLOCK_C)
    features = tl.sum(acc, 0) / pixels
    tl.store(pooled_ptr + sample * CHANNELS + channels, features, mask=channels < tl.where(share == 0, CHANNELS, 0))
    if w1_ptr is not None:
        features = rectified(tl.sum(first * features[None, :], 1) + first_bias, units, HIDDEN)  # [BLOCK_H]
        tl.store(hidden_ptr + sample * HIDDEN + units, features, mask=units < tl.where(share == 0, HIDDEN, 0))
    logits = tl.sum(last * features[None, :], 1) + bias  # [BLOCK_O]
    logits = tl.where(outputs < CHANNELS, logits, float("-inf"))
    scale = softmax(logits) if SOFTMAX else tl.sigmoid(logits)
    tl.store(scale_ptr + sample * CHANNELS + outputs, scale, mask=outputs < CHANNELS)
    for tile in tl.static_range(OWN_TILES):
        rows = tile * OWN_P + tl.arange(0, OWN_P)
        store_scaled(x_ptr, y_ptr, scale, None, sample, rows, outputs, pixels, CHANNELS, CHANNELS_LAST, INDEX64)


@triton.jit(do_not_specialize=["groups", "shares"])
def fused_gate_gradient_kernel(
    grad_ptr,
    x_ptr,
    w1_ptr,
    w2_ptr,
    hidden_ptr,
    scale_ptr,
    dlogits_ptr,
    dhidden_ptr,
    dx_ptr,
    groups,
    shares,
    CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    HIDDEN: tl.constexpr,
    SOFTMAX: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    OWN_TILES: tl.constexpr,
    OWN_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    sample = (tl.program_id(0) // shares).to(tl.int64)
    share = tl.program_id(0) % shares
    pixels = pixels_of(groups, VECTOR, INDEX64)
    channels = tl.arange(0, BLOCK_C)
    inputs = share * BLOCK_O + tl.arange(0, BLOCK_O)
    if w1_ptr is not None:
        units = tl.arange(0, BLOCK_H)
        last = weight_tile(w2_ptr, channels, units, CHANNELS, HIDDEN)  # [BLOCK_C, BLOCK_H]
        first = weight_tile(w1_ptr, units, inputs, HIDDEN, CHANNELS)  # [BLOCK_H, BLOCK_O]
    else:
        last = weight_tile(w2_ptr, channels, inputs, CHANNELS, CHANNELS)  # [BLOCK_C, BLOCK_O]
    tl.debug_barrier()  # as forward
    acc = _accumulated(
        grad_ptr, x_ptr, sample, channels, pixels, CHANNELS, CHANNELS_LAST, INDEX64, TILES, BLOCK_P, BLOCK_C
    )
    scale = tl.load(scale_ptr + sample * CHANNELS + channels, mask=channels < CHANNELS, other=0.0)
    own_scale = tl.load(scale_ptr + sample * CHANNELS + inputs, mask=inputs < CHANNELS, other=0.0)
    if w1_ptr is not None:
        hidden = tl.load(hidden_ptr + sample * HIDDEN + units, mask=units < HIDDEN, other=0.0)
    dscale = tl.sum(acc, 0)
    dlogits = logit_gradient(dscale, scale, tl.sum(dscale * scale, 0) if SOFTMAX else 0.0, SOFTMAX)
    if dlogits_ptr is not None:
        written = tl.where(share == 0, CHANNELS, 0)
        tl.store(dlogits_ptr + sample * CHANNELS + channels, dlogits, mask=channels < written)
    dfeatures = tl.sum(last * dlogits[:, None], 0)
    if w1_ptr is not None:
        dhidden = tl.where(hidden <= 0, 0.0, dfeatures)  # [BLOCK_H]
        if dhidden_ptr is not None:
            written_units = tl.where(share == 0, HIDDEN, 0)
            tl.store(dhidden_ptr + sample * HIDDEN + units, dhidden, mask=units < written_units)
        dfeatures = tl.sum(first * dhidden[:, None], 0)
    spread = dfeatures / pixels  # [BLOCK_O]
    for tile in tl.static_range(OWN_TILES):
        rows = tile * OWN_P + tl.arange(0, OWN_P)
        store_scaled(
            grad_ptr, dx_ptr, own_scale, spread, sample, rows, inputs, pixels, CHANNELS, CHANNELS_LAST, INDEX64
        )


@triton.jit
def _accumulated(
    x_ptr,
    other_ptr,
    sample,
    channels,
    pixels,
    CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX64: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Return sums [BLOCK_P, BLOCK_C] of the tiles of x, or of x * other."""
    acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for tile in tl.static_range(TILES):
        rows = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        acc += summands(x_ptr, other_ptr, sample, rows, channels, pixels, CHANNELS, CHANNELS_LAST, INDEX64)
    return acc
