"""Trials of whether a module computes the same as an op: copies in float64 on a CPU, with random numbers."""

import copy
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from polychrome.kernels.backend import use_backend
from polychrome.kernels.fuse.candidates import Candidate, Match, Refusal
from polychrome.kernels.fuse.gates import Gates, in_words, may_gate
from polychrome.kernels.fuse.swapped import GatedChannels, has_changed, swap
from polychrome.kernels.plain import tensors_beside

TOLERANCE = 1e-5  # of the largest value; a forward that rounds to float32 passes, another formula does not


class Outcome(NamedTuple):
    """The results of a forward and backward pass: tensors by name, and the names of attributes that it set."""

    tensors: dict[str, Tensor]
    attributes: list[str]


class Setting(NamedTuple):
    """How a module is tried, in words and in fact."""

    words: str
    training: bool
    special: bool
    size: float = 1.0  # of the parameters


SETTINGS = (
    Setting("in training", training=True, special=False),
    Setting("in evaluation", training=False, special=False),
    Setting("with ties, zeros and constants", training=True, special=True),
    Setting("with small parameters", training=True, special=False, size=1e-4),  # where a norm's epsilon shows
)


def confirmed(module: nn.Module, candidate: Candidate) -> Match | Refusal | None:
    """Return the first forward that equals the module's own, or why none does; None for an unrelated module.

    Outputs, gradients of the inputs and of every parameter, and buffers afterwards have to agree, in training and in
    evaluation, on random numbers, on ties, zeros and constants, and with small parameters, and the module's own forward
    must not set attributes, as an op's forward would not. `module` and torch's random generators are as before.
    """
    with (
        torch.random.fork_rng(devices=[]),
        torch.autocast("cpu", enabled=False),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        verdict = _confirmed(module, candidate)
    return Refusal(verdict, in_whole=not candidate.certain) if isinstance(verdict, str) else verdict


def _confirmed(module: nn.Module, candidate: Candidate) -> Match | Refusal | str | None:
    tried = _tried(module, candidate)
    if isinstance(tried, Exception):
        words = f"its forward cannot be tried on x {list(candidate.inputs[0][0])}: {_line(tried)}"
        return Refusal(words) if candidate.certain or (candidate.told and may_gate(module)) else None
    copied, shapes, own, gates = tried
    shape, output = list(shapes[0]), list(own[0].tensors["the output"].shape)
    one_map, one_gate = [shape[0], 1, *shape[2:]], [*shape[:2], 1, 1]
    if not candidate.certain and output not in (one_map, one_gate) and not gates.any():
        return None
    why, furthest = "", -2
    for match in candidate.matches:
        try:
            swapped = copy.deepcopy(copied)
            if found := _objection(swapped, match, shapes):
                why = why or found
                continue
            swap(swapped, match.kind, match.plan)
            if has_changed(copy.deepcopy(swapped)):  # it would run its own forward, which equals itself
                why = why or "a copy of it is not as it is"
                continue
            with use_backend("reference"):
                ours = [_run(swapped, shapes, setting)[0] for setting in SETTINGS]
        except Exception as error:
            why = why or f"not computed by {match.kind.ops(match.plan)}: {_line(error)}"
            continue
        agreed, difference = _difference(own, ours)
        if not difference and _uses_its_op(match, gates, shapes[0]):
            attributes = dict.fromkeys(name for outcome in own for name in outcome.attributes)
            return f"its forward sets {', '.join(attributes)}" if attributes else match
        if difference and agreed > furthest:
            why, furthest = f"not what {match.kind.ops(match.plan)} computes: {difference}", agreed
    if output == one_gate != shape:
        return "it returns the gate alone; its caller multiplies, which is what the op is for"
    if any(match.kind is GatedChannels for match in candidate.matches) and (gate := _other_gate(gates, shapes[0])):
        return Refusal(gate)
    return why or None


def _tried(module: nn.Module, candidate: Candidate):
    """Return a copy of the module, its input shapes, the results of its forward and its gates; or the first error."""
    first = None
    try:
        copied = _randomised(module)
    except Exception as error:
        return error
    for shapes in candidate.inputs:
        try:
            runs = [_run(copied, shapes, setting, Gates) for setting in SETTINGS]
            return copied, shapes, [outcome for outcome, _ in runs], runs[0][1]
        except Exception as error:  # a foreign module may raise anything: it is left alone
            first = first or error
    return first


def _other_gate(gates: Gates, x: tuple[int, ...]) -> str:
    """Return in words the gates that no op takes; empty for none."""
    others = dict.fromkeys(in_words(gate, x) for gate in gates.of_x if gate != (*x[:2], 1, 1))
    inner = dict.fromkeys(in_words(gate, x) for gate in gates.of_others)
    in_place = dict.fromkeys(in_words(gate, x) for gate in gates.of_x_in_place)
    whats = (("its input", others), ("its input, in place,", in_place), ("what it makes", inner))
    found = [f"{what} by a gate {gate}" for what, gates_of_it in whats for gate in gates_of_it]
    return f"it multiplies {' and '.join(found)}; channel_scale: its input by [batch, channels, 1, 1]" if found else ""


def _uses_its_op(match: Match, gates: Gates, x: tuple[int, ...]) -> bool:
    """Return whether the module, which equals `match`, has the product that the op is for."""
    return match.kind.op != "channel_scale" or (*x[:2], 1, 1) in gates.of_x


def _objection(module: nn.Module, match: Match, shapes: tuple[tuple[int, ...], ...]) -> str | None:
    if match.kind is not GatedChannels and (found := tensors_beside(module, match.kind.called(match.plan))):
        return f"{match.kind.ops(match.plan)} would not read its {', '.join(found)}"  # now neutral, they may change
    with torch.no_grad():  # of a copy: a normalisation inside counts its batches
        return match.kind.objection(copy.deepcopy(module), match.plan, _inputs(shapes, special=False)[0])


def _randomised(module: nn.Module) -> nn.Module:
    """Return a copy with random parameters and buffers: initial ones may be zero or equal; no variance is negative."""
    copied = copy.deepcopy(module).to("cpu", torch.float64)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=parameter.dtype, device="cpu") / 2)
        for buffer in copied.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, dtype=buffer.dtype, device="cpu") + 0.5)
    return copied


def _inputs(shapes: tuple[tuple[int, ...], ...], special: bool) -> list[Tensor]:
    """Return the arguments of a forward, leaves; where `special`, with the values at which gradients are a convention.

    x's first sample has ties. The second is zero but for two pixels of half its channels, whose means are zero too. Of
    the third, half of the channels are constant, and the others negative.
    """
    torch.manual_seed(2)
    x, *others = (torch.randn(shape, dtype=torch.float64, device="cpu") for shape in shapes)
    if special:
        ties, zeros, constants = x[:3]
        ties.round_()
        zeros.zero_()
        zeros[::2, 0, :2] = torch.tensor([1.0, -1.0], dtype=x.dtype)
        constants[::2] = constants[::2, :1, :1]
        constants[1::2].abs_().neg_()
    return [tensor.requires_grad_() for tensor in (x, *others)]


def _run(module: nn.Module, shapes: tuple[tuple[int, ...], ...], setting: Setting, watch=lambda *_: nullcontext()):
    """Return the results of a forward and backward pass on a copy, and the context `watch(copy, x)` of the forward."""
    module = copy.deepcopy(module).train(setting.training)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(setting.size)
    inputs = _inputs(shapes, setting.special)
    given = [tensor * 1 for tensor in inputs]  # copies: the forward may write in place
    watched = watch(module, given[0])
    before = _attributes(module)
    with watched:
        y = module(*given)
    if not isinstance(y, Tensor):
        raise TypeError(f"it returns a {type(y).__name__}, not a tensor")
    found = {"the output": y.detach(), **{f"buffer {name}": value for name, value in module.named_buffers()}}
    trained = {"the input": inputs[0], **{f"argument {n}": x for n, x in enumerate(inputs[1:], start=2)}}
    trained |= {n: p for n, p in module.named_parameters() if p.requires_grad}
    weights = torch.randn(y.shape, dtype=y.dtype, device="cpu")
    gradients = torch.autograd.grad(y, list(trained.values()), weights, allow_unused=True)
    for (name, value), gradient in zip(trained.items(), gradients, strict=True):
        found[f"the gradient of {name}"] = torch.zeros_like(value) if gradient is None else gradient
    return Outcome(found, _changed(before, _attributes(module))), watched


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


def _difference(own: list[Outcome], ours: list[Outcome]) -> tuple[int, str]:
    """Return how many tensors agree before the first that differs, one less where in shape, and that one in words."""
    agreed = 0
    for setting, want, got in zip(SETTINGS, own, ours, strict=True):
        for name, value in want.tensors.items():
            other = got.tensors[name]
            if other.shape != value.shape:
                return agreed - 1, f"{name} is {list(value.shape)}, not {list(other.shape)}"
            value, other = value.double(), other.double()
            both_nan = value.isnan() & other.isnan()
            apart = (other - value).abs().masked_fill(both_nan | (value == other), 0)
            largest = value[value.isfinite()].abs()
            limit = TOLERANCE * max(float(largest.max()) if len(largest) else 0.0, 1e-3)
            if value.numel() and not apart.max() <= limit:
                off = f"{float(apart.max()):.1e} of {limit / TOLERANCE:.1e}"
                return agreed, f"{setting.words} {name} differs by {off}"
            agreed += 1
    return agreed, ""


def _line(error: Exception) -> str:
    """Return the error in one short line."""
    words = " ".join(str(error).split())
    name = type(error).__name__
    return f"{name}: {words if len(words) <= 120 else words[:117] + '...'}" if words else name
