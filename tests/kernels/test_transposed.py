"""The transposed convolutions: adjoints of the convolutions, and what `F.conv_transpose2d` makes of each sample."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from polychrome.kernels import (
    decompositions,
    dynamic_conv2d,
    dynamic_conv_transpose2d,
    per_sample_conv2d,
    per_sample_conv_transpose2d,
    use_backend,
)
from polychrome.kernels.dynamic_conv import transposed
from polychrome.kernels.dynamic_conv.eager import ops as eager
from polychrome.kernels.dynamic_conv.eager.forms import Choice, Forms
from polychrome.kernels.dynamic_conv.plan import plan
from polychrome.kernels.dynamic_conv.problem import resolve_transposed
from tests.grids import grid
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.oracle import (
    TOLERANCES,
    assert_near_exact,
    assert_one_compilation,
    exact_outcome,
    outcome,
    randn,
    rms_ratio,
)
from tests.kernels.test_cpu_forms import FORMS, small_slices

# batch, in, out, height, width, experts, kernel, options
CASES = {
    "plain": (3, 4, 6, 5, 4, 3, (3, 3), {}),
    "padded": (3, 4, 6, 5, 4, 3, (3, 3), {"padding": 1}),
    "doubled": (3, 4, 6, 5, 4, 3, (3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "doubled_even_kernel": (3, 4, 6, 5, 4, 3, (4, 4), {"stride": 2, "padding": 1}),
    "uneven_pairs": (2, 4, 6, 4, 5, 2, (3, 2), {"stride": (1, 3), "padding": (0, 1), "output_padding": (0, 2)}),
    "dilated": (2, 4, 6, 5, 4, 2, (3, 3), {"dilation": 2, "padding": 2}),
    "output_padding_beyond_the_stride": (2, 4, 6, 5, 4, 2, (3, 3), {"dilation": (3, 2), "output_padding": (2, 1)}),
    "stride_beyond_the_kernel": (2, 4, 6, 5, 4, 2, (1, 2), {"stride": 3, "output_padding": 2}),
    "groups": (3, 4, 6, 5, 4, 3, (3, 3), {"groups": 2, "stride": 2}),
    "depthwise": (3, 6, 6, 5, 4, 3, (3, 3), {"groups": 6, "stride": 2, "padding": 1, "output_padding": 1}),
    "depthwise_plain": (3, 6, 6, 5, 4, 3, (3, 3), {"groups": 6, "padding": 1}),
    "one_by_one": (3, 4, 6, 5, 4, 3, (1, 1), {}),
    "one_channel_in": (3, 1, 6, 5, 4, 3, (3, 3), {"stride": 2}),
    "one_channel_out": (3, 4, 1, 5, 4, 3, (3, 3), {"stride": 2}),
    "one_sample": (1, 4, 6, 5, 4, 3, (3, 3), {"padding": 1}),
    "one_expert": (3, 4, 6, 5, 4, 1, (3, 3), {"padding": 1}),
    "one_pixel_in": (3, 4, 6, 1, 1, 3, (4, 4), {}),
    "wide": (3, 24, 40, 5, 4, 3, (3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "wide_at_stride_one": (3, 24, 40, 7, 6, 3, (3, 3), {"padding": 1}),
}


def dynamic_arguments(case, dtype=torch.float32, with_bias=True):
    batch, inputs, outputs, height, width, experts, kernel, options = CASES[case]
    return [
        randn(batch, inputs, height, width, dtype=dtype),
        randn(experts, inputs, outputs // options.get("groups", 1), *kernel, seed=1, dtype=dtype),
        randn(batch, experts, seed=2, dtype=torch.float64 if dtype == torch.float64 else torch.float32),
        randn(experts, outputs, seed=3, dtype=dtype) if with_bias else None,
    ], options


def per_sample_arguments(case, dtype=torch.float32, with_bias=True):
    (x, experts, _, bias), options = dynamic_arguments(case, dtype, with_bias)
    weight = randn(len(x), *experts.shape[1:], seed=4, dtype=dtype)
    return [x, weight, None if bias is None else randn(len(x), bias.shape[1], seed=5, dtype=dtype)], options


ARGUMENTS = {dynamic_conv_transpose2d: dynamic_arguments, per_sample_conv_transpose2d: per_sample_arguments}
both = pytest.mark.parametrize("function", ARGUMENTS, ids=lambda function: function.__name__)
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


@pytest.mark.parametrize("case", CASES)
def test_equals_torchs_transposed_convolution_of_each_sample(case):
    (x, weight, bias), options = per_sample_arguments(case, torch.float64)
    each = [F.conv_transpose2d(x[b : b + 1], weight[b], bias[b], **options) for b in range(len(x))]
    for function in (per_sample_conv_transpose2d, per_sample_conv_transpose2d.reference):
        torch.testing.assert_close(function(x, weight, bias, **options), torch.cat(each), rtol=1e-12, atol=1e-12)


@grid(case=list(CASES), layout=list(LAYOUTS))
def test_is_the_adjoint_of_the_convolution(case, layout):
    """`<conv(y), x> = <y, transposed(x)>` for every y: the two have the same kernels and geometry."""
    (x, experts, mixing, _), options = dynamic_arguments(case, torch.float64)
    weight = randn(len(x), *experts.shape[1:], seed=4, dtype=torch.float64)
    x = x.to(memory_format=LAYOUTS[layout])
    output_padding = options.get("output_padding", 0)
    geometry = {name: value for name, value in options.items() if name != "output_padding"}
    for conv, adjoint, kernels in (
        (per_sample_conv2d, per_sample_conv_transpose2d, (weight,)),
        (dynamic_conv2d, dynamic_conv_transpose2d, (experts, mixing)),
    ):
        y = adjoint(x, *kernels, **options)
        probe = randn(*y.shape, seed=8, dtype=torch.float64)
        made = conv(probe, *kernels, **geometry)[:, :, : x.shape[2], : x.shape[3]]
        assert made.shape == x.shape, f"output padding {output_padding}"
        torch.testing.assert_close((made * x).sum(), (probe * y).sum(), rtol=1e-12, atol=1e-10)


@grid(function=list(ARGUMENTS), case=list(CASES), layout=list(LAYOUTS))
def test_near_the_exact_result_with_its_gradients(function, case, layout):
    arguments, options = ARGUMENTS[function](case)
    arguments[0] = arguments[0].to(memory_format=LAYOUTS[layout])
    assert_near_exact(function, arguments, **options)
    y, dx, *_ = outcome(function, arguments, **options)
    for found in (y, dx):
        if found.shape[1] > 1 and found.shape[2:].numel() > 1 and arguments[0].shape[1] > 1 < arguments[0].shape[3]:
            assert found.is_contiguous(memory_format=LAYOUTS[layout])


@needs_interpreter
@grid(strength=1, function=list(ARGUMENTS), case=list(CASES), layout=list(LAYOUTS))
def test_kernels_are_near_the_exact_result(function, case, layout):
    arguments, options = ARGUMENTS[function](case)
    arguments[0] = arguments[0].to(memory_format=LAYOUTS[layout])
    with use_backend("triton"):
        assert_near_exact(function, arguments, **options)


@needs_interpreter
@pytest.mark.usefixtures("poisoned_memory")
@grid(
    lambda regime, splits, **_: regime == "aggregate" or splits == 1,  # stacked has no splits
    strength=1,
    case=list(CASES),
    regime=["aggregate", "stacked"],
    splits=[1, 2],
    layout=list(LAYOUTS),
    dtype=[torch.float32, torch.float16],
)
def test_every_regime_of_the_kernels_writes_every_pixel(case, regime, splits, layout, dtype, monkeypatch):
    """Also pixels that no tap reaches, which have the bias alone; the batch in chunks of two samples."""
    from polychrome.kernels.dynamic_conv.triton import ops

    def fixed(problem, device):
        made = plan(problem, device)._replace(backward_chunk=2)
        if made.regime in ("depthwise", "pointwise"):
            return made
        return made._replace(regime=regime, input_gradient=made.input_gradient._replace(splits=splits))

    monkeypatch.setattr(ops, "plan", fixed)
    arguments, options = dynamic_arguments(case, dtype)
    arguments[0] = arguments[0].to(memory_format=LAYOUTS[layout])
    with use_backend("triton"):
        y = dynamic_conv_transpose2d(*arguments, **options)
    exact = dynamic_conv_transpose2d.reference(*(each.double() for each in arguments), **options)
    assert rms_ratio(y, exact) <= TOLERANCES[dtype][0]


@grid(function=list(ARGUMENTS), case=["doubled", "groups", "wide", "one_by_one"], dtype=[torch.bfloat16, torch.float16])
def test_low_precision_is_at_most_twice_as_far_as_the_definition(function, case, dtype):
    arguments, options = ARGUMENTS[function](case, dtype)
    exact = exact_outcome(function, arguments, **options)
    op, definition = (outcome(f, arguments, **options) for f in (function, function.reference))
    for got, naive, truth in zip(op, definition, exact, strict=True):
        assert got.dtype == naive.dtype
        assert rms_ratio(got, truth) <= 2 * rms_ratio(naive, truth)


@grid(function=list(ARGUMENTS), case=list(CASES), mixed_inside=[False, True])
def test_gradcheck_and_gradgradcheck(function, case, mixed_inside, monkeypatch):
    if mixed_inside:
        monkeypatch.setattr(transposed, "keeps_the_mix", lambda *_: False)
    arguments, options = ARGUMENTS[function](case, torch.float64)
    leaves = [argument.requires_grad_() for argument in arguments]

    def call(*given):
        return function(*given, **options)[:, :3]

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True, check_batched_grad=False)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@both
def test_transforms_follow_the_definition(function):
    arguments, options = ARGUMENTS[function]("doubled", torch.float64)
    x, *rest = arguments
    for transform in (
        lambda f: torch.func.jvp(lambda x: f(x, *rest, **options), (x,), (x.cos(),))[1],
        lambda f: torch.func.grad(lambda x: f(x, *rest, **options).square().sum())(x),
        lambda f: torch.func.vmap(lambda x: f(x, *rest, **options))(torch.stack([x, x.cos()])),
    ):
        torch.testing.assert_close(transform(function), transform(function.reference))


@pytest.mark.parametrize("case", CASES)
def test_graphs_of_other_runtimes_compute_the_same(case):
    (x, weight, bias), options = per_sample_arguments(case, torch.float64)
    names = ("stride", "padding", "output_padding", "dilation", "groups")
    given = {name: options.get(name, int(name in ("stride", "dilation", "groups"))) for name in names}
    geometry = resolve_transposed(*given.values())
    expected = per_sample_conv_transpose2d(x, weight, bias, **options)
    for form in (decompositions._per_sample_conv_transpose2d, decompositions._from_zeros_between):
        torch.testing.assert_close(form(x, weight, bias, *geometry), expected)


@both
def test_autocast_casts_x_and_kernels_and_no_mixing(function):
    arguments, options = ARGUMENTS[function]("doubled")
    with torch.autocast("cpu", torch.bfloat16):
        y = function(*arguments, **options)
    low = [each.bfloat16() for each in arguments]
    if function is dynamic_conv_transpose2d:
        low[2] = arguments[2]
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, function(*low, **options))


@pytest.mark.parametrize("mixed_inside", [False, True])
@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 3)])
@both
def test_only_what_is_asked_for_has_a_gradient(function, frozen, mixed_inside, monkeypatch):
    if mixed_inside:
        monkeypatch.setattr(transposed, "keeps_the_mix", lambda *_: False)
    arguments, options = ARGUMENTS[function]("doubled")
    assert_near_exact(function, arguments, frozen=frozen, **options)


@pytest.fixture
def forced(form, monkeypatch):
    """Force the form of the test's argument `form` of the convolution behind, and slices of a few samples."""
    forms = Forms(*(Choice(one, "forced") for one in FORMS[form]))
    monkeypatch.setattr(eager, "forms_of", lambda *_, **__: forms)
    monkeypatch.setattr(transposed, "keeps_the_mix", lambda *_: False)
    small_slices(monkeypatch)


def stride_of(case):
    stride = CASES[case][-1].get("stride", 1)
    return max(stride) if isinstance(stride, tuple) else stride


@grid(
    lambda form, case, **_: not ("swapped" in form and stride_of(case) > 1),  # swapped is for stride 1
    form=list(FORMS),
    case=list(CASES),
    layout=list(LAYOUTS),
    dtype=[torch.float32, torch.bfloat16],
)
@pytest.mark.usefixtures("poisoned_memory")
def test_every_form_is_near_the_exact_result(forced, case, layout, dtype):
    arguments, options = dynamic_arguments(case, dtype)
    arguments[0] = arguments[0].to(memory_format=LAYOUTS[layout])
    assert_near_exact(dynamic_conv_transpose2d, arguments, **options)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("form", ["by the rules", *FORMS])
def test_random_geometries_in_every_form(form, seed, monkeypatch):
    """Strides, padding, output padding and dilation at random, on both sides of what an image's edge can hold."""
    if form in FORMS:
        monkeypatch.setattr(eager, "forms_of", lambda *_, **__: Forms(*(Choice(one, "forced") for one in FORMS[form])))
    monkeypatch.setattr(transposed, "keeps_the_mix", lambda *_: False)
    rng, made = np.random.default_rng(seed), 0
    while made < 12:
        kernel, dilation, size = rng.integers(1, 5, 2), rng.integers(1, 4, 2), rng.integers(1, 7, 2)
        stride = np.ones(2, int) if "swapped" in form else rng.integers(1, 5, 2)
        padding, extra = rng.integers(0, 4, 2), rng.integers(0, np.maximum(stride, dilation))
        if ((size - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1 < 1).any():
            continue
        made += 1
        options = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation}
        options = {name: tuple(map(int, value)) for name, value in options.items()}
        x = randn(3, 4, *map(int, size), seed=made).to(memory_format=LAYOUTS["nhwc" if made % 2 else "nchw"])
        experts, bias = randn(2, 4, 3, *map(int, kernel), seed=made), randn(2, 3, seed=made)
        given = [x.double(), experts.double(), randn(3, 2, seed=made).double(), bias.double()]
        exact = outcome(dynamic_conv_transpose2d.reference, given, **options)
        for one, other in zip(outcome(dynamic_conv_transpose2d, given, **options), exact, strict=True):
            torch.testing.assert_close(one, other, msg=f"{form} {options} {list(x.shape)}")


@grid(
    strength=1,
    function=list(ARGUMENTS),
    layout=list(LAYOUTS),
    backend={"auto": "auto", "triton": pytest.param("triton", marks=needs_interpreter)},
)
def test_opcheck(function, layout, backend):
    (x, *rest), _ = ARGUMENTS[function]("doubled")
    leaves = [each.requires_grad_() for each in (x.to(memory_format=LAYOUTS[layout]), *rest)]
    op = getattr(torch.ops.polychrome, function.__name__).default
    torch.library.opcheck(op, (*leaves, [2, 2], [1, 0, 1, 0], [1, 1], 1, backend))


@both
def test_one_compilation_serves_every_batch_size(function):
    shared = {1, 3} if function is dynamic_conv_transpose2d else set()

    def arguments(batch):
        made, _ = ARGUMENTS[function]("doubled")
        return [
            each if place in shared else randn(batch, *each.shape[1:], seed=place) for place, each in enumerate(made)
        ]

    assert_one_compilation(
        lambda *given: function(*given, stride=2, padding=1, output_padding=1),
        arguments,
        [None if place in shared else 0 for place in range(len(arguments(2)))],
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_padding": 2}, r"output_padding must be below stride \(1, 1\) or dilation \(1, 1\), got 2"),
        ({"output_padding": -1}, "output_padding must be an int or a pair of ints, at least 0, got -1"),
        ({"padding": -1}, "padding must be an int or a pair of ints, at least 0, got -1"),
        ({"padding": "same"}, "padding must be an int or a pair of ints, at least 0, got 'same'"),
        ({"stride": 0}, "stride must be an int or a pair of ints, at least 1, got 0"),
        ({"groups": 3}, "groups must be a positive divisor of in_channels=4, got 3"),
        ({"padding": 5}, r"output must be at least 1 x 1, got -3 x -4 from x \[3, 4, 5, 4\], kernel \[3, 3\]"),
        ({"bias": randn(3, 5)}, r"bias must be \[.*=3, out_channels=6\], got \[3, 5\]"),
        ({"x": randn(3, 4, 0, 4)}, r"x must be at least 1 x 1, got \[3, 4, 0, 4\]"),
        ({"x": randn(3, 2, 5, 4)}, r"must be \[.*, in_channels=2, out_channels/groups, kernel_height, kernel_width\]"),
        ({"x": randn(4, 5)}, r"x must be \[batch, channels, height, width\]"),
    ],
)
@both
def test_bad_arguments_are_named(function, changes, message):
    given, _ = ARGUMENTS[function]("plain")
    names = ["x", "experts", "mixing", "bias"] if len(given) == 4 else ["x", "weight", "bias"]
    for backend in ("auto", "reference"):
        with use_backend(backend), pytest.raises(ValueError, match=message):
            function(**dict(zip(names, given, strict=True)) | changes)
