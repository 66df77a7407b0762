"""The Triton kernels of channel_stats and spatial_attention on a CUDA device: `pytest -m gpu`."""

import subprocess
import sys

import pytest
import torch

from polychrome.kernels import channel_stats, spatial_attention
from polychrome.kernels.launch import record_launches
from tests.kernels.gpu import DEVICE, assert_graph_replays, assert_near_exact, dtypes, layouts, on_gpu
from tests.kernels.oracle import outcome, randn
from tests.kernels.test_spatial_attention import MASK, SHAPES, arguments_of, attention_arguments, both

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory")]


@dtypes
@layouts
@pytest.mark.parametrize("shape", [*SHAPES, (4, 256, 14, 14), (2, 64, 56, 56), (16, 24, 33, 31)], ids=str)
@both
def test_output_and_gradients_are_near_the_exact_ones(function, shape, layout, dtype):
    x, *rest = arguments_of(function, shape, dtype)
    assert_near_exact(function, [x.to(memory_format=layout), *rest])


@dtypes
@layouts
def test_masked_stats_are_near_the_exact_ones(layout, dtype):
    assert_near_exact(channel_stats, [randn(*SHAPES[0], dtype=dtype).to(memory_format=layout), MASK])
    mask = randn(8, 200) > 0
    assert_near_exact(channel_stats, [randn(8, 200, 14, 14, dtype=dtype).to(memory_format=layout), mask])


@pytest.mark.parametrize("kernel", [3, 5, 7, 11, 13])
def test_attention_of_every_kernel_size(kernel):
    assert_near_exact(spatial_attention, attention_arguments((2, 16, 20, 17), kernel))


@layouts
def test_the_max_is_the_one_torch_names_among_ties_and_nan(layout):
    x = randn(4, 72, 9, 9).relu().to(DEVICE).to(memory_format=layout)
    x[:, :, 2] = 0
    x[1, 5, 3, 3] = x[1, 40, 3, 3] = x[2, 71, 8] = torch.nan
    leaf = x.clone().requires_grad_()
    with record_launches() as launches:
        stats = channel_stats(leaf)
        stats[:, 1].sum().backward()
    assert [launch.kernel.__name__ for launch in launches] == ["stats_kernel", "spread_kernel"]
    largest = x.cpu().max(1, keepdim=True)
    torch.testing.assert_close(stats.detach()[:, 1:].cpu(), largest.values, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(leaf.grad.cpu(), torch.zeros(4, 72, 9, 9).scatter(1, largest.indices, 1))


@both
def test_two_runs_agree_bit_for_bit(function):
    arguments = on_gpu(arguments_of(function, (8, 72, 28, 28), torch.bfloat16))
    for one, other in zip(outcome(function, arguments), outcome(function, arguments), strict=True):
        assert torch.equal(one, other)


def test_a_sample_without_channels_fails_an_assertion_in_the_kernel():
    code = """
import torch
from polychrome.kernels import channel_stats
mask = torch.ones(3, 8, dtype=torch.bool, device="cuda")
mask[1] = False
channel_stats(torch.randn(3, 8, 5, 5, device="cuda"), mask)
torch.cuda.synchronize()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "channel_stats: the mask leaves no channel in a sample" in done.stdout + done.stderr


def test_a_cuda_graph_replays_with_new_numbers():
    assert_graph_replays(spatial_attention, attention_arguments((8, 32, 14, 14)))


@both
def test_float64_runs_the_eager_form(function):
    x, *rest = arguments_of(function)
    arguments = on_gpu([x.double(), *rest])
    with record_launches() as launches:
        got = function(*arguments)
    assert not launches
    torch.testing.assert_close(got, function.reference(*arguments))


def test_more_elements_than_32_bits_count():
    """Samples that begin beyond 2**31 elements are read and written where they are."""
    free, _ = torch.cuda.mem_get_info()
    batch, shape = 2**31 // (16 * 256 * 256) + 3, (16, 256, 256)
    if free < 6 * 2 * batch * 16 * 256 * 256:
        pytest.skip(f"{free / 1e9:.0f} GB free, {12 * batch * 16 * 256 * 256 / 1e9:.0f} GB wanted")
    x = torch.zeros(batch, *shape, dtype=torch.bfloat16, device=DEVICE)
    x[-1] = randn(*shape, dtype=torch.bfloat16).to(DEVICE)
    weight = randn(1, 2, 7, 7, seed=1).to(DEVICE)
    alone = outcome(spatial_attention, [x[-1:].clone(), weight], torch.ones_like(x[-1:]))
    leaf = x.requires_grad_()
    y = spatial_attention(leaf, weight.requires_grad_())
    y.backward(torch.ones((), dtype=y.dtype, device=DEVICE).expand_as(y))
    assert torch.equal(y[-1], alone[0][0])
    assert torch.equal(leaf.grad[-1], alone[1][0])
