"""Every op on a GPU against its definition in float64: `python -m polychrome.kernels.check`."""

import argparse
import json
import math
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, NamedTuple

import torch
from torch import Tensor

from polychrome import kernels
from polychrome.kernels.augment import Recipe, draw
from polychrome.kernels.channel_gate.scale import channel_scale
from polychrome.kernels.launch import record_launches
from polychrome.kernels.tensors import allows_tf32

SECONDS = 60.0
# How long a process may take for one case, its start and the compiling of kernels included.
PATIENCE = 30.0
COMMAND = (sys.executable, "-m", "polychrome.kernels.check", "--from-case")
LATE = "not run: out of time"
# The largest RMS error over the RMS of the exact values, of the output and of the gradients.
TOLERANCES = {torch.bfloat16: (5e-3, 1e-2), torch.float32: (1e-5, 1e-5)}
TF32 = (2e-3, 2e-3)
LAYOUTS = {torch.bfloat16: torch.channels_last, torch.float32: torch.contiguous_format}
HEADINGS = ("op", "case", "dtype", "output", "gradients", "allowed", "")


class Case(NamedTuple):
    """A call of an op: `make(dtype)` returns its arguments on the CPU, x first. `tf32`: its products may use TF32."""

    name: str
    function: Callable
    make: Callable[[torch.dtype], list]
    options: dict
    tf32: bool = False
    differentiable: bool = True


class Outcome(NamedTuple):
    """The result of a case in a dtype: the largest errors, the allowed errors, the fault, and how many kernels ran."""

    op: str
    case: str
    dtype: str
    output: float | None
    gradients: float | None
    allowed: tuple[float, float]
    fault: str | None
    launches: int = 0


EVERYTHING = Recipe(
    scale=(0.3, 1.0), flip=0.5, degrees=15, brightness=0.2, contrast=0.2, gamma=0.2, grayscale=0.2, cutout=0.25
)
GAINS = Recipe(scale=(0.3, 1.0), flip=0.5, gain=0.2)
SAME = {"padding": "same"}
DOUBLING = {"stride": 2, "padding": 1, "output_padding": 1}
TRANSPOSED = (
    ("many pixels", (4, 48, 28, 28), 32, 3, 4, {"padding": 1}),
    ("few pixels, doubled", (6, 64, 7, 7), 72, 3, 4, DOUBLING),
    ("1x1", (4, 24, 9, 8), 40, 1, 4, {}),
    ("depthwise, doubled", (4, 40, 14, 14), 40, 3, 4, {**DOUBLING, "groups": 40}),
    ("3x3, doubled", (4, 48, 14, 14), 32, 3, 0, DOUBLING),
)


def cases() -> list[Case]:
    """Return calls of every public op: each regime of the convolutions, both forms of a gate, a whole augmentation."""
    layers = [(48, 12), (48,), (12, 48), (12,)]
    return [
        _convolution("many pixels", (4, 32, 28, 28), 48, 3, 4, padding=1),
        _convolution("few pixels", (6, 64, 7, 7), 72, 3, 4, padding=1),
        _convolution("1x1", (4, 40, 9, 8), 24, 1, 4),
        _convolution("depthwise", (4, 40, 14, 14), 40, 3, 4, padding=1, groups=40),
        _convolution("depthwise, 7x7, nine experts", (4, 40, 14, 14), 40, 7, 9, padding=3, groups=40),
        _convolution("depthwise, strided, wider out", (4, 20, 15, 14), 40, 3, 4, stride=2, padding=1, groups=20),
        _convolution("stem", (4, 3, 37, 35), 24, 7, 4, stride=2, padding=3),
        _convolution("strided, dilated, grouped", (3, 32, 19, 21), 48, 3, 3, stride=2, padding=2, dilation=2, groups=2),
        _convolution("nine experts", (5, 24, 12, 11), 32, 3, 9, padding=1),
        _convolution("one sample", (1, 64, 14, 14), 64, 3, 4, padding=1),
        _affine("with scale, shift and ReLU", (4, 32, 14, 14), 48),
        Case(
            "a mix for each tap",
            kernels.dynamic_conv2d,
            _tensors((4, 32, 14, 14), (4, 48, 32, 3, 3), (4, 4, 3, 3)),
            SAME,
            tf32=True,
        ),
        _per_sample("3x3", (4, 32, 14, 14), 48, 3, padding=1),
        _per_sample("1x1", (4, 32, 9, 8), 48, 1),
        _per_sample("depthwise", (4, 40, 14, 14), 40, 3, padding=1, groups=40),
        *(_transposed(*each) for each in TRANSPOSED),
        Case(
            "signals", kernels.dynamic_conv1d, _tensors((4, 32, 96), (4, 48, 32, 5), (4, 4), (4, 48)), SAME, tf32=True
        ),
        Case("signals", kernels.per_sample_conv1d, _tensors((4, 32, 96), (4, 48, 32, 5), (4, 48)), SAME, tf32=True),
        Case(
            "volumes", kernels.dynamic_conv3d, _tensors((3, 8, 6, 9, 7), (4, 12, 8, 3, 3, 3), (3, 4)), SAME, tf32=True
        ),
        Case("volumes", kernels.per_sample_conv3d, _tensors((3, 8, 6, 9, 7), (3, 12, 8, 3, 3, 3)), SAME, tf32=True),
        Case("few pixels", kernels.modulated_conv2d, _tensors((4, 64, 8, 8), (48, 64, 3, 3), (4, 64)), SAME, tf32=True),
        Case("many pixels", kernels.modulated_conv2d, _tensors((4, 8, 64, 64), (8, 8, 3, 3), (4, 8)), SAME, tf32=True),
        Case(
            "doubled",
            kernels.modulated_conv2d,
            _tensors((4, 8, 48, 48), (8, 8, 3, 3), (4, 8)),
            {"stride": 2, "transposed": True},
            tf32=True,
        ),
        Case("map", kernels.channel_stats, _tensors((4, 72, 20, 17)), {}),
        Case("map", kernels.spatial_gate, _tensors((4, 72, 20, 17), (4, 1, 20, 17)), {}),
        Case("7x7", kernels.spatial_attention, _attention, {}),
        Case("two layers", kernels.channel_gate, _tensors((4, 12, 20, 17), *layers), {}),
        Case("softmax", kernels.channel_gate, _tensors((4, 12, 20, 17), *layers), {"gate": "softmax"}),
        Case("map", channel_scale, _tensors((4, 72, 20, 17), (4, 72)), {}),
        Case("whole recipe", kernels.augment, _images, {}, differentiable=False),
        Case("crop, flip and gains", kernels.augment, partial(_images, recipe=GAINS), {}, differentiable=False),
    ]


def main(arguments: list[str] | None = None, program: str = "python -m polychrome.kernels.check") -> int:
    """Print a table of the errors; return 0 where all are allowed, 1 on a fault, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__.partition(":")[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for all ops (default {SECONDS:.0f})")
    parser.add_argument("--json", metavar="FILE", help="write what was found there too")
    parser.add_argument("--from-case", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"{program} needs a CUDA device, and torch finds none", file=sys.stderr)
        return 2
    if options.from_case is not None:
        return _report(options.from_case)
    start = time.monotonic()
    outcomes = list(checked(options.seconds))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump([outcome._asdict() for outcome in outcomes], file, indent=1)
    print(table(outcomes))
    print(f"\n{torch.cuda.get_device_name()}, {time.monotonic() - start:.0f} s: {verdict(outcomes)}")
    return int(any(outcome.fault for outcome in outcomes))


def checked(seconds: float = SECONDS) -> Iterator[Outcome]:
    """Yield the outcome of each case, checked by another process: after a fault in a kernel a process loses the GPU."""
    wanted, end, done = listed(), time.monotonic() + seconds, 0
    while done < len(wanted):
        found, reason = _checked_by_process(done, end - time.monotonic())
        yield from found
        done += len(found)
        if done < len(wanted) and reason is not None:
            yield _outcome(*wanted[done], fault=reason)
            done += 1


def verdict(outcomes: list[Outcome]) -> str:
    """Return a summary of all outcomes."""
    late = sum(outcome.fault == LATE for outcome in outcomes)
    wrong = sum(outcome.fault is not None for outcome in outcomes) - late
    found = f"{wrong} of {len(outcomes)} are wrong" if wrong else f"{len(outcomes) - late} are right"
    return found + (f", {late} were not run: more --seconds are needed" if late else "")


def table(outcomes: list[Outcome]) -> str:
    """Return the outcomes as lines of text."""
    rows = [HEADINGS]
    for outcome in outcomes:
        numbers = (outcome.output, outcome.gradients, outcome.allowed[0])
        errors = ("-" if number is None else f"{number:.1e}" for number in numbers)
        verdict = outcome.fault or ("right" if outcome.launches else "right, by PyTorch's kernels")
        rows.append((outcome.op, outcome.case, outcome.dtype, *errors, verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS) - 1)]
    aligned = ("<", "<", "<", ">", ">", ">")
    lines = (
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, aligned, widths, strict=False))
        + f"  {row[-1]}"
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def check(case: Case, dtype: torch.dtype, device: str = "cuda") -> Outcome:
    """Return the errors of a case on the GPU, the definition computed in float64 on the CPU.

    The largest of three calls count: `kernels/replay.py` makes the third in another way.
    """
    given = case.make(dtype)
    exact = _results(case.function.reference, case, [_as(each, torch.float64) for each in given], dtype)

    def errors() -> list[float]:
        got = _results(case.function, case, [_moved(each, device) for each in given], dtype)
        return [_error(one.cpu(), other) for one, other in zip(got, exact, strict=True)]

    with record_launches() as launches:
        found = [errors()]
    found += [errors() for _ in range(2)]
    largest = [max(calls) for calls in zip(*found, strict=True)]
    output, gradients = largest[0], max(largest[1:], default=None)
    allowed = _allowed(case, dtype)
    fault = None
    if output > allowed[0]:
        fault = "WRONG output"
    elif gradients is not None and gradients > allowed[1]:
        fault = "WRONG gradients"
    return _outcome(case, dtype, _finite(output), _finite(gradients), fault, len(launches))


def _finite(error: float | None) -> float | None:
    return error if error is not None and math.isfinite(error) else None


def _report(first: int) -> int:
    """Print a line of JSON for every case from number `first` on; end when the GPU is lost."""
    for case, dtype in listed()[first:]:
        try:
            outcome = check(case, dtype)
            torch.cuda.synchronize()
        except Exception as error:  # kernels, compilers and drivers may raise anything
            said = str(error).strip().partition("\n")[0]
            outcome = _outcome(case, dtype, fault=f"{type(error).__name__}: {said}"[:200])
        print(json.dumps(outcome), flush=True)
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return 3
    return 0


def _checked_by_process(first: int, seconds: float) -> tuple[list[Outcome], str | None]:
    """Return the outcomes of a process that begins with case `first`, and why it ended before the next one's, if so."""
    if seconds <= 0:
        return [], LATE
    end, found = time.monotonic() + seconds, []
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen([*COMMAND, str(first)], stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_pass_on, args=(process.stdout, lines), daemon=True).start()
        try:
            while (line := lines.get(timeout=max(0.0, min(PATIENCE, end - time.monotonic())))) is not None:
                if line.startswith("["):
                    outcome = Outcome(*json.loads(line))
                    found.append(outcome._replace(allowed=tuple(outcome.allowed)))
        except queue.Empty:
            process.kill()
            return found, LATE if time.monotonic() >= end else f"no answer within {PATIENCE:g} s"
        status = process.wait()
        errors.seek(0)
        last = errors.read().strip().rpartition("\n")[2] or "no word of it"
    # With status 3 the case that lost the GPU has been reported.
    return found, None if status == 3 else f"the process died with status {status}: {last}"[:200]


def _pass_on(output: IO[str], lines: "queue.Queue[str | None]") -> None:
    """Put the lines of a process into a queue as they arrive, and None at their end."""
    for line in output:
        lines.put(line)
    lines.put(None)


def listed() -> list[tuple[Case, torch.dtype]]:
    """Return every case with every dtype, in the order of the table."""
    return [(case, dtype) for case in cases() for dtype in TOLERANCES]


def _outcome(case: Case, dtype: torch.dtype, output=None, gradients=None, fault=None, launches=0) -> Outcome:
    names = (case.function.__name__, case.name, str(dtype).removeprefix("torch."))
    return Outcome(*names, output, gradients, _allowed(case, dtype), fault, launches)


def _allowed(case: Case, dtype: torch.dtype) -> tuple[float, float]:
    return TF32 if dtype == torch.float32 and case.tf32 and allows_tf32() else TOLERANCES[dtype]


def _results(function: Callable, case: Case, arguments: list, dtype: torch.dtype) -> list[Tensor]:
    """Return the output and the gradients of all arguments; the upstream gradient holds numbers of `dtype`."""
    if not case.differentiable:
        options = dict(case.options)
        if case.function is kernels.augment:
            options["dtype"] = torch.float64 if function is case.function.reference else dtype
        with torch.no_grad():
            return [_called(function, arguments, options)]
    leaves = [each.requires_grad_() for each in arguments]
    y = _called(function, leaves, case.options)
    grad = _numbers(tuple(y.shape), 99).to(dtype).to(y.device, y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def _called(function: Callable, arguments: list, options: dict) -> Tensor:
    named = {name: each for each in arguments if isinstance(each, dict) for name, each in each.items()}
    return function(*(each for each in arguments if not isinstance(each, dict)), **named, **options)


def _error(got: Tensor, exact: Tensor) -> float:
    """Return the RMS error over the RMS of the exact values; infinity for NaN or a wrong shape."""
    if got.shape != exact.shape:
        return math.inf
    error = ((got.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()
    return math.inf if math.isnan(error) else error


def _numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def _tensors(*shapes: tuple[int, ...]) -> Callable[[torch.dtype], list[Tensor]]:
    """Return a function that makes tensors of these shapes, the first one laid out as its dtype is."""

    def make(dtype: torch.dtype) -> list[Tensor]:
        first, *rest = (_numbers(shape, seed).to(dtype) for seed, shape in enumerate(shapes))
        return [first.contiguous(memory_format=LAYOUTS[dtype]) if first.dim() == 4 else first, *rest]

    return make


def _convolution(name: str, shape, outputs: int, side: int, experts: int, **options) -> Case:
    channels = shape[1] // options.get("groups", 1)
    shapes = (shape, (experts, outputs, channels, side, side), (shape[0], experts), (experts, outputs))
    return Case(name, kernels.dynamic_conv2d, _tensors(*shapes), options, tf32=True)


def _affine(name: str, shape, outputs: int) -> Case:
    make = _tensors(shape, (4, outputs, shape[1], 3, 3), (shape[0], 4), (4, outputs), (outputs,), (outputs,))

    def arguments(dtype: torch.dtype) -> list:
        *given, scale, shift = make(dtype)
        return [*given, {"scale": scale, "shift": shift}]

    options = {"padding": 1, "relu": True}
    return Case(name, kernels.dynamic_conv2d, arguments, options, tf32=True, differentiable=False)


def _per_sample(name: str, shape, outputs: int, side: int, **options) -> Case:
    channels = shape[1] // options.get("groups", 1)
    shapes = (shape, (shape[0], outputs, channels, side, side), (shape[0], outputs))
    return Case(name, kernels.per_sample_conv2d, _tensors(*shapes), options, tf32=True)


def _transposed(name: str, shape, outputs: int, side: int, experts: int, options: dict) -> Case:
    """Return a transposed convolution, with a kernel for each sample where there are no experts."""
    shapes = ((experts or shape[0], shape[1], outputs // options.get("groups", 1), side, side),)
    shapes += ((shape[0], experts), (experts, outputs)) if experts else ((shape[0], outputs),)
    function = kernels.dynamic_conv_transpose2d if experts else kernels.per_sample_conv_transpose2d
    return Case(name, function, _tensors(shape, *shapes), options, tf32=True)


def _attention(dtype: torch.dtype) -> list[Tensor]:
    """Return arguments whose gate is not nearly zero or one, where a gradient would be rounding error alone."""
    x, weight, bias = _tensors((4, 72, 21, 17), (1, 2, 7, 7), (1,))(dtype)
    return [x, weight / 7, bias]


def _images(dtype: torch.dtype, recipe: Recipe = EVERYTHING) -> list:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 48, 56, 3), dtype=torch.uint8, generator=generator)
    indices = torch.arange(8).flip(0)
    drawn = draw(recipe, indices, (48, 56), 0, 0, (32, 32), 3)._asdict()
    named = {name: value for name, value in drawn.items() if value is not None}
    return [images, named | {"indices": indices, "size": 32, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}]


def _as(argument, dtype: torch.dtype):
    """Return a float tensor in another dtype; dictionaries and integer tensors unchanged."""
    if isinstance(argument, dict):
        return argument
    return argument.to(dtype) if argument.is_floating_point() else argument


def _moved(argument, device: str):
    if isinstance(argument, dict):
        return {name: each.to(device) if isinstance(each, Tensor) else each for name, each in argument.items()}
    return argument.to(device)


if __name__ == "__main__":
    from polychrome.kernels.check import main as known  # not this copy of the module, which is __main__

    sys.exit(known())
