"""Networks that were made for a fixed number of channels, and take any of them."""

from collections.abc import Iterable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from polychrome.kernels.checks import check_float
from polychrome.kernels.tensors import in_layout, wide_dtype, without_autocast
from polychrome.models.any_channel_conv import SHARPNESS
from polychrome.models.generated_conv import without_absent

FILLS = NEAREST, ESTIMATED = "nearest", "estimated"
MOST_AXES = 16
RIDGE = 1e-3  # least variance, beside the channels' mean variance, that the axes are taken to leave unexplained
GRID = 64  # pixels to a side that an image is measured at
ROUNDING = 1e-12  # of a mean square: a variance below is none
MOST_ROUNDS = 100  # in which a covariance is completed
COMPLETE = 1e-6  # change of a round, of a mean variance, after which it is


class AnyChannels(nn.Module):
    """A network that was made for a fixed number of channels, such as a trained one of timm's, and takes any of them.

    An absent channel is filled in from the present ones, which stay as they are: where all are there, the network is
    called with the image itself. There are no parameters beside the network's.

        model = AnyChannels(timm.create_model("resnet50", pretrained=True))
        model(x)  # [batch, 3, height, width], as before
        model(x, mask)  # mask [batch, 3] bool: the samples' present channels
        model(x[:, :2], channels=[0, 1])  # red and green alone

    With `fill="nearest"` it is the nearest present channel: the mean of the present channels, weighted by a softmax of
    -4 * distance^2, the distance in channels, so that of two as near it is their mean. A lone channel thus acts as a
    gray image, where zeros in place of the others would make an image of one colour. As a channel stands for another,
    they should be standardised, or of one scale, and in an order in which neighbours are alike, such as by wavelength.

    With `fill="estimated"` it is what the present channels of a pixel make likely, by the covariance of the channels,
    which `measure` takes from images: the mean of a Gaussian under the condition of the present channels, of which the
    covariance has at most 16 axes and a rest that is alike in all channels (probabilistic PCA, Tipping & Bishop 1999).
    Until `measure` is called, or measured weights are loaded, it is the nearest.

        model = AnyChannels(network, fill="estimated").measure(images)  # batches, as the network is shown them

    `network` is the network that was given. Buffers of "estimated": `mean` [in_channels] and `axes` [in_channels,
    min(in_channels, 16)], in units of the rest's deviation; zero until measured.

    Args:
        network: maps [batch, in_channels, height, width] to anything.
        in_channels: the channels that it takes; by default those of its first `nn.Conv2d`.
        fill: "nearest" or "estimated". A network that takes any channels already may gain by the latter.

    Raises:
        ValueError: `fill` is another, it is "nearest" and the network takes any channels already, or the network has no
            `nn.Conv2d` and `in_channels` is not given.
    """

    any_channels = fixed_places = True
    MEASURED = ("mean", "axes")

    def __init__(self, network: nn.Module, in_channels: int | None = None, fill: str = NEAREST):
        super().__init__()
        if fill not in FILLS:
            raise ValueError(f"fill must be one of {', '.join(FILLS)}, got {fill!r}")
        if fill == NEAREST and getattr(network, "any_channels", False):
            raise ValueError(f"{type(network).__name__} takes any channels already")
        if in_channels is None:
            first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
            if first is None:
                raise ValueError(f"in_channels must be given: {type(network).__name__} has no nn.Conv2d to tell it")
            in_channels = first.in_channels
        self.network, self.in_channels, self.fill = network, in_channels, fill
        if fill == ESTIMATED:
            self.register_buffer("mean", torch.zeros(in_channels))
            self.register_buffer("axes", torch.zeros(in_channels, min(in_channels, MOST_AXES)))
        self.train(network.training)

    def forward(self, x: Tensor, mask: Tensor | None = None, channels: Sequence[int] | None = None):
        """Return what the network returns for images x [batch, channels, height, width].

        Args:
            mask: [batch, channels] bool, which channels are present, by default all; what x holds of absent channels
                does not matter. A sample without any counts as channels of zeros, or of their means once measured.
            channels: the position of each of x's channels among the network's `in_channels`, each once; by default x
                has all in their order.

        Raises:
            TypeError: the mask is not bool, or x, with mask or channels, is not float32, float64, float16 or bfloat16.
            ValueError: mask or channels do not fit x, or x has another number of channels than `in_channels` and
                `channels` is not given.
        """
        count = x.shape[1]
        if channels is None and count != self.in_channels:
            raise ValueError(
                f"a network for {self.in_channels} channels needs the positions of x's {count}: give `channels`, such "
                "as [0] for the first alone"
            )
        if mask is None and channels is None:
            return self.network(x)
        check_float("x", x)
        present, mask = without_absent(x, mask)
        if channels is not None:
            sources = self._sources([int(each) for each in channels], count)
            both = (present, mask)
            present, mask = (torch.cat([each, torch.zeros_like(each[:, :1])], 1)[:, sources] for each in both)
        return self.network(in_layout(x, self._filled(present, mask)))

    @torch.no_grad()
    def measure(self, images: Iterable[Tensor | tuple[Tensor, Tensor]]) -> Self:
        """Take the mean and covariance of the channels from images, and return this module.

        Args:
            images: batches [batch, in_channels, height, width], as the network is shown them: standardised, and not
                augmented. With (batch, mask), mask [batch, in_channels] bool, a pair of channels is measured on the
                images that have both; of channels that no image has both of, each is likely what channels that vary
                with both make it. Of an image about 64 x 64 pixels count.

        Raises:
            TypeError: a mask is not bool.
            ValueError: `fill` is not "estimated", there is no image, a batch has another number of channels, a mask
                does not fit it, a value is not finite, or two channels are never together in an image, nor joined by
                channels that are.
        """
        if self.fill != ESTIMATED:
            raise ValueError(f"fill={self.fill!r} has nothing to measure: make it with fill={ESTIMATED!r}")
        counts, sums, products = (torch.zeros(self.in_channels, self.in_channels, dtype=torch.float64) for _ in "csp")
        for each in images:
            x, mask = each if isinstance(each, tuple) else (each, None)
            if x.dim() != 4 or x.shape[1] != self.in_channels:
                raise ValueError(f"images must be [batch, {self.in_channels}, height, width], got {list(x.shape)}")
            x, mask = without_absent(x, mask)
            rows, columns = (max(1, size // GRID) for size in x.shape[2:])
            pixels, has = x[:, :, ::rows, ::columns].flatten(2).double().cpu(), mask.double().cpu()
            flat = pixels.movedim(1, 0).flatten(1)
            counts += has.T @ has * pixels.shape[2]
            sums += pixels.sum(2).T @ has
            products += flat @ flat.T
        if not counts.any():
            raise ValueError("images must have at least one image")
        if not products.isfinite().all():
            raise ValueError("images have values that are not finite")
        known, joined = counts > 0, counts > 0
        for _ in range(self.in_channels.bit_length()):
            joined = (joined.double() @ joined.double()) > 0
        if apart := (~joined).nonzero().tolist():
            raise ValueError(
                "channels {} and {} are never together in an image, nor joined by others: how they vary together is "
                "not known".format(*apart[0])
            )
        mean = sums.diagonal() / counts.diagonal()
        covariance = products / counts - (sums / counts) * (sums / counts).T
        rest, kept = RIDGE * covariance.diagonal().mean(), self.axes.shape[1]
        if not known.all():
            covariance = _completed(covariance.where(known, 0.0), known, rest)
        variances, directions = torch.linalg.eigh(covariance)  # from the least on
        square = products.diagonal() / counts.diagonal()
        variances = variances.where(variances > ROUNDING * square.mean(), 0.0)
        if kept < self.in_channels:
            rest = torch.maximum(rest, variances[:-kept].mean())
        self.mean.copy_(mean)
        self.axes.copy_((directions * (variances / rest.clamp_min(torch.finfo(torch.float32).tiny)).sqrt())[:, -kept:])
        return self

    @property
    def measured(self) -> tuple[Tensor, ...]:
        """The buffers that `measure` fills, `mean` and `axes`; none of "nearest"."""
        return tuple(getattr(self, name) for name in self.MEASURED if hasattr(self, name))

    def extra_repr(self) -> str:
        return f"in_channels={self.in_channels}, fill={self.fill!r}"

    def _sources(self, channels: list[int], count: int) -> list[int]:
        """Return for each of the network's channels its number in x, `count` where x has it not."""
        wanted = range(self.in_channels)
        if len(channels) != count or len({*channels}) != count or not {*channels} <= {*wanted}:
            raise ValueError(
                f"channels must be {count} different positions among 0 to {self.in_channels - 1}, got {channels}"
            )
        return [channels.index(each) if each in channels else count for each in wanted]

    def _filled(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return x [batch, channels, height, width], zero where the mask is false, with absent channels filled in."""
        with without_autocast(x):
            shares = _nearest(mask)
            if self.fill == NEAREST:
                found = shares.to(x.dtype) @ x.flatten(2)
            else:
                dtype, measured = wide_dtype(x.dtype), (self.axes != 0).any()
                shares = torch.where(measured, _estimated(self.axes, mask), shares.double()).to(dtype)
                mean = self.mean[:, None].to(dtype)
                found = (mean + shares @ (x.flatten(2).to(dtype) - mean)).to(x.dtype)
            return torch.where(mask[:, :, None, None], x, found.unflatten(2, x.shape[2:]))


def _completed(covariance: Tensor, known: Tensor, rest: Tensor) -> Tensor:
    """Return a covariance [channels, channels] with the entries that are not known, by those that are.

    Two channels that are never together vary as channels that others are between make likely: they are independent
    under the condition of these (covariance selection, Dempster 1972), by regressions of one channel after another
    (Hastie, Tibshirani and Friedman 2009, algorithm 17.1).
    """
    found, least = covariance.clone(), covariance.diagonal().mean() * COMPLETE
    units = rest * torch.eye(len(covariance), dtype=covariance.dtype)
    for _ in range(MOST_ROUNDS):
        before = found.clone()
        for channel, partners in enumerate(known):
            strange, partners = ~partners, partners.clone()
            partners[channel] = False
            factors = torch.linalg.solve((found + units)[partners][:, partners], covariance[partners, channel])
            found[strange, channel] = found[channel, strange] = found[strange][:, partners] @ factors
        if (found - before).abs().max() <= least:
            break
    return found


def _nearest(mask: Tensor) -> Tensor:
    """Return the share [batch, channels, channels] of each present channel in each channel, by their distances."""
    place = torch.arange(mask.shape[1], dtype=torch.float32, device=mask.device)
    closeness = -SHARPNESS * (place[:, None] - place).square()
    return closeness.masked_fill(~mask[:, None], torch.finfo(closeness.dtype).min).softmax(2)


def _estimated(axes: Tensor, mask: Tensor) -> Tensor:
    """Return the factor [batch, channels, channels] of each present channel in the estimate of each channel, float64.

    The coordinates on the axes A are the ridge regression of the present channels, of unit noise, so that the factors
    are A (1 + A' M A)^-1 A' M, with the mask M on the diagonal.
    """
    axes = axes.double()
    present = axes.T * mask[:, None].double()  # [batch, axes, channels]
    precision = torch.eye(axes.shape[1], dtype=axes.dtype, device=axes.device) + present @ axes
    return axes @ (_inverse(precision) @ present)


def _inverse(matrices: Tensor) -> Tensor:
    """Return the inverses of symmetric matrices [batch, size, size] whose eigenvalues are 1 and more.

    By Gauss and Jordan's elimination, pivot after pivot: ONNX has no inverse, and torch's makes the host wait.
    """
    units = torch.eye(matrices.shape[1], dtype=matrices.dtype, device=matrices.device)
    for place, unit in enumerate(units):
        column = matrices[:, :, place] - unit
        pivot = matrices[:, place, place, None, None]
        matrices = matrices - column[:, :, None] * column[:, None] / pivot - 2 * unit[:, None] * unit
    return -matrices
