"""Benchmark of whole layers beside their public forms, forward and backward, and of a step with a gradient penalty.

pytest bench/test_layers.py --benchmark-only [--save-results]
"""

import copy
from collections.abc import Callable
from statistics import median

import pytest
import torch
from torch import Tensor, nn
from torch.backends import cudnn

from bench.measuring import measure, timing
from bench.measuring.measure import DEVICE, Measured, error, paired_ratio
from bench.measuring.replay import clock
from bench.ops.layers import Case, cases
from polychrome.kernels.tensors import allows_tf32

WAYS = ("ours", "public")
ROUNDS, SECONDS = (5, 60), 4.0
# The largest relative RMS difference from the public form in float32, of the output and of all gradients.
SAME = 1e-3
# In a lower precision, the largest error of ours over the public form's.
LOW = 1.25


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.key)
def test_layers(compare, case, way):
    compare("layers", case.key, way, lambda: measured(case))


def measured(case: Case) -> Measured:
    """Check the two forms against each other and time them in turn, all gradients included."""
    models, inputs = twins(case)
    check(models, case, inputs)
    low = {way: lowered(model, case) for way, model in models.items()}
    given = tuple(lowered_tensor(each, case) for each in inputs)
    calls: dict[str, tuple[Callable, ...]] = {
        way: (lambda _, model=model: case.run(model, given),) for way, model in low.items()
    }
    with cudnn.flags(enabled=True, benchmark=True, allow_tf32=allows_tf32()):
        memory = {way: measure.memory_bytes(call) for way, call in calls.items()}
        times = timing.take_turns(calls, DEVICE, ROUNDS, SECONDS)
    each = {way: [sum(parts) for parts in runs] for way, runs in times.items()}
    layout = "channels_last" if case.layout == torch.channels_last else "contiguous"
    entry = {
        "dtype": str(case.dtype).removeprefix("torch."),
        "layout": layout,
        "samples": case.batch(DEVICE),
    }
    entry |= {
        "runs": len(each["ours"]),
        "ms": {way: {"both": round(median(runs), 5)} for way, runs in each.items()},
        **dict(zip(("ratio", "ratio_error"), paired_ratio(each["ours"], each["public"]), strict=True)),
        "memory_bytes": memory,
        "skipped": {},
    }
    return Measured(entry, each, {})


def twins(case: Case) -> tuple[dict[str, nn.Module], tuple[Tensor, ...]]:
    """Return ours and the public form by way, with the same weights, in float32, and their inputs."""
    torch.manual_seed(0)
    ours, inputs = case.make("ours", DEVICE)
    public, _ = case.make("public", DEVICE)
    public.load_state_dict({name: ours.state_dict()[name] for name in public.state_dict()})
    return {"ours": ours.to(DEVICE), "public": public.to(DEVICE)}, tuple(each.to(DEVICE) for each in inputs)


def lowered(model: nn.Module, case: Case) -> nn.Module:
    """Return a copy in the case's dtype and memory format."""
    return copy.deepcopy(model).to(case.dtype).apply(lambda inner: to_format(inner, case.layout))


def to_format(module: nn.Module, layout: torch.memory_format) -> None:
    """Convert the parameters of four dimensions that a module itself holds; a public form's weight has five."""
    for parameter in module.parameters(recurse=False):
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def lowered_tensor(tensor: Tensor, case: Case) -> Tensor:
    """Return a tensor in the case's dtype and memory format."""
    tensor = tensor.to(case.dtype)
    return tensor.contiguous(memory_format=case.layout) if tensor.dim() == 4 else tensor


def check(models: dict[str, nn.Module], case: Case, inputs: tuple[Tensor, ...]) -> None:
    """Assert that the forms agree in float32, and in a lower precision are as near to float32 as each other."""
    with cudnn.flags(enabled=True, allow_tf32=False):
        ours, exact = (case.run(copy.deepcopy(models[way]), inputs) for way in WAYS)
    for what, part in {"output": slice(1), "gradients": slice(1, None)}.items():
        off = error(ours[part], exact[part])
        assert off <= SAME, f"{case.key}: {what} off by {off:.1e}"
    if case.dtype == torch.float32:
        return
    given = tuple(lowered_tensor(each, case) for each in inputs)
    low = {way: case.run(lowered(model, case), given) for way, model in models.items()}
    for what, part in {"output": slice(1), "gradients": slice(1, None)}.items():
        ours_off, usual = (error(low[way][part], exact[part]) for way in WAYS)
        assert ours_off <= LOW * usual, f"{case.key}: {what} off by {ours_off:.1e}, the public form by {usual:.1e}"
