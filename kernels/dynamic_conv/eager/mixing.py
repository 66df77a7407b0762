"""The algebra of mixing: mixed weights of some samples at a time, and the gradients of experts and mixing from theirs.

Experts are rows: of one mix all of an expert's weights, of a mix for each tap the weights at a tap.
"""

import torch
from torch import Tensor

from polychrome.kernels.tensors import wide_dtype

SLICE_BYTES = 6 << 20
BLOCK_ELEMENTS = 1 << 19
TWICE_ELEMENTS = 1 << 22  # of experts that are copied in bfloat16, two of each
HALVES_COLUMNS = 1 << 18
# Samples, and elements of their weights, from which products of bfloat16 matrices are faster than those of float32
HALVES_SAMPLES, HALVES_ELEMENTS = 3, 1 << 20


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
        add_products(some, own, at_tap(mixing, tap), at_tap(dmixing, tap), found, first)


class Gradients:
    """The gradients of experts and mixing, from the gradients of some samples' mixed weights at a time.

    Those of the mixing are added to `dmixing`, if given; those of the experts are `experts`, None unless `for_experts`.
    channels_last: the mixed weights' gradients have their channels inside, and so have the sums.
    """

    def __init__(self, experts: Tensor, mixing: Tensor, dmixing, for_experts: bool, slices: int, channels_last: bool):
        self.order = _order(channels_last and mixing.dim() == 2)
        ordered = experts.permute(self.order).contiguous()
        self.shape, self.rows = ordered.shape, rows_of(ordered, mixing)
        self.mixing, self.dmixing = mixing, dmixing
        # only a sum over several slices needs the wide dtype
        dtype = self.rows.dtype if slices == 1 else mixing.dtype
        self.total = torch.empty_like(self.rows, dtype=dtype) if for_experts else None
        self.is_first = True

    def add(self, samples: slice, gradient: Tensor) -> None:
        """Add what the gradient of the mixed weights, [samples, out_channels, in_channels/groups, kh, kw], is worth."""
        dmixing = None if self.dmixing is None else self.dmixing[samples]
        add_to_rows(gradient.permute(self.order), self.rows, self.mixing[samples], dmixing, self.total, self.is_first)
        self.is_first = False

    @property
    def experts(self) -> Tensor | None:
        """The gradient of experts, in any layout."""
        if self.total is None:
            return None
        return _in_order(from_rows(self.total, self.shape), self.order)


def at_tap(mixing: Tensor | None, tap: int) -> Tensor | None:
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
        self.order = _order(channels_last)
        experts = experts.permute(self.order)
        self.shape, self.dtype = experts.shape[1:], experts.dtype
        self.mixing, self.rows = mixing.to(wide_dtype(experts.dtype)), experts.reshape(len(experts), -1)
        self.halves = by_halves(self.mixing, self.rows)
        if self.halves:
            self.mixing = in_halves(self.mixing)

    def __getitem__(self, samples: slice) -> Tensor:
        """Return the mixed weights of some samples, [samples, out_channels, in_channels/groups, kh, kw]."""
        mixing = self.mixing[samples]
        parts = _blocks(self.rows, TWICE_ELEMENTS) if self.halves else _blocks(self.rows, BLOCK_ELEMENTS)
        if len(parts) == 1:
            mixed = self._product(mixing, parts[0])
        else:
            mixed = self.rows.new_empty(len(mixing), self.rows.shape[1])
            for part in parts:
                mixed[:, part] = self._product(mixing, part)
        return _in_order(mixed.unflatten(1, self.shape), self.order)

    def _product(self, mixing: Tensor, part: slice) -> Tensor:
        rows = self.rows[:, part]
        rows = torch.cat([rows, rows]) if self.halves else rows.to(mixing.dtype)
        return (mixing @ rows).to(self.dtype)


class TapMixer:
    """`Mixer` for a mix for each tap, [batch, experts, taps]: one product of matrices a tap."""

    def __init__(self, experts: Tensor, mixing: Tensor, channels_last: bool):
        self.shape, self.dtype, self.channels_last = experts.shape[1:], experts.dtype, channels_last
        self.mixing = mixing.to(wide_dtype(experts.dtype)).permute(2, 0, 1)
        self.rows = experts.flatten(3).permute(3, 0, 1, 2).contiguous()  # [taps, experts, out, in]
        self.halves = by_halves(mixing, experts)
        if self.halves:
            self.mixing = in_halves(self.mixing)

    def __getitem__(self, samples: slice) -> Tensor:
        """Return the mixed weights of some samples, [samples, out_channels, in_channels/groups, kh, kw]."""
        mixing = self.mixing[:, samples]
        taps, _, out_channels, in_channels = self.rows.shape
        order = (taps, in_channels) if self.channels_last else (in_channels, taps)
        mixed = self.rows.new_empty(mixing.shape[1], out_channels, *order)
        step = out_channels if mixed.is_cuda else max(1, BLOCK_ELEMENTS // max(1, mixing.shape[1] * taps * in_channels))
        for start in range(0, out_channels, step):
            part = slice(start, start + step)
            rows = self.rows[:, :, part].flatten(2).to(mixing.dtype)
            product = mixing @ (torch.cat([rows, rows], 1) if self.halves else rows)
            product = product.unflatten(2, (-1, in_channels))  # [taps, samples, out, in]
            mixed[:, part] = product.permute((1, 2, 0, 3) if self.channels_last else (1, 2, 3, 0))
        if self.channels_last:
            return mixed.unflatten(2, self.shape[2:]).permute(0, 1, 4, 2, 3)
        return mixed.unflatten(3, self.shape[2:])


def _order(channels_last: bool) -> tuple[int, ...]:
    """Return the dimensions of weights [n, out, in, kh, kw] from the outermost."""
    return (0, 1, 3, 4, 2) if channels_last else (0, 1, 2, 3, 4)


def _in_order(weights: Tensor, order: tuple[int, ...]) -> Tensor:
    """Return weights whose dimensions are in this order as [n, out, in, kh, kw]."""
    return weights.permute([order.index(dim) for dim in range(5)])


def sample_slices(batch: int, experts: Tensor, at_least: int = 1) -> list[slice]:
    """Return slices of the batch whose mixed weights fill about SLICE_BYTES, so that their memory is used again."""
    size = max(at_least, SLICE_BYTES // (experts[0].numel() * experts.element_size()))
    return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]


def add_products(gradient: Tensor, experts: Tensor, mixing: Tensor, dmixing, dexperts, first: bool = True) -> None:
    """Add `<gradient[b], experts[k]>` to dmixing, and `sum_b mixing[b, k] * gradient[b]` to dexperts unless `first`.

    gradient is [batch, numel], experts and dexperts are [experts, numel]; mixing and dmixing are wide. Where `first`,
    dexperts is written, not added to. Either may be None.
    """
    if dmixing is not None:
        for part in _blocks(gradient, BLOCK_ELEMENTS):
            dmixing.addmm_(gradient[:, part].to(mixing.dtype), experts[:, part].to(mixing.dtype).T)
    if dexperts is None:
        return
    if by_halves(mixing, gradient):
        _add_in_halves(gradient, mixing, dexperts, first)
        return
    for part in _blocks(gradient, BLOCK_ELEMENTS):
        wide = gradient[:, part].to(mixing.dtype)
        if first:
            dexperts[:, part] = mixing.T @ wide
        else:
            dexperts[:, part].addmm_(mixing.T, wide)


def _add_in_halves(gradient: Tensor, mixing: Tensor, dexperts: Tensor, first: bool) -> None:
    """Add `sum_b mixing[b, k] * gradient[b]` to dexperts unless `first`, from products of bfloat16 matrices."""
    halves = in_halves(mixing).T.contiguous()
    columns = gradient.shape[1]
    for start in range(0, columns, HALVES_COLUMNS):
        part = slice(start, start + HALVES_COLUMNS)
        high, low = (halves @ gradient[:, part]).chunk(2)
        some = dexperts[:, part]
        if not first:
            some += high
            some += low
        elif some.dtype == high.dtype:
            torch.add(high, low, out=some)
        else:
            some.copy_(high).add_(low)


def by_halves(mixing: Tensor, weights: Tensor) -> bool:
    """Return whether mixing these weights, or their gradients, is faster as a product of bfloat16 matrices."""
    if weights.dtype != torch.bfloat16 or weights.is_cuda:
        return False
    return len(mixing) >= HALVES_SAMPLES and weights[0].numel() * len(mixing) >= HALVES_ELEMENTS


def in_halves(mixing: Tensor) -> Tensor:
    """Return mixing [.., batch, experts] as bfloat16 values and their bfloat16 remainders, [.., batch, 2 * experts].

    Together they keep 16 bits of each weight; a product of bfloat16 matrices sums in float32.
    """
    high = mixing.bfloat16()
    return torch.cat([high, (mixing - high).bfloat16()], -1)


def _blocks(rows: Tensor, elements: int) -> list[slice]:
    """Return slices of the columns small enough to stay in cache while they are copied, in the wide dtype."""
    columns = rows.shape[1]
    copied = rows.dtype != wide_dtype(rows.dtype)
    block = max(1024, elements // max(1, len(rows))) if copied else columns
    return [slice(start, start + block) for start in range(0, columns, block)]
