"""Modules as open-source code writes them, for `kernels.fuse` to find."""

import torch
import torch.nn.functional as F
from torch import nn


class Attention2d(nn.Module):
    """The attention of a dynamic convolution, with a temperature that its owner lowers."""

    def __init__(self, in_planes, ratio, experts, temperature):
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        hidden = experts if in_planes == 3 else int(in_planes * ratio) + 1
        self.fc1 = nn.Conv2d(in_planes, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, experts, 1, bias=True)
        self.temperature = temperature

    def lower_temperature(self):
        if self.temperature != 1:
            self.temperature -= 3

    def forward(self, x):
        logits = self.fc2(F.relu(self.fc1(self.avgpool(x)))).view(x.size(0), -1)
        return F.softmax(logits / self.temperature, 1)


class DynamicConv(nn.Module):
    """Experts mixed per sample, then one convolution with the batch as groups."""

    def __init__(self, in_planes, out_planes, kernel_size, ratio=0.25, stride=1, padding=0, dilation=1, groups=1,
                 bias=True, K=4, temperature=34):  # fmt: skip
        super().__init__()
        self.in_planes, self.out_planes, self.kernel_size = in_planes, out_planes, kernel_size
        self.stride, self.padding, self.dilation, self.groups, self.K = stride, padding, dilation, groups, K
        self.attention = Attention2d(in_planes, ratio, K, temperature)
        self.weight = nn.Parameter(torch.randn(K, out_planes, in_planes // groups, kernel_size, kernel_size) / 4)
        self.bias = nn.Parameter(torch.zeros(K, out_planes)) if bias else None

    def update_temperature(self):
        self.attention.lower_temperature()

    def forward(self, x):
        mixing = self.attention(x)
        batch, channels, height, width = x.size()
        flat = x.reshape(1, -1, height, width)
        shape = batch * self.out_planes, channels // self.groups, self.kernel_size, self.kernel_size
        weight = torch.mm(mixing, self.weight.view(self.K, -1)).view(shape)
        bias = None if self.bias is None else torch.mm(mixing, self.bias).view(-1)
        y = F.conv2d(flat, weight, bias, self.stride, self.padding, self.dilation, self.groups * batch)
        return y.view(batch, self.out_planes, y.size(-2), y.size(-1))


class ReflectedDynamicConv(DynamicConv):
    """Pads by itself, which the attributes do not tell."""

    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1), "reflect"))


class ChannelAttention(nn.Module):
    """CBAM's gate of the channels; the caller multiplies."""

    def __init__(self, planes, ratio=4):
        super().__init__()
        self.avg_pool, self.max_pool = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
        self.fc1 = nn.Conv2d(planes, planes // ratio, 1, bias=False)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Conv2d(planes // ratio, planes, 1, bias=False)

    def forward(self, x):
        average, largest = (self.fc2(self.relu1(self.fc1(pool(x)))) for pool in (self.avg_pool, self.max_pool))
        return torch.sigmoid(average + largest)


class SpatialAttention(nn.Module):
    """CBAM's map of the pixels; the caller multiplies."""

    def __init__(self, kernel_size=7):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        average, (largest, _) = torch.mean(x, dim=1, keepdim=True), torch.max(x, dim=1, keepdim=True)
        return self.sigmoid(self.conv1(torch.cat([average, largest], dim=1)))


class CBAM(nn.Module):
    """Both, multiplied here."""

    def __init__(self, planes):
        super().__init__()
        self.ca, self.sa = ChannelAttention(planes), SpatialAttention()

    def forward(self, x):
        x = self.ca(x) * x
        return self.sa(x) * x


class CBAMBlock(nn.Module):
    """Both, multiplied in the middle of a residual block."""

    def __init__(self, planes):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.ca, self.sa = ChannelAttention(planes), SpatialAttention()

    def forward(self, x):
        out = self.bn(self.conv(x))
        out = self.ca(out) * out
        out = self.sa(out) * out
        return F.relu(out + x)


class Flatten(nn.Module):
    def forward(self, x):
        return x.view(x.size(0), -1)


class ChannelGate(nn.Module):
    """CBAM's first half with linear layers; multiplies itself."""

    def __init__(self, planes, ratio=4):
        super().__init__()
        self.mlp = nn.Sequential(
            Flatten(), nn.Linear(planes, planes // ratio), nn.ReLU(), nn.Linear(planes // ratio, planes)
        )

    def forward(self, x):
        size = x.size(2), x.size(3)
        total = self.mlp(F.avg_pool2d(x, size, stride=size)) + self.mlp(F.max_pool2d(x, size, stride=size))
        return x * torch.sigmoid(total).unsqueeze(2).unsqueeze(3).expand_as(x)


class ChannelPool(nn.Module):
    def forward(self, x):
        return torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)


class BasicConv(nn.Module):
    def __init__(self, inputs, outputs, kernel_size):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, padding=(kernel_size - 1) // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-5, momentum=0.01)

    def forward(self, x):
        return self.bn(self.conv(x))


class SpatialGate(nn.Module):
    """CBAM's second half, the maximum first, normalised; multiplies itself."""

    def __init__(self):
        super().__init__()
        self.compress, self.spatial = ChannelPool(), BasicConv(2, 1, 7)

    def forward(self, x):
        return x * torch.sigmoid(self.spatial(self.compress(x)))


class GatedCBAM(nn.Module):
    """CBAM in the names of its authors' state dict."""

    def __init__(self, planes):
        super().__init__()
        self.ChannelGate, self.SpatialGate = ChannelGate(planes), SpatialGate()

    def forward(self, x):
        return self.SpatialGate(self.ChannelGate(x))


class SELayer(nn.Module):
    """Squeeze-excitation with linear layers."""

    def __init__(self, planes, ratio=4):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(planes, planes // ratio, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(planes // ratio, planes, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x):
        batch, planes, _, _ = x.size()
        y = self.fc(self.avg_pool(x).view(batch, planes)).view(batch, planes, 1, 1)
        return x * y.expand_as(x)


class RoutedCondConv(nn.Module):
    """CondConv that is given its mix, made once for several layers."""

    def __init__(self, in_planes, out_planes, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True, K=4):
        super().__init__()
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.weight = nn.Parameter(torch.randn(K, out_planes, in_planes // groups, kernel_size, kernel_size) / 4)
        self.bias = nn.Parameter(torch.randn(K, out_planes)) if bias else None

    def forward(self, x, routing_weight):
        batch, channels, height, width = x.size()
        count, outputs, inputs, rows, columns = self.weight.size()
        weight = torch.mm(routing_weight, self.weight.contiguous().view(count, -1)).view(-1, inputs, rows, columns)
        bias = None if self.bias is None else torch.mm(routing_weight, self.bias).view(-1)
        x = x.contiguous().view(1, batch * channels, height, width)
        y = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups * batch)
        return y.view(batch, outputs, y.size(-2), y.size(-1))


class Routing(nn.Module):
    def __init__(self, planes, experts):
        super().__init__()
        self.fc = nn.Linear(planes, experts)

    def forward(self, pooled):
        return torch.sigmoid(self.fc(torch.flatten(pooled)))


class LoopedCondConv(nn.Module):
    """CondConv of one sample after the other: its routing takes no batch."""

    def __init__(self, in_planes, out_planes, kernel_size, K=3):
        super().__init__()
        self.padding = kernel_size // 2
        self.routing = Routing(in_planes, K)
        self.weight = nn.Parameter(torch.randn(K, out_planes, in_planes, kernel_size, kernel_size) / 4)

    def forward(self, x):
        results = []
        for sample in x:
            mix = self.routing(F.adaptive_avg_pool2d(sample.unsqueeze(0), 1))
            kernel = (mix[:, None, None, None, None] * self.weight).sum(0)
            results.append(F.conv2d(sample.unsqueeze(0), kernel, padding=self.padding))
        return torch.cat(results)


class HardSigmoid(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x):
        return self.relu(x + 3) / 6


class HardSwish(nn.Module):
    def __init__(self):
        super().__init__()
        self.sigmoid = HardSigmoid()

    def forward(self, x):
        return x * self.sigmoid(x)


class MobileSE(nn.Module):
    """Squeeze-excitation of MobileNetV3 ports: 1x1 convolutions, normalised, and a hard sigmoid."""

    def __init__(self, planes, ratio=4):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.se = nn.Sequential(
            nn.Conv2d(planes, planes // ratio, 1, bias=False),
            nn.BatchNorm2d(planes // ratio),
            nn.ReLU(inplace=True),
            nn.Conv2d(planes // ratio, planes, 1, bias=False),
            nn.BatchNorm2d(planes),
            HardSigmoid(),
        )

    def forward(self, x):
        return x * self.se(self.pool(x))


class SwishSE(nn.Module):
    """Squeeze-excitation of EfficientNet ports: SiLU between the layers."""

    def __init__(self, planes, ratio=4):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(planes, planes // ratio, 1), nn.Conv2d(planes // ratio, planes, 1)
        self.silu = nn.SiLU()

    def forward(self, x):
        y = self.expand(self.silu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return torch.sigmoid(y) * x


class SingleSE(nn.Module):
    """A gate of one layer."""

    def __init__(self, planes):
        super().__init__()
        self.fc = nn.Linear(planes, planes)

    def forward(self, x):
        return x.mul(self.fc(x.mean((2, 3))).sigmoid()[..., None, None])


class ECA(nn.Module):
    """Efficient channel attention: a 1D convolution over the channels."""

    def __init__(self, kernel_size=3):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=(kernel_size - 1) // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        y = self.conv(self.avg_pool(x).squeeze(-1).transpose(-1, -2))
        return x * self.sigmoid(y.transpose(-1, -2).unsqueeze(-1)).expand_as(x)


class CoordAtt(nn.Module):
    """Coordinate attention: a gate of the rows and one of the columns."""

    def __init__(self, planes, ratio=4):
        super().__init__()
        self.pool_h, self.pool_w = nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d((1, None))
        middle = max(4, planes // ratio)
        self.conv1, self.bn1, self.act = nn.Conv2d(planes, middle, 1), nn.BatchNorm2d(middle), HardSwish()
        self.conv_h, self.conv_w = nn.Conv2d(middle, planes, 1), nn.Conv2d(middle, planes, 1)

    def forward(self, x):
        height, width = x.shape[2:]
        y = torch.cat([self.pool_h(x), self.pool_w(x).permute(0, 1, 3, 2)], dim=2)
        rows, columns = torch.split(self.act(self.bn1(self.conv1(y))), [height, width], dim=2)
        rows, columns = self.conv_h(rows).sigmoid(), self.conv_w(columns.permute(0, 1, 3, 2)).sigmoid()
        return x * columns * rows


class SKConv(nn.Module):
    """Selective kernels: a softmax over branches."""

    def __init__(self, planes, ratio=2):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(planes, planes, k, padding=k // 2) for k in (3, 5))
        self.fc, self.fcs = nn.Linear(planes, planes // ratio), nn.ModuleList(
            nn.Linear(planes // ratio, planes) for _ in range(2)
        )  # fmt: skip
        self.softmax = nn.Softmax(dim=1)

    def forward(self, x):
        branches = torch.stack([conv(x) for conv in self.convs], 1)
        z = self.fc(branches.sum(1).mean((2, 3)))
        weights = self.softmax(torch.stack([fc(z) for fc in self.fcs], 1))
        return (branches * weights[..., None, None]).sum(1)


class FourAttentions(nn.Module):
    """ODConv's: for channels, filters, kernel positions and experts."""

    def __init__(self, planes, outputs, kernel_size, experts):
        super().__init__()
        self.fc = nn.Conv2d(planes, 4, 1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        sizes = planes, outputs, kernel_size**2, experts
        self.heads = nn.ModuleList(nn.Conv2d(4, size, 1) for size in sizes)
        self.kernel_size = kernel_size

    def forward(self, x):
        y = F.relu(self.bn(self.fc(F.adaptive_avg_pool2d(x, 1))))
        channels, filters, places, experts = (head(y) for head in self.heads)
        places = places.view(-1, 1, 1, 1, self.kernel_size, self.kernel_size).sigmoid()
        return channels.sigmoid(), filters.sigmoid(), places, experts.flatten(1).softmax(1)[..., None, None, None, None]


class ODConv(nn.Module):
    """It pads by its kernel's size, which no attribute tells."""

    def __init__(self, in_planes, out_planes, kernel_size=3, K=4):
        super().__init__()
        self.in_planes, self.out_planes, self.kernel_size = in_planes, out_planes, kernel_size
        self.attention = FourAttentions(in_planes, out_planes, kernel_size, K)
        self.weight = nn.Parameter(torch.randn(K, out_planes, in_planes, kernel_size, kernel_size))

    def forward(self, x):
        channels, filters, places, experts = self.attention(x)
        batch, _, height, width = x.shape
        weight = (places * experts * self.weight[None]).sum(1).flatten(0, 1)
        x = (x * channels).reshape(1, -1, height, width)
        y = F.conv2d(x, weight, padding=self.kernel_size // 2, groups=batch)
        return y.view(batch, self.out_planes, height, width) * filters


class ModulatedConv(nn.Module):
    """StyleGAN2's: one kernel, scaled per sample by a style, and normalised."""

    def __init__(self, in_planes, out_planes, kernel_size, style=5):
        super().__init__()
        self.padding = kernel_size // 2
        self.weight = nn.Parameter(torch.randn(1, out_planes, in_planes, kernel_size, kernel_size))
        self.modulation = nn.Linear(style, in_planes)

    def forward(self, x, style):
        batch, planes, height, width = x.shape
        weight = self.weight * self.modulation(style).view(batch, 1, planes, 1, 1)
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        y = F.conv2d(x.view(1, -1, height, width), weight.flatten(0, 1), padding=self.padding, groups=batch)
        return y.view(batch, -1, height, width)


class InlineSE(nn.Module):
    """A residual block that multiplies by its own gate in the middle."""

    def __init__(self, planes, ratio=4):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.fc1, self.fc2 = nn.Conv2d(planes, planes // ratio, 1), nn.Conv2d(planes // ratio, planes, 1)

    def forward(self, x):
        out = F.relu(self.bn(self.conv(x)))
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(F.avg_pool2d(out, out.size(2), out.size(3)).mean((2, 3), True)))))
        return F.relu(out * gate + x)


class SharedTiesAttention(nn.Module):
    """CBAM's second half with `amax`, which divides a tie's gradient among the channels."""

    def __init__(self, kernel_size=7):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x):
        return x * self.conv(torch.cat([x.mean(1, True), x.amax(1, True)], 1)).sigmoid()


class OfficialAttention(nn.Module):
    """ODConv's attentions, those without a use left out: the number one."""

    def __init__(self, planes, outputs, kernel_size, groups, experts):
        super().__init__()
        self.kernel_size, self.temperature = kernel_size, 1.0
        hidden = max(planes // 16, 16)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Conv2d(planes, hidden, 1, bias=False)
        self.bn = nn.BatchNorm2d(hidden)
        self.relu = nn.ReLU(inplace=True)
        self.channel_fc = nn.Conv2d(hidden, planes, 1)
        self.func_filter = self.func_spatial = self.func_kernel = self.one
        if not planes == groups == outputs:
            self.filter_fc, self.func_filter = nn.Conv2d(hidden, outputs, 1), self.of_filters
        if kernel_size > 1:
            self.spatial_fc, self.func_spatial = nn.Conv2d(hidden, kernel_size**2, 1), self.of_places
        if experts > 1:
            self.kernel_fc, self.func_kernel = nn.Conv2d(hidden, experts, 1), self.of_experts

    def one(self, _):
        return 1.0

    def of_filters(self, y):
        return torch.sigmoid(self.filter_fc(y) / self.temperature)

    def of_places(self, y):
        shape = len(y), 1, 1, 1, self.kernel_size, self.kernel_size
        return torch.sigmoid(self.spatial_fc(y).view(shape) / self.temperature)

    def of_experts(self, y):
        return torch.softmax(self.kernel_fc(y).view(len(y), -1, 1, 1, 1, 1) / self.temperature, 1)

    def forward(self, x):
        y = self.relu(self.bn(self.fc(self.avgpool(x))))
        channels = torch.sigmoid(self.channel_fc(y) / self.temperature)
        return channels, self.func_filter(y), self.func_spatial(y), self.func_kernel(y)


class OfficialODConv(nn.Module):
    """ODConv with geometry, in the names of its authors' state dict."""

    def __init__(self, planes, outputs, kernel_size, stride=1, padding=0, dilation=1, groups=1, experts=4):
        super().__init__()
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.attention = OfficialAttention(planes, outputs, kernel_size, groups, experts)
        self.weight = nn.Parameter(torch.randn(experts, outputs, planes // groups, kernel_size, kernel_size) / 4)

    def forward(self, x):
        channels, filters, places, experts = self.attention(x)
        batch, _, height, width = x.shape
        if isinstance(places, float) and isinstance(experts, float):
            y = F.conv2d(x * channels, self.weight.squeeze(0), None, self.stride, self.padding, groups=self.groups)
            return y * filters
        weight = (places * experts * self.weight[None]).sum(1).flatten(0, 1)
        flat = (x * channels).reshape(1, -1, height, width)
        y = F.conv2d(flat, weight, None, self.stride, self.padding, self.dilation, self.groups * batch)
        return y.view(batch, -1, *y.shape[2:]) * filters


class EqualLinear(nn.Module):
    """A linear layer whose weight starts with variance one."""

    def __init__(self, features, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, features)), nn.Parameter(torch.ones(outputs))
        self.scale = features**-0.5

    def forward(self, style):
        return F.linear(style, self.weight * self.scale, self.bias)


class Blur(nn.Module):
    """A blur of each channel, a signal's convolution."""

    def __init__(self, taps, pad, gain):
        super().__init__()
        taps = torch.tensor(taps, dtype=torch.float32)
        kernel = taps[:, None] * taps
        self.register_buffer("kernel", kernel / kernel.sum() * gain)
        self.pad = pad

    def forward(self, x):
        batch, planes, height, width = x.shape
        y = F.pad(x.view(batch * planes, 1, height, width), self.pad * 2)
        y = F.conv2d(y, self.kernel.flip(0, 1)[None, None].to(x))
        return y.view(batch, planes, *y.shape[2:])


class StyledConv(nn.Module):
    """StyleGAN2's modulated convolution in the names of the most used state dict: up, down or neither."""

    def __init__(self, planes, outputs, kernel_size, style, demodulate=True, upsample=False, downsample=False,
                 blur_kernel=(1, 3, 3, 1)):  # fmt: skip
        super().__init__()
        self.eps, self.scale, self.padding = 1e-8, (planes * kernel_size**2) ** -0.5, kernel_size // 2
        self.demodulate, self.upsample, self.downsample = demodulate, upsample, downsample
        if upsample:
            p = len(blur_kernel) - 2 - (kernel_size - 1)
            self.blur = Blur(blur_kernel, ((p + 1) // 2 + 1, p // 2 + 1), 4)
        if downsample:
            p = len(blur_kernel) - 2 + (kernel_size - 1)
            self.blur = Blur(blur_kernel, ((p + 1) // 2, p // 2), 1)
        self.weight = nn.Parameter(torch.randn(1, outputs, planes, kernel_size, kernel_size))
        self.modulation = EqualLinear(style, planes)

    def forward(self, x, style):
        batch, planes, _, _ = x.shape
        weight = self.scale * self.weight * self.modulation(style).view(batch, 1, planes, 1, 1)
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4], keepdim=True) + self.eps)
        if self.downsample:
            x = self.blur(x)
        flat = x.reshape(1, -1, *x.shape[2:])
        if self.upsample:
            y = F.conv_transpose2d(flat, weight.transpose(1, 2).flatten(0, 1), stride=2, groups=batch)
        elif self.downsample:
            y = F.conv2d(flat, weight.flatten(0, 1), stride=2, groups=batch)
        else:
            y = F.conv2d(flat, weight.flatten(0, 1), padding=self.padding, groups=batch)
        y = y.view(batch, -1, *y.shape[2:])
        return self.blur(y) if self.upsample else y
