"""Benchmark of timm's EfficientNet with conditional convolutions before and after `kernels.fuse`.

pytest bench/test_fuse.py --benchmark-only [--save-results]
"""

import copy
from statistics import median
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends import cudnn

from bench.measuring import measure, timing
from bench.measuring.measure import DEVICE, Measured, error, paired_ratio
from bench.measuring.replay import clock
from polychrome import kernels
from polychrome.kernels.tensors import allows_tf32

MODEL = "tf_efficientnet_cc_b0_4e"
WAYS = ("ours", "unfused")
BATCH, SIZE = (128, 224) if DEVICE == "cuda" else (8, 128)
ROUNDS = (6, 60)
SECONDS = {"training": 5.0, "inference": 3.0}

# The largest difference of two float32 logits, and the largest relative RMS difference of the gradients.
LOGITS, GRADIENTS = 1e-4, 1e-3
# In bfloat16 the unfused model is a tenth off float32; the largest error of ours, over the unfused model's error.
BFLOAT16 = 1.25


class Case(NamedTuple):
    """A dtype, float32 or autocast's bfloat16, and a timed mode.

    training: forward, mean cross-entropy and the gradients of all parameters, in training mode; the optimizer, which
    `kernels.fuse` does not change, is left out. inference: forward in evaluation, without gradients.
    """

    dtype: torch.dtype
    mode: str

    @property
    def key(self) -> str:
        """The case's name in the results."""
        return f"{str(self.dtype).removeprefix('torch.')} {self.mode}"

    @property
    def layout(self) -> torch.memory_format:
        """The memory format of the images and the weights."""
        return torch.channels_last if self.dtype == torch.bfloat16 else torch.contiguous_format


CASES = [Case(dtype, mode) for dtype in (torch.float32, torch.bfloat16) for mode in SECONDS]


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_fuse(compare, case, way):
    pytest.importorskip("timm", reason="timm is not installed")
    compare("fuse", case.key, way, lambda: measured(case))


def measured(case: Case) -> Measured:
    """Check the two models against each other and time them in turn."""
    torch.manual_seed(0)
    x = torch.randn(BATCH, 3, SIZE, SIZE, device=DEVICE).contiguous(memory_format=case.layout)
    labels = torch.randint(1000, (BATCH,), device=DEVICE)
    models = twins(case, x)
    check(models, case, x, labels)
    calls = {way: (lambda _, model=model: run(model, case, x, labels),) for way, model in models.items()}
    entry = measure.described(x) | {"dtype": str(case.dtype).removeprefix("torch."), "batch": BATCH, "images": BATCH}
    if DEVICE == "cuda":
        entry["memory_bytes"] = {way: measure.memory_bytes(call) for way, call in calls.items()}
    # as in timm's own scripts: cuDNN's benchmark mode, for the unfused model's grouped convolutions
    with cudnn.flags(enabled=True, benchmark=True, allow_tf32=allows_tf32()):
        times = timing.take_turns(calls, DEVICE, ROUNDS, SECONDS[case.mode])
    each = {way: [sum(parts) for parts in runs] for way, runs in times.items()}
    figures = {
        "size": SIZE,
        "runs": len(each["ours"]),
        "ms": {way: {"both": round(median(runs), 5)} for way, runs in each.items()},
        **dict(zip(("ratio", "ratio_error"), paired_ratio(each["ours"], each["unfused"]), strict=True)),
        "skipped": {},
    }
    return Measured(entry | figures, each, {})


def twins(case: Case, x: Tensor) -> dict[str, nn.Module]:
    """Return the fused and the unfused model, by way, with the same weights; x [batch, 3, height, width]."""
    import timm

    model = timm.create_model(MODEL).to(DEVICE, memory_format=case.layout)
    # with timm's initial values all logits are 1e-5, and in evaluation the activations vanish
    nn.init.normal_(model.classifier.weight, std=0.05)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(x)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    fused = copy.deepcopy(model)
    report = kernels.fuse(fused)
    assert (len(report.swapped), report.left) == (40, ()), report
    return {way: each.train(case.mode == "training") for way, each in zip(WAYS, (fused, model), strict=True)}


def run(model: nn.Module, case: Case, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Return the logits and, in training, the gradients of all parameters."""
    with (
        torch.set_grad_enabled(case.mode == "training"),
        torch.autocast(DEVICE, torch.bfloat16, enabled=case.dtype == torch.bfloat16),
    ):
        logits = model(x)
        if case.mode == "inference":
            return (logits,)
        loss = F.cross_entropy(logits, labels)
    return logits.detach(), *torch.autograd.grad(loss, tuple(model.parameters()))


def check(models: dict[str, nn.Module], case: Case, x: Tensor, labels: Tensor) -> None:
    """Assert that the models agree in float32, and in bfloat16 as well as the unfused model agrees with float32."""
    with cudnn.flags(enabled=True, allow_tf32=False):
        ours, exact = (run(models[way], case._replace(dtype=torch.float32), x, labels) for way in WAYS)
    assert exact[0].abs().max() > 0.5
    apart = (ours[0] - exact[0]).abs().max().item()
    assert apart <= LOGITS, f"logits differ by {apart:.1e}"
    if case.mode == "training":
        off = error(ours[1:], exact[1:])
        assert off <= GRADIENTS, f"gradients are off by {off:.1e}"
    if case.dtype == torch.bfloat16:
        low = {way: run(model, case, x, labels) for way, model in models.items()}
        for name, part in {"logits": slice(1), "gradients": slice(1, None)}.items():
            if exact[part]:
                ours_off, usual = (error(low[way][part], exact[part]) for way in WAYS)
                assert ours_off <= BFLOAT16 * usual, f"{name} are off by {ours_off:.1e}, unfused by {usual:.1e}"
