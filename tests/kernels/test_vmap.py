"""Ops and layers under `vmap` over channels-last images, whose layout functorch cannot ask for."""

import pytest
import torch
from torch.func import vmap

from polychrome.kernels import channel_gate, modulated_conv2d, per_sample_conv2d, per_sample_conv_transpose2d
from polychrome.kernels.modules import DynamicConv2d, ModulatedConv2d, ODConv2d
from tests.kernels.oracle import randn

LAYERS = {
    "zeros": (DynamicConv2d(6, 8, 3, padding=1), ()),
    "reflect": (DynamicConv2d(6, 8, 3, padding=1, padding_mode="reflect"), ()),
    "one expert": (ODConv2d(6, 8, 3, experts=1), ()),
    "plain": (ModulatedConv2d(6, 8, 3, 5), (5,)),
    "downsample": (ModulatedConv2d(6, 8, 3, 5, downsample=True), (5,)),
    "upsample": (ModulatedConv2d(6, 8, 3, 5, upsample=True), (5,)),
}
LAST = randn(2, 6, 9, 9).to(memory_format=torch.channels_last)
WEIGHT = randn(8, 6, 3, 3, seed=2)
CALLS = {
    "a shared kernel": (lambda weight: per_sample_conv2d(LAST, weight, padding=1), (8, 6, 3, 3)),
    "transposed": (lambda weight: per_sample_conv_transpose2d(LAST, weight, padding=1), (6, 8, 3, 3)),
    "circular": (lambda w: per_sample_conv2d(LAST, w, padding=1, padding_mode="circular"), (2, 8, 6, 3, 3)),
    "modulated": (lambda style: modulated_conv2d(LAST, WEIGHT, style, 1, 1), (2, 6)),
    "gate": (lambda weight: channel_gate(LAST, weight, None, weight.T, None), (4, 6)),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_op_over_one_batch_is_the_same_for_each_parameter(name):
    function, shape = CALLS[name]
    given = randn(3, *shape, seed=1)
    torch.testing.assert_close(vmap(function)(given), torch.stack(list(map(function, given))))


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_the_same_for_each_batch(name):
    layer, style = LAYERS[name]
    x = randn(3, 2, 9, 9, 6).permute(0, 1, 4, 2, 3)
    given = (x, *(randn(3, 2, size, seed=1) for size in style))
    with torch.no_grad():
        wanted = torch.stack([layer.eval()(*each) for each in zip(*given, strict=True)])
        torch.testing.assert_close(vmap(layer)(*given), wanted)
