"""The Triton kernels of the convolutions, run by Triton's interpreter on CPU tensors.

Deterministic algorithms are on in the whole file, which also makes torch fill new memory with NaN: what a kernel does
not write, a test sees.
"""

import subprocess
import sys

import pytest
import torch

from polychrome.kernels import dynamic_conv2d, per_sample_conv2d, use_backend
from polychrome.kernels.dynamic_conv import configs
from polychrome.kernels.dynamic_conv.plan import plan, rule
from polychrome.kernels.dynamic_conv.problem import Geometry, Problem
from polychrome.kernels.launch import record_launches
from tests.grids import grid, usual
from tests.kernels.conv_cases import ARGUMENTS, CASES, WIDE_CASES, dynamic_arguments, wide_arguments
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.oracle import assert_near_exact, assert_one_compilation, exact_outcome, outcome, randn, rms_ratio

pytest.importorskip("triton")
pytest.importorskip("hypothesis")

import hypothesis
from hypothesis import strategies as st

from polychrome.kernels import sums
from polychrome.kernels.dynamic_conv.triton import (
    contraction,
    convolution,
    depthwise,
    mixing,
    ops,
    reorder,
    splits,
    weight_gradient,
)

both = pytest.mark.parametrize("function", ARGUMENTS, ids=lambda f: f.__name__)
pytestmark = [needs_interpreter, pytest.mark.usefixtures("on_triton")]
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])


@pytest.fixture
def force(monkeypatch):
    """Return a function that fixes parts of every plan."""

    def fix(chunk=2, swap=None, splits=None, apart=False, **parts):
        def fixed(problem, device):
            made = plan(problem, device)
            only = made.regime in ("depthwise", "pointwise")
            changes = {name: part for name, part in parts.items() if not (only and name == "regime")}
            made = made._replace(chunk=chunk, backward_chunk=chunk, own_chunk=chunk, **changes)
            if swap is not None and made.regime != "depthwise":
                # Rows with the experts together have no swapped form.
                lie = [row._replace(swap=swap and not row.together) for row in (made.forward, made.input_gradient)]
                made = made._replace(forward=lie[0], input_gradient=lie[1])
            if splits is not None:
                row = made.weight_gradient
                if made.regime != "depthwise" and row.few:
                    row = configs.weight_gradient_rows(problem, apart=False)[-1]
                made = made._replace(weight_gradient=row._replace(splits=splits))
            if apart and made.regime != "depthwise":
                row = configs.weight_gradient_rows(problem, apart=True)[-1]
                made = made._replace(weight_gradient=row._replace(block_k=16, splits=3))
            return made

        monkeypatch.setattr(ops, "plan", fixed)

    return fix


def has_regimes(case, regime, swap):
    """Return whether a case can run so; depthwise and 1x1 ones have one way."""
    return (case == "pointwise" or "depthwise" in case) == (swap is None) and (
        swap is not None or regime == "aggregate"
    )


def kernels_of(launches):
    return {launch.kernel.__name__ for launch in launches}


@grid(strength=1, function=list(ARGUMENTS), case=list(CASES), dtype=[torch.float32, torch.float16])
def test_output_and_gradients_are_near_the_exact_ones(function, case, dtype):
    arguments, options = ARGUMENTS[function](case, dtype)
    assert_near_exact(function, arguments, **options)


def has_regimes_or_is_apart(case, regime, swap, apart):
    """Return whether a case can run so; what the weight gradient does is seen in one regime, and not depthwise."""
    one = regime == "aggregate" and swap in (False, None) and "depthwise" not in case
    return has_regimes(case, regime, swap) and (not apart or one)


@grid(
    has_regimes_or_is_apart,
    strength=1,
    case=list(WIDE_CASES),
    regime=["aggregate", "stacked"],
    swap=[False, True, None],
    apart=[False, True],
)
def test_every_regime_is_near_the_exact_result(case, regime, swap, apart, force):
    """Channels enough for the matrix instruction, chunks of two samples, a partial gradient per two samples."""
    arguments, options = wide_arguments(case, torch.float16)
    if regime == "stacked" and len(arguments[1]) > configs.EXPERTS_ACCUMULATED:
        regime = "aggregate"
    force(regime=regime, swap=swap, splits=2, apart=apart)
    arguments[0] = arguments[0].to(memory_format=torch.channels_last)
    assert_near_exact(dynamic_conv2d, arguments, **options)


@pytest.mark.parametrize("case", usual(WIDE_CASES, "grouped", "strided_dilated", "depthwise_wider_out", "few_pixels"))
def test_wide_weights_per_sample_are_near_the_exact_result(case, force):
    force()
    (x, experts, _, bias), options = wide_arguments(case, torch.float32)
    weight = randn(len(x), *experts.shape[1:], seed=4)
    assert_near_exact(per_sample_conv2d, [x, weight, randn(len(x), bias.shape[1], seed=5)], **options)
    permuted = weight.movedim(2, -1).contiguous().movedim(-1, 2)  # as a network often generates them
    assert_near_exact(per_sample_conv2d, [x, permuted, None], **options)


@pytest.mark.parametrize(
    ("experts", "options"),
    [
        (2, {"padding": 1}),
        (3, {"stride": 2, "padding": 1}),
        (4, {"dilation": 2, "padding": 2}),
        (8, {"groups": 2, "padding": 1}),
    ],
    ids=str,
)
def test_experts_together_are_near_the_exact_result(experts, options, force):
    row = configs.rows_together(experts)[-1]
    force(regime="stacked", forward=row, input_gradient=row)
    inputs = 24 // options.get("groups", 1)
    weights = randn(experts, 40, inputs, 3, 3, seed=1, dtype=torch.float16)
    arguments = [randn(3, 24, 5, 4, dtype=torch.float16), weights, randn(3, experts, seed=2)]
    with record_launches() as launches:
        assert_near_exact(dynamic_conv2d, [*arguments, randn(experts, 40, seed=3, dtype=torch.float16)], **options)
    launched = [launch.options for launch in launches if launch.kernel.__name__ == "convolution_kernel"]
    assert {each["SIDE_BY_SIDE"] for each in launched} == {1 << (experts - 1).bit_length()}


@grid(
    strength=1,
    case=["one_wide_sample", "grouped", "strided_dilated", "stride_beyond_the_kernel", "three_channels"],
    dtype=[torch.float32, torch.float16],
    splits=[2, 5],
    swap=[False, True],
)
def test_a_product_that_several_programs_share_is_near_the_exact_result(case, dtype, splits, swap, force):
    """Of 3 steps as of 18, some parts of them empty; channels that are no multiple of a step's."""
    row = configs.ConvolutionConfig(64, 32, 16, 4, swap=swap, splits=splits)
    force(regime="aggregate", forward=row, input_gradient=row)
    arguments, options = wide_arguments(case, dtype) if case in WIDE_CASES else dynamic_arguments(case, dtype)
    with record_launches() as launches:
        assert_near_exact(dynamic_conv2d, arguments, frozen=(1, 2), **options)
    names = [launch.kernel.__name__ for launch in launches]
    assert names.count("add_up_kernel") == names.count("convolution_kernel") >= 2


def test_parts_are_added_up_in_their_order():
    """The 1 is lost to the part that comes next: a part that took the place of another, or its turn, would show."""
    partial = torch.tensor([1.0, 2.0**24, -(2.0**24), 3.0]).view(4, 1, 1, 1, 1).expand(-1, 2, 3, 3, 5).contiguous()
    for layout in (torch.contiguous_format, torch.channels_last):
        out = torch.empty(2, 5, 3, 3).to(memory_format=layout)
        splits.add_up(partial, out, splits.NOTHING)
        assert torch.equal(out, torch.full_like(out, 3.0))


def test_the_stacked_form_refuses_splits(force):
    """A table that was changed by hand may ask for them."""
    force(regime="stacked", forward=configs.STACKED[-1]._replace(splits=2))
    arguments, options = wide_arguments("few_pixels", torch.float16)
    with pytest.raises(ValueError, match="splits must be 1 where experts are mixed in the product, got 2"):
        dynamic_conv2d(*arguments, **options)


DEPTHWISE = [
    ((3, 3), 1),
    ((5, 5), 2),
    ((5, 3), (0, 2)),
    ((2, 4), "same"),
    ((1, 1), 0),
    ((2, 3), (4, 3)),
    ((1, 11), (0, 5)),
]


@grid(strength=1, case=DEPTHWISE, experts=[0, 9], form=[{"rows": 4}, {"splits": 3}])
def test_both_forms_of_a_depthwise_convolution_are_near_the_exact_result(case, experts, form, force):
    """Strips of 4 rows by 4 pixels, and blocks of 4 pixels in 3 parts; weights mixed before, within, or given."""
    kernel, padding = case
    row = configs.DepthwiseConfig(4, 16, **form)
    force(forward=row, input_gradient=row, weight_gradient=row)
    x, options = randn(2, 12, 7, 6), {"padding": padding, "groups": 12}
    if experts:
        arguments = [x, randn(experts, 12, 1, *kernel, seed=1), randn(2, experts, seed=2), randn(experts, 12, seed=3)]
        assert_near_exact(dynamic_conv2d, arguments, **options)
    else:
        assert_near_exact(per_sample_conv2d, [x, randn(2, 12, 1, *kernel, seed=1), randn(2, 12, seed=3)], **options)


@pytest.mark.parametrize("part", ["forward", "input_gradient", "weight_gradient"])
@pytest.mark.parametrize(
    ("inputs", "options"), [(12, {"stride": 2}), (12, {"stride": (1, 2)}), (12, {"dilation": (2, 1)}), (6, {})], ids=str
)
def test_strips_refuse_a_geometry_they_do_not_have(inputs, options, part, force):
    """A table that was changed by hand may ask for them."""
    force(**{part: configs.DepthwiseConfig(4, 16, rows=4)})
    x, experts = randn(2, inputs, 7, 6).requires_grad_(), randn(3, 12, 1, 3, 3, seed=1).requires_grad_()
    with pytest.raises(ValueError, match="strips are for strides and dilations of 1 and as many channels in as out"):
        dynamic_conv2d(x, experts, randn(2, 3, seed=2), padding=1, groups=inputs, **options).sum().backward()


def test_a_weight_beyond_32_bits_is_refused_and_experts_beyond_them_are_not_stacked():
    def problem(inputs, outputs):
        return Problem(64, inputs, outputs, 5, 5, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 8, torch.bfloat16)

    assert rule(problem(4096, 4096))[0] == "stacked"
    assert rule(problem(4096, 8192))[0] == "aggregate"
    with pytest.raises(ValueError, match=r"a sample's weight must have fewer than 2\^31 elements, got 2415919104"):
        plan(problem(2**14, 2**14), configs.HOPPER)


def test_strips_of_a_depthwise_convolution_fill_a_gpu_and_are_no_lower_than_they_need_be():
    def chosen(batch, channels, size, kernel=3, stride=1, gradient=False):
        geometry = ((kernel, kernel), (stride, stride), (kernel // 2,) * 4, (1, 1), channels)
        problem = Problem(batch, channels, channels, size, size, *geometry, 4, torch.bfloat16)
        return configs.depthwise_config(problem, configs.HOPPER, gradient)

    assert chosen(64, 256, 28) == configs.DepthwiseConfig(16, 64, rows=28)
    assert 1 <= chosen(1, 256, 28).rows <= 4
    assert 64 <= chosen(8, 64, 256).rows <= 128
    for gradient in (False, True):
        assert not chosen(64, 256, 28, stride=2, gradient=gradient).strips
        assert not chosen(64, 256, 28, kernel=11, gradient=gradient).strips


def test_tf32_is_asked_for_by_either_of_torchs_settings():
    code = """
import torch
from polychrome.kernels.tensors import allows_tf32
print(allows_tf32())
torch.backends.cudnn.conv.fp32_precision = "ieee"
print(allows_tf32())
torch.backends.cudnn.conv.fp32_precision = "tf32"
print(allows_tf32())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True"]


def test_every_row_of_the_tables_is_near_the_exact_result(force):
    arguments, options = wide_arguments("one_wide_sample", torch.float16)
    for row in configs.CONVOLUTION + configs.SWAPPED:
        force(regime="aggregate", forward=row, input_gradient=row)
        assert_near_exact(dynamic_conv2d, arguments, frozen=(1, 2), **options)
    for row in configs.STACKED + configs.rows_together(len(arguments[1])):
        force(regime="stacked", forward=row, input_gradient=row)
        assert_near_exact(dynamic_conv2d, arguments, frozen=(1,), **options)
    arguments, options = wide_arguments("few_pixels", torch.float16)  # of several samples, whose products are added up
    for limit, rows in configs.WEIGHT_GRADIENT.items():
        for row in rows if limit >= len(arguments[1]) else ():
            force(weight_gradient=row)
            assert_near_exact(dynamic_conv2d, arguments, frozen=(0,), **options)


@layouts
@both
def test_the_layout_of_x_is_kept(function, layout, force):
    force()
    arguments, options = ARGUMENTS[function]("stride_2_odd")
    plain = outcome(function, arguments, **options)
    arguments[0] = arguments[0].to(memory_format=layout)
    got = outcome(function, arguments, **options)
    for one, other in zip(got, plain, strict=True):
        torch.testing.assert_close(one, other)
    assert got[0].is_contiguous(memory_format=layout)
    assert got[1].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("case", usual(["wide", "depthwise", "pointwise", "few_pixels"], "depthwise", "few_pixels"))
def test_bias_scale_and_shift_of_any_stride(case, force):
    """Biases are often slices of what a network generated, scales a broadcast number."""
    force()
    (x, experts, mixing, bias), options = wide_arguments(case)
    outputs = bias.shape[1]
    affine = {"scale": torch.tensor([1.5]).expand(outputs), "shift": randn(2 * outputs, seed=9)[::2]}
    sliced = torch.cat([bias, bias], 1)[:, :outputs]
    plain = {name: vector.contiguous() for name, vector in affine.items()}
    with torch.no_grad():
        expected = dynamic_conv2d(x, experts, mixing, bias, **options, **plain)
        assert torch.equal(dynamic_conv2d(x, experts, mixing, sliced, **options, **affine), expected)
        weight = randn(len(x), *experts.shape[1:], seed=4)
        given = randn(len(x), 2 * outputs, seed=5)[:, ::2]
        for some in (given, given[:1].expand(len(x), -1)):
            expected = per_sample_conv2d(x, weight, some.clone(memory_format=torch.contiguous_format), **options)
            assert torch.equal(per_sample_conv2d(x, weight, some, **options), expected)


SHAPES = [(6, 20, 3, 3), (3, 16, 5, 3), (5, 3, 7, 7), (2, 8, 1, 1), (1, 8, 17, 16), (2, 1, 46, 46)]


@grid(strength=1, shape=SHAPES, experts=[1, 4, 40])
def test_the_mix_is_right_however_many_samples_a_program_takes(monkeypatch, shape, experts):
    kernels, weights = randn(experts, *shape, seed=1), randn(7, experts, seed=2)
    exact = torch.einsum("bk,koihw->bohwi", weights.double(), kernels.double()).flatten(2, 3)
    for programs in (1024, 3, 1):
        monkeypatch.setattr(mixing, "PROGRAMS", programs)
        with record_launches() as launches:
            mixed = mixing.mix_into(torch.full(exact.shape, torch.nan), kernels, weights)
        names = launches[0].kernel.arg_names
        per_program = launches[0].arguments[names.index("samples_per_program")]
        assert (per_program > 1) == (programs < 1024)
        assert launches[0].options["HOLDS"] == ((experts < 40 and shape[-1] < 46) or experts == 1)
        assert rms_ratio(mixed, exact) <= 1e-6


@grid(experts=[1, 4, 9, 20], samples={"5": (5, 5), "70": (70, 70), "7": (7, 3)}, dtype=[torch.float16, torch.float32])
def test_the_samples_own_gradients_are_contracted_in_chunks(experts, samples, dtype):
    """Shares keep more than the 11 bits of float16: each is multiplied as the sum of two numbers."""
    samples, chunk = samples
    own, kernels = randn(samples, 5, 9, 7).to(dtype), randn(experts, 5, 9, 7, seed=1).to(dtype)
    shares = randn(samples, experts, seed=2)
    gradient = torch.full((experts, 5, 9, 7), torch.nan)
    products = [
        contraction.contract(own[begin : begin + chunk], kernels, shares[begin : begin + chunk], gradient, begin > 0)
        for begin in range(0, samples, chunk)
    ]
    exact = torch.einsum("bk,botc->kotc", shares.double(), own.double())
    assert rms_ratio(gradient, exact) <= 2e-6
    assert rms_ratio(torch.cat(products), own.double().flatten(1) @ kernels.double().flatten(1).T) <= 2e-6
    alone = torch.empty_like(gradient, dtype=dtype)
    assert contraction.contract(own, None, shares, alone, add=False) is None
    assert rms_ratio(alone, exact) <= {torch.float16: 3e-4, torch.float32: 2e-6}[dtype]


@grid(
    shape=[(5, 7, 3, 3), (20, 24, 3, 2), (3, 300, 1, 1), (2, 3, 17, 16), (1, 2, 46, 46)],
    parts=[1, 3],
    samples=[1, 3],
    dtype=[torch.float32, torch.float16],
)
def test_few_samples_gradients_are_contracted_as_the_experts_lie(shape, parts, samples, dtype):
    own = randn(samples * parts, shape[0], shape[2] * shape[3], shape[1])
    kernels, shares = randn(4, *shape, seed=1, dtype=dtype), randn(samples, 4, seed=2)
    gradient, products = contraction.contract_few(own, kernels, shares, for_mixing=True)
    whole = own.double().unflatten(0, (samples, parts)).sum(1).transpose(2, 3).reshape(samples, *shape)
    exact = torch.einsum("bk,bocij->kocij", shares.double(), whole)
    assert gradient.dtype == dtype
    assert rms_ratio(gradient, exact) <= {torch.float16: 3e-4, torch.float32: 1e-6}[dtype]
    assert rms_ratio(products, whole.flatten(1) @ kernels.double().flatten(1).T) <= 2e-6
    alone, nothing = contraction.contract_few(own, kernels, shares, for_mixing=False)
    assert nothing is None
    assert torch.equal(alone, gradient)


def test_few_samples_change_the_layout_of_no_expert():
    arguments, options = dynamic_arguments("padded")
    with record_launches() as launches:
        outcome(dynamic_conv2d, arguments, **options)
    names = [launch.kernel.__name__ for launch in launches]
    assert names[-3:] == ["weight_gradient_kernel", "contract_few_kernel", "sum_kernel"]
    assert "reorder_kernel" not in names


@both
def test_x_and_gradients_of_any_stride(function):
    (x, *rest), options = ARGUMENTS[function]("padded")
    shape = function(x, *rest, **options).shape
    halves = torch.cat([randn(*shape), randn(*shape, seed=1)], 1)
    for grad in (torch.tensor(0.5).expand(shape), halves[:, : shape[1]]):
        assert_near_exact(function, [x, *rest], grad, **options)
    exact = exact_outcome(function, [x, *rest], **options)
    for same in (torch.cat([x, x], 3)[..., : x.shape[3]], torch.cat([x, x], 1)[:, :4]):
        leaf = same.detach().requires_grad_()
        y = function(leaf, *rest, **options)
        y.backward(randn(*y.shape, seed=7))
        assert rms_ratio(y, exact[0]) <= 1e-5
        assert rms_ratio(leaf.grad, exact[1]) <= 1e-5


@grid(
    strength=1,
    frozen=[(0,), (1,), (2,), (3,), (0, 1), (1, 2), (0, 1, 3), (1, 2, 3), (0, 2, 3), (0, 1, 2)],
    regime=["aggregate", "stacked"],
)
def test_only_the_gradients_asked_for_are_computed(frozen, regime, force):
    force(regime=regime)
    arguments, options = dynamic_arguments("padded")
    with record_launches() as launches:
        assert_near_exact(dynamic_conv2d, arguments, frozen=frozen, **options)
    transposed = [launch for launch in launches if launch.options.get("TRANSPOSED")]
    assert bool(transposed) == (0 not in frozen)
    for_mixing = 2 not in frozen and (regime == "aggregate" or 0 in frozen)
    assert ("weight_gradient_kernel" in kernels_of(launches)) == (1 not in frozen or for_mixing)


@both
def test_two_runs_agree_bit_for_bit(function, force):
    force(splits=3)
    arguments, options = ARGUMENTS[function]("padded", torch.float16)
    for one, other in zip(
        outcome(function, arguments, **options), outcome(function, arguments, **options), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("regime", ["aggregate", "stacked"])
def test_nan_in_one_sample_stays_there(regime, force):
    force(regime=regime)
    (x, experts, mixing, bias), options = dynamic_arguments("padded")
    x[1] = torch.nan
    y, dx, dexperts, dmixing, _ = outcome(dynamic_conv2d, [x, experts, mixing, bias], **options)
    assert y[1].isnan().all()
    assert not y[[0, 2]].isnan().any()
    assert not dx.isnan().any()
    assert dexperts.isnan().all()
    assert dmixing[1].isnan().all()
    assert not dmixing[[0, 2]].isnan().any()


@pytest.mark.parametrize("case", ["wide", "depthwise", "pointwise", "few_pixels", "one_wide_sample"])
def test_the_epilogue_scales_shifts_and_clamps(case, force):
    force(**({"forward": configs.ConvolutionConfig(64, 32, 32, 4, splits=3)} if case == "one_wide_sample" else {}))
    (x, experts, mixing, bias), options = wide_arguments(case, torch.float32)
    affine = {"scale": randn(len(bias[0]), seed=8), "shift": randn(len(bias[0]), seed=9), "relu": True}
    exact = dynamic_conv2d.reference(
        x.double(),
        experts.double(),
        mixing.double(),
        bias.double(),
        **options,
        scale=affine["scale"].double(),
        shift=affine["shift"].double(),
        relu=True,
    )
    with torch.no_grad(), record_launches() as launches:
        fused = dynamic_conv2d(x, experts, mixing, bias, **options, **affine)
    assert launches[-1].options["RELU"]
    assert rms_ratio(fused, exact) <= 1e-5
    leaf = x.clone().requires_grad_()
    y = dynamic_conv2d(leaf, experts, mixing, bias, **options, **affine)
    assert rms_ratio(y, exact) <= 1e-5
    y.sum().backward()
    assert leaf.grad.abs().sum() > 0
    nan = dynamic_conv2d(torch.full_like(x, torch.nan), experts, mixing, bias, **options, relu=True)
    assert nan.isnan().any()


def test_few_pixels_are_stacked_and_many_are_not():
    few, options = wide_arguments("few_pixels", torch.float16)
    with record_launches() as launches:
        dynamic_conv2d(*few, **options)
    assert kernels_of(launches) == {"reorder_kernel", "convolution_kernel"}
    assert launches[-1].options["EXPERTS"] == len(few[1])
    many, options = wide_arguments("many_pixels", torch.float16)
    with record_launches() as launches:
        dynamic_conv2d(*many, **options)
    assert kernels_of(launches) == {"mix_kernel", "convolution_kernel"}
    assert launches[-1].options["EXPERTS"] == 0


def test_one_compilation_serves_every_batch_size():
    experts, bias = randn(4, 6, 4, 3, 3, seed=1), randn(4, 6, seed=3)
    assert_one_compilation(
        lambda x, experts, mixing, bias: dynamic_conv2d(x, experts, mixing, bias, stride=2, padding=1),
        lambda batch: [randn(batch, 4, 5, 4), experts, randn(batch, 4, seed=2), bias],
        [0, None, 0, None],
        sizes=(2, 3, 5),
    )


@both
def test_the_choice_of_backend_holds_for_the_gradients(function):
    arguments, options = ARGUMENTS[function]("padded")
    leaves = [argument.clone().requires_grad_() for argument in arguments]
    y = function(*leaves, **options)
    with use_backend("auto"), record_launches() as launches:
        y.sum().backward()
    assert "weight_gradient_kernel" in kernels_of(launches)


@st.composite
def problems(draw):
    """Draw a convolution of any geometry that gives at least one output pixel, small enough to interpret."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel, stride, dilation = (
        (draw(st.integers(1, most)), draw(st.integers(1, most))) for most in draw(st.permutations([3, 3, 2]))
    )
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    extent = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    size = [draw(st.integers(max(1, least), max(1, least) + 4)) for least in extent]
    inputs, outputs = groups * draw(st.sampled_from([1, 3, 8, 20])), groups * draw(st.sampled_from([1, 2, 17]))
    batch, experts = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 9]))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    x = randn(batch, inputs, *size)
    if draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
    return x, randn(experts, outputs, inputs // groups, *kernel, seed=1), randn(batch, experts, seed=2), options


@pytest.mark.parametrize("examples", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_gradients_agree_with_each_other_at_any_shape(examples):
    """Per sample <dY, Y> = <x, dX> = sum_k pi_k dpi_k, and over the batch sum_k <W_k, dW_k>: no oracle is asked."""
    everywhere = hypothesis.given(problems(), st.sampled_from(["aggregate", "stacked"]), st.integers(1, 3))
    settings = hypothesis.settings(max_examples=examples, deadline=None, derandomize=True)
    settings(everywhere(assert_gradients_agree))()


def assert_gradients_agree(problem, regime, chunk):
    x, experts, mixing, options = problem

    def fixed(problem, device):
        made = plan(problem, device)
        changes = made.regime == "aggregate" and problem.experts <= configs.EXPERTS_ACCUMULATED
        made = made._replace(chunk=chunk, backward_chunk=chunk, own_chunk=chunk)
        return made._replace(regime=regime if changes else made.regime)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "plan", fixed)
        y, dx, dexperts, dmixing = outcome(dynamic_conv2d, [x, experts, mixing], **options)
    energy = (y * randn(*y.shape, seed=7)).sum((1, 2, 3))
    scale = (y.norm() * randn(*y.shape, seed=7).norm()).item()
    close = {"rtol": 1e-4, "atol": 1e-5 * scale}
    torch.testing.assert_close((x * dx).sum((1, 2, 3)), energy, **close)
    torch.testing.assert_close((mixing * dmixing).sum(1), energy, **close)
    torch.testing.assert_close((experts * dexperts).sum(), energy.sum(), **close)


@pytest.mark.parametrize(
    ("case", "regime", "layout"),
    [
        ("same_even_kernel", "aggregate", torch.contiguous_format),
        ("groups", "stacked", torch.channels_last),
        pytest.param("depthwise", "depthwise", torch.channels_last, marks=pytest.mark.slow),
        pytest.param("one_by_one", "pointwise", torch.contiguous_format, marks=pytest.mark.slow),
        pytest.param("same_even_kernel", "aggregate", torch.channels_last, marks=pytest.mark.slow),
        pytest.param("groups", "stacked", torch.contiguous_format, marks=pytest.mark.slow),
        pytest.param("depthwise", "depthwise", torch.contiguous_format, marks=pytest.mark.slow),
        pytest.param("one_by_one", "pointwise", torch.channels_last, marks=pytest.mark.slow),
    ],
)
def test_opcheck(case, regime, layout, force):
    torch.use_deterministic_algorithms(False)  # opcheck compares placeholders too
    force(regime=regime)
    (x, experts, mixing, bias), options = dynamic_arguments(case)
    # two samples of a few pixels, two experts of two taps: the interpreter counts every step
    x, experts, mixing, bias = x[:2, :, :4, :5].clone(), experts[:2, ..., :1, :2].clone(), mixing[:2, :2], bias[:2]
    padding = {"same_even_kernel": [0, 1, 1, 2], "one_by_one": [0] * 4}.get(case, [1] * 4)
    geometry = ([1, 1], padding, [1, 1], options.get("groups", 1))
    x = x.to(memory_format=layout)
    library = torch.ops.polychrome
    leaves = [tensor.detach().requires_grad_() for tensor in (x, experts, mixing, bias)]
    torch.library.opcheck(library.dynamic_conv2d.default, (*leaves, *geometry, "triton"))
    weight = randn(len(x), *experts.shape[1:], seed=4)
    torch.library.opcheck(
        library.per_sample_conv2d.default, (leaves[0], weight.requires_grad_(), None, *geometry, "triton")
    )
    affine = (randn(len(bias[0])), None, True)
    inference = (x, experts, mixing, bias, *geometry, *affine, "triton")
    torch.library.opcheck(library.dynamic_conv2d_affine.default, inference)
    grad = torch.randn_like(library.dynamic_conv2d(x, experts, mixing, bias, *geometry, "triton"))
    for needed in ([True] * 4, [False, False, True, False]):
        arguments = (grad, x, experts, mixing, bias, *geometry, needed, "triton")
        torch.library.opcheck(library.dynamic_conv2d_backward.default, arguments)
    arguments = (grad, x, weight.detach(), *geometry, [True] * 3, "triton")
    torch.library.opcheck(library.per_sample_conv2d_backward.default, arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@both
def test_dtypes_the_interpreter_gets_wrong_are_refused(function, dtype):
    arguments, options = ARGUMENTS[function]("padded")
    arguments = [argument.to(dtype) for argument in arguments]
    with pytest.raises(TypeError) as caught:
        function(*arguments, **options)
    got = str(dtype).removeprefix("torch.")
    assert str(caught.value) == f"x must be float32 or float16 for Triton's interpreter, got {got}"


def test_offsets_have_64_bits_beyond_2_to_the_31_elements():
    def constants(height):
        x = torch.empty(2, 16, height, 2**13, dtype=torch.float16, device="meta")
        x = x.to(memory_format=torch.channels_last)
        experts = torch.empty(2, 16, 16, 1, 3, dtype=torch.float16, device="meta")
        mixing = torch.empty(2, 2, device="meta")
        geometry = Geometry([1, 1], [0, 0, 1, 1], [1, 1], 1)
        with record_launches() as launches:
            y = ops.dynamic_conv2d(x, experts, mixing, None, geometry)
            ops.dynamic_conv2d_backward(y, x, experts, mixing, None, geometry, [True, True, True, False])
        return {
            (launch.kernel.__name__, launch.options["INDEX64"])
            for launch in launches[1:]
            if launch.kernel.__name__ in ("convolution_kernel", "weight_gradient_kernel")
        }

    assert constants(2**12) == {("convolution_kernel", False), ("weight_gradient_kernel", False)}
    assert constants(2**14) == {("convolution_kernel", True), ("weight_gradient_kernel", True)}
    small, large = (torch.empty(size, device="meta", dtype=torch.int8) for size in (2**31 - 2**21, 2**31 - 1))
    assert not convolution.needs_64_bits(small, None)
    assert convolution.needs_64_bits(small, large)


@pytest.mark.parametrize("case", ["padded", "depthwise", "depthwise_wider_out"])
def test_64_bit_offsets_change_no_number(monkeypatch, case, force):
    force(regime="stacked")
    arguments, options = wide_arguments(case) if case in WIDE_CASES else dynamic_arguments(case)
    plain = outcome(dynamic_conv2d, arguments, **options)
    for module in (convolution, depthwise, weight_gradient, reorder, splits, sums):
        monkeypatch.setattr(module, "needs_64_bits", lambda *tensors: True)
    for one, other in zip(outcome(dynamic_conv2d, arguments, **options), plain, strict=True):
        assert torch.equal(one, other)
