import pytest
import torch

from polychrome.kernels import channel_gate, dynamic_conv2d, explain, per_sample_conv2d, use_backend
from polychrome.kernels.dynamic_conv import configs
from polychrome.kernels.dynamic_conv import plan as plans
from polychrome.kernels.dynamic_conv.configs import HOPPER
from tests.kernels.oracle import randn

H200 = "NVIDIA H200"


def call(size, channels=256, kernel=3, experts=4, groups=1, batch=64, dtype=torch.bfloat16):
    made = {"dtype": dtype, "device": "meta"}
    x = torch.empty(batch, channels, size, size, **made)
    weight = torch.empty(experts, channels, channels // groups, kernel, kernel, **made)
    return (x, weight, torch.empty(batch, experts, device="meta")), {"padding": kernel // 2, "groups": groups}


@pytest.fixture
def no_tables(monkeypatch):
    """Let every GPU go by the rules."""
    monkeypatch.setattr(plans, "measured", lambda name: {})
    plans.plan.cache_clear()
    yield
    plans.plan.cache_clear()


@pytest.mark.parametrize(
    ("sizes", "regime", "reason"),
    [
        ({"size": 14}, "aggregate", "196 output pixels a sample, at least 68"),
        ({"size": 7}, "stacked", "49 output pixels a sample, fewer than 68"),
        ({"size": 7, "experts": 16}, "aggregate", "49 output pixels"),
        ({"size": 7, "experts": 1}, "aggregate", "49 output pixels"),
        ({"size": 7, "batch": 8}, "aggregate", "49 output pixels a sample, at least 36"),
        ({"size": 7, "batch": 4}, "aggregate", "no more samples than experts"),
        ({"size": 7, "dtype": torch.float32}, "aggregate", "at least 9"),
        ({"size": 28, "kernel": 1}, "pointwise", "1x1"),
        ({"size": 28, "groups": 256}, "depthwise", "one input channel per group"),
    ],
)
def test_the_regime_on_a_gpu_follows_the_sizes(sizes, regime, reason, no_tables):
    arguments, options = call(**sizes)
    explanation = explain(dynamic_conv2d, *arguments, **options, device=H200)
    assert explanation.regime == regime
    assert reason in explanation.reason
    assert f"forward                 {regime}: " in str(explanation)


def test_weights_given_per_sample_are_not_mixed():
    (x, weight, _), options = call(14)
    explanation = explain(per_sample_conv2d, x, weight[:1].expand(64, -1, -1, -1, -1), **options, device=H200)
    assert (explanation.regime, explanation.reason) == ("aggregate", "weights are given per sample")
    assert not explanation.plan.weight_gradient.apart


def test_chunks_of_one_size_fill_two_thirds_of_the_cache(no_tables):
    arguments, options = call(14)
    made = explain(dynamic_conv2d, *arguments, **options, device=H200).plan
    weight = 256 * 256 * 9 * 2
    assert (made.chunk, made.backward_chunk, made.own_chunk) == (32, 32, 32)
    assert 32 * weight < 0.65 * HOPPER.l2_bytes < 64 * weight
    # Backward has no more than a fifth of what the naive form allocates: 44 samples' weights here, and all of them
    # where that form copies larger maps.
    for size, backward in ((14, 32), (28, 64)):
        arguments, options = call(size, channels=128)
        made = explain(dynamic_conv2d, *arguments, **options, device=H200).plan
        assert (made.chunk, made.backward_chunk, made.own_chunk) == (64, backward, backward)


@pytest.mark.parametrize(
    ("sizes", "splits"),
    [
        ({"size": 14, "batch": 1}, 6),
        ({"size": 7, "channels": 512, "batch": 1}, 15),
        ({"size": 7, "channels": 2048, "kernel": 1, "batch": 1}, 5),
        ({"size": 14, "batch": 1, "dtype": torch.float32}, 4),
        ({"size": 28, "channels": 128, "batch": 1}, 1),  # 18 steps, which two launches would not shorten
        ({"size": 56, "channels": 64, "batch": 1}, 1),
        ({"size": 28, "kernel": 1, "batch": 1}, 1),
        ({"size": 14}, 1),
        ({"size": 7}, 1),
    ],
)
def test_a_product_is_split_where_most_multiprocessors_idle_and_it_saves_more_than_a_launch(sizes, splits, no_tables):
    arguments, options = call(**sizes)
    explanation = explain(dynamic_conv2d, *arguments, **options, device=H200)
    made, problem = explanation.plan, explanation.problem
    assert (made.forward.splits, made.input_gradient.splits) == (splits, splits)
    if splits > 1:
        assert 3 * 4 * splits * problem.pixels * problem.out_channels <= configs.naive_bytes(problem)
        assert f"splits {splits}" in str(explanation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("size", "channels"), [(56, 64), (14, 256), (7, 512)])
def test_gradients_of_few_samples_are_made_apart_in_a_quarter_of_the_memory_of_naive(size, channels, dtype, no_tables):
    for batch in range(1, 5):
        arguments, options = call(size, channels=channels, batch=batch, dtype=dtype)
        explanation = explain(dynamic_conv2d, *arguments, **options, device=H200)
        row, problem = explanation.plan.weight_gradient, explanation.problem
        assert row.few == (batch < 4)
        if row.few:
            assert row.apart
            own = configs.own_dtype(dtype).itemsize * batch * problem.weights
            assert row.splits == 1 or 4 * row.splits * own <= configs.naive_bytes(problem)


def test_what_a_call_on_this_machine_runs():
    arguments = (randn(2, 3, 8, 8), randn(4, 6, 3, 3, 3), randn(2, 4))
    explanation = explain(dynamic_conv2d, *arguments, padding="same")
    assert (explanation.implementation, explanation.regime) == ("eager", "groups")
    assert explanation.forms.are_naive
    with use_backend("reference"):
        assert explain(dynamic_conv2d, *arguments).implementation == "reference"
    assert "at the least, forward   2.33e-05 GFLOP" in str(explain(dynamic_conv2d, *arguments))


def test_autocast_and_gradients_are_part_of_the_answer():
    x, experts, mixing = randn(2, 3, 8, 8), randn(4, 6, 3, 3, 3), randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert explain(dynamic_conv2d, x, experts, mixing).problem.dtype == torch.bfloat16
    assert not explain(dynamic_conv2d, x, experts, mixing).keeps_the_mix
    recorded = explain(dynamic_conv2d, x.requires_grad_(), experts, mixing)
    assert recorded.keeps_the_mix
    assert "autograd keeps the mixed weights" in str(recorded)
    assert not explain(dynamic_conv2d, x.to("meta"), experts.to("meta"), mixing.to("meta")).keeps_the_mix
    wide = [tensor.double() for tensor in (x, experts, mixing)]
    assert not explain(dynamic_conv2d, *wide, device=H200).keeps_the_mix


def test_what_has_no_kernel_is_said_about_a_gpu_too():
    arguments, options = call(14, dtype=torch.float64)
    explanation = explain(dynamic_conv2d, *arguments, **options, device=H200)
    assert (explanation.implementation, explanation.reason) == ("eager", "float64 has no kernel")
    with pytest.raises(ValueError, match="experts must have no dimension of size 0"):
        explain(dynamic_conv2d, arguments[0], arguments[1][:0], arguments[2][:, :0], device=H200)


def test_a_table_from_another_batch_keeps_to_the_memory_of_this_one(monkeypatch):
    arguments, options = call(28, channels=128, batch=16)
    problem = explain(dynamic_conv2d, *arguments, **options, device=H200).problem
    choice = {"weight_gradient": configs.WEIGHT_GRADIENT[4][0]._replace(splits=64)._asdict()}
    monkeypatch.setattr(plans, "measured", lambda name: {problem.key: choice})
    plans.plan.cache_clear()
    try:
        assert explain(dynamic_conv2d, *arguments, **options, device=H200).plan.weight_gradient.splits <= 5
    finally:
        plans.plan.cache_clear()


def test_flops_and_bytes_are_those_of_the_convolution():
    arguments, options = call(14)
    problem = explain(dynamic_conv2d, *arguments, **options, device=H200).problem
    weights, image = 256 * 256 * 9, 64 * 256 * 14 * 14
    assert problem.flops == 2 * 64 * 196 * weights
    assert problem.forward_bytes == 2 * (2 * image + 4 * weights) + 4 * 64 * 4
    assert problem.backward_bytes == 2 * (3 * image + 2 * 4 * weights) + 8 * 64 * 4


def test_a_measured_table_overrules_the_rule(tmp_path, monkeypatch):
    arguments, options = call(14)
    problem = explain(dynamic_conv2d, *arguments, **options, device=H200).problem
    choice = {"regime": "stacked", "forward": {"block_m": 64, "warps": 4}}
    monkeypatch.setattr(plans, "measured", lambda name: {problem.key: choice} if name == H200 else {})
    plans.plan.cache_clear()
    try:
        made = explain(dynamic_conv2d, *arguments, **options, device=H200).plan
        assert (made.regime, made.reason) == ("stacked", "measured on NVIDIA H200")
        assert (made.forward.block_m, made.forward.warps) == (64, 4)
        other = explain(dynamic_conv2d, *arguments, **options, device="NVIDIA B200").plan
        assert other.regime == "aggregate"
    finally:
        plans.plan.cache_clear()


def test_a_choice_holds_for_batches_near_the_one_it_was_measured_at(monkeypatch):
    def taken(size, **at):
        arguments, options = call(14, batch=size)
        problem = explain(dynamic_conv2d, *arguments, **options, device=H200).problem
        choice = {"regime": "stacked", "forward": {"stages": 2}} | at
        monkeypatch.setattr(plans, "measured", lambda name: {problem.key: choice})
        plans.plan.cache_clear()
        made = explain(dynamic_conv2d, *arguments, **options, device=H200).plan
        return (made.regime, made.forward.stages, made.reason) == ("stacked", 2, "measured on NVIDIA H200")

    try:
        assert [taken(size) for size in (1, 15, 16, 64, 256, 257)] == [False, False, True, True, True, False]
        assert [taken(size, batch=8) for size in (1, 2, 32, 64)] == [False, True, True, False]
    finally:
        plans.plan.cache_clear()


def test_every_committed_table_is_for_problems_and_configs_that_exist():
    for path in configs.table_path("any").parent.glob("*.json"):
        for choice in configs.read_table(path).values():
            assert choice.get("regime", "stacked") in ("pointwise", "depthwise", "stacked", "aggregate")
            for name in set(choice) - {"batch", "regime"}:
                known = configs.ConvolutionConfig._fields + configs.WeightGradientConfig._fields
                assert set(choice[name]) <= {*known, *configs.DepthwiseConfig._fields, "share"}


def test_what_cannot_be_explained_is_said():
    with pytest.raises(ValueError, match="function must be dynamic_conv2d or per_sample_conv2d, got 'channel_gate'"):
        explain(channel_gate, randn(1, 2, 3, 3))
    arguments, options = call(14)
    with pytest.raises(ValueError, match=r"device must be one of NVIDIA H200, .*, got 'a toaster'"):
        explain(dynamic_conv2d, *arguments, **options, device="a toaster")


def test_a_table_that_was_cut_off_is_told_and_the_rules_hold(tmp_path, monkeypatch):
    path = tmp_path / "some_gpu.json"
    monkeypatch.setattr(configs, "table_path", lambda name: path)
    configs.measured.cache_clear()
    for content in ('{"choices": {"a', "[]", "{}"):
        path.write_text(content)
        with pytest.warns(UserWarning, match=r"by its rules on Some GPU: cannot read .*some_gpu.json"):
            assert configs.measured.__wrapped__("Some GPU") == {}
    path.write_text('{"choices": {"a": {"regime": "stacked"}}}')
    assert configs.measured.__wrapped__("Some GPU") == {"a": {"regime": "stacked"}}
