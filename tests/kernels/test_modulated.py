"""Modulated convolution, in both of its forms, and StyleGAN2's layer."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from polychrome.kernels import fuse, modulated, modulated_conv2d, use_backend
from polychrome.kernels.modules import ModulatedConv2d
from tests.grids import grid
from tests.kernels.fused import assert_equal_training
from tests.kernels.oracle import TOLERANCES, assert_one_compilation, exact_outcome, outcome, randn, rms_ratio
from tests.kernels.written_elsewhere import ModulatedConv, StyledConv

FORMS = {"around one kernel": math.inf, "of the kernels": 0}
GEOMETRIES = {
    "same": {"padding": 1},
    "full": {"padding": 2},
    "strided": {"stride": 2},
    "doubled": {"stride": 2, "transposed": True},
    "doubled, padded": {"stride": 2, "padding": 1, "transposed": True},
    "plain": {"demodulate": False, "padding": "same"},
}
KINDS = {"same": {}, "up": {"upsample": True}, "down": {"downsample": True}, "to colours": {"demodulate": False}}


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """Have every call take one form."""
    monkeypatch.setattr(modulated, "SCALE_KERNELS_FROM", FORMS[request.param])
    return request.param


def formula(x, weight, style, stride=1, padding=0, demodulate=True, transposed=False, gain=None):
    """The paper's, a sample at a time."""
    results = []
    for image, scales in zip(x, style, strict=True):
        kernel = weight * scales[None, :, None, None]
        if demodulate:
            kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if gain is not None:
            kernel = kernel * gain
        if transposed:
            results.append(F.conv_transpose2d(image, kernel.transpose(0, 1), None, stride, padding))
        else:
            results.append(F.conv2d(image, kernel, None, stride, padding))
    return torch.stack(results)


def arguments(dtype=torch.float64, batch=3, kernel=3):
    return [
        randn(batch, 6, 8, 9, dtype=dtype),
        randn(5, 6, kernel, kernel, seed=1, dtype=dtype),
        randn(batch, 6, seed=2, dtype=dtype),
    ]


@grid(geometry=list(GEOMETRIES), layout=[torch.contiguous_format, torch.channels_last])
def test_each_form_equals_the_formula_with_gradients(geometry, layout, form):
    given, options = arguments(), GEOMETRIES[geometry]
    given[0] = given[0].to(memory_format=layout)
    for one, other in zip(outcome(modulated_conv2d, given, **options), outcome(formula, given, **options), strict=True):
        torch.testing.assert_close(one, other)
    y = modulated_conv2d(*given, **options)
    assert y.is_contiguous(memory_format=layout)
    with use_backend("reference"):
        torch.testing.assert_close(modulated_conv2d(*given, **options), y)


@grid(geometry=["same", "doubled"], dtype=[torch.float32, torch.bfloat16, torch.float16])
def test_each_form_is_near_the_exact_numbers_in_every_dtype(geometry, dtype, form):
    given, options = arguments(dtype), GEOMETRIES[geometry]
    exact = formula(*(each.double() for each in given), **options)
    assert rms_ratio(modulated_conv2d(*given, **options), exact) < 2 * TOLERANCES[dtype][0]


@pytest.mark.parametrize("geometry", ["same", "doubled", "plain"])
def test_first_and_second_derivatives_are_those_of_differences(geometry, form):
    given = [randn(*shape, seed=n, dtype=torch.float64).requires_grad_()
             for n, shape in enumerate(((2, 2, 4, 3), (2, 2, 2, 2), (2, 2)))]  # fmt: skip
    options = {**GEOMETRIES[geometry], "padding": 1}

    def function(*inputs):
        return modulated_conv2d(*inputs, **options)

    assert gradcheck(function, given)
    assert gradgradcheck(function, given)


@pytest.mark.parametrize("shape", [(), (6,), (3, 6)])
def test_the_gain_scales_after_the_norm_was_taken(shape, form):
    gain = randn(*shape, seed=5, dtype=torch.float64) if shape else torch.tensor(0.7, dtype=torch.float64)
    given = arguments()
    each = gain.expand(3, 6)
    y = modulated_conv2d(*given, padding=1, input_gain=gain)
    scaled = [given[0] * each[:, :, None, None], *given[1:]]
    torch.testing.assert_close(y, formula(*scaled, padding=1))


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4, 1e30])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 2e-3), (torch.float32, 1e-6)])
def test_styles_of_any_size_are_exact(size, dtype, error, form):
    x, weight, style = arguments(dtype)
    style = style.float() * size
    exact = formula(x.double(), weight.double(), style.double(), padding=1)
    assert rms_ratio(modulated_conv2d(x, weight, style, padding=1), exact) < error


@pytest.mark.parametrize("gain", [None, torch.tensor(300.0)])
@pytest.mark.parametrize("demodulate", [False, True])
def test_large_styles_of_small_weights_are_exact_in_float16(demodulate, gain, form):
    """Products of x and the style leave float16's range, those of the weights and x are below its normal numbers."""
    x, weight, style = randn(2, 32, 4, 4), randn(8, 32, 3, 3, seed=1) * 1e-4, randn(2, 32, seed=2) * 1e5
    given = [x.half(), weight.half(), style / (gain or 1)]
    options = {
        "padding": 1,
        "demodulate": demodulate,
        "input_gain": gain,
        "grad": randn(2, 8, 4, 4, seed=3).half() / 512,
    }
    both = (run(modulated_conv2d, given, **options) for run in (outcome, exact_outcome))
    for got, exact in zip(*both, strict=True):
        assert rms_ratio(got, exact) < 2e-3


@pytest.mark.parametrize("size", [1e-5, 1e-3, 1.0, 1000.0])
@pytest.mark.parametrize("geometry", ["same", "doubled"])
def test_weights_of_any_size_are_exact_in_float16(size, geometry, form):
    """Products with x leave float16's range, results do not; kernels differ in size, one is zero."""
    x, style = 64 * randn(2, 32, 7, 6), randn(2, 32, seed=2).abs() + 0.5
    weight = randn(5, 32, 3, 3, seed=1) * size * torch.tensor([1.0, 0.1, 8.0, 3.0, 0.0])[:, None, None, None]
    given, options = [x.half(), weight.half(), style], GEOMETRIES[geometry]
    exact = formula(*(each.double() for each in given), **options)
    assert rms_ratio(modulated_conv2d(*given, **options), exact) < 2e-3
    given[0] = given[0] / 64  # or many of the gradients leave the range
    both = (run(modulated_conv2d, given, **options) for run in (outcome, exact_outcome))
    for got, exact in zip(*both, strict=True):
        for one, other in zip(got, exact, strict=True):  # of one kernel, or of one sample
            in_range = other.abs() < torch.finfo(torch.float16).max
            assert rms_ratio(one[in_range], other[in_range]) < 2e-3


def test_a_style_of_zeros_gives_zeros_and_the_formulas_gradient(form):
    x, weight, style = arguments()
    given = [x, weight, torch.zeros_like(style)]
    for one, other in zip(outcome(modulated_conv2d, given), outcome(formula, given), strict=True):
        torch.testing.assert_close(one, other)


def test_norms_stay_wide_under_autocast(form):
    x, weight, style = arguments(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = modulated_conv2d(x, weight, style * 1000, padding=1)
    assert y.dtype == torch.bfloat16
    assert rms_ratio(y, formula(x.double(), weight.double(), style.double(), padding=1)) < 1e-2


@pytest.mark.parametrize(
    ("x", "weight", "options", "scales_kernels"),
    [
        ((1, 128, 32, 32), (128, 128, 3, 3), {}, False),
        ((1, 32, 128, 128), (32, 32, 3, 3), {}, True),
        ((1, 32, 128, 128), (3, 32, 1, 1), {}, True),
        ((1, 64, 64, 64), (64, 64, 3, 3), {"stride": 2, "transposed": True}, True),
        ((1, 64, 64, 64), (64, 64, 3, 3), {}, True),
        ((1, 512, 8, 8), (512, 512, 3, 3), {}, False),
    ],
)
def test_the_larger_operands_are_left_alone(x, weight, options, scales_kernels):
    args = torch.empty(x, device="meta"), torch.empty(weight, device="meta")
    assert modulated._scales_kernels(*args, options.get("stride", 1), "transposed" in options) is scales_kernels


def test_no_kernel_of_each_sample_is_made_where_weights_are_many():
    x, weight, style = randn(4, 64, 8, 8), randn(64, 64, 3, 3, seed=1), randn(4, 64, seed=2)
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            sizes.extend(
                each.numel()
                for each in (found if isinstance(found, tuple) else (found,))
                if isinstance(each, torch.Tensor)
            )
            return found

    with Sizes():
        modulated_conv2d(x, weight, style, padding=1)
    assert max(sizes) == max(weight.numel(), x.numel())


@grid(strength=1, kind=["same", "up"], dynamic=["batch", "height"])
def test_one_compilation_of_each_form_serves_every_batch_and_size(kind, dynamic, form):
    weight, options = randn(5, 6, 3, 3, seed=1), {"stride": 2, "transposed": True} if kind == "up" else {"padding": 1}

    def function(x, weight, style):
        return modulated_conv2d(x, weight, style, **options)

    def made(size):
        batch, height = (size, 9) if dynamic == "batch" else (3, size + 4)
        return [randn(batch, 6, height, 8), weight, randn(batch, 6, seed=2)]

    assert_one_compilation(function, made, (0, None, 0) if dynamic == "batch" else (2, None, None))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": randn(3, 6, 8)}, ValueError, r"x must be \[batch, channels, height, width\], got \[3, 6, 8\]"),
        (
            {"weight": randn(5, 4, 3, 3)},
            ValueError,
            r"weight must be \[out_channels, in_channels=6, .*got \[5, 4, 3, 3\]",
        ),
        ({"weight": randn(1, 5, 6, 3, 3)}, ValueError, r"weight must be \[out_channels, in_channels=6, "),
        ({"weight": randn(5, 6, 3, 3).double()}, TypeError, "weight must have x's dtype float32, got float64"),
        ({"weight": randn(5, 6, 0, 3)}, ValueError, "weight must have no dimension of size 0"),
        ({"style": randn(3, 5)}, ValueError, r"style must be \[batch=3, in_channels=6\], got \[3, 5\]"),
        ({"style": randn(3, 6).half()}, TypeError, "style must be float32 or have x's dtype float32, got float16"),
        ({"style": None}, TypeError, "style must be a tensor, got NoneType"),
        (
            {"input_gain": randn(3)},
            ValueError,
            r"input_gain must be \[\], \[in_channels=6\] or \[batch=3, in_channels=6\]",
        ),
        ({"input_gain": 2.0}, TypeError, "input_gain must be a tensor, got float"),
        ({"eps": 0}, ValueError, "eps must be positive, got 0"),
        ({"demodulate": "no"}, TypeError, "demodulate must be a bool, got 'no'"),
        ({"transposed": 1}, TypeError, "transposed must be a bool, got 1"),
        ({"transposed": True, "padding": "same"}, ValueError, "padding must be an int"),
        ({"transposed": True, "padding": 5}, ValueError, "output must be at least 1 x 1"),
        ({"stride": 0}, ValueError, "stride must be an int or a pair of ints, at least 1, got 0"),
        ({"padding": -1}, ValueError, "padding must be an int"),
        ({"weight": randn(5, 6, 11, 11)}, ValueError, "output must be at least 1 x 1"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_misfits_are_named(changes, error, message, backend, form):
    x, weight, style = arguments(torch.float32)
    with pytest.raises(error, match=message), use_backend(backend):
        modulated_conv2d(**{"x": x, "weight": weight, "style": style, **changes})


def public_layer(kind, **options):
    torch.manual_seed(0)
    return StyledConv(6, 8, options.pop("kernel_size", 3), 5, **KINDS[kind], **options).double()


@grid(kind=list(KINDS), kernel_size=[1, 3, 5], blur=[(1, 3, 3, 1), (1, 2, 1), (1.0, 3.0, 2.0)])
def test_the_layer_loads_public_weights_and_computes_the_same(kind, kernel_size, blur, form):
    public = public_layer(kind, kernel_size=kernel_size, blur_kernel=blur)
    layer = ModulatedConv2d(6, 8, kernel_size, 5, **KINDS[kind], blur_kernel=blur)
    assert layer.load_state_dict(public.state_dict(), strict=True)
    layer = layer.double()
    layer.load_state_dict(public.state_dict())
    x, style = randn(3, 6, 8, 10, dtype=torch.float64), randn(3, 5, seed=1, dtype=torch.float64)
    expected, found = outcome(public, [x, style]), outcome(layer, [x, style])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    for (name, one), (other_name, other) in zip(layer.named_parameters(), public.named_parameters(), strict=True):
        assert name == other_name
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("taps", [(1, 2, 3), (1, 3, 3, 1), (2, 5)])
def test_a_layer_of_float64_blurs_in_float64(taps):
    layer = ModulatedConv2d(6, 8, 3, 5, upsample=True, blur_kernel=taps, dtype=torch.float64)
    line = torch.tensor(taps, dtype=torch.float64)
    torch.testing.assert_close(layer.blur.kernel, 4 * line[:, None] * line / line.sum() ** 2, rtol=1e-15, atol=0)
    with torch.device("meta"):
        hollow = ModulatedConv2d(6, 8, 3, 5, upsample=True, blur_kernel=taps, dtype=torch.float64)
    torch.testing.assert_close(hollow.to_empty(device="cpu").blur.kernel, layer.blur.kernel, rtol=0, atol=0)


@grid(style=[torch.float32, torch.float64, torch.bfloat16], dtype=[torch.float32, torch.float64, torch.bfloat16])
def test_a_style_has_any_float_dtype(style, dtype):
    layer, x = ModulatedConv2d(6, 8, 3, 5, dtype=dtype), randn(3, 6, 8, 8, dtype=dtype)
    w = randn(3, 5, seed=1).to(style)
    assert layer(x, w).dtype == dtype
    assert rms_ratio(layer(x, w), layer(x, w.to(dtype))) < 0.01


def test_sizes_double_and_halve():
    x, style = randn(2, 6, 8, 10), randn(2, 5)
    assert ModulatedConv2d(6, 4, 3, 5, upsample=True)(x, style).shape == (2, 4, 16, 20)
    assert ModulatedConv2d(6, 4, 3, 5, downsample=True)(x, style).shape == (2, 4, 4, 5)
    assert ModulatedConv2d(6, 4, 3, 5, padding=2)(x, style).shape == (2, 4, 10, 12)


def test_a_new_layer_keeps_the_size_of_its_input():
    torch.manual_seed(0)
    y = ModulatedConv2d(64, 64, 3, 16)(randn(8, 64, 16, 16), randn(8, 16))
    assert 0.8 < y.std() < 1.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels must be an int, at least 1, got 0"),
        ({"kernel_size": (3, 3)}, r"kernel_size must be an int, at least 1, got \(3, 3\)"),
        ({"style_dim": 1.5}, "style_dim must be an int, at least 1, got 1.5"),
        ({"upsample": True, "downsample": True}, "upsample and downsample must not both be set"),
        ({"upsample": True, "padding": 1}, "padding must be left out with upsample or downsample"),
        ({"padding": -1}, "padding must be an int, at least 0, got -1"),
        ({"eps": 0.0}, "eps must be positive, got 0.0"),
        ({"downsample": True, "blur_kernel": ()}, r"blur_kernel must be numbers whose sum is not zero, got \(\)"),
        ({"downsample": True, "blur_kernel": (1, -1)}, r"blur_kernel must be numbers whose sum is not zero"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ModulatedConv2d(**{"in_channels": 6, "out_channels": 8, "kernel_size": 3, "style_dim": 5, **options})


def test_a_style_that_does_not_fit_is_named():
    layer = ModulatedConv2d(6, 8, 3, 5)
    with pytest.raises(ValueError, match=r"style must be \[batch, style_dim=5\], got \[3, 4\]"):
        layer(randn(3, 6, 8, 8), randn(3, 4))
    with pytest.raises(ValueError, match=r"style must be \[batch=3, in_channels=6\], got \[2, 6\]"):
        layer(randn(3, 6, 8, 8), randn(2, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_layer_is_cast_and_converted_like_any_other(dtype):
    layer = ModulatedConv2d(6, 8, 3, 5, upsample=True).to(dtype, memory_format=torch.channels_last)
    x, style = randn(3, 6, 8, 8, dtype=dtype).to(memory_format=torch.channels_last), randn(3, 5, seed=1, dtype=dtype)
    y = layer(x, style)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert rms_ratio(y, copy.deepcopy(layer).double()(x.double(), style.double())) < 0.02


PUBLIC = {
    "linear modulation": lambda: ModulatedConv(6, 8, 3),
    **{kind: (lambda kind=kind: public_layer(kind)) for kind in KINDS},
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_layers_are_recognised_and_train_the_same(name):
    _, report = assert_equal_training(PUBLIC[name](), randn(3, 6, 8, 8), randn(3, 5, seed=1))
    assert [swap.op for swap in report.swapped] == ["modulated_conv2d"]
    assert report.left == ()


def test_a_layer_is_recognised_by_whatever_names_its_numbers_have():
    class Renamed(StyledConv):
        scale, eps = property(lambda self: self.wtScale), property(lambda self: self.epsilon)

    layer = StyledConv(6, 8, 3, 5)
    layer.slope = 0.2  # a number that is neither
    layer.wtScale, layer.epsilon = layer.__dict__.pop("scale"), layer.__dict__.pop("eps")
    layer.__class__ = Renamed
    _, report = assert_equal_training(layer, randn(3, 6, 8, 8), randn(3, 5, seed=1))
    assert [swap.op for swap in report.swapped] == ["modulated_conv2d"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("decorated", [False, True])
@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_a_layer_that_sets_autocast_keeps_its_own_forward(device, decorated):
    class Wide(StyledConv):
        if decorated:
            forward = torch.autocast(device, enabled=False)(StyledConv.forward)
        else:

            def forward(self, x, style):
                with torch.autocast(device, enabled=False):
                    return super().forward(x, style)

    layer, entered = Wide(6, 8, 3, 5), torch.autocast.__enter__
    report = fuse(layer)
    assert torch.autocast.__enter__ is entered
    assert [each.reason for each in report.left] == ["its forward sets autocast, which modulated_conv2d would not hear"]
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(randn(3, 6, 8, 8), randn(3, 5)).dtype == (torch.float32 if device == "cpu" else torch.bfloat16)


def test_a_layer_with_another_epsilon_than_its_attribute_is_understood_or_left_alone():
    class Fixed(StyledConv):
        """Its attribute is not what it computes with."""

        used = (1e-8,)

        def forward(self, x, style):
            own, (self.__dict__["eps"],) = self.eps, self.used
            try:
                return super().forward(x, style)
            finally:
                self.__dict__["eps"] = own

    for used, eps, op in ((1e-8, 1e-5, "modulated_conv2d"), (1e-5, 1e-5, "modulated_conv2d"), (1e-6, 1e-5, None)):
        layer = Fixed(6, 8, 3, 5)
        layer.used, layer.eps = (used,), eps
        _, report = assert_equal_training(layer, randn(3, 6, 8, 8), randn(3, 5, seed=1) / 1000)
        assert [swap.op for swap in report.swapped] == [op] * (op is not None), used


def test_a_changed_attribute_brings_the_own_forward_back():
    model = nn.ModuleList([public_layer("same")])
    theirs, x, style = copy.deepcopy(model), randn(3, 6, 8, 8, dtype=torch.float64), randn(3, 5, dtype=torch.float64)
    assert len(fuse(model).swapped) == 1
    for each in (model, theirs):
        each[0].demodulate = False
    torch.testing.assert_close(model[0](x, style), theirs[0](x, style))


def test_a_swapped_layer_called_by_names_runs_its_own_forward():
    layer, theirs = public_layer("up"), public_layer("up")
    fuse(layer)
    x, style = randn(3, 6, 8, 8, dtype=torch.float64), randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x=x, style=style), theirs(x, style))
    torch.testing.assert_close(layer(x, style), theirs(x, style))
