import pytest
import torch

from polychrome.kernels import use_backend
from polychrome.kernels.channel_gate.scale import channel_scale
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.oracle import as_leaf, assert_near_exact, randn

SHAPES = [(2, 6, 9, 8), (1, 33, 1, 1), (3, 16, 7, 5)]
BACKENDS = ["auto", pytest.param("triton", marks=needs_interpreter)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_output_and_gradients_are_near_exact(shape, layout, backend):
    x, scale = randn(*shape).contiguous(memory_format=layout), randn(*shape[:2], seed=1)
    for grad in (None, randn(1, seed=5).expand(shape), torch.cat([randn(*shape)] * 2, 1)[:, : shape[1]]):
        with use_backend(backend):
            assert_near_exact(channel_scale, (x, scale), grad)
            assert_near_exact(channel_scale, (x, scale[:, :, None, None]), grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_frozen_argument_costs_no_gradient(backend):
    with use_backend(backend):
        for frozen in (0, 1):
            assert_near_exact(channel_scale, (randn(2, 3, 4, 5), randn(2, 3)), frozen=(frozen,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_the_product_once(dtype):
    for scale_dtype in (dtype, torch.float32):
        x, scale = randn(2, 3, 4, 5, dtype=dtype), randn(2, 3, seed=1, dtype=scale_dtype)
        y = channel_scale(x, scale)
        assert y.dtype == dtype
        assert torch.equal(y, (x.double() * scale.double()[:, :, None, None]).to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    x, scale = as_leaf(randn(2, 3, 4, 5)), as_leaf(randn(2, 3))
    torch.library.opcheck(torch.ops.polychrome.channel_scale.default, (x, scale, backend))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((randn(2, 3, 4), randn(2, 3)), ValueError, r"x must be \[batch, channels, height, width\]"),
        ((randn(2, 3, 4, 5), randn(2, 4)), ValueError, r"scale must be \[batch=2, channels=3\], got \[2, 4\]"),
        ((randn(2, 3, 4, 5), torch.ones(2, 3).int()), TypeError, "scale must be float32"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        channel_scale(*arguments)
