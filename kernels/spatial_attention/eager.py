"""The ops in eager PyTorch with explicit gradients: autograd is off inside an opaque op."""

import torch
import torch.nn.functional as F
from torch import Tensor

from polychrome.kernels.spatial_attention.reference import wide_stats
from polychrome.kernels.tensors import is_channels_last, laid_out_as, not_asked, wide_dtype

PAGE = 4096  # bytes after which addresses share a line of the nearest cache
LINE = 16  # numbers in a line


def channel_stats(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (stats [batch, 2, height, width], the channel of each max [batch, 1, height, width])."""
    if mask is not None and mask.device.type == "cpu":
        check_present(mask)
    stats, argmax = wide_stats(_apart(x) if mask is None else x, mask)
    return laid_out_as(x, stats), argmax.to(torch.int32).contiguous()


def _apart(x: Tensor) -> Tensor:
    """Return x, in the wide dtype on a CPU, with channels that do not meet in the same lines of the cache.

    They do in contiguous images whose channels lie a power of two of bytes apart, in which a maximum over the channels
    takes three times as long.
    """
    batch, channels, height, width = x.shape
    pixels, wide = height * width, wide_dtype(x.dtype)
    if x.device.type != "cpu" or is_channels_last(x) or pixels == 0 or pixels * wide.itemsize % PAGE:
        return x
    apart = x.new_empty(batch, channels, pixels + LINE, dtype=wide)[:, :, :pixels].unflatten(2, (height, width))
    return apart.copy_(x)


def check_present(mask: Tensor) -> None:
    """Raise ValueError naming the first sample without a present channel."""
    absent = _of_all_calls(~mask.any(1)).nonzero().tolist()
    if absent:
        raise ValueError(f"mask must leave at least one channel in every sample, got none in sample {absent[0][-1]}")


def _of_all_calls(tensor: Tensor) -> Tensor:
    """Return the tensor [calls..., batch] behind one [batch] that `torch.func` has wrapped, of all calls of a vmap."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        place, tensor = functorch.maybe_get_bdim(tensor), functorch.get_unwrapped(tensor)
        tensor = tensor if place < 0 else tensor.movedim(place, 0)
    return tensor


def channel_stats_backward(
    grad: Tensor, mask: Tensor | None, argmax: Tensor, channels: int, channels_last: bool
) -> Tensor:
    """Return the gradient of x; only x's channel count and layout are kept."""
    dx = _spread(grad.to(wide_dtype(grad.dtype)), mask, argmax, channels).to(grad.dtype)
    return dx.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def spatial_gate(x: Tensor, logits: Tensor) -> Tensor:
    """Return x * sigmoid(logits), the product rounded once."""
    return laid_out_as(x, x * logits.to(wide_dtype(x.dtype)).sigmoid())


def spatial_gate_backward(grad: Tensor, x: Tensor, logits: Tensor, needed: list[bool]) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and logits; gradients not needed are empty placeholders."""
    wide = wide_dtype(x.dtype)
    grad, gate = grad.to(wide), logits.to(wide).sigmoid()
    dx, dlogits = not_asked(x), not_asked(x)
    if needed[0]:
        dx = laid_out_as(x, grad * gate)
    if needed[1]:
        dlogits = ((grad * x).sum(1, keepdim=True) * gate * (1 - gate)).to(logits.dtype).contiguous()
    return dx, dlogits


def spatial_attention(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (y, stats, argmax, gate); stats and gate in the wide dtype, for the backward pass."""
    wide = wide_dtype(x.dtype)
    stats, argmax = wide_stats(_apart(x))
    stats = stats.contiguous()
    wide_bias = None if bias is None else bias.to(wide)
    gate = F.conv2d(stats, weight.to(wide), wide_bias, padding=weight.shape[-1] // 2).sigmoid()
    return laid_out_as(x, x * gate), stats, argmax.to(torch.int32).contiguous(), gate.contiguous()


def spatial_attention_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stats: Tensor,
    argmax: Tensor,
    gate: Tensor,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias; gradients not needed are empty placeholders."""
    wide = wide_dtype(x.dtype)
    grad = grad.to(wide)
    dlogits = (grad * x).sum(1, keepdim=True) * gate * (1 - gate)
    half, wide_weight = weight.shape[-1] // 2, weight.to(wide)
    dstats = dweight = None
    if needed[0]:  # a convolution: torch's own gradient for two channels takes ten times as long on a CPU
        dstats = F.conv2d(dlogits, wide_weight.flip(2, 3).transpose(0, 1), padding=half)
    if needed[1]:
        _, dweight, _ = torch.ops.aten.convolution_backward(
            dlogits, stats, wide_weight, None, [1, 1], [half, half], [1, 1], False, [0, 0], 1, [False, True, False]
        )
    return (
        laid_out_as(x, _attended(dstats, argmax, grad, gate)) if needed[0] else not_asked(x),
        dweight.to(weight.dtype).contiguous() if needed[1] else not_asked(x),
        dlogits.sum((0, 2, 3)).to(bias.dtype) if needed[2] else not_asked(x),
    )


def _attended(dstats: Tensor, argmax: Tensor, grad: Tensor, gate: Tensor) -> Tensor:
    """Return the gradient of x, from the product and from the two maps, in one pass and a scatter."""
    dx = torch.addcmul(dstats[:, :1] / grad.shape[1], grad, gate)
    return dx.scatter_add_(1, argmax.long(), dstats[:, 1:])


def _spread(dstats: Tensor, mask: Tensor | None, argmax: Tensor, channels: int) -> Tensor:
    """Return the gradient of x: the mean's share to every present channel, the max's to the channel of the max."""
    dmean, dmax = dstats[:, :1], dstats[:, 1:]
    if mask is None:
        share = (dmean / channels).expand(-1, channels, -1, -1)
    else:
        present = mask[:, :, None, None]
        share = (dmean / present.sum(1, keepdim=True)).where(present, 0)
        # the max's channel may be an absent one, where all present ones are -inf
        dmax = dmax.where(present.expand(-1, -1, *argmax.shape[2:]).gather(1, argmax.long()), 0)
    return share.scatter_add(1, argmax.long(), dmax)
