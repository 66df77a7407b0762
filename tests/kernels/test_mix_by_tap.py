"""Dynamic convolution with a mix for each tap of the kernel: [batch, experts, kernel_height, kernel_width]."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from polychrome.kernels import decompositions, dynamic_conv1d, dynamic_conv2d, dynamic_conv_transpose2d, use_backend
from polychrome.kernels.dynamic_conv.eager import ops as eager
from polychrome.kernels.dynamic_conv.eager.forms import Choice, Forms, cpu_forms
from polychrome.kernels.dynamic_conv.problem import problem_of, resolve_geometry
from polychrome.kernels.explain import explain
from tests.grids import grid, usual
from tests.kernels.conv_cases import CASES, WIDE_CASES, dynamic_arguments, wide_arguments
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.oracle import assert_near_exact, assert_one_compilation, outcome, randn
from tests.kernels.test_cpu_forms import FORMS, small_slices
from tests.kernels.test_second_derivatives import exactly, penalised

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
BY_TAP = [name for name in FORMS if name != "stacked"]


def with_taps(arguments):
    """Return arguments whose mix differs from tap to tap, without a bias."""
    x, experts, mixing, _ = arguments
    return [x, experts, randn(*mixing.shape, *experts.shape[3:], seed=6)]


def formula(x, experts, mixing, stride=1, padding=0, dilation=1, groups=1):
    """Each sample convolved with its own kernel, a sum over the experts of products with their taps' factors."""
    kernels = [(factors[:, None, None] * experts).sum(0) for factors in mixing]
    each = [
        F.conv2d(one, kernel, None, stride, padding, dilation, groups) for one, kernel in zip(x, kernels, strict=True)
    ]
    return torch.stack(each)


@pytest.mark.parametrize("case", CASES)
def test_the_definition_is_the_formula(case):
    arguments, options = dynamic_arguments(case)
    given = [each.double() for each in with_taps(arguments)]
    expected = outcome(formula, given, **options)
    for one, other in zip(outcome(dynamic_conv2d.reference, given, **options), expected, strict=True):
        torch.testing.assert_close(one, other)


@grid(
    lambda form, case, **_: not ("swapped" in form and CASES[case][-1].get("stride", 1) != 1),  # it is for stride 1
    form=BY_TAP,
    case=list(CASES),
    layout=list(LAYOUTS),
    dtype=[torch.float32, torch.bfloat16],
)
@pytest.mark.usefixtures("poisoned_memory")
def test_every_form_is_near_the_exact_result(form, case, layout, dtype, monkeypatch):
    forms = Forms(*(Choice(one, "forced") for one in FORMS[form]))
    monkeypatch.setattr(eager, "forms_of", lambda *_, **__: forms)
    small_slices(monkeypatch)
    arguments, options = dynamic_arguments(case, dtype)
    arguments = with_taps(arguments)
    arguments[0] = arguments[0].to(memory_format=LAYOUTS[layout])
    assert_near_exact(dynamic_conv2d, arguments, **options)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_what_is_asked_for_has_a_gradient(frozen, layout):
    arguments, options = wide_arguments("wide")
    arguments = with_taps(arguments)
    arguments[0] = arguments[0].to(memory_format=LAYOUTS[layout])
    assert_near_exact(dynamic_conv2d, arguments, frozen=frozen, **options)


def test_many_samples_in_bfloat16_keep_the_mixs_precision():
    """Nine samples and more a pair of experts: the mix is made of rounded values and their remainders."""
    arguments = [
        randn(9, 8, 6, 5, dtype=torch.bfloat16),
        randn(2, 8, 8, 3, 3, seed=1, dtype=torch.bfloat16),
        randn(9, 2),
    ]
    assert_near_exact(dynamic_conv2d, with_taps([*arguments, None]), padding=1)


@needs_interpreter
@pytest.mark.parametrize("case", usual(WIDE_CASES, "strided_dilated", "depthwise_wider_out", "pointwise", "few_pixels"))
@pytest.mark.usefixtures("poisoned_memory")
def test_kernels_are_near_the_exact_result(case):
    arguments, options = wide_arguments(case)
    with use_backend("triton"):
        assert_near_exact(dynamic_conv2d, with_taps(arguments), **options)


@needs_interpreter
@pytest.mark.parametrize("case", usual(["wide", "few_pixels", "depthwise", "pointwise"], "few_pixels", "depthwise"))
def test_second_derivatives_through_the_kernels_are_near_the_exact_ones(case):
    arguments, options = wide_arguments(case)
    arguments = with_taps(arguments)
    exact = exactly(dynamic_conv2d, arguments, **options)
    with use_backend("triton"):
        found = penalised(dynamic_conv2d, arguments, **options)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


def small(dtype=torch.float64):
    shapes = ((3, 2, 4, 3), (2, 3, 2, 2, 3), (3, 2, 2, 3))
    return [randn(*shape, seed=place, dtype=dtype).requires_grad_() for place, shape in enumerate(shapes)]


@pytest.mark.parametrize(
    "options", [pytest.param({"padding": 1}, marks=pytest.mark.slow), {"stride": 2, "padding": (1, 2)}]
)
def test_first_and_second_derivatives_are_those_of_differences(options):
    assert gradcheck(lambda *given: dynamic_conv2d(*given, **options), small())
    assert gradgradcheck(lambda *given: dynamic_conv2d(*given, **options), small())


@pytest.mark.parametrize("backend", ["auto", pytest.param("triton", marks=needs_interpreter)])
def test_opcheck(backend):
    x, experts, mixing = small(torch.float32)
    geometry = ([1, 1], [1, 1, 1, 1], [1, 1], 1)
    torch.library.opcheck(
        torch.ops.polychrome.dynamic_conv2d.default,
        (x, experts, mixing.detach().flatten(2).requires_grad_(), None, *geometry, backend),
    )


@pytest.mark.parametrize("backend", ["auto", "reference", pytest.param("triton", marks=needs_interpreter)])
def test_one_factor_for_all_taps_is_the_usual_mix(backend):
    (x, experts, mixing, _), options = dynamic_arguments("padded")
    same = mixing[:, :, None, None].expand(-1, -1, *experts.shape[3:])
    with use_backend(backend):
        one, other = (dynamic_conv2d(x, experts, each, **options) for each in (same, mixing))
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        scaled = dynamic_conv2d(x, experts, same, **options, scale=randn(6), shift=randn(6, seed=1), relu=True)
        torch.testing.assert_close(
            scaled, F.relu(other * randn(6)[:, None, None] + randn(6, seed=1)[:, None, None]), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("form", ["OPS", "STACKED"])
def test_graphs_of_other_runtimes_compute_the_same(form):
    arguments, options = dynamic_arguments("padded")
    x, experts, mixing = with_taps(arguments)
    op = torch.ops.polychrome.dynamic_conv2d.default
    y = getattr(decompositions, form)[op](x, experts, mixing.flatten(2), None, [1, 1], [1, 1, 1, 1], [1, 1], 1)
    torch.testing.assert_close(y, dynamic_conv2d(x, experts, mixing, **options), rtol=1e-5, atol=1e-5)


def test_one_compilation_serves_every_batch():
    arguments, _ = dynamic_arguments("padded")
    _, experts, mixing = with_taps(arguments)

    def made(batch):
        return [randn(batch, 4, 9, 8), experts, randn(batch, *mixing.shape[1:], seed=2)]

    assert_one_compilation(lambda *given: dynamic_conv2d(*given, padding=1), made, (0, None, 0))


def test_outputs_of_whole_experts_are_never_mixed_by_tap():
    geometry = resolve_geometry((3, 3), 1, 1, 1, 1)
    problem = problem_of(
        torch.empty(16, 512, 7, 7, dtype=torch.bfloat16), torch.empty(4, 512, 512, 3, 3), geometry, False
    )
    usual, by_tap = (cpu_forms(problem, True, "avx512", by_tap=flag) for flag in (False, True))
    assert [choice.form for choice in usual[:3]] == ["stacked"] * 3
    assert [choice.form for choice in by_tap[:3]] == ["columns", "swapped columns", "columns"]


def test_explain_tells_the_form_of_a_mix_for_each_tap():
    x, experts = torch.empty(64, 256, 7, 7), torch.empty(4, 256, 256, 3, 3)
    mixing = torch.empty(64, 4, 3, 3)
    assert explain(dynamic_conv2d, x, experts, mixing.flatten(2)[:, :, 0], padding=1).regime == "stacked"
    assert explain(dynamic_conv2d, x, experts, mixing, padding=1).regime in ("groups", "loop")
    assert explain(dynamic_conv2d, x, experts, mixing, padding=1, device="NVIDIA H200").regime != "stacked"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixing": randn(3, 4, 3, 2)}, r"mixing must be \[batch=3, experts=4, kernel_height=3, kernel_width=3\]"),
        ({"mixing": randn(2, 4, 3, 3)}, r"mixing must be \[batch=3, experts=4, kernel_height=3, .*got \[2, 4, 3, 3\]"),
        ({"mixing": randn(3, 4, 9)}, r"mixing must be \[batch=3, experts=4\], got \[3, 4, 9\]"),
        ({"bias": randn(4, 6)}, "bias must be None where mixing has a mix for each tap"),
    ],
)
def test_misfits_are_named(changes, message):
    arguments, _ = dynamic_arguments("padded")
    x, experts, mixing = with_taps(arguments)
    with pytest.raises(ValueError, match=message):
        dynamic_conv2d(**{"x": x, "experts": experts, "mixing": mixing, **changes})


def test_other_convolutions_take_one_mix_for_all_taps():
    with pytest.raises(ValueError, match=r"mixing must be \[batch=3, experts=4\], got \[3, 4, 3, 3\]"):
        dynamic_conv_transpose2d(randn(3, 4, 9, 8), randn(4, 4, 6, 3, 3), randn(3, 4, 3, 3))
    with pytest.raises(ValueError, match=r"mixing must be \[batch=3, experts=4\], got \[3, 4, 1, 3\]"):
        dynamic_conv1d(randn(3, 4, 9), randn(4, 6, 4, 3), randn(3, 4, 1, 3))
