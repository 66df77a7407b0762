"""Padding of any mode and on any side, against F.pad and torch's own layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polychrome.kernels import (
    dynamic_conv1d,
    dynamic_conv2d,
    explain,
    fuse,
    per_sample_conv1d,
    per_sample_conv2d,
    use_backend,
)
from polychrome.kernels.dynamic_conv.borders import PADDING_MODES
from polychrome.kernels.modules import DynamicConv2d, PerSampleConv2d
from tests.grids import grid
from tests.kernels.conv_cases import ARGUMENTS, dynamic_arguments, per_sample_arguments
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.op_calls import function_arguments
from tests.kernels.oracle import assert_near_exact, assert_one_compilation, outcome, randn, rms_ratio
from tests.kernels.written_elsewhere import DynamicConv

SIDES = {"pair": (2, 1), "four": (0, 3, 2, 1), "same": "same", "number": 3}
both = pytest.mark.parametrize("function", ARGUMENTS, ids=lambda function: function.__name__)


def bordered(function, padding, mode, **options):
    """Return the function of the same arguments that pads with F.pad first."""
    name = {"zeros": "constant"}.get(mode, mode)
    left, right, top, bottom = padding

    def padded_first(x, *rest):
        return function(F.pad(x, (left, right, top, bottom), mode=name), *rest, **options)

    return padded_first


@grid(function=list(ARGUMENTS), mode=PADDING_MODES, sides=list(SIDES), layout=["nchw", "nhwc"], dilation=[1, 2])
def test_equals_padding_first(function, mode, sides, layout, dilation):
    (x, *rest), _ = ARGUMENTS[function]("padded", torch.float64)
    if function is dynamic_conv2d:
        rest[1] = rest[1].double()
    x = x.to(memory_format=torch.channels_last if layout == "nhwc" else torch.contiguous_format)
    four = {"pair": (1, 1, 2, 2), "four": (0, 3, 2, 1), "same": [dilation] * 4, "number": [3] * 4}[sides]
    expected = outcome(bordered(function.reference, four, mode, dilation=dilation), [x, *rest])
    options = {"padding": SIDES[sides], "padding_mode": mode, "dilation": dilation}
    for call in (function, function.reference):
        found = outcome(call, [x, *rest], **options)
        for one, other in zip(found, expected, strict=True):
            assert rms_ratio(one, other) < 1e-14
    if layout == "nhwc":
        assert outcome(function, [x, *rest], **options)[0].is_contiguous(memory_format=torch.channels_last)


@needs_interpreter
@grid(function=list(ARGUMENTS), mode=PADDING_MODES, layout=["nchw", "nhwc"], dtype=[torch.float32, torch.float16])
def test_kernels_are_near_the_exact_result(function, mode, layout, dtype):
    (x, *rest), _ = ARGUMENTS[function]("padded", dtype)
    x = x.to(memory_format=torch.channels_last if layout == "nhwc" else torch.contiguous_format)
    with use_backend("triton"):
        assert_near_exact(function, [x, *rest], padding=(0, 3, 2, 1), padding_mode=mode, stride=2)


@grid(function=list(ARGUMENTS), mode=PADDING_MODES, dtype=[torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_is_near_the_exact_result(function, mode, dtype):
    arguments, _ = ARGUMENTS[function]("padded", dtype)
    assert_near_exact(function, arguments, padding=(0, 3, 2, 1), padding_mode=mode)


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_a_layer_made_from_a_convolution_pads_as_it_does(mode):
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=(2, 1), padding_mode=mode)
    layer = DynamicConv2d.from_conv(conv, experts=3)
    x = randn(3, 4, 9, 8)
    torch.testing.assert_close(layer(x), conv(x))
    assert ("padding_mode" in repr(layer)) == (mode != "zeros")
    weight = conv.weight.expand(3, *conv.weight.shape)
    given = PerSampleConv2d(stride=2, padding=(2, 1), padding_mode=mode)
    torch.testing.assert_close(given(x, weight, conv.bias.expand(3, -1)), conv(x))
    assert ("padding_mode" in repr(given)) == (mode != "zeros")


def test_a_layer_takes_four_sides_and_shows_them():
    layer = DynamicConv2d(4, 6, 3, padding=(0, 1, 2, 3))
    assert layer(randn(2, 4, 9, 8)).shape == (2, 6, 12, 7)
    assert "padding=(0, 1, 2, 3)" in repr(layer)
    assert DynamicConv2d(4, 6, 3, padding=(2, 2, 1, 1)).padding == (1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding_mode": "mirror"}, "padding_mode must be one of zeros, reflect, replicate, circular, got 'mirror'"),
        (
            {"padding_mode": "reflect", "padding": 9},
            r"padding must be at most height 8, width 7 for padding_mode='reflect' of x \[3, 4, 9, 8\], "
            r"got height \(9, 9\), width \(9, 9\) \(before, after\)",
        ),
        (
            {"padding_mode": "circular", "padding": (9, 0, 0, 0)},
            r"at most height 9, width 8 for padding_mode='circular' of x .*, got height \(0, 0\), width \(9, 0\)",
        ),
        (
            {"padding": (1, 2, 3)},
            r"padding must be an int, a pair of ints or four \(left, right, top, bottom\), at least",
        ),
        ({"padding": (1, 2, 3, -1)}, r"'same' or 'valid', got \(1, 2, 3, -1\)"),
        ({"padding": (1, 2, 3, 1.5)}, r"'same' or 'valid', got \(1, 2, 3, 1.5\)"),
    ],
)
@both
def test_bad_borders_are_named(function, options, message):
    arguments, _ = ARGUMENTS[function]("padded")
    for backend in ("auto", "reference"):
        with use_backend(backend), pytest.raises(ValueError, match=message):
            function(*arguments, **options)
    if "padding_mode" in options and "padding" not in options:
        with pytest.raises(ValueError, match=message):
            DynamicConv2d(4, 6, 3, **options)
        with pytest.raises(ValueError, match=message):
            PerSampleConv2d(**options)


PADDED = [dynamic_conv1d, dynamic_conv2d, per_sample_conv1d, per_sample_conv2d]


@grid(function=PADDED, mode=PADDING_MODES, backend=["auto", "reference"], dtype=[torch.bfloat16, torch.float16])
def test_under_autocast_borders_are_made_in_its_dtype(function, mode, backend, dtype):
    (x, kernels, *rest), _ = function_arguments(function.__name__, torch.float32)
    x = torch.cat([x] * 3, 2)
    options = {"padding": 1, "padding_mode": mode, "groups": 2}
    with use_backend(backend):
        expected = function(x.to(dtype), kernels.to(dtype), *rest[:-1], rest[-1].to(dtype), **options)
        with torch.autocast("cpu", dtype):
            found = function(x, kernels, *rest, **options)
    assert found.dtype == dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_as_many_rows_as_x_has_are_the_most_that_are_repeated(mode):
    arguments, _ = per_sample_arguments("padded")
    most = {"reflect": (7, 7, 8, 8), "circular": (8, 8, 9, 9)}.get(mode, (20, 20, 20, 20))
    y = per_sample_conv2d(*arguments, padding=most, padding_mode=mode)
    assert y.shape == (3, 6, 7 + 2 * most[2], 6 + 2 * most[0])


@pytest.mark.parametrize("mode", PADDING_MODES)
@both
def test_an_empty_batch(function, mode):
    (x, *rest), _ = ARGUMENTS[function]("padded")
    shared = (True, False, True) if function is dynamic_conv2d else (False, False)
    rest = [each if keep else each[:0] for each, keep in zip(rest, shared, strict=True)]
    for backend in ("auto", "reference"):
        with use_backend(backend):
            assert function(x[:0], *rest, padding=2, padding_mode=mode).shape == (0, 6, 11, 10)


def test_one_compilation_serves_every_batch_size():
    experts = randn(4, 6, 4, 3, 3, seed=1)
    assert_one_compilation(
        lambda x, experts, mixing: dynamic_conv2d(x, experts, mixing, padding=2, padding_mode="reflect"),
        lambda batch: [randn(batch, 4, 9, 8), experts, randn(batch, 4, seed=2)],
        [0, None, 0],
    )


def test_explain_is_of_the_image_with_its_borders():
    arguments, _ = dynamic_arguments("padded")
    assert explain(dynamic_conv2d, *arguments, padding=1, padding_mode="circular").problem.out_size == (9, 8)


def test_a_strangers_layer_that_pads_by_its_attribute_is_recognised():
    class Padded(DynamicConv):
        padding_mode = "circular"

        def forward(self, x):
            weight, bias = (torch.einsum("bk,k...->b...", self.attention(x), each) for each in (self.weight, self.bias))
            padded = F.pad(x, [self.padding] * 4, mode="circular")
            return torch.cat([F.conv2d(*one) for one in zip(padded[:, None], weight, bias, strict=True)])

    model = nn.Sequential(Padded(4, 4, 3, padding=1))
    x = randn(3, 4, 9, 8)
    before = model.eval()(x)
    report = fuse(model)
    assert [swap.op for swap in report.swapped] == ["dynamic_conv2d"]
    with use_backend("reference"):
        torch.testing.assert_close(model(x), before)
