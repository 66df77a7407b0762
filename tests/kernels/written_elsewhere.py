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
    def __init__(self, planes):
        super().__init__()
        self.channels, self.pixels = ChannelGate(planes), SpatialGate()

    def forward(self, x):
        return self.pixels(self.channels(x))


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
