"""The convolutions' Triton kernels on a CUDA device: `pytest -m gpu`."""

import pytest
import torch

from polychrome.kernels import dynamic_conv2d, explain, per_sample_conv2d
from polychrome.kernels.dynamic_conv import configs
from polychrome.kernels.dynamic_conv.plan import plan
from polychrome.kernels.modules import DynamicConv2d
from tests.kernels.conv_cases import ARGUMENTS, CASES, WIDE_CASES, wide_arguments
from tests.kernels.gpu import assert_compiled_trains, assert_graph_replays, assert_near_exact, dtypes, on_gpu
from tests.kernels.oracle import outcome, randn

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory", "without_tf32")]
both = pytest.mark.parametrize("function", ARGUMENTS, ids=lambda f: f.__name__)


@dtypes
@pytest.mark.parametrize("case", CASES)
@both
def test_output_and_gradients_are_near_the_exact_ones(function, case, dtype):
    arguments, options = ARGUMENTS[function](case, dtype)
    assert explain(function, *on_gpu(arguments), **options).implementation == "triton"
    assert_near_exact(function, arguments, **options)


@dtypes
@pytest.mark.parametrize("regime", ["aggregate", "stacked"])
@pytest.mark.parametrize("case", WIDE_CASES)
def test_every_regime_is_near_the_exact_result(monkeypatch, case, regime, dtype):
    from polychrome.kernels.dynamic_conv.triton import ops

    def fixed(problem, device):
        made = plan(problem, device)
        free = made.regime not in ("depthwise", "pointwise") and problem.experts <= configs.EXPERTS_ACCUMULATED
        made = made._replace(chunk=2, backward_chunk=2, own_chunk=2)
        if not free:
            return made
        if regime == "stacked":  # no product of mixed experts is split
            whole = {name: getattr(made, name)._replace(splits=1) for name in ("forward", "input_gradient")}
            made = made._replace(**whole)
        return made._replace(regime=regime)

    monkeypatch.setattr(ops, "plan", fixed)
    arguments, options = wide_arguments(case, dtype)
    arguments[0] = arguments[0].to(memory_format=torch.channels_last)
    assert_near_exact(dynamic_conv2d, arguments, **options)


STACKED_ROWS = configs.STACKED + configs.rows_together(4)


@pytest.mark.parametrize("row", configs.CONVOLUTION + configs.SWAPPED + STACKED_ROWS)
def test_every_row_is_near_the_exact_result(monkeypatch, row):
    from polychrome.kernels.dynamic_conv.triton import ops

    regime = "stacked" if row in STACKED_ROWS else "aggregate"
    monkeypatch.setattr(ops, "plan", lambda p, d: plan(p, d)._replace(regime=regime, forward=row, input_gradient=row))
    x, experts, mixing = randn(8, 72, 14, 14), randn(4, 136, 72, 3, 3, seed=1), randn(8, 4, seed=2)
    arguments = [x.bfloat16().to(memory_format=torch.channels_last), experts.bfloat16(), mixing, None]
    assert_near_exact(dynamic_conv2d, arguments, padding=1)


WEIGHT_ROWS = (*configs.WEIGHT_GRADIENT[4], *(row._replace(apart=True, splits=3) for row in configs.SAMPLE_GRADIENT))


@pytest.mark.parametrize("row", WEIGHT_ROWS)
def test_every_row_of_the_weight_gradient_is_near_the_exact_result(monkeypatch, row):
    from polychrome.kernels.dynamic_conv.triton import ops

    monkeypatch.setattr(
        ops, "plan", lambda p, d: plan(p, d)._replace(regime="aggregate", own_chunk=5, weight_gradient=row)
    )
    x, experts, mixing = randn(8, 72, 14, 14), randn(4, 136, 72, 3, 3, seed=1), randn(8, 4, seed=2)
    arguments = [x.bfloat16().to(memory_format=torch.channels_last), experts.bfloat16(), mixing, None]
    assert_near_exact(dynamic_conv2d, arguments, padding=1)


DEPTHWISE_ROWS = [
    configs.DepthwiseConfig(16, 64, rows=5),
    configs.DepthwiseConfig(32, 64, 8, rows=14),
    configs.DepthwiseConfig(8, 128, rows=7),
    configs.DepthwiseConfig(16, 64, splits=3),
]


@pytest.mark.parametrize("row", DEPTHWISE_ROWS, ids=str)
@pytest.mark.parametrize(("kernel", "experts"), [(3, 4), (5, 4), (7, 9), (9, 2)])
def test_every_depthwise_row_is_near_the_exact_result(monkeypatch, row, kernel, experts):
    from polychrome.kernels.dynamic_conv.triton import ops

    rows = {"forward": row, "input_gradient": row, "weight_gradient": row}
    monkeypatch.setattr(ops, "plan", lambda p, d: plan(p, d)._replace(chunk=3, backward_chunk=3, own_chunk=3, **rows))
    x, mixing = randn(8, 72, 14, 13), randn(8, experts, seed=2)
    weights = randn(experts, 72, 1, kernel, kernel, seed=1).bfloat16()
    arguments = [x.bfloat16().to(memory_format=torch.channels_last), weights, mixing, None]
    assert_near_exact(dynamic_conv2d, arguments, padding=kernel // 2, groups=72)


@both
def test_two_runs_agree_bit_for_bit(function):
    arguments, options = ARGUMENTS[function]("padded", torch.bfloat16)
    arguments = on_gpu(arguments)
    for one, other in zip(
        outcome(function, arguments, **options), outcome(function, arguments, **options), strict=True
    ):
        assert torch.equal(one, other)


def test_a_cuda_graph_replays_with_new_numbers():
    arguments = [randn(8, 32, 14, 14), randn(4, 48, 32, 3, 3, seed=1), randn(8, 4, seed=2)]
    assert_graph_replays(dynamic_conv2d, arguments, padding=1)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_module_trains_like_the_eager_one(mode):
    assert_compiled_trains(DynamicConv2d(16, 24, 3, padding=1), mode, autocast=True, rtol=2e-2, atol=1e-4)


def test_float64_runs_the_eager_form():
    arguments, options = ARGUMENTS[per_sample_conv2d]("padded", torch.float64)
    arguments = on_gpu(arguments)
    assert explain(per_sample_conv2d, *arguments, **options).implementation == "eager"
    expected = per_sample_conv2d.reference(*arguments, **options)
    torch.testing.assert_close(per_sample_conv2d(*arguments, **options), expected)
