"""What is tried in tuning and what is written, with times made up: no GPU needed."""

import pytest
import torch

from bench import tune
from bench.ops.dynamic_conv import shapes_on
from polychrome.kernels.dynamic_conv.configs import HOPPER
from polychrome.kernels.dynamic_conv.plan import plan

SHAPES = {shape.name: shape for shape in shapes_on("cuda")}
USUAL = ("C256 14x14", "C512 7x7", "1x1 C256 28x28", "dw C256 28x28", "C128 56x56 s2")
BY_NAME = [pytest.param(name, marks=[pytest.mark.slow] * (name not in USUAL)) for name in SHAPES]


def candidates(name, dtype, regime):
    return list(tune.candidates_of(SHAPES[name], dtype, regime, HOPPER))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", BY_NAME)
def test_every_candidate_has_the_plan_its_choice_asks_for(name, dtype):
    for regime in tune.regimes(SHAPES[name].problem(dtype)):
        for candidate in candidates(name, dtype, regime):
            planned = candidate.plan(HOPPER)
            wanted = dict(candidate.choice.get(candidate.name, {}))
            wanted.pop("share", None)
            assert planned.regime == regime
            assert getattr(planned, candidate.name)._asdict().items() >= wanted.items()


@pytest.mark.parametrize("name", BY_NAME)
def test_no_plan_is_tried_twice_for_a_pass(name):
    for regime in tune.regimes(SHAPES[name].problem(torch.bfloat16)):
        tried = candidates(name, torch.bfloat16, regime)
        plans = [(each.name, each.plan(HOPPER)) for each in tried]
        assert len(set(plans)) == len(plans)


def test_chunks_and_stages_are_tried():
    tried = candidates("C256 14x14", torch.bfloat16, "aggregate")
    plans = {name: [each.plan(HOPPER) for each in tried if each.name == name] for name in tune.PASSES}
    assert {each.chunk for each in plans["forward"]} == {10, 16, 32}  # a fifth, a third and the rules' 65% of the L2
    assert {each.backward_chunk for each in plans["input_gradient"]} == {10, 16, 32}
    assert {each.own_chunk for each in plans["weight_gradient"]} >= {10, 16, 32}
    assert {2, 3, 4} <= {each.forward.stages for each in plans["forward"]}
    assert {2, 3, 4} <= {each.weight_gradient.stages for each in plans["weight_gradient"]}
    # The other passes of a call stay by the rules.
    assert {each.backward_chunk for each in plans["forward"]} == {32}


def test_a_share_that_was_measured_holds_for_every_batch():
    shape = SHAPES["C256 14x14"]
    chosen = tune.Candidate(shape, torch.bfloat16, "forward", {"regime": "aggregate", "forward": {"share": 0.2}})
    larger = chosen._replace(shape=SHAPES["C256 14x14 b256"])
    weight = 256 * 256 * 9 * 2
    for candidate in (chosen, larger):
        assert candidate.plan(HOPPER).chunk * weight <= 0.2 * HOPPER.l2_bytes


def test_the_first_candidate_of_the_rules_regime_is_the_plan_without_a_table():
    problem = SHAPES["C64 56x56"].problem(torch.bfloat16)
    ruled = plan.__wrapped__(problem, HOPPER)
    first = candidates("C64 56x56", torch.bfloat16, ruled.regime)[0].plan(HOPPER)
    assert first._replace(reason="") == ruled._replace(reason="")


def test_only_what_is_two_percent_faster_is_chosen():
    tried = candidates("C512 7x7", torch.bfloat16, "stacked")
    times = [10.0] * len(tried)
    forward = [index for index, each in enumerate(tried) if each.name == "forward"]
    backward = [index for index, each in enumerate(tried) if each.name == "input_gradient"]
    times[forward[1]], times[backward[1]] = 9.0, 9.9
    choice, total = tune.winners(list(zip(tried, times, strict=True)), "stacked")
    assert choice == {"forward": tried[forward[1]].choice["forward"]}
    assert total == 29.0
