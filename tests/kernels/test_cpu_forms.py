import numpy as np
import pytest
import torch
import torch.nn.functional as F

from polychrome.kernels import dynamic_conv2d, dynamic_conv_transpose2d, per_sample_conv2d
from polychrome.kernels.dynamic_conv import api, trust
from polychrome.kernels.dynamic_conv.eager import columns, kept, per_sample, stacked
from polychrome.kernels.dynamic_conv.eager import mixing as eager_mixing
from polychrome.kernels.dynamic_conv.eager import ops as eager
from polychrome.kernels.dynamic_conv.eager.forms import Choice, Forms, cpu_forms, forms_of
from polychrome.kernels.dynamic_conv.problem import Geometry, Problem
from polychrome.kernels.dynamic_conv.reference import mix
from polychrome.kernels.dynamic_conv.trust import is_trusted
from tests.grids import grid
from tests.kernels import op_calls
from tests.kernels.oracle import assert_near_exact, exact_outcome, outcome, randn, rms_ratio

FORMS = {
    "groups": ("groups", "groups", "groups"),
    "loop": ("loop", "loop", "loop"),
    "loop_columns": ("loop", "loop", "columns"),
    "swapped_groups": ("loop", "swapped loop", "groups"),
    "swapped_loop": ("loop", "swapped loop", "loop"),
    "swapped_columns": ("columns", "swapped columns", "columns"),
    "columns_loop": ("columns", "loop", "columns"),
    "groups_loop": ("groups", "groups", "loop"),
    "stacked": ("stacked", "stacked", "stacked"),
}
# batch, in, out, height, width, experts, kernel, options
CASES = {
    "padded": (3, 4, 6, 9, 8, 4, (3, 3), {"padding": 1}),
    "groups_2": (3, 4, 6, 9, 8, 4, (3, 3), {"groups": 2, "padding": 1}),
    "depthwise": (3, 6, 6, 9, 8, 4, (3, 3), {"groups": 6, "padding": 1}),
    "asymmetric": (3, 4, 6, 9, 8, 4, (2, 4), {"padding": "same"}),
    "asymmetric_dilated": (2, 4, 6, 9, 8, 4, (4, 2), {"padding": "same", "dilation": (1, 3), "groups": 2}),
    "dilated": (3, 4, 6, 9, 8, 4, (3, 2), {"padding": 2, "dilation": 2}),
    "valid": (3, 4, 6, 9, 8, 4, (3, 3), {}),
    "stride_2_odd": (3, 4, 6, 9, 7, 4, (3, 3), {"stride": 2, "padding": 1}),
    "one_expert": (3, 4, 6, 9, 8, 1, (3, 3), {"padding": 1}),
    "eight_experts": (3, 4, 6, 9, 8, 8, (3, 3), {"padding": 1}),
    "one_sample": (1, 4, 6, 9, 8, 4, (3, 3), {"padding": 1}),
    "many_samples": (19, 4, 6, 5, 4, 4, (3, 3), {"padding": 1}),
}
LAYOUTS = [torch.contiguous_format, torch.channels_last]
every_form = pytest.mark.parametrize("form", FORMS)


def arguments_of(case, dtype=torch.float32, layout=torch.contiguous_format):
    batch, inputs, outputs, height, width, experts, kernel, options = CASES[case]
    x = randn(batch, inputs, height, width, dtype=dtype).to(memory_format=layout)
    kernels = randn(experts, outputs, inputs // options.get("groups", 1), *kernel, seed=1, dtype=dtype)
    return [x, kernels, randn(batch, experts, seed=2), randn(experts, outputs, seed=3, dtype=dtype)], options


@pytest.fixture
def forced(form, monkeypatch):
    """Force the form of the test's argument `form`, and slices of a few samples, channels and taps."""
    forms = Forms(*(Choice(one, "forced") for one in FORMS[form]))
    monkeypatch.setattr(eager, "forms_of", lambda *_, **__: forms)
    monkeypatch.setattr(api, "keeps_the_mix", lambda *_: False)
    small_slices(monkeypatch)


def small_slices(monkeypatch):
    """Have every form work on a few samples, channels and taps at a time."""
    for name, value in {
        "SLICE_BYTES": 2000,
        "BLOCK_BYTES": 500,
        "TAPS_BYTES": 1000,
        "SAMPLES": 2,
        "CHANNELS": 2,
    }.items():
        monkeypatch.setattr(columns, name, value)
    for name, value in {"SLICE_BYTES": 2000, "BLOCK_ELEMENTS": 200, "TWICE_ELEMENTS": 200}.items():
        monkeypatch.setattr(eager_mixing, name, value)
    monkeypatch.setattr(eager_mixing, "HALVES_COLUMNS", 40)
    monkeypatch.setattr(eager_mixing, "HALVES_ELEMENTS", 1)
    monkeypatch.setattr(stacked, "LARGE", 100)


@grid(
    lambda form, case, **_: not ("swapped" in form and case == "stride_2_odd"),  # swapped is for stride 1
    form=list(FORMS),
    case=list(CASES),
    layout=LAYOUTS,
    dtype=[torch.float32, torch.bfloat16, torch.float16],
)
def test_every_form_is_near_the_exact_result(forced, case, layout, dtype):
    arguments, options = arguments_of(case, dtype, layout)
    assert_near_exact(dynamic_conv2d, arguments, **options)


# batch, in, out, size, kernel, options
NARROW = {
    "narrower than 5x5": (300, 20, 24, (4, 3), (5, 5), {"stride": (1, 4), "padding": 2}),
    "three rows of a pixel": (8, 32, 32, (3, 1), (3, 3), {"stride": 2, "padding": 1}),
    "eight rows of a pixel": (8, 32, 32, (8, 1), (3, 3), {"stride": 2, "padding": 1}),
    "one sample": (1, 16, 16, (3, 1), (1, 4), {"stride": (1, 2), "padding": (0, 3)}),
    "stride 3": (4, 64, 32, (2, 2), (3, 3), {"stride": 3, "padding": 1}),
}


@grid(form=[form for form in FORMS if "swapped" not in form], case=list(NARROW), layout=LAYOUTS)
def test_bfloat16_gradients_of_images_narrower_than_the_stride(forced, case, layout):
    """Torch's own are garbage there."""
    batch, inputs, outputs, size, kernel, options = NARROW[case]
    x = randn(batch, inputs, *size, dtype=torch.bfloat16).to(memory_format=layout)
    experts = randn(2, outputs, inputs, *kernel, seed=1, dtype=torch.bfloat16)
    for _ in range(2):  # they come of memory that by chance is zero
        assert_near_exact(dynamic_conv2d, [x, experts, randn(batch, 2, seed=2)], **options)


@pytest.mark.parametrize("function", [dynamic_conv2d, per_sample_conv2d, dynamic_conv_transpose2d])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_the_processor_only_emulates_is_computed_in_float32(monkeypatch, function, dtype, layout):
    """Torch's own loops sum the gradient of weights over the samples in the narrow dtype."""
    monkeypatch.setattr(trust, "EMULATED", {dtype})
    batch, rounding = 512, torch.finfo(dtype).eps / 4
    x = randn(batch, 4, 5, 5, dtype=dtype).to(memory_format=layout)
    weight = randn(*((batch,) if function is per_sample_conv2d else (2,)), 4, 4, 3, 3, seed=1, dtype=dtype)
    mixing = [] if function is per_sample_conv2d else [randn(batch, 2, seed=2)]
    bias = randn(len(weight), 4, seed=3, dtype=dtype)
    seen = set()

    def noted(convolution):
        def run(x, *rest):
            seen.add(x.dtype)
            return convolution(x, *rest)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(per_sample.F, "conv2d", noted(F.conv2d))
        patch.setattr(per_sample, "convolution_backward", noted(per_sample.convolution_backward))
        found = outcome(function, [x, weight, *mixing, bias])
    assert seen == {torch.float32}
    exact = exact_outcome(function, [x, weight, *mixing, bias])
    for one, other, given in zip(found, exact, [x, x, weight, *mixing, bias], strict=True):
        assert one.dtype == given.dtype
        assert rms_ratio(one, other) < 2 * rounding


# The first has no weights; the second's mask has a row for each of three samples.
WITH_WEIGHTS = [each.__name__ for each in op_calls.public() if each.__name__ not in ("augment", "channel_stats")]


@pytest.mark.parametrize("name", WITH_WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_a_large_batch_are_as_exact_as_those_of_a_small_one(monkeypatch, name, dtype):
    """Whatever op: no sum over the samples is made in a narrow dtype that the processor only emulates."""
    monkeypatch.setattr(trust, "EMULATED", {dtype})
    monkeypatch.setattr(op_calls, "SHAPE", (600, *op_calls.SHAPE[1:]))
    (function,) = (each for each in op_calls.public() if each.__name__ == name)
    arguments, options = op_calls.function_arguments(name, dtype)
    assert_near_exact(function, arguments, **options)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (3,), (0, 2), (1, 3)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_of_an_emulated_dtype_have_the_dtypes_of_their_arguments(monkeypatch, needed, with_bias):
    monkeypatch.setattr(trust, "EMULATED", {torch.bfloat16})
    arguments, options = arguments_of("padded", torch.bfloat16)
    arguments[2] = arguments[2].bfloat16() if needed == (0, 2) else arguments[2]
    leaves = [each.requires_grad_(index in needed) for index, each in enumerate(arguments[: 4 if with_bias else 3])]
    y = dynamic_conv2d(*leaves, **options)
    assert y.requires_grad == any(each.requires_grad for each in leaves)
    if y.requires_grad:
        y.sum().backward()
    for index, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (index in needed)
        assert leaf.grad is None or (leaf.grad.dtype == leaf.dtype and leaf.grad.shape == leaf.shape)


def test_the_forms_of_an_emulated_dtype_are_those_of_float32(monkeypatch):
    x, weight = torch.empty(32, 64, 56, 56, dtype=torch.bfloat16), torch.empty(4, 64, 64, 3, 3, dtype=torch.bfloat16)
    geometry = Geometry((1, 1), (1, 1, 1, 1), (1, 1), 1)
    for emulated in (set(), {torch.bfloat16}):
        monkeypatch.setattr(trust, "EMULATED", emulated)
        found = forms_of(x, weight, geometry, per_sample=False)
        expected = forms_of(x.float(), weight.float(), geometry, per_sample=False)
        if emulated:
            assert [each.form for each in found[:3]] == [each.form for each in expected[:3]]
            assert found.forward.reason.startswith("in float32, as torch.bfloat16 is emulated here; ")
            assert not found.keep_the_mix
        else:
            assert "emulated" not in found.forward.reason


# batch, in, out, size, kernel, options: where torch 2.14 is wrong in bfloat16, or ends the process, with AMX
UNTRUSTED = {
    "output of one column": (2, 16, 16, (12, 1), (3, 3), {"stride": 2, "padding": 1}),
    "output of one column, wide kernel": (2, 8, 16, (9, 3), (2, 2), {"stride": (1, 2), "padding": (1, 0)}),
    "kernel and stride of four": (2, 16, 32, (12, 20), (3, 4), {"stride": (2, 4)}),
    "padding beyond the kernel": (2, 64, 16, (30, 16), (1, 1), {"stride": (3, 2), "padding": (0, 1)}),
    "dilated": (1, 48, 64, (24, 3), (1, 3), {"stride": (2, 1), "padding": (0, 3), "dilation": (2, 3)}),
    "dilated, of one column": (8, 64, 48, (8, 1), (5, 1), {"stride": (1, 2), "padding": (0, 1), "dilation": (1, 2)}),
    "row stride of four": (2, 128, 16, (60, 13), (2, 2), {"stride": (4, 1), "padding": (0, 2), "dilation": (2, 3)}),
}


@grid(form=[form for form in FORMS if "swapped" not in form], case=list(UNTRUSTED), layout=LAYOUTS)
def test_bfloat16_is_right_where_torch_is_not(forced, case, layout):
    batch, inputs, outputs, size, kernel, options = UNTRUSTED[case]
    x = randn(batch, inputs, *size, dtype=torch.bfloat16).to(memory_format=layout)
    experts = randn(2, outputs, inputs, *kernel, seed=1, dtype=torch.bfloat16)
    assert_near_exact(dynamic_conv2d, [x, experts, randn(batch, 2, seed=2)], **options)


@pytest.mark.parametrize("case", UNTRUSTED)
def test_the_definition_is_right_where_torch_is_not(case):
    batch, inputs, outputs, size, kernel, options = UNTRUSTED[case]
    x, weight = randn(batch, inputs, *size), randn(batch, outputs, inputs, *kernel, seed=1)
    rounded = (x.bfloat16(), weight.bfloat16())
    found = per_sample_conv2d.reference(*rounded, **options)
    exact = per_sample_conv2d.reference(*(each.double() for each in rounded), **options)
    assert (found.double() - exact).norm() <= 0.01 * exact.norm()


@pytest.mark.parametrize("seed", range(4))
def test_bfloat16_is_right_at_random_sizes(seed):
    """Whatever the processor's units: sizes, strides, padding and dilation at random, each form by the rules."""
    rng = np.random.default_rng(seed)
    for _ in range(40):
        kernel, stride, dilation = rng.integers(1, 6, 2), rng.integers(1, 5, 2), rng.integers(1, 3, 2)
        size, padding = rng.integers(1, 24, 2), rng.integers(0, 4, 2)
        if (size + 2 * padding < dilation * (kernel - 1) + 1).any():
            continue
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        options = {name: tuple(map(int, value)) for name, value in options.items()}
        batch, inputs, outputs = (int(rng.choice(some)) for some in ((1, 3), (8, 16, 32), (8, 16)))
        layout = LAYOUTS[int(rng.integers(2))]
        x = randn(batch, inputs, *map(int, size), seed=seed).bfloat16().to(memory_format=layout)
        experts = randn(2, outputs, inputs, *map(int, kernel), seed=seed).bfloat16()
        mixing = randn(batch, 2, seed=seed)
        found = dynamic_conv2d(x, experts, mixing, **options).double()
        exact = dynamic_conv2d.reference(x.double(), experts.double(), mixing.double(), **options)
        assert (found - exact).norm() <= 0.02 * exact.norm(), (x.shape, experts.shape, options)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (3,), (0, 1), (1, 2), (0, 2), (1, 2, 3), (0, 1, 3)])
@every_form
def test_every_form_leaves_frozen_arguments_alone(forced, frozen):
    arguments, options = arguments_of("padded")
    assert_near_exact(dynamic_conv2d, arguments, frozen=frozen, **options)


@pytest.mark.parametrize("padding", [0, 1, 4])
@every_form
def test_every_form_takes_padding_beyond_the_kernel(forced, padding):
    arguments, _ = arguments_of("padded")
    assert_near_exact(dynamic_conv2d, arguments, padding=padding)


@pytest.mark.parametrize("case", ["groups_2", "asymmetric_dilated", "one_sample"])
@every_form
def test_every_form_keeps_channels_last_and_is_exact_in_float64(forced, case):
    (x, experts, mixing, bias), options = arguments_of(case, torch.float64, torch.channels_last)
    leaves = [t.requires_grad_() for t in (x, experts, mixing.double(), bias)]
    y = dynamic_conv2d(*leaves, **options)
    expected = dynamic_conv2d.reference(*leaves, **options)
    grad = randn(*y.shape, seed=7, dtype=y.dtype)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    gradients = torch.autograd.grad(y, leaves, grad)
    assert gradients[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, leaves, grad))


@pytest.mark.parametrize("form", ["loop", "groups"])
def test_mixing_weights_keep_their_float32_bits_where_many_bfloat16_samples_are_mixed_at_once(forced):
    (x, experts, mixing, _), options = arguments_of("many_samples", torch.bfloat16)
    exact = dynamic_conv2d.reference(x.double(), experts.double(), mixing.double(), **options)
    kept, rounded = (
        rms_ratio(dynamic_conv2d(x, experts, weights, **options), exact) for weights in (mixing, mixing.bfloat16())
    )
    assert kept < 0.9 * rounded


@pytest.mark.parametrize("loop", ["groups", "loop"])
@pytest.mark.parametrize("case", ["padded", "groups_2", "asymmetric", "stride_2_odd", "one_sample"])
def test_every_per_sample_form_is_near_the_exact_result(monkeypatch, case, loop):
    forms = Forms(*[Choice(loop, "forced")] * 3)
    monkeypatch.setattr(eager, "forms_of", lambda *_, **__: forms)
    (x, experts, _, _), options = arguments_of(case)
    weight = randn(len(x), *experts.shape[1:], seed=4)
    assert_near_exact(per_sample_conv2d, [x, weight, randn(len(x), experts.shape[1], seed=5)], **options)


def forms_at(shape, kernel=3, stride=1, experts=4, groups=1, dtype=torch.bfloat16, last=True, units="avx512"):
    batch, inputs, outputs, size = shape
    side = (size - 1) * stride + 1
    padding = (kernel // 2,) * 4
    pairs = (kernel, kernel), (stride, stride), padding, (1, 1)
    forms = cpu_forms(Problem(batch, inputs, outputs, side, side, *pairs, groups, experts, dtype), last, units)
    assert all(choice.reason and "\n" not in choice.reason for choice in forms[:3])
    return forms


@pytest.mark.parametrize(
    ("shape", "options", "forms"),
    [
        ((32, 64, 64, 56), {}, ("loop", "loop", "loop")),
        ((32, 64, 64, 56), {"units": "amx"}, ("loop", "swapped loop", "groups")),
        ((32, 256, 256, 14), {}, ("columns", "swapped columns", "columns")),
        ((32, 256, 256, 14), {"stride": 2}, ("columns", "loop", "columns")),
        ((32, 256, 256, 14), {"kernel": 13}, ("loop", "loop", "loop")),  # a sample's patches are 17 MB
        ((32, 256, 256, 14), {"experts": 1}, ("stacked", "stacked", "stacked")),
        ((8, 256, 256, 14), {}, ("groups", "groups", "groups")),
        ((32, 512, 512, 7), {}, ("stacked", "stacked", "stacked")),
        ((2, 512, 512, 7), {}, ("groups", "groups", "groups")),
        ((64, 192, 384, 10), {}, ("columns", "swapped columns", "columns")),
        ((64, 192, 384, 10), {"units": "amx"}, ("stacked", "stacked", "stacked")),
        ((64, 192, 384, 10), {"units": "none"}, ("groups", "groups", "groups")),
        ((64, 192, 384, 10), {"dtype": torch.float16}, ("groups", "groups", "groups")),
        ((64, 192, 384, 10), {"dtype": torch.float32}, ("loop", "loop", "loop")),
        ((32, 64, 64, 56), {"dtype": torch.float32}, ("loop", "loop", "loop")),
        ((4, 64, 64, 56), {"dtype": torch.float32}, ("loop", "loop", "loop")),
        ((4, 64, 64, 56), {"dtype": torch.float32, "last": False}, ("groups", "groups", "groups")),
        ((16, 256, 256, 28), {"kernel": 1}, ("columns", "swapped columns", "columns")),
        ((2, 256, 256, 28), {"kernel": 1}, ("loop", "loop", "loop")),
        ((16, 256, 256, 28), {"groups": 256}, ("loop", "loop", "loop")),
        ((16, 256, 256, 28), {"groups": 256, "last": False}, ("groups", "groups", "groups")),
        ((16, 256, 256, 28), {"groups": 256, "dtype": torch.float32, "last": False}, ("groups", "groups", "groups")),
        ((16, 128, 128, 28), {"stride": 2, "units": "amx"}, ("loop", "groups", "groups")),
        ((1, 256, 256, 14), {}, ("groups", "groups", "groups")),
        ((1, 256, 256, 14), {"units": "amx"}, ("groups", "groups", "groups")),
        ((64, 8, 8, 8), {}, ("groups", "groups", "groups")),
        ((32, 64, 64, 8), {"stride": 2}, ("groups", "groups", "groups")),
        ((32, 512, 512, 7), {"experts": 0}, ("loop", "loop", "loop")),
    ],
)
def test_the_rule_on_named_shapes(shape, options, forms):
    assert tuple(choice.form for choice in forms_at(shape, **options)[:3]) == forms


def ops_called(function, *arguments):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y = function(*arguments)
    return y, {event.key for event in profile.key_averages() if event.key.startswith("polychrome::")}


@pytest.mark.parametrize(
    ("shape", "options", "keeps"),
    [
        ((16, 64, 64, 56), {}, True),
        ((16, 256, 256, 14), {}, False),
        ((8, 256, 256, 14), {}, True),
        ((2, 512, 512, 14), {"kernel": 5}, True),  # as many weights as the experts have
        ((16, 512, 512, 7), {}, False),
        ((16, 64, 64, 20), {"experts": 1}, True),
        ((16, 64, 64, 20), {"experts": 1, "units": "amx"}, False),
        ((16, 64, 64, 112), {"experts": 1}, False),
        ((16, 64, 64, 56), {"experts": 0}, False),
        ((64, 8, 8, 8), {"units": "amx"}, True),
        ((16, 64, 64, 56), {"units": "amx"}, False),
        ((64, 512, 512, 14), {"dtype": torch.float64}, True),
    ],
)
def test_autograd_keeps_the_mix_where_it_is_small(shape, options, keeps):
    assert forms_at(shape, **options).keep_the_mix == keeps


@pytest.mark.parametrize("case", CASES)
def test_a_mix_that_autograd_keeps_gives_the_exact_result(case):
    arguments, options = arguments_of(case)
    assert_near_exact(dynamic_conv2d, arguments, **options)
    leaves = [argument.requires_grad_() for argument in arguments]
    y, called = ops_called(lambda *a: dynamic_conv2d(*a, **options), *leaves)
    assert not called
    with torch.no_grad():
        again, called = ops_called(lambda *a: dynamic_conv2d(*a, **options), *leaves)
    assert called == {"polychrome::dynamic_conv2d"}
    torch.testing.assert_close(again, y)


@grid(
    lambda form, case, **_: form != "stacked" or case == "one_expert",
    form=["groups", "loop", "stacked"],
    case=list(CASES),
    layout=LAYOUTS,
    dtype=[torch.float32, torch.bfloat16, torch.float16],
)
def test_every_kept_form_is_near_the_exact_result(monkeypatch, form, case, layout, dtype):
    small_slices(monkeypatch)
    choice = Choice(form, "forced")
    monkeypatch.setattr(api, "forms_of", lambda *_, **__: Forms(choice, choice, choice, keep_the_mix=True))
    arguments, options = arguments_of(case, dtype, layout)
    assert_near_exact(dynamic_conv2d, arguments, **options)


def test_large_kernels_of_few_channels_are_not_left_to_a_convolution_that_does_not_end():
    x, psf = randn(2, 3, 64, 64).to(memory_format=torch.channels_last), randn(2, 3, 1, 15, 15, seed=1)
    narrow = x.bfloat16(), psf.bfloat16()
    assert not is_trusted(narrow[0], (15, 15), Geometry((1, 1), (7, 7, 7, 7), (1, 1), 3))
    wide = per_sample_conv2d(*(each.float() for each in narrow), padding="same", groups=3)
    torch.testing.assert_close(per_sample_conv2d(*narrow, padding="same", groups=3), wide.bfloat16())


@grid(
    lambda form, case, **_: form != "stacked" or case == "one_expert",
    form=["groups", "loop", "stacked"],
    case=["padded", "groups_2", "asymmetric", "asymmetric_dilated", "stride_2_odd", "one_expert", "one_sample"],
    layout=LAYOUTS,
    trusted=[True, False],
)
def test_second_derivatives_of_every_kept_form_are_near_the_exact_ones(monkeypatch, form, case, layout, trusted):
    """Through torch's own functions, and where these are not trusted through ours, as with AMX units."""
    small_slices(monkeypatch)
    monkeypatch.setattr(kept, "is_trusted_otherwise", lambda _: trusted)
    choice = Choice(form, "forced")
    monkeypatch.setattr(api, "forms_of", lambda *_, **__: Forms(choice, choice, choice, keep_the_mix=True))
    arguments, options = arguments_of(case, torch.bfloat16, layout)

    def penalties(function, given):
        leaves = [each.requires_grad_() for each in given]
        y = function(*leaves, **options)
        grad = randn(*y.shape, seed=5).to(y.dtype).requires_grad_()
        first = torch.autograd.grad(y, leaves[:3], grad, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in first), [*leaves[:3], grad])

    found = penalties(dynamic_conv2d, arguments)
    exact = penalties(dynamic_conv2d.reference, [each.detach().double() for each in arguments])
    for one, other in zip(found, exact, strict=True):
        assert rms_ratio(one, other) < 0.02


@pytest.mark.parametrize("form", ["groups", "loop"])
def test_weights_per_sample_may_lie_in_any_order(monkeypatch, form):
    forms = Forms(*[Choice(form, "forced")] * 3)
    monkeypatch.setattr(eager, "forms_of", lambda *_, **__: forms)
    (x, experts, _, _), options = arguments_of("padded")
    weight = randn(len(x), *experts.shape[1:], seed=4)
    expected = per_sample_conv2d.reference(x, weight, **options)
    for order in ((0, 1, 3, 4, 2), (1, 2, 3, 4, 0), (4, 3, 2, 1, 0)):
        back = [order.index(dim) for dim in range(5)]
        laid = weight.permute(order).contiguous().permute(back)
        torch.testing.assert_close(per_sample_conv2d(x, laid, **options), expected)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_the_fast_mix_and_its_derivatives_are_those_of_the_definition(monkeypatch, channels_last, wanted):
    small_slices(monkeypatch)
    experts, mixing = randn(4, 6, 5, 3, 2, dtype=torch.bfloat16), randn(7, 4, seed=1)
    leaves = [leaf.requires_grad_(want) for leaf, want in zip((experts, mixing), wanted, strict=True)]
    mixed = kept.mixed(*leaves, channels_last)
    assert type(mixed.grad_fn).__name__ == "_MixBackward"
    expected = mix(mixing, experts)
    assert rms_ratio(mixed, expected.double()) < 0.005
    weights = randn(*mixed.shape, seed=2, dtype=torch.bfloat16).requires_grad_()
    asked = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
    found = torch.autograd.grad(mixed, asked, weights, retain_graph=True)
    once = torch.autograd.grad(expected, asked, weights, create_graph=True)
    for one, other in zip(found, once, strict=True):
        assert one.dtype == other.dtype
        assert rms_ratio(one, other.double()) < 0.005
    again = torch.autograd.grad(mixed, asked, weights, create_graph=True)
    seconds = [
        torch.autograd.grad(sum(each.float().square().sum() for each in some), [*asked, weights], allow_unused=True)
        for some in (again, once)
    ]
    for one, other in zip(*seconds, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert rms_ratio(one, other.double()) < 0.01


def test_the_mix_that_autograd_keeps_is_in_float32_under_autocast():
    (x, experts, mixing, bias), options = arguments_of("padded")
    with torch.autocast("cpu", torch.bfloat16):
        inside = dynamic_conv2d(x, experts, mixing, bias, **options)
        leaf = mixing.clone().requires_grad_()
        recorded = dynamic_conv2d(x, experts, leaf, bias, **options)
    assert torch.equal(recorded, inside)
    recorded.float().sum().backward()
    assert leaf.grad.dtype == torch.float32
