"""Trials of whether a module computes the same as an op: copies in float64 on a CPU, with random numbers."""

import copy
import inspect
import math
import pickle
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from threading import get_ident
from typing import NamedTuple

import torch
from torch import Tensor, nn

from polychrome.kernels.backend import use_backend
from polychrome.kernels.fuse.candidates import Candidate, Match, Refusal
from polychrome.kernels.fuse.gates import Gates, in_words, may_gate
from polychrome.kernels.fuse.generators import kept, next_numbers, seed
from polychrome.kernels.fuse.swapped import GatedChannels, has_changed, swap
from polychrome.kernels.plain import NOT_REMEMBERED, frozen, is_same, of_class, tensors_beside

TOLERANCE = 1e-5  # of the largest value; a forward that rounds to float32 passes, another formula does not


class Outcome(NamedTuple):
    """The results of a forward and backward pass.

    Tensors by name, the names of attributes that it set, and the random numbers that come after those that it drew.
    """

    tensors: dict[str, Tensor]
    attributes: list[str]
    next_numbers: tuple[float, ...]


class Setting(NamedTuple):
    """How a module is tried, in words and in fact.

    `put` writes values of its own into x. The inputs are of size `inputs`, the parameters of size `parameters`; with a
    `gain`, the parameters of two and more dimensions are such that all layers after one another multiply by `gain`.
    """

    words: str
    training: bool = False
    put: Callable[[Tensor], None] | None = None
    inputs: float = 1.0
    parameters: float = 1.0
    gain: float | None = None
    gradients: bool = True
    alone: bool = False  # each sample in a batch of its own, of another height and width


def _ties_zeros_and_constants(x: Tensor) -> None:
    """Write values at which gradients are a convention.

    The first sample has ties. The second is zero but for two pixels of half its channels, whose means are zero too. Of
    the third, half of the channels are constant, and the others negative.
    """
    ties, zeros, constants = x[:3]
    ties.round_()
    zeros.zero_()
    zeros[::2, 0, :2] = torch.tensor([1.0, -1.0], dtype=x.dtype)
    constants[::2] = constants[::2, :1, :1]
    constants[1::2].abs_().neg_()


def _no_numbers(x: Tensor) -> None:
    """Write infinity, minus infinity and NaN, one into each sample."""
    x[:3, 0, 1, 1] = torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=x.dtype)


SETTINGS = (
    Setting("in training", training=True),
    Setting("in evaluation"),
    Setting("with ties, zeros and constants", training=True, put=_ties_zeros_and_constants),
    Setting("with small parameters", training=True, parameters=1e-4),  # where a norm's epsilon shows
    # Where a clamp shows, which a gate of large logits would hide.
    Setting("with large inputs", inputs=1e6, gain=1e-6, gradients=False),
    Setting("with large logits", training=True, gain=30.0, gradients=False),
    Setting("with infinities and NaN", put=_no_numbers, gradients=False),
    Setting("in batches of one", gradients=False, alone=True),
)
OF_A_PRODUCT = SETTINGS[:4]  # where all but one product is the module's own forward


def confirmed(module: nn.Module, candidate: Candidate) -> Match | Refusal | None:
    """Return the first forward that equals the module's own, or why none does; None for an unrelated module.

    Outputs, gradients of the inputs and of every parameter, and inputs and buffers afterwards have to agree in all
    SETTINGS, and the module's own forward must not set attributes, nor draw random numbers, as an op's forward would
    not. `module` and the generators of random numbers are as before.
    """
    with (
        kept(),
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
    copied, shapes, first, gates, sets_autocast = tried
    shape, output = list(shapes[0]), list(first.tensors["the output"].shape)
    one_map, one_gate = [shape[0], 1, *shape[2:]], [*shape[:2], 1, 1]
    if not candidate.certain and output not in (one_map, one_gate) and not gates.any():
        return None
    own = cache(lambda setting: first if setting is SETTINGS[0] else _outcome(copied, shapes, setting))
    why, furthest = "", -2
    for match in candidate.matches:
        if not _uses_its_op(match, gates, shapes[0]):
            continue
        settings = OF_A_PRODUCT if match.form is GatedChannels else SETTINGS
        if sets_autocast and match.form is not GatedChannels:
            why = why or f"its forward sets autocast, which {match.form.ops(match.plan)} would not hear"
            continue
        try:
            swapped = copy.deepcopy(copied)
            if found := _objection(swapped, match, shapes):
                why = why or found
                continue
            swap(swapped, match.form, match.plan)
            if has_changed(copy.deepcopy(swapped)):  # it would run its own forward, which equals itself
                why = why or "a copy of it is not as it is"
                continue
        except Exception as error:
            why = why or f"not computed by {match.form.ops(match.plan)}: {_line(error)}"
            continue
        agreed, difference = _difference(settings, own, _defined(swapped, shapes))
        if not difference:
            outcomes = [outcome for setting in settings if isinstance(outcome := own(setting), Outcome)]
            attributes = dict.fromkeys(name for outcome in outcomes for name in outcome.attributes)
            return f"its forward sets {', '.join(attributes)}" if attributes else match
        if agreed > furthest:
            why, furthest = f"not what {match.form.ops(match.plan)} computes: {difference}", agreed
    if output == one_gate != shape:
        return "it returns the gate alone; its caller multiplies, which is what the op is for"
    if any(match.form is GatedChannels for match in candidate.matches) and (gate := _other_gate(gates, shapes[0])):
        return Refusal(gate)
    return why or None


def _tried(module: nn.Module, candidate: Candidate):
    """Return a copy of the module, its input shapes, the first results and gates of its forward, and whether it sets
    autocast; or the first error.
    """
    first = None
    try:
        copied = _randomised(module)
    except Exception as error:
        return error
    for shapes in candidate.inputs:
        try:
            with _autocast_entered() as entered:
                return copied, shapes, *_run(copied, shapes, SETTINGS[0], Gates), entered
        except Exception as error:  # a foreign module may raise anything: it is left alone
            first = first or error
    return first


@contextmanager
def _autocast_entered() -> Iterator[list[str]]:
    """Collect the devices for which this thread enters autocast; as a context, as a decorator calls the same."""
    entered, thread, enter = [], get_ident(), torch.autocast.__enter__

    def watched(self):
        if get_ident() == thread:
            entered.append(self.device)
        return enter(self)

    torch.autocast.__enter__ = watched
    try:
        yield entered
    finally:
        torch.autocast.__enter__ = enter


def _other_gate(gates: Gates, x: tuple[int, ...]) -> str:
    """Return in words the gates that no op takes; empty for none."""
    others = dict.fromkeys(in_words(gate, x) for gate in gates.of_x if gate != (*x[:2], 1, 1))
    inner = dict.fromkeys(in_words(gate, x) for gate in gates.of_others)
    in_place = dict.fromkeys(in_words(gate, x) for gate in gates.of_x_in_place)
    whats = (("its input", others), ("its input, in place,", in_place), ("what it makes", inner))
    found = [f"{what} by a gate {gate}" for what, gates_of_it in whats for gate in gates_of_it]
    return f"it multiplies {' and '.join(found)}; channel_scale: its input by [batch, channels, 1, 1]" if found else ""


def _uses_its_op(match: Match, gates: Gates, x: tuple[int, ...]) -> bool:
    """Return whether the module has the product that the op of `match` is for."""
    return match.form.op != "channel_scale" or (*x[:2], 1, 1) in gates.of_x


def _objection(module: nn.Module, match: Match, shapes: tuple[tuple[int, ...], ...]) -> str | None:
    if match.form is not GatedChannels and (found := tensors_beside(module, match.form.called(match.plan))):
        return f"{match.form.ops(match.plan)} would not read its {', '.join(found)}"  # now neutral, they may change
    with torch.no_grad():  # of a copy: a normalisation inside counts its batches
        return match.form.objection(copy.deepcopy(module), match.plan, _inputs(shapes, SETTINGS[0])[0])


def _randomised(module: nn.Module) -> nn.Module:
    """Return a copy with random parameters and buffers: initial ones may be zero or equal; no variance is negative."""
    copied = copy.deepcopy(module).to("cpu", torch.float64)
    seed(1)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=parameter.dtype, device="cpu") / 2)
        for buffer in copied.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, dtype=buffer.dtype, device="cpu") + 0.5)
    return copied


def _inputs(shapes: tuple[tuple[int, ...], ...], setting: Setting) -> list[Tensor]:
    """Return the arguments of a forward, leaves; channels of x have means, and its last sample is minus the first.

    So each unit of a layer with a ReLU behind it is alive in some sample.
    """
    seed(2)
    if setting.alone:
        (*outer, height, width), *others = shapes
        shapes = (*outer, 2 * height + 1, 2 * width + 1), *others
    x, *others = (torch.randn(shape, dtype=torch.float64, device="cpu") for shape in shapes)
    x += 2 * torch.randn(*x.shape[:2], 1, 1, dtype=x.dtype, device="cpu")
    x[-1] = -x[0]
    if setting.put is not None:
        setting.put(x)
    return [(tensor * setting.inputs).requires_grad_(setting.gradients) for tensor in (x, *others)]


@torch.no_grad()
def _resize(module: nn.Module, setting: Setting) -> None:
    parameters = list(module.parameters())
    layers = [parameter for parameter in parameters if parameter.dim() > 1]
    for parameter in parameters:
        parameter.mul_(setting.parameters)
    for parameter in layers if setting.gain else ():
        fan_in = max(parameter.shape[1:].numel(), 1)
        parameter.mul_(2 * setting.gain ** (1 / len(layers)) / fan_in**0.5)  # their standard deviation is a half


def _outcome(module: nn.Module, shapes: tuple[tuple[int, ...], ...], setting: Setting) -> Outcome | Exception:
    """Return the results of a forward and backward pass on a copy, or the error that it raises."""
    try:
        return _run(module, shapes, setting)[0]
    except Exception as error:  # a foreign module may raise anything
        return error


def _defined(module: nn.Module, shapes: tuple[tuple[int, ...], ...]) -> Callable[[Setting], Outcome | Exception]:
    """Return the function of a setting that gives the outcome of a swapped module, computed by its op's definition."""

    def outcome(setting: Setting) -> Outcome | Exception:
        with use_backend("reference"):
            return _outcome(module, shapes, setting)

    return outcome


def _run(module: nn.Module, shapes: tuple[tuple[int, ...], ...], setting: Setting, watch=lambda *_: nullcontext()):
    """Return the results of a forward and backward pass on a copy, and the context `watch(copy, x)` of the forward."""
    module = copy.deepcopy(module).train(setting.training)
    _resize(module, setting)
    inputs = _inputs(shapes, setting)
    given = [tensor * 1 for tensor in inputs]  # copies: the forward may write in place
    watched = watch(module, given[0])
    before = _attributes(module)
    with watched, torch.set_grad_enabled(setting.gradients):
        samples = zip(*(tensor.split(1) for tensor in given), strict=True)
        y = torch.cat([module(*sample) for sample in samples]) if setting.alone else module(*given)
    after_draws = next_numbers()
    if not isinstance(y, Tensor):
        raise TypeError(f"it returns a {type(y).__name__}, not a tensor")
    found = {"the output": y.detach(), **{f"buffer {name}": value for name, value in module.named_buffers()}}
    trained = {"the input": inputs[0], **{f"argument {n}": x for n, x in enumerate(inputs[1:], start=2)}}
    found |= {f"{name} afterwards": x.detach() for name, x in zip(trained, given, strict=True)}
    trained |= {n: p for n, p in module.named_parameters() if p.requires_grad}
    if setting.gradients:
        weights = torch.randn(y.shape, dtype=y.dtype, device="cpu")
        gradients = torch.autograd.grad(y, list(trained.values()), weights, allow_unused=True)
        for (name, value), gradient in zip(trained.items(), gradients, strict=True):
            found[f"the gradient of {name}"] = torch.zeros_like(value) if gradient is None else gradient
    after = _attributes(module)
    attributes = [name for name in after if not is_same(after[name], before.get(name, _run))]
    return Outcome(found, attributes, after_draws), watched


def _attributes(module: nn.Module) -> dict[str, object]:
    """Return the attributes of a module and of its parts, also of their classes, with what they hold now."""
    return {
        f"{path}.{name}" if path else name: _names(value) if name in NOT_REMEMBERED else _held(value)
        for path, inner in module.named_modules()
        for name, value in (of_class(type(inner)) | vars(inner)).items()
    }


def _names(value: object) -> object:
    return tuple(value) if isinstance(value, dict) else value


def _held(value: object) -> object:
    """Return a value with what it holds now: a container's members, and an object's state, such as a generator's."""
    if isinstance(value, set | deque):
        return frozen(list(value))
    if isinstance(value, nn.Module | Tensor | list | tuple | dict | type) or inspect.isroutine(value):
        return frozen(value)
    try:
        return value, pickle.dumps(value)
    except Exception:  # a foreign object may raise anything
        return value, frozen(getattr(value, "__dict__", None))


def _difference(settings: tuple[Setting, ...], own, ours) -> tuple[int, str]:
    """Return how many tensors agree before the first that differs, one less where in form, and that one in words.

    `own` and `ours` give the outcome of a setting; where the first raises an error, the other has to.
    """
    agreed = 0
    for setting in settings:
        want, got = own(setting), ours(setting)
        if isinstance(want, Exception) and isinstance(got, Exception):
            continue
        if isinstance(want, Exception) or isinstance(got, Exception):
            who, error = ("it", want) if isinstance(want, Exception) else ("the op", got)
            return agreed - 1, f"{setting.words} {who} alone raises {_line(error)}"
        if want.next_numbers != got.next_numbers:
            return agreed - 1, f"{setting.words} it alone draws random numbers"
        for name, value in want.tensors.items():
            other = got.tensors[name]
            if other.shape != value.shape:
                return agreed - 1, f"{name} is {list(value.shape)}, not {list(other.shape)}"
            if other.dtype != value.dtype:
                return agreed - 1, f"{name} of float64 is {value.dtype}, not {other.dtype}"
            apart, largest = _apart(value.double(), other.double()) if value.numel() else (0.0, 0.0)
            largest = max(largest, 1e-3)
            if not apart <= TOLERANCE * largest:
                return agreed, f"{setting.words} {name} differs by {apart:.1e} of {largest:.1e}"
            agreed += 1
    return agreed, ""


def _apart(value: Tensor, other: Tensor) -> tuple[float, float]:
    """Return the largest difference, which is none between infinities or NaN alike, and the largest finite value."""
    apart, size = (other - value).abs(), value.abs()
    found = float(apart.max()), float(size.max())
    if all(map(math.isfinite, found)):
        return found
    alike = (value.isnan() & other.isnan()) | (value == other)
    finite = size[size.isfinite()]
    return float(apart.masked_fill(alike, 0).max()), float(finite.max()) if len(finite) else 0.0


def _line(error: Exception) -> str:
    """Return the error in one short line."""
    words = " ".join(str(error).split())
    name = type(error).__name__
    return f"{name}: {words if len(words) <= 120 else words[:117] + '...'}" if words else name
