"""The layers and the gate of one sample, forward and backward: vectors in registers, weights read tile by tile.

The helpers without an underscore serve `fused` too.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polychrome.kernels.channel_gate.configs import GateConfig, gate_config, gradient_block
from polychrome.kernels.launch import cdiv, launch, next_power_of_2
from polychrome.kernels.tensors import not_asked


def gate_of(
    partial: Tensor, pixels: int, w1: Tensor | None, b1: Tensor | None, w2: Tensor, b2: Tensor | None, gate: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return pooled, hidden and scale as `eager` does, from the partial sums [splits, batch, channels] of x.

    Weights [out, in] and biases are contiguous.
    """
    splits, batch, channels = partial.shape
    softmax = gate == "softmax"
    config = gate_config(batch, channels, None if w1 is None else w1.shape[0], splits, whole=softmax)
    pooled = partial.new_empty((batch, channels))
    hidden = partial.new_empty(0 if w1 is None else (batch, w1.shape[0]))
    scale = torch.empty_like(pooled)
    launch(
        gate_kernel,
        (batch * config.shares,),
        partial,
        w1,
        b1,
        w2,
        b2,
        pooled,
        None if w1 is None else hidden,
        scale,
        batch,
        splits,
        config.shares,
        pixels,
        **_constants(w2, softmax, config),
        BLOCK_LOGITS=next_power_of_2(channels) if softmax else 1,
        num_warps=8,
    )
    return pooled, hidden, scale


def gate_gradient(
    partial: Tensor,
    pixels: int,
    w1: Tensor | None,
    w2: Tensor,
    hidden: Tensor,
    scale: Tensor,
    gate: str,
    for_layers: bool,
    for_x: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return dlogits and dhidden for the layers' gradients, and what every pixel of x gets through its mean.

    partial [splits, batch, channels] are the sums of dy * x. All results are [batch, features] float32, None where not
    asked for; a single layer has no dhidden, and has to be asked for x.
    """
    splits, batch, channels = partial.shape
    softmax = gate == "softmax"
    config = gate_config(batch, channels, None if w1 is None else w1.shape[0], splits, whole=not for_x)
    dlogits = torch.empty_like(scale) if for_layers else None
    dhidden = torch.empty_like(hidden) if for_layers and w1 is not None else None
    share = torch.empty_like(scale) if for_x else None
    launch(
        gate_gradient_kernel,
        (batch * config.shares,),
        partial,
        w1,
        w2,
        None if w1 is None else hidden,
        scale,
        dlogits,
        dhidden,
        share,
        batch,
        splits,
        config.shares,
        pixels,
        **_constants(w2, softmax, config),
        num_warps=8,
    )
    return dlogits, dhidden, share


def layer_gradients(
    dlogits: Tensor, dhidden: Tensor | None, pooled: Tensor, hidden: Tensor, layers: tuple, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `layers`, w1, b1, w2 and b2, in one launch; one not needed is an empty placeholder.

    The features and their gradients are contiguous [batch, features] float32; the sums over the batch are float32,
    rounded once to the dtype of weight or bias.
    """
    made = [each.new_empty(each.shape) if need else None for each, need in zip(layers, needed, strict=True)]
    results = tuple(not_asked(pooled) if each is None else each for each in made)
    if not any(needed):
        return results
    batch, channels = pooled.shape
    features = channels if layers[0] is None else hidden.shape[1]
    block = gradient_block(channels, features)
    tiles = cdiv(channels, block) * cdiv(features, block)
    of_first, of_last = tiles * any(needed[:2]), tiles * any(needed[2:])
    launch(
        layer_gradients_kernel,
        (of_last + of_first,),
        dlogits,
        dhidden if of_first else dlogits,
        pooled,
        pooled if layers[0] is None else hidden,
        *made,
        batch,
        of_last,
        CHANNELS=channels,
        FEATURES=features,
        BLOCK=block,
        BLOCK_S=32,
        num_warps=4,
    )
    return results


def _constants(w2: Tensor, softmax: bool, config: GateConfig) -> dict[str, int | bool]:
    return {
        "CHANNELS": w2.shape[0],
        "HIDDEN": w2.shape[1],
        "SOFTMAX": softmax,
        "BLOCK_S": config.block_s,
        "BLOCK_H": config.block_h,
        "BLOCK_C": config.block_c,
        "BLOCK_O": config.block_o,
    }


@triton.jit
def _sum_splits(partial_ptr, sample, channels, batch, splits, CHANNELS: tl.constexpr, BLOCK_S: tl.constexpr):
    """Return the sums [BLOCK_C] of a sample's channels, zero beyond the last channel."""
    parts = tl.arange(0, BLOCK_S)
    inside = (parts < splits)[:, None] & (channels < CHANNELS)[None, :]
    # 32 bits do: several splits are made only of a batch with few channels.
    at = (parts * batch * CHANNELS)[:, None] + channels[None, :]
    return tl.sum(tl.load(partial_ptr + sample * CHANNELS + at, mask=inside, other=0.0), 0)


@triton.jit
def weight_tile(weight_ptr, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return a tile of a weight [ROWS, COLUMNS] in its own dtype, zero outside."""
    inside = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    return tl.load(weight_ptr + rows[:, None] * COLUMNS + columns[None, :], mask=inside, other=0.0)


@triton.jit
def bias_at(bias_ptr, index, SIZE: tl.constexpr):
    """Return the bias [SIZE] at `index` in float32, zero if there is none."""
    bias = 0.0
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + index, mask=index < SIZE, other=0.0).to(tl.float32)
    return bias


@triton.jit
def rectified(hidden, units, HIDDEN: tl.constexpr):
    """Return the ReLU of hidden [BLOCK_H], NaN where it is, zero beyond the last unit."""
    return tl.where(units < HIDDEN, tl.maximum(hidden, 0.0, propagate_nan=tl.PropagateNan.ALL), 0.0)


@triton.jit
def softmax(logits):
    """Return the softmax of all logits of a sample, -inf beyond the last one."""
    powers = tl.exp(logits - tl.max(logits, 0))
    return powers / tl.sum(powers, 0)


@triton.jit
def logit_gradient(dscale, scale, mean, SOFTMAX: tl.constexpr):
    """Return the gradient of logits from that of the gate; `mean` is the sum of dscale * scale under the softmax."""
    if SOFTMAX:
        return scale * (dscale - mean)
    return dscale * scale * (1 - scale)


@triton.jit(do_not_specialize=["batch", "splits", "shares", "pixels"])
def gate_kernel(
    partial_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    pooled_ptr,
    hidden_ptr,
    scale_ptr,
    batch,
    splits,
    shares,
    pixels,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    SOFTMAX: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_LOGITS: tl.constexpr,
):
    sample = (tl.program_id(0) // shares).to(tl.int64)
    share = tl.program_id(0) % shares
    # The programs that share a sample all have its means and hidden units; the first one writes them.
    means_written = tl.where(share == 0, CHANNELS, 0)
    pooled_at = pooled_ptr + sample * CHANNELS
    scale_at = scale_ptr + sample * CHANNELS
    if w1_ptr is not None:
        units = tl.arange(0, BLOCK_H)
        products = tl.zeros((BLOCK_H, BLOCK_C), tl.float32)
        for begin in range(0, CHANNELS, BLOCK_C):
            channels = begin + tl.arange(0, BLOCK_C)
            mean = _sum_splits(partial_ptr, sample, channels, batch, splits, CHANNELS, BLOCK_S) / pixels
            tl.store(pooled_at + channels, mean, mask=channels < means_written)
            products += weight_tile(w1_ptr, units, channels, HIDDEN, CHANNELS) * mean[None, :]
        hidden = rectified(tl.sum(products, 1) + bias_at(b1_ptr, units, HIDDEN), units, HIDDEN)  # [BLOCK_H]
        tl.store(hidden_ptr + sample * HIDDEN + units, hidden, mask=units < tl.where(share == 0, HIDDEN, 0))

    for first in range(share * BLOCK_O, CHANNELS, shares * BLOCK_O):
        outputs = first + tl.arange(0, BLOCK_O)
        if w1_ptr is not None:
            logits = tl.sum(weight_tile(w2_ptr, outputs, units, CHANNELS, HIDDEN) * hidden[None, :], 1)  # [BLOCK_O]
        else:
            sums = tl.zeros((BLOCK_O, BLOCK_C), tl.float32)
            for begin in range(0, CHANNELS, BLOCK_C):
                inputs = begin + tl.arange(0, BLOCK_C)
                mean = _sum_splits(partial_ptr, sample, inputs, batch, splits, CHANNELS, BLOCK_S) / pixels
                tl.store(pooled_at + inputs, mean, mask=inputs < means_written)
                sums += weight_tile(w2_ptr, outputs, inputs, CHANNELS, CHANNELS) * mean[None, :]
            logits = tl.sum(sums, 1)
        logits += bias_at(b2_ptr, outputs, CHANNELS)
        if not SOFTMAX:
            logits = tl.sigmoid(logits)
        tl.store(scale_at + outputs, logits, mask=outputs < CHANNELS)

    if SOFTMAX:
        tl.debug_barrier()  # the logits come back to other threads than those that stored them
        index = tl.arange(0, BLOCK_LOGITS)
        logits = tl.load(scale_at + index, mask=index < CHANNELS, other=float("-inf"))
        tl.store(scale_at + index, softmax(logits), mask=index < CHANNELS)


@triton.jit
def _logit_gradient(
    partial_ptr,
    scale_ptr,
    mean,
    sample,
    channels,
    batch,
    splits,
    CHANNELS: tl.constexpr,
    SOFTMAX: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Return the gradient of a sample's logits [BLOCK_C]; `mean` is that of the gate's gradient under the softmax."""
    dscale = _sum_splits(partial_ptr, sample, channels, batch, splits, CHANNELS, BLOCK_S)
    scale = tl.load(scale_ptr + sample * CHANNELS + channels, mask=channels < CHANNELS, other=0.0)
    return logit_gradient(dscale, scale, mean, SOFTMAX)


@triton.jit(do_not_specialize=["batch", "splits", "shares", "pixels"])
def gate_gradient_kernel(
    partial_ptr,
    w1_ptr,
    w2_ptr,
    hidden_ptr,
    scale_ptr,
    dlogits_ptr,
    dhidden_ptr,
    share_ptr,
    batch,
    splits,
    shares,
    pixels,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    SOFTMAX: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    sample = (tl.program_id(0) // shares).to(tl.int64)
    share = tl.program_id(0) % shares
    written = tl.where(share == 0, CHANNELS, 0)
    mean = 0.0
    if SOFTMAX:
        weighted = tl.zeros((BLOCK_C,), tl.float32)
        for begin in range(0, CHANNELS, BLOCK_C):
            channels = begin + tl.arange(0, BLOCK_C)
            dscale = _sum_splits(partial_ptr, sample, channels, batch, splits, CHANNELS, BLOCK_S)
            scale = tl.load(scale_ptr + sample * CHANNELS + channels, mask=channels < CHANNELS, other=0.0)
            weighted += dscale * scale
        mean = tl.sum(weighted, 0)

    if w1_ptr is not None:
        units = tl.arange(0, BLOCK_H)
        products = tl.zeros((BLOCK_C, BLOCK_H), tl.float32)
        for begin in range(0, CHANNELS, BLOCK_C):
            logits = begin + tl.arange(0, BLOCK_C)
            dlogits = _logit_gradient(
                partial_ptr, scale_ptr, mean, sample, logits, batch, splits, CHANNELS, SOFTMAX, BLOCK_S
            )
            if dlogits_ptr is not None:
                tl.store(dlogits_ptr + sample * CHANNELS + logits, dlogits, mask=logits < written)
            products += weight_tile(w2_ptr, logits, units, CHANNELS, HIDDEN) * dlogits[:, None]
        hidden = tl.load(hidden_ptr + sample * HIDDEN + units, mask=units < HIDDEN, other=0.0)
        dhidden = tl.where(hidden <= 0, 0.0, tl.sum(products, 0))  # [BLOCK_H]
        if dhidden_ptr is not None:
            written_units = tl.where(share == 0, HIDDEN, 0)
            tl.store(dhidden_ptr + sample * HIDDEN + units, dhidden, mask=units < written_units)

    if share_ptr is not None:
        for first in range(share * BLOCK_O, CHANNELS, shares * BLOCK_O):
            inputs = first + tl.arange(0, BLOCK_O)
            if w1_ptr is not None:
                dpooled = tl.sum(
                    weight_tile(w1_ptr, units, inputs, HIDDEN, CHANNELS) * dhidden[:, None], 0
                )  # [BLOCK_O]
            else:
                sums = tl.zeros((BLOCK_C, BLOCK_O), tl.float32)
                for begin in range(0, CHANNELS, BLOCK_C):
                    outputs = begin + tl.arange(0, BLOCK_C)
                    dlogits = _logit_gradient(
                        partial_ptr, scale_ptr, mean, sample, outputs, batch, splits, CHANNELS, SOFTMAX, BLOCK_S
                    )
                    if dlogits_ptr is not None:
                        tl.store(dlogits_ptr + sample * CHANNELS + outputs, dlogits, mask=outputs < written)
                    sums += weight_tile(w2_ptr, outputs, inputs, CHANNELS, CHANNELS) * dlogits[:, None]
                dpooled = tl.sum(sums, 0)
            tl.store(share_ptr + sample * CHANNELS + inputs, dpooled / pixels, mask=inputs < CHANNELS)


@triton.jit(do_not_specialize=["batch", "of_last"])
def layer_gradients_kernel(
    dlogits_ptr,
    dhidden_ptr,
    pooled_ptr,
    features_ptr,
    dw1_ptr,
    db1_ptr,
    dw2_ptr,
    db2_ptr,
    batch,
    of_last,
    CHANNELS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    # The first programs have tiles of the last layer's weight [CHANNELS, FEATURES], the others of the first layer's.
    tile = tl.program_id(0)
    if tile < of_last:
        doutputs_ptr, inputs_ptr = dlogits_ptr, features_ptr
    else:
        doutputs_ptr, inputs_ptr = dhidden_ptr, pooled_ptr
    rows = tl.where(tile < of_last, CHANNELS, FEATURES)
    columns = tl.where(tile < of_last, FEATURES, CHANNELS)
    tile = tl.where(tile < of_last, tile, tile - of_last)
    across = tl.cdiv(columns, BLOCK)
    outputs = tile // across * BLOCK + tl.arange(0, BLOCK)
    inputs = tile % across * BLOCK + tl.arange(0, BLOCK)
    dweight = tl.zeros((BLOCK, BLOCK), tl.float32)  # [outputs, inputs]
    dbias = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, batch, BLOCK_S):
        sample = start + tl.arange(0, BLOCK_S)
        known = (sample < batch)[:, None]
        sample = sample.to(tl.int64)[:, None]
        mask = known & (outputs < rows)[None, :]
        doutputs = tl.load(doutputs_ptr + sample * rows + outputs[None, :], mask=mask, other=0.0)
        mask = known & (inputs < columns)[None, :]
        values = tl.load(inputs_ptr + sample * columns + inputs[None, :], mask=mask, other=0.0)
        dweight = tl.dot(doutputs.T, values, dweight, input_precision="ieee")
        dbias += tl.sum(doutputs, 0)

    at = outputs[:, None] * columns + inputs[None, :]
    inside = (outputs < rows)[:, None] & (inputs < columns)[None, :]
    sums = outputs < tl.where(tile % across == 0, rows, 0)
    if tl.program_id(0) < of_last:
        _store_rounded(dw2_ptr, at, dweight, inside)
        _store_rounded(db2_ptr, outputs, dbias, sums)
    else:
        _store_rounded(dw1_ptr, at, dweight, inside)
        _store_rounded(db1_ptr, outputs, dbias, sums)


@triton.jit
def _store_rounded(pointer, at, values, mask):
    """Store values in the dtype of the pointer, if there is one."""
    if pointer is not None:
        tl.store(pointer + at, values.to(pointer.dtype.element_ty), mask=mask)
