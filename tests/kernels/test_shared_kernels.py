"""Per-sample convolutions with one kernel for all samples, and of one image with many kernels."""

import pytest
import torch
import torch.nn.functional as F

from polychrome.kernels import dynamic_conv2d, explain, per_sample_conv2d, per_sample_conv_transpose2d, use_backend
from tests.grids import grid
from tests.kernels.oracle import assert_one_compilation, outcome, randn

LAYOUTS = [torch.contiguous_format, torch.channels_last]
CASES = {
    "plain": ((4, 6, 8, 9), (5, 6, 3, 3), {}),
    "padded": ((4, 6, 8, 9), (5, 6, 3, 5), {"padding": (1, 2)}),
    "strided": ((4, 6, 8, 9), (5, 6, 3, 3), {"stride": (2, 1), "padding": 1}),
    "dilated": ((4, 6, 8, 9), (5, 6, 3, 3), {"dilation": 2}),
    "groups": ((4, 6, 8, 9), (4, 3, 3, 3), {"groups": 2}),
    "depthwise": ((4, 6, 8, 9), (6, 1, 3, 3), {"groups": 6, "padding": "same"}),
    "one by one": ((4, 6, 8, 9), (5, 6, 1, 1), {}),
    "one sample": ((1, 6, 8, 9), (5, 6, 3, 3), {}),
    "no sample": ((0, 6, 8, 9), (5, 6, 3, 3), {}),
}
TRANSPOSED = {
    "plain": ((4, 6, 8, 9), (6, 5, 3, 3), {}),
    "doubled": ((4, 6, 8, 9), (6, 5, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "groups": ((4, 6, 8, 9), (6, 2, 3, 3), {"groups": 2}),
    "dilated": ((4, 6, 8, 9), (6, 5, 3, 3), {"dilation": (2, 1)}),
}
both = pytest.mark.parametrize(
    ("function", "torchs"),
    [(per_sample_conv2d, F.conv2d), (per_sample_conv_transpose2d, F.conv_transpose2d)],
    ids=["forward", "transposed"],
)


def assert_same(function, torchs, arguments, options, wanted=None):
    expected = outcome(torchs, arguments, **options)
    for backend in ("auto", "reference"):
        with use_backend(backend):
            found = outcome(function, arguments, **options)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    return found[0]


@grid(name=list(CASES), layout=LAYOUTS, biased=[False, True])
def test_one_kernel_for_all_samples_is_torchs_convolution(name, layout, biased):
    shape, weight, options = CASES[name]
    x = randn(*shape).to(memory_format=layout)
    arguments = [x, randn(*weight, seed=1), *([randn(weight[0], seed=2)] if biased else [])]
    y = assert_same(per_sample_conv2d, F.conv2d, arguments, options)
    assert y.is_contiguous(memory_format=layout)


@grid(name=list(TRANSPOSED), layout=LAYOUTS, biased=[False, True])
def test_one_kernel_for_all_samples_is_torchs_transposed_convolution(name, layout, biased):
    shape, weight, options = TRANSPOSED[name]
    channels = weight[1] * options.get("groups", 1)
    x = randn(*shape).to(memory_format=layout)
    arguments = [x, randn(*weight, seed=1), *([randn(channels, seed=2)] if biased else [])]
    y = assert_same(per_sample_conv_transpose2d, F.conv_transpose2d, arguments, options)
    assert y.is_contiguous(memory_format=layout)


def test_four_sides_and_borders_apply_to_one_kernel_too():
    x, weight = randn(3, 4, 8, 9), randn(5, 4, 3, 3, seed=1)
    y = per_sample_conv2d(x, weight, padding=(2, 1, 0, 3), padding_mode="reflect")
    torch.testing.assert_close(y, F.conv2d(F.pad(x, (2, 1, 0, 3), "reflect"), weight))


@both
def test_an_image_without_a_batch_gives_one_without_a_batch(function, torchs):
    y = assert_same(function, torchs, [randn(6, 8, 9), randn(6, 6, 3, 3, seed=1), randn(6, seed=2)], {"padding": 1})
    assert y.shape == (6, 8, 9)
    assert not y._is_view()


@both
def test_one_image_is_convolved_with_every_kernel(function, torchs):
    def each(x, weight, bias):
        return torch.stack([torchs(x, w, b, padding=1) for w, b in zip(weight, bias, strict=True)])

    arguments = [randn(6, 8, 9), randn(3, 6, 6, 3, 3, seed=1), randn(3, 6, seed=2)]
    y = assert_same(lambda *given: function(*given, padding=1), each, arguments, {})
    assert y.shape == (3, 6, 8, 9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_a_shared_kernel_as_others(dtype):
    x, weight = randn(3, 4, 8, 9), randn(5, 4, 3, 3, seed=1)
    with torch.autocast("cpu", dtype):
        y = per_sample_conv2d(x, weight)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), F.conv2d(x, weight), rtol=0.05, atol=0.2)


def test_a_compiled_call_with_one_kernel_takes_batches_of_any_size():
    weight = randn(5, 4, 3, 3, seed=1)

    def arguments(batch):
        return [randn(batch, 4, 8, 9), weight]

    assert_one_compilation(per_sample_conv2d, arguments, (0, None))


@pytest.mark.parametrize("function", [per_sample_conv2d, per_sample_conv_transpose2d], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weight": randn(5, 3, 3, 3)},
            r"weight, one kernel for all samples .*, must be \[.*channels.*=4.*\], got \[5, 3, 3, 3\]",
        ),
        ({"weight": randn(4, 4, 3, 3).double()}, "weight must have x's dtype float32, got float64"),
        ({"weight": randn(4, 4, 0, 3)}, "weight.* must have no dimension of size 0"),
        ({"bias": randn(3, 4)}, r"bias must be \[out_channels=4\], got \[3, 4\]"),
        ({"x": randn(4, 8)}, r"x must be \[batch, channels, height, width\], got \[4, 8\]"),
        ({"groups": 3}, "groups must be a positive divisor of in_channels=4, got 3"),
        ({"weight": randn(4, 4, 20, 3)[:, :, :, :], "padding": 4}, "output must be at least 1 x 1"),
        ({"weight": randn(4, 3, 3)}, r"weight must be \[batch=3, "),
    ],
)
def test_misfits_are_named(function, changes, message):
    if "padding" in changes and function is per_sample_conv_transpose2d:
        changes = {"weight": randn(4, 4, 3, 3), "padding": 9}
    given = {"x": randn(3, 4, 8, 9), "weight": randn(4, 4, 3, 3), "bias": None, **changes}
    with pytest.raises((TypeError, ValueError), match=message):
        function(**given)


def test_kernels_for_other_batches_are_not_broadcast():
    with pytest.raises(ValueError, match=r"weight must be \[batch=3, .*\], got \[1, 5, 4, 3, 3\]"):
        per_sample_conv2d(randn(3, 4, 8, 9), randn(1, 5, 4, 3, 3))
    with pytest.raises(ValueError, match=r"x must be \[batch, channels, height, width\], got \[4, 8, 9\]"):
        dynamic_conv2d(randn(4, 8, 9), randn(2, 5, 4, 3, 3), randn(3, 2))


@pytest.mark.parametrize("function", [per_sample_conv2d, per_sample_conv_transpose2d], ids=lambda f: f.__name__)
def test_a_demand_for_a_kernel_is_refused_as_torch_computes_it(function):
    with use_backend("triton"), pytest.raises(RuntimeError, match="has no kernel for a weight that all samples share"):
        function(randn(3, 4, 8, 9), randn(4, 4, 3, 3))


def test_explain_says_that_the_call_is_torchs():
    with pytest.raises(ValueError, match=r"the call is F\.conv2d"):
        explain(per_sample_conv2d, randn(3, 4, 8, 9), randn(5, 4, 3, 3))
    assert explain(per_sample_conv2d, randn(4, 8, 9), randn(3, 5, 4, 3, 3)).problem.batch == 3
