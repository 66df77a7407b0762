"""The benchmark of `kernels.fuse`, its lines, and the steps that measure and show it on a GPU."""

import pytest
import torch

from bench import test_fuse
from bench.measuring import measure
from bench.report import targets
from bench.test_fuse import CASES, Case

TRAINING = Case(torch.float32, "training")
USUAL = ("float32 training", "bfloat16 inference")  # each dtype and each mode


def entry(ours, unfused=100.0, **others):
    """Return the figures of a case: milliseconds of each way."""
    ms = {"ours": {"both": ours}, "unfused": {"both": unfused}}
    return {"dtype": "bfloat16", "batch": 128, "images": 128, "runs": 6, "ms": ms, "skipped": {}} | others


def entries(**changed):
    found = {case.key: entry(50.0) for case in CASES}
    return found | {name.replace("_", " "): each for name, each in changed.items()}


def verdicts(found, on_gpu):
    section = {"kind": "cuda" if on_gpu else "cpu", "shapes": found}
    return {each.demand: (each.met, each.measured) for each in targets.verdicts("fuse", section)}


@pytest.fixture
def small(monkeypatch):
    """Measure two images of 32 pixels in two rounds."""
    pytest.importorskip("timm", reason="timm is not installed")
    for name, value in {"BATCH": 2, "SIZE": 32, "ROUNDS": (2, 2)}.items():
        monkeypatch.setattr(test_fuse, name, value)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.key, marks=[pytest.mark.slow] * (case.key not in USUAL)) for case in CASES],
)
def test_both_models_are_checked_and_timed_in_every_case(case):
    found, times, ceilings = test_fuse.measured(case)
    assert (found["dtype"], found["batch"], found["size"], found["runs"]) == (case.key.split()[0], 2, 32, 2)
    assert found["layout"] == ("channels_last" if "bfloat16" in case.key else "contiguous")
    assert found["ms"] == {way: {"both": pytest.approx(sum(runs) / 2, abs=1e-4)} for way, runs in times.items()}
    one, other = (ours / unfused for ours, unfused in zip(*times.values(), strict=True))
    assert list(times) == ["ours", "unfused"]
    assert found["ratio"] == pytest.approx((one + other) / 2, abs=1e-4)
    assert ceilings == {}


@pytest.fixture
def models(small):
    torch.manual_seed(0)
    x, labels = torch.randn(2, 3, 32, 32, device=test_fuse.DEVICE), torch.tensor([1, 2], device=test_fuse.DEVICE)
    return test_fuse.twins(TRAINING, x), TRAINING, x, labels


def test_a_fused_model_with_other_logits_is_not_timed(models):
    torch.nn.init.normal_(models[0]["ours"].classifier.bias, std=1e-3)
    with pytest.raises(AssertionError, match="logits differ by"):
        test_fuse.check(*models)


def test_a_fused_model_with_other_gradients_is_not_timed(models):
    test_fuse.check(*models)
    models[0]["ours"].conv_stem.weight.register_hook(lambda gradient: 1.1 * gradient)
    with pytest.raises(AssertionError, match="gradients are off by"):
        test_fuse.check(*models)


def test_a_machine_that_changes_its_speed_leaves_the_paired_ratio_alone():
    speeds = [1.0, 1.9, 1.1, 2.0, 1.0]
    ours = [speed * 1.02 for speed in speeds]
    ours[1] = 7.0  # something else ran in between
    assert measure.paired_ratio(ours, speeds) == (1.02, 0)
    middle, apart = measure.paired_ratio([0.9, 1.0, 1.1, 1.0], [1.0] * 4)
    assert middle == 1
    assert apart == pytest.approx(1.2533 * 1.4826 * 0.05 / 2, abs=1e-5)


def test_lines_on_a_gpu_are_twice_the_training_in_bfloat16_and_inference_no_slower():
    training, inference = "training in bfloat16, unfused / fused: >= 2", "inference, unfused / fused: >= 1"
    assert verdicts(entries(float32_training=entry(99.0)), True) == {
        training: (True, "2.00 at bfloat16 training; 0 of 1 miss"),
        inference: (True, "2.00 at float32 inference; 0 of 2 miss"),
    }
    slow = verdicts(entries(bfloat16_training=entry(51.0), float32_inference=entry(125.0)), True)
    assert slow == {
        training: (False, "1.96 at bfloat16 training; 1 of 1 miss"),
        inference: (False, "0.80 at float32 inference; 1 of 2 miss"),
    }
    assert verdicts({}, True) == {training: (None, "-"), inference: (None, "-")}


def test_the_target_on_a_cpu_takes_the_paired_ratio():
    quiet = entry(108.0, ratio=1.01)
    ((met, measured),) = verdicts({"float32 training": quiet}, False).values()
    assert (met, measured) == (True, "1.01 at float32 training; 0 of 1 miss")
    ((met, _),) = verdicts({"float32 training": quiet, "float32 inference": entry(104.0)}, False).values()
    assert not met


def test_how_time_grows_is_held_against_nothing_on_a_gpu():
    assert targets.verdicts("growth", {"kind": "cuda", "shapes": {"batch 8": entry(1.0)}}) == []
