"""Dynamic convolution that mixes the experts first, a few samples at a time, then convolves each with its mix."""

import torch
from torch import Tensor

from polychrome.kernels.dynamic_conv.eager.forms import Forms
from polychrome.kernels.dynamic_conv.eager.per_sample import convolve, convolve_backward, weight_gradient_by_taps
from polychrome.kernels.dynamic_conv.problem import Geometry
from polychrome.kernels.dynamic_conv.reference import mix
from polychrome.kernels.tensors import is_channels_last, laid_out_as, wide_dtype

SLICE_BYTES = 16 << 20
BLOCK_ELEMENTS = 1 << 18


def forward(form: str, x, experts, mixing, bias, geometry: Geometry) -> Tensor:
    """Return each sample convolved with its mix, laid out as x."""
    weights = mixer(experts, mixing, form == "loop" and is_channels_last(x))
    biases = None if bias is None else mix(mixing, bias)
    parts = []
    for part in sample_slices(len(x), experts):
        some = None if bias is None else biases[part]
        parts.append(convolve(form, x[part], weights[part], some, geometry))
    return laid_out_as(x, _joined(parts))


def backward(
    forms: Forms, grad, x, experts, mixing, dmixing, geometry: Geometry, for_x, for_experts
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x, in x's layout, and experts, None where not needed; add to dmixing if not None."""
    arguments = (grad, x, experts, mixing)
    by_input, by_weight = forms.input_gradient.form, forms.weight_gradient.form
    for_weights = for_experts or dmixing is not None
    dx = dexperts = None
    if by_input == by_weight:
        dx, dexperts = _gradients(by_input, *arguments, dmixing, geometry, for_x, for_experts)
    else:
        if for_x and by_input == "swapped":
            dx = _swapped_input_gradient(*arguments, geometry)
        elif for_x:
            dx, _ = _gradients(by_input, *arguments, None, geometry, True, False)
        if for_weights and by_weight == "taps":
            dexperts = _expert_gradient_by_taps(*arguments, dmixing, for_experts, geometry)
        elif for_weights:
            _, dexperts = _gradients(by_weight, *arguments, dmixing, geometry, False, for_experts)
    return laid_out_as(x, dx) if for_x else None, dexperts


def _gradients(form, grad, x, experts, mixing, dmixing, geometry: Geometry, for_x, for_experts):
    """Return the gradients of x and experts, None where not needed; add to dmixing if not None."""
    needed = [for_x, dmixing is not None or for_experts]
    weights = mixer(experts, mixing, form == "loop" and is_channels_last(x)) if for_x else None
    rows = rows_of(experts, mixing)
    slices = sample_slices(len(x), experts, at_least=8 if needed[1] else 1)
    # only a sum over several slices needs the wide dtype
    dexperts = torch.empty_like(rows, dtype=rows.dtype if len(slices) == 1 else mixing.dtype) if for_experts else None
    dx = []
    for part in slices:
        samples = x[part]
        some = weights[part] if for_x else experts[:1].expand(len(samples), -1, -1, -1, -1)
        dpart, gradient = convolve_backward(form, grad[part], samples, some, geometry, needed)
        dx.append(dpart)
        if needed[1]:
            dmixed = None if dmixing is None else dmixing[part]
            add_to_rows(gradient, rows, mixing[part], dmixed, dexperts, first=part.start == 0)
    return _joined(dx) if for_x else None, from_rows(dexperts, experts.shape) if for_experts else None


def _swapped_input_gradient(grad, x, experts, mixing, geometry: Geometry) -> Tensor:
    """Return the gradient of x as grad convolved, at stride 1, with flipped kernels of swapped in and out channels."""
    _, padding, dilation, groups = geometry
    swapped = experts.unflatten(1, (groups, -1)).transpose(2, 3).flatten(1, 2).flip(3, 4)
    before = [d * (k - 1) - p for d, k, p in zip(dilation, experts.shape[3:], padding[::2], strict=True)]
    after = [x.shape[2 + i] - grad.shape[2 + i] + padding[2 * i] for i in (0, 1)]
    around = geometry._replace(padding=[before[0], after[0], before[1], after[1]])
    return forward("loop", grad, swapped, mixing if mixing.dim() == 2 else mixing.flip(2), None, around)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _expert_gradient_by_taps(grad, x, experts, mixing, dmixing, for_experts, geometry: Geometry):
    """Return the gradient of experts, if needed, and add to dmixing, if not None, a few taps at a time."""
    taps = experts.permute(0, 1, 3, 4, 2).contiguous()
    dtaps = torch.empty_like(taps) if for_experts else None
    width = experts.shape[4]
    for row, columns, gradients in weight_gradient_by_taps(grad, x, experts.shape[3:], geometry):
        for tap, places, gradient in _with_one_mix(mixing, row * width, columns, gradients):
            some = taps[:, :, row, places].flatten(1)
            dsome = torch.empty_like(some) if for_experts else None
            add_products(gradient.flatten(1), some, _at(mixing, tap), _at(dmixing, tap), dsome)
            if for_experts:
                dtaps[:, :, row, places] = dsome.view(dtaps[:, :, row, places].shape)
    return dtaps.permute(0, 1, 4, 2, 3) if for_experts else None


def _with_one_mix(mixing: Tensor, first: int, columns: slice, gradients: Tensor):
    """Yield (tap, columns, gradient) of a row's columns, all at once where they have one mix."""
    if mixing.dim() == 2:
        yield 0, columns, gradients
        return
    each = gradients.unflatten(2, (columns.stop - columns.start, -1)).unbind(2)
    for column, gradient in zip(range(columns.start, columns.stop), each, strict=True):
        yield first + column, slice(column, column + 1), gradient


def rows_of(weights: Tensor, mixing: Tensor) -> Tensor:
    """Return weights [n, out, in, kh, kw] as rows that have one mix each, [1 or taps, n, numel]."""
    return weights.flatten(1)[None] if mixing.dim() == 2 else weights.flatten(3).permute(3, 0, 1, 2).flatten(2)


def from_rows(rows: Tensor, shape: torch.Size) -> Tensor:
    """Return what `rows_of` made rows of."""
    if len(rows) == 1:
        return rows.view(shape)
    return rows.unflatten(2, shape[1:3]).permute(1, 2, 3, 0).unflatten(3, shape[3:])


def add_to_rows(gradient: Tensor, rows: Tensor, mixing: Tensor, dmixing, dexperts, first: bool = True) -> None:
    """Do what `add_products` does, for the gradient of weights [batch, out, in, kh, kw] and rows of experts."""
    for tap, (some, own) in enumerate(zip(rows_of(gradient, mixing), rows, strict=True)):
        found = None if dexperts is None else dexperts[tap]
        add_products(some, own, _at(mixing, tap), _at(dmixing, tap), found, first)


def _at(mixing: Tensor | None, tap: int) -> Tensor | None:
    """Return the mix of a tap, or of all taps where they have one."""
    return mixing[:, :, tap] if mixing is not None and mixing.dim() == 3 else mixing


def mixer(experts: Tensor, mixing: Tensor, channels_last: bool) -> "Mixer | TapMixer":
    """Return what makes mixed weights for a slice of samples at a time, each sample's laid out as asked."""
    return (Mixer if mixing.dim() == 2 else TapMixer)(experts, mixing, channels_last)


class Mixer:
    """`reference.mix` for a slice of samples at a time: summed in float32 (float64), rounded once.

    For many samples in bfloat16 it is one product of bfloat16 matrices, which sums in float32: each mixing weight is
    its rounded value plus the rounded remainder, 16 bits in all. Nothing of the mix's size is written in float32.
    """

    def __init__(self, experts: Tensor, mixing: Tensor, channels_last: bool):
        self.order = (0, 1, 4, 2, 3) if channels_last else (0, 1, 2, 3, 4)
        if channels_last:
            experts = experts.permute(0, 1, 3, 4, 2)
        self.shape, self.dtype = experts.shape[1:], experts.dtype
        self.mixing, self.rows = mixing.to(wide_dtype(experts.dtype)), experts.reshape(len(experts), -1)
        if self.dtype == torch.bfloat16 and len(mixing) > 2 * len(experts):
            high = self.mixing.bfloat16()
            self.mixing = torch.cat([high, (self.mixing - high).bfloat16()], 1)
            self.rows = torch.cat([self.rows, self.rows])

    def __getitem__(self, samples: slice) -> Tensor:
        """Return the mixed weights of some samples, [samples, out_channels, in_channels/groups, kh, kw]."""
        mixing = self.mixing[samples]
        if mixing.dtype == self.dtype:
            mixed = mixing @ self.rows
        else:
            mixed = self.rows.new_empty(len(mixing), self.rows.shape[1])
            for part in _blocks(mixed):
                mixed[:, part] = mixing @ self.rows[:, part].to(mixing.dtype)
        return mixed.unflatten(1, self.shape).permute(self.order)


class TapMixer:
    """`Mixer` for a mix for each tap, [batch, experts, taps]: one product of matrices a tap."""

    def __init__(self, experts: Tensor, mixing: Tensor, channels_last: bool):
        self.shape, self.dtype, self.channels_last = experts.shape[1:], experts.dtype, channels_last
        self.mixing = mixing.to(wide_dtype(experts.dtype)).permute(2, 0, 1)
        self.rows = experts.flatten(3).permute(3, 0, 1, 2).contiguous()  # [taps, experts, out, in]
        if self.dtype == torch.bfloat16 and len(mixing) > 2 * len(experts):
            high = self.mixing.bfloat16()
            self.mixing = torch.cat([high, (self.mixing - high).bfloat16()], 2)
            self.rows = torch.cat([self.rows, self.rows], 1)

    def __getitem__(self, samples: slice) -> Tensor:
        """Return the mixed weights of some samples, [samples, out_channels, in_channels/groups, kh, kw]."""
        mixing = self.mixing[:, samples]
        taps, _, out_channels, in_channels = self.rows.shape
        order = (taps, in_channels) if self.channels_last else (in_channels, taps)
        mixed = self.rows.new_empty(mixing.shape[1], out_channels, *order)
        step = out_channels if mixed.is_cuda else max(1, BLOCK_ELEMENTS // (mixing.shape[1] * taps * in_channels))
        for start in range(0, out_channels, step):
            part = slice(start, start + step)
            product = mixing @ self.rows[:, :, part].flatten(2).to(mixing.dtype)
            product = product.unflatten(2, (-1, in_channels))  # [taps, samples, out, in]
            mixed[:, part] = product.permute((1, 2, 0, 3) if self.channels_last else (1, 2, 3, 0))
        if self.channels_last:
            return mixed.unflatten(2, self.shape[2:]).permute(0, 1, 4, 2, 3)
        return mixed.unflatten(3, self.shape[2:])


def sample_slices(batch: int, experts: Tensor, at_least: int = 1) -> list[slice]:
    """Return slices of the batch whose mixed weights fill about SLICE_BYTES, so that their memory is used again."""
    size = max(at_least, SLICE_BYTES // (experts[0].numel() * experts.element_size()))
    return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]


def add_products(gradient: Tensor, experts: Tensor, mixing: Tensor, dmixing, dexperts, first: bool = True) -> None:
    """Add `<gradient[b], experts[k]>` to dmixing, and `sum_b mixing[b, k] * gradient[b]` to dexperts unless `first`.

    gradient is [batch, numel], experts and dexperts are [experts, numel]; mixing and dmixing are wide. Where `first`,
    dexperts is written, not added to. Either may be None.
    """
    for part in _blocks(gradient):
        wide = gradient[:, part].to(mixing.dtype)
        if dmixing is not None:
            dmixing.addmm_(wide, experts[:, part].to(mixing.dtype).T)
        if dexperts is not None and first:
            dexperts[:, part] = mixing.T @ wide
        elif dexperts is not None:
            dexperts[:, part].addmm_(mixing.T, wide)


def _blocks(rows: Tensor) -> list[slice]:
    """Return slices of the columns small enough to stay in cache while they are widened."""
    columns = rows.shape[1]
    widened = rows.dtype != wide_dtype(rows.dtype)
    block = max(1024, BLOCK_ELEMENTS // max(1, len(rows))) if widened else columns
    return [slice(start, start + block) for start in range(0, columns, block)]
