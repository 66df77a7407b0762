import torch

from kernels import channel_gate, channel_stats, per_sample_conv2d, spatial_attention
from kernels.modules import ChannelGate, ChannelStats, PerSampleConv2d, SpatialAttention
from tests.kernels.oracle import randn


def shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def test_state_dict_names_are_the_documented_ones():
    assert shapes(SpatialAttention()) == {"conv.weight": (1, 2, 7, 7)}
    assert shapes(SpatialAttention(3, bias=True)) == {"conv.weight": (1, 2, 3, 3), "conv.bias": (1,)}
    assert shapes(ChannelGate(8, 2)) == {
        "fc1.weight": (2, 8, 1, 1),
        "fc1.bias": (2,),
        "fc2.weight": (8, 2, 1, 1),
        "fc2.bias": (8,),
    }
    assert shapes(ChannelGate(8, bias=False)) == {"fc2.weight": (8, 8, 1, 1)}
    assert shapes(ChannelStats()) == shapes(PerSampleConv2d()) == {}


def test_modules_equal_their_functions():
    x = randn(3, 8, 6, 5)
    mask = torch.ones(3, 8).bool()
    mask[1, :5] = False
    attention, gate = SpatialAttention(5, bias=True), ChannelGate(8, 2, gate="softmax")
    single = ChannelGate(8, bias=False)
    weight, bias = randn(3, 6, 4, 3, 3), randn(3, 6)
    assert torch.equal(ChannelStats()(x, mask), channel_stats(x, mask))
    assert torch.equal(attention(x), spatial_attention(x, attention.conv.weight, attention.conv.bias))
    fc1, fc2 = gate.fc1, gate.fc2
    assert torch.equal(gate(x), channel_gate(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, "softmax"))
    assert torch.equal(single(x), channel_gate(x, None, None, single.fc2.weight, None))
    conv = PerSampleConv2d(stride=2, padding=1, groups=2)
    assert torch.equal(conv(x, weight, bias), per_sample_conv2d(x, weight, bias, 2, 1, 1, 2))


def test_channel_gate_loads_torchvisions_squeeze_excitation():
    from torchvision.ops import SqueezeExcitation

    theirs, ours = SqueezeExcitation(8, 2), ChannelGate(8, 2)
    ours.load_state_dict(theirs.state_dict())
    x = randn(3, 8, 6, 5)
    torch.testing.assert_close(ours(x), theirs(x))


def test_modules_train_in_low_precision():
    for module in (SpatialAttention(3, bias=True), ChannelGate(8, 2)):
        module = module.to(torch.bfloat16)
        x = randn(2, 8, 5, 5, dtype=torch.bfloat16).requires_grad_()
        module(x).sum().backward()
        assert x.grad.dtype == torch.bfloat16
        assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in module.parameters())
