"""A dynamic convolution whose kernels are made for the channels that a sample has."""

from collections.abc import Sequence
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polychrome.kernels import per_sample_conv2d
from polychrome.kernels.modules import DynamicConv2d, ExpertAttention
from polychrome.kernels.tensors import wide_dtype, without_autocast
from polychrome.models.generated_conv import present, without_absent

MOST_PLACES = 16
SHARPNESS = 4.0
HIDDEN = 16


class AnyChannelConv2d(DynamicConv2d):
    """Dynamic convolution of any number of channels, distinguished by their positions among `in_channels`.

    The experts have a kernel for each of some places, spread evenly over the `in_channels` channels the layer is made
    for: one per channel, at most 16. A place takes the mean of the present channels, weighted by a softmax of -4 *
    distance^2, the distance in steps from place to place: nearly the channel at that place, or the nearest channel if
    the place has none. A lone channel thus acts as a gray image, and two of three channels estimate the third:
    responses keep their scale whichever channels are present, and kernels that compare channels give zero without a
    second channel. With all of up to 16 channels present the estimate is invertible: the experts can represent any
    `nn.Conv2d`. Of more channels 16 weighted means are seen.

    A sample's experts are mixed by attention over its places: mean and standard deviation of the pixels there, and the
    nearness of the nearest channel, exp(-4 * distance^2). The estimate is linear and applied to the kernels, not to the
    image, so that the layer computes a single per-sample convolution. A single expert has no attention and makes an
    ordinary convolution: of the image's estimated places, or, where all samples have the same channels and no more
    than there are places, of the image with the kernels made for these.

    With `fixed_places` the channels of a tensor with `in_channels` channels keep their places under any mask, and a
    tensor of another number of channels needs `channels`. A single expert is then told which places have a channel: its
    bias is shifted by the product of `presence` and (nearness - 1), which is 0 where all places have one.

    `weight` [experts, out_channels, places, kernel_height, kernel_width]; `bias` and, of several experts, `attention`
    as in `DynamicConv2d`; `presence` [out_channels, places].
    `polychrome.kernels.fold_batch_norm` does not change the layer.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        *,
        experts: int = 4,
        fixed_places: bool = False,
    ):
        places = min(in_channels, MOST_PLACES)
        super().__init__(places, out_channels, kernel_size, stride, padding, experts=experts)
        self.attention = ExpertAttention(3 * places, experts, hidden_channels=HIDDEN) if experts > 1 else None
        self.last = in_channels - 1
        self.fixed_places = fixed_places
        told = fixed_places and experts == 1 and places > 1
        self.presence = nn.Parameter(torch.zeros(out_channels, places)) if told else None

    @classmethod
    def from_conv(cls, conv: nn.Module, *_, **__) -> NoReturn:
        """Refuse: the layer's kernels are of places, not of channels.

        Raises:
            TypeError: always; `polychrome.models.AnyChannels` makes a trained network take any channels.
        """
        raise TypeError(
            f"{cls.__name__} is not made from a convolution: its kernels are of places, not of channels; "
            "polychrome.models.AnyChannels makes a trained network take any channels"
        )

    def forward(
        self, x: Tensor, mask: Tensor | None = None, channels: Tensor | Sequence[float] | None = None
    ) -> Tensor:
        """Map [batch, any channels, height, width] to [batch, out_channels, out_height, out_width].

        Args:
            mask: [batch, channels] bool, which channels are present; by default all. A sample without present channels
                counts as channels of zeros.
            channels: [channels] or [batch, channels], integers or floats: the position of each channel of x, the
                layer's own channels being 0 to in_channels - 1; 0.5 is half-way between the first two, such as by
                wavelength. By default a sample's present channels are spread evenly from the first to the last, in
                their order, and a lone channel may lie at any of the places: the result depends on the present
                channels alone.

        Raises:
            TypeError: the mask is not bool.
            ValueError: mask or channels do not fit x; with `fixed_places`, x has another number of channels than
                `in_channels` and `channels` is not given.
        """
        channels = None if channels is None else torch.as_tensor(channels)
        alike = mask is None and (channels is None or channels.dim() == 1)
        x, mask = without_absent(x, mask)
        if channels is not None and channels.shape not in (mask.shape, mask.shape[1:]):
            wanted = f"[channels={mask.shape[1]}] or [batch={mask.shape[0]}, channels={mask.shape[1]}]"
            raise ValueError(f"channels must be {wanted}, got {list(channels.shape)}")
        if self.fixed_places and channels is None and x.shape[1] != self.last + 1:
            raise ValueError(
                f"a layer with fixed_places for {self.last + 1} channels needs the positions of x's {x.shape[1]}: give "
                "`channels`, such as [0] for the first alone"
            )
        if self.attention is None:
            return self._plain(x, mask, channels, alike)
        # autocast would round the mixing and the estimates
        with without_autocast(x):
            estimate, nearness = self._places(mask, channels)
            variance, mean = torch.var_mean(x.to(wide_dtype(x.dtype)), (2, 3), correction=0)
            pixels = torch.stack([mean, (variance + 1e-5).sqrt()], 1)
            shown = torch.cat([nearness.unsqueeze(1), (estimate.unsqueeze(1) * pixels.unsqueeze(2)).sum(3)], 1)
            mixing = self.attention(shown.flatten(1)[:, :, None, None])
            kernels = torch.einsum("bophw,bpc->bochw", _mixed(self.weight, mixing), estimate.to(mixing.dtype))
            bias = _mixed(self.bias, mixing)
        return per_sample_conv2d(x, kernels.to(x.dtype), bias.to(x.dtype), self.stride, self.padding)

    def _plain(self, x: Tensor, mask: Tensor, channels: Tensor | None, alike: bool) -> Tensor:
        """Return the single expert's output; `alike` says that all samples have the same channels at one place each."""
        weight = self.weight[0]
        with without_autocast(x):
            mask = mask.new_ones(1, mask.shape[1]) if alike else mask
            estimate, nearness = self._places(mask, channels)
            exported = torch.compiler.is_exporting() or torch.jit.is_tracing()  # a rule on sizes would fix them
            if alike and (exported or x.shape[1] <= self.in_channels):
                weight = torch.einsum("ophw,pc->ochw", weight, estimate[0].to(weight.dtype))
            else:
                pixels = x.permute(0, 2, 3, 1).flatten(1, 2) @ estimate.transpose(1, 2).to(x.dtype)
                x = pixels.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
            bias = self.bias
            if self.presence is not None:
                bias = bias + (nearness.to(bias.dtype) - 1) @ self.presence.T
        if self.presence is None or alike:
            return F.conv2d(x, weight, bias[0], self.stride, self.padding)
        y = F.conv2d(x, weight, None, self.stride, self.padding)
        return y + bias[:, :, None, None].to(y.dtype)

    def reset_parameters(self) -> None:
        """Reinitialise all parameters, the attention's too."""
        if self.presence is not None:
            nn.init.zeros_(self.presence)
        if self.attention is None:
            self._reset_experts()
        else:
            super().reset_parameters()

    def _places(self, mask: Tensor, channels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return each place's weights, [batch, places, channels], and its nearness to a channel, [batch, places].

        A lone channel whose position is not known is as near to each place: a share of the one place that it has.
        """
        count = present(mask)
        if channels is not None:
            standing = channels.to(mask.device, torch.float32).expand(mask.shape)
        elif self.fixed_places:
            standing = torch.arange(self.last + 1, dtype=torch.float32, device=mask.device).expand(mask.shape)
        else:
            standing = (mask.cumsum(1) - 1) * (self.last / (count - 1).clamp(min=1)).float()
        places = torch.linspace(0, self.last, self.in_channels, dtype=standing.dtype, device=standing.device)
        step = self.last / (self.in_channels - 1) if self.last else 1
        distance = (places[:, None] - standing[:, None]) / step
        closeness = (-SHARPNESS * distance**2).masked_fill(~mask[:, None], torch.finfo(distance.dtype).min)
        nearness = closeness.amax(2).exp()
        if channels is None and not self.fixed_places:
            nearness = torch.where(count == 1, 1 / self.in_channels, nearness)
        return closeness.softmax(2), nearness


def _mixed(experts: Tensor, mixing: Tensor) -> Tensor:
    """Return the sum of experts [experts, ...] by mixing [batch, experts]: [batch, ...] in the mixing's dtype."""
    return (mixing @ experts.to(mixing.dtype).flatten(1)).unflatten(1, experts.shape[1:])
