"""Does a module compute what an op would? Asked of copies, in float64 on a CPU, with random parameters and inputs."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kernels.backend import use_backend
from kernels.fuse.candidates import Match
from kernels.fuse.structure import Candidate
from kernels.fuse.swapped import swap

TOLERANCE = 1e-5  # of the largest value; a forward that rounds to float32 on its way passes, another formula does not


class Outcome(NamedTuple):
    """What a forward and backward pass leaves: tensors by name, and the names of attributes that it set."""

    tensors: dict[str, Tensor]
    attributes: list[str]


def confirmed(module: nn.Module, candidate: Candidate) -> Match | str | None:
    """Return the first forward that equals the module's own, or why none does; None where it is something else.

    Outputs, gradients of the input and of every parameter, and buffers afterwards have to agree, in training and in
    evaluation, and the module's own must set no attribute, for no other will. `module` and torch's random generators
    are as before.
    """
    with (
        torch.random.fork_rng(devices=[]),
        torch.autocast("cpu", enabled=False),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        return _confirmed(module, candidate)


def _confirmed(module: nn.Module, candidate: Candidate) -> Match | str | None:
    try:
        copied = _randomised(module)
        own = [_run(copied, candidate.shape, training) for training in (True, False)]
    except Exception as error:  # whatever somebody's module raises, the answer is to leave it alone
        return f"its forward cannot be tried: {_line(error)}" if candidate.certain else None
    shape, output = list(candidate.shape), list(own[0].tensors["the output"].shape)
    one_map, one_gate = [shape[0], 1, *shape[2:]], [*shape[:2], 1, 1]
    if not candidate.certain and output not in (shape, one_map, one_gate):
        return None
    why = ""
    for match in candidate.matches:
        swapped = copy.deepcopy(copied)
        try:
            swap(swapped, match.kind, match.plan)
            with use_backend("reference"):
                ours = [_run(swapped, candidate.shape, training) for training in (True, False)]
        except Exception as error:
            why = why or f"not computed by {match.kind.ops(match.plan)}: {_line(error)}"
            continue
        difference = _difference(own, ours)
        if difference is None:
            attributes = dict.fromkeys(name for outcome in own for name in outcome.attributes)
            return f"its forward sets {', '.join(attributes)}" if attributes else match
        if not why or list(ours[0].tensors["the output"].shape) == output:
            why = f"not what {match.kind.ops(match.plan)} computes: {difference}"
    if output == one_gate != shape:
        return "it returns the gate alone; its caller multiplies, which is what the op is for"
    return why


def _randomised(module: nn.Module) -> nn.Module:
    """Return a copy whose parameters tell everything apart: fresh ones may be zero, or all alike."""
    copied = copy.deepcopy(module).to("cpu", torch.float64)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=parameter.dtype, device="cpu") / 2)
    return copied


def _run(module: nn.Module, shape: tuple[int, ...], training: bool) -> Outcome:
    """Return what a forward and backward pass leaves; the pass is on a copy."""
    module = copy.deepcopy(module).train(training)
    before = _attributes(module)
    torch.manual_seed(2)
    x = torch.randn(shape, dtype=torch.float64, device="cpu").requires_grad_()
    y = module(x * 1)  # a copy: the forward may write in place
    if not isinstance(y, Tensor):
        raise TypeError(f"it returns a {type(y).__name__}, not a tensor")
    found = {"the output": y.detach(), **{f"buffer {name}": value for name, value in module.named_buffers()}}
    trained = {"the input": x, **{n: p for n, p in module.named_parameters() if p.requires_grad}}
    weights = torch.randn(y.shape, dtype=y.dtype, device="cpu")
    gradients = torch.autograd.grad(y, list(trained.values()), weights, allow_unused=True)
    for (name, value), gradient in zip(trained.items(), gradients, strict=True):
        found[f"the gradient of {name}"] = torch.zeros_like(value) if gradient is None else gradient
    return Outcome(found, _changed(before, _attributes(module)))


def _attributes(module: nn.Module) -> dict[str, tuple[object, int]]:
    """Return the attributes of a module and of its parts, and their lengths now."""
    return {
        f"{path}.{name}" if path else name: (value, len(value) if isinstance(value, list | dict | set) else 0)
        for path, inner in module.named_modules()
        for name, value in vars(inner).items()
    }


def _changed(before: dict[str, tuple[object, int]], after: dict[str, tuple[object, int]]) -> list[str]:
    """Return the names of the attributes that are new, other objects, or of another length."""
    found = []
    for name, (value, length) in after.items():
        previous, previous_length = before.get(name, (_changed, 0))
        if value is not previous or length != previous_length:
            found.append(name)
    return found


def _difference(own: list[Outcome], ours: list[Outcome]) -> str | None:
    """Return the first that differs, in words."""
    for mode, want, got in zip(("training", "evaluation"), own, ours, strict=True):
        for name, value in want.tensors.items():
            other = got.tensors[name]
            if other.shape != value.shape:
                return f"{name} is {list(value.shape)}, not {list(other.shape)}"
            apart, largest = (other.double() - value.double()).abs(), value.double().abs()
            if value.numel() and not apart.max() <= TOLERANCE * max(float(largest.max()), 1e-3):
                return f"in {mode} {name} differs by {float(apart.max()):.1e} of {float(largest.max()):.1e}"
    return None


def _line(error: Exception) -> str:
    """Return the error in one short line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words if len(words) <= 120 else words[:117] + '...'}"
