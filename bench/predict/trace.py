"""Traces of some programs of a launch by Triton's interpreter: statements run, memory touched, products made."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.predict.code import Place, statement_of
from bench.stand_in import results
from polychrome.kernels.launch import Launch, mend_interpreter

KERNELS = str(Path(__file__).resolve().parents[2] / "kernels")
MENDED = mend_interpreter.__wrapped__.__code__.co_filename
# The least bytes that move between the L2 cache and a multiprocessor.
SECTOR = 32
# At most PROGRAMS programs are traced: LEAST of them, then more until STATEMENTS statements were run.
PROGRAMS, LEAST, STATEMENTS = 16, 3, 20_000
GOLDEN = (5**0.5 - 1) / 2


class Touched(NamedTuple):
    """Bytes, in whole sectors, that a statement of one program moves of argument number `argument`.

    `each` counts a sector every time the statement runs, `once` a single time for the whole program.
    """

    place: Place
    argument: int
    stores: bool
    each: float
    once: float


class Trace(NamedTuple):
    """Means over programs: runs of each statement, bytes touched, FLOPs of `tl.dot`, and bytes asked for."""

    counts: dict[Place, float]
    touched: list[Touched]
    flops: float
    asked: float


def trace(launch: Launch) -> Trace:
    """Return a trace of some programs, spread over the grid; meta tensors become zeros, dot products are not made."""
    arguments = [_filled(argument) for argument in launch.arguments]
    total = prod(launch.grid)
    watch = _Watch(arguments)
    traced = 0
    for index in range(min(PROGRAMS, total)):
        if index >= LEAST and sum(watch.counts.values()) > STATEMENTS:
            break
        program = int((index + 0.5) * GOLDEN % 1 * total) if total > PROGRAMS else index
        watch.begin()
        with results.inside(launch.kernel.fn.__module__):
            function = getattr(sys.modules[launch.kernel.fn.__module__], launch.kernel.fn.__name__)
            with _one_program(launch.grid, program, watch):
                function[(1,)](*arguments, **launch.options)
        traced += 1
    return watch.result(traced)


class _Watch:
    """Counts statements, bytes and FLOPs."""

    def __init__(self, arguments: list):
        tensors = {index: each.untyped_storage() for index, each in enumerate(arguments) if isinstance(each, Tensor)}
        self.spans = {
            index: (range(storage.data_ptr(), storage.data_ptr() + storage.nbytes()), arguments[index].element_size())
            for index, storage in tensors.items()
        }
        self.counts: Counter[Place] = Counter()
        self.each: Counter[tuple] = Counter()
        self.once: Counter[tuple] = Counter()
        self.seen: dict[tuple, list[np.ndarray]] = defaultdict(list)
        self.flops = self.asked = 0

    def begin(self) -> None:
        """Begin another program."""
        for key, sectors in self.seen.items():
            self.once[key] += len(np.unique(np.concatenate(sectors)))
        self.seen.clear()

    def call(self, frame, *_):
        """Count the statements of a function of our kernels, not of the interpreter or of `mend_interpreter`."""
        file = frame.f_code.co_filename
        if not file.startswith(KERNELS) or file == MENDED:
            return None
        last = None

        def line(frame, event, _):
            nonlocal last
            place = statement_of((frame.f_code.co_filename, frame.f_lineno))
            if event == "line" and place != last:  # a statement of several lines is returned to
                self.counts[place] += 1
                last = place
            return line

        return line

    def touch(self, pointers: np.ndarray, mask: np.ndarray, stores: bool) -> None:
        """Count the sectors of a load or store; a sector counts once for each instruction of a warp."""
        mask = np.broadcast_to(mask, pointers.shape).astype(bool)
        if not mask.any():
            return
        first = int(pointers[mask].flat[0])
        argument, size = next((index, size) for index, (span, size) in self.spans.items() if first in span)
        self.asked += int(mask.sum()) * size
        lines = _by_instruction(pointers.astype(np.int64), size)
        sectors = np.where(_by_instruction(mask, size, pointers), lines // SECTOR, -1)
        ordered = np.sort(sectors, axis=1)
        new = np.diff(ordered, axis=1, prepend=-1) != 0
        key = (_statement(), argument, stores)
        self.each[key] += int(new.sum())
        self.seen[key].append(np.unique(ordered[new]))

    def result(self, programs: int) -> Trace:
        """Return the means over `programs` programs."""
        self.begin()
        counts = {place: count / programs for place, count in self.counts.items()}
        touched = [
            Touched(*key, SECTOR * self.each[key] / programs, SECTOR * self.once[key] / programs) for key in self.each
        ]
        return Trace(counts, touched, self.flops / programs, self.asked / programs)


@contextmanager
def _one_program(grid: tuple[int, ...], program: int, watch: _Watch) -> Iterator[None]:
    """Have the interpreter run number `program` of the grid in place of the first, and count its work in `watch`."""
    from triton.runtime.interpreter import TensorHandle, interpreter_builder

    sizes = (*grid, 1, 1)[:3]
    place = (program % sizes[0], program // sizes[0] % sizes[1], program // sizes[0] // sizes[1])
    load = interpreter_builder.create_masked_load

    def at(*_) -> None:
        interpreter_builder.grid_idx = place

    def of(*_) -> None:
        interpreter_builder.grid_dim = sizes

    def loading(pointers, mask, *rest):
        watch.touch(pointers.data, mask.data, stores=False)
        return load(pointers, mask, *rest)

    def storing(pointers, value, mask, *rest):
        watch.touch(pointers.data, mask.data, stores=True)

    def product(a, b, sum_, *_):
        watch.flops += 2 * prod(a.data.shape) * b.data.shape[-1]
        return TensorHandle(sum_.data, sum_.dtype.scalar)

    calls = {
        "set_grid_idx": at,
        "set_grid_dim": of,
        "create_masked_load": loading,
        "create_masked_store": storing,
        "create_dot": product,
    }
    vars(interpreter_builder).update(calls)
    before = sys.gettrace()
    sys.settrace(watch.call)
    try:
        yield
    finally:
        sys.settrace(before)
        for name in calls:
            delattr(interpreter_builder, name)


def _by_instruction(values: np.ndarray, size: int, pointers: np.ndarray | None = None) -> np.ndarray:
    """Return values of a tile, a row for each instruction of a warp: 32 lanes along the contiguous axis.

    `pointers`: the tile's pointers, where `values` are others; a lane moves up to 16 contiguous bytes.
    """
    pointers = (values if pointers is None else pointers).astype(np.int64)
    along = [
        axis
        for axis in range(pointers.ndim)
        if pointers.shape[axis] > 1 and np.median(np.diff(pointers, axis=axis)) == size
    ]
    run = pointers.shape[along[-1]] if along else 1
    lanes = 32 * max(1, min(16 // size, run))
    flat = np.moveaxis(values, along[-1], -1).ravel() if along else values.ravel()
    return np.pad(flat, (0, -len(flat) % lanes), mode="edge").reshape(-1, lanes)


def _statement() -> Place:
    """Return the statement of our kernels that is being run."""
    frame = sys._getframe(1)
    while not frame.f_code.co_filename.startswith(KERNELS):
        frame = frame.f_back
    return statement_of((frame.f_code.co_filename, frame.f_lineno))


def _filled(argument):
    """Return zeros with the strides of a tensor without memory, any other argument as it is."""
    if not isinstance(argument, Tensor) or argument.device.type != "meta":
        return argument
    size = 1 + sum((n - 1) * stride for n, stride in zip(argument.shape, argument.stride(), strict=True))
    return torch.zeros(size, dtype=argument.dtype).as_strided(argument.shape, argument.stride())
