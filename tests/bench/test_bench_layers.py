"""The benchmark of whole layers: what it checks before it times, and its targets."""

import copy

import pytest
import torch
from torch import nn

from bench import test_layers
from bench.ops import layers
from bench.ops.layers import Case, cases, generator, layer_step, odconv, penalty_step
from bench.report import targets
from tests.bench.test_bench_tables import layers_section

SMALL = Case("small", torch.bfloat16, odconv(8, 5, 3), layer_step, lambda _: 3)
STEP = Case("step", torch.float32, generator, penalty_step, lambda _: 2)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(layers, "BATCH", dict.fromkeys(("cpu", "cuda"), 3))
    monkeypatch.setattr(layers, "IMAGES", dict.fromkeys(("cpu", "cuda"), 2))
    monkeypatch.setattr(layers, "WIDTHS", dict.fromkeys(("cpu", "cuda"), (8, 8, 8, 8, 4)))
    monkeypatch.setattr(test_layers, "ROUNDS", (2, 2))
    monkeypatch.setattr(test_layers, "SECONDS", 0.0)


@pytest.mark.parametrize("case", [SMALL, SMALL._replace(dtype=torch.float32), STEP], ids=lambda case: case.key)
def test_both_forms_are_timed_with_their_memory(case):
    entry, times, _ = test_layers.measured(case)
    assert {way: len(each) for way, each in times.items()} == {"ours": 2, "public": 2}
    assert set(entry["memory_bytes"]) == {"ours", "public"}
    assert min(each["peak"] for each in entry["memory_bytes"].values()) > 0
    assert entry["samples"] == case.batch("cpu")
    assert entry["ratio"] > 0


@pytest.mark.parametrize("case", [SMALL, STEP], ids=lambda case: case.key)
def test_forms_that_differ_are_not_timed(case):
    models, inputs = test_layers.twins(case)
    test_layers.check(models, case, inputs)
    wrong = copy.deepcopy(models)
    for module in wrong["ours"].modules():
        if isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.dim() == 5:
            with torch.no_grad():
                module.weight[..., 0, 0] *= 1.1
            break
    with pytest.raises(AssertionError, match="output off by"):
        test_layers.check(wrong, case, inputs)


def test_a_penalty_step_differentiates_the_slopes():
    """Only the penalty depends on the noise: without its second derivative the gradients would not."""
    model, (styles, noise) = generator("ours", "cpu")
    usual, louder = (penalty_step(model, (styles, factor * noise))[1:] for factor in (1, 100))
    assert all(each.isfinite().all() for each in (*usual, *louder))
    assert all((one - other).abs().max() > 1e-7 for one, other in zip(usual, louder, strict=True))


def test_targets_are_judged_by_their_lines():
    found = targets.verdicts("layers", layers_section())
    # Of the others some shapes are lacking there.
    assert [(each.met, each.partly) for each in found] == [(True, False), (None, True), (None, True)]
    assert "3.00 at bfloat16 ODConv C256 14x14" in found[0].measured


def test_every_case_has_a_name_of_its_own():
    keys = [case.key for case in cases()]
    assert len(set(keys)) == len(keys) == 10
