"""Whether the ops are worth it on this machine, in a minute: `polychrome bench --quick`.

In a clone also `python -m polychrome.kernels.quick`. Every op runs forward and backward beside plain PyTorch: the
per-sample convolutions beside a convolution with groups = batch and beside an ordinary convolution of one kernel, the
gates beside their definition. Ways take turns, and medians are told. `pytest bench --benchmark-only` in a clone
measures thoroughly.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median, quantiles
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from polychrome import kernels

SECONDS = 50.0
ROUNDS, LEAST = 25, 0.02  # of each way; seconds of a round
UNSTEADY = 1.5  # times the lower quartile of the rounds' ratios, beyond which the upper is told
EXPERTS = 4
OURS, PLAIN, STATIC = "polychrome", "plain", "one kernel"
# Batch, channels and side of the feature maps.
SIZES = {"cuda": ((64, 256, 14), (64, 64, 56), (16, 512, 7)), "cpu": ((8, 64, 28), (4, 128, 14))}
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}
# The largest difference between two ways, as a share of the values' root mean square.
ALLOWED = {torch.bfloat16: 2e-2, torch.float32: 2e-3}


class Case(NamedTuple):
    """A call of an op by several ways, each a function of the same leaves; OURS and PLAIN compute the same."""

    name: str
    leaves: tuple[Tensor, ...]
    ways: dict[str, Callable[..., Tensor]]


class Timing(NamedTuple):
    """The seconds of a case forward and backward by way, round by round, and whether ours computes what plain does."""

    name: str
    rounds: dict[str, list[float]]
    agrees: bool

    def milliseconds(self, way: str) -> float:
        """Return the median of a way's rounds."""
        return 1000 * median(self.rounds[way])

    def ratio(self, way: str) -> float:
        """Return how many times as long a way takes as ours: the median over the rounds, in which both were timed."""
        return median(self._ratios(way))

    def unsteady(self, way: str) -> tuple[float, float] | None:
        """Return the quartiles of the ratio over the rounds where they are far apart, as on a busy machine."""
        ratios = self._ratios(way)
        if len(ratios) < 4:
            return None
        low, _, high = quantiles(ratios, n=4)
        return (low, high) if high > UNSTEADY * low else None

    def _ratios(self, way: str) -> list[float]:
        return [theirs / ours for theirs, ours in zip(self.rounds[way], self.rounds[OURS], strict=True)]


def grouped(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve each sample with its own kernel [batch, out, in, k, k], by a convolution with groups = batch."""
    batch, out = kernel.shape[:2]
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernel.flatten(0, 1), None, 1, kernel.shape[-1] // 2, 1, batch)
    return y.view(batch, out, *y.shape[2:])


def mixed(experts: Tensor, mixing: Tensor) -> Tensor:
    """Return each sample's kernel [batch, out, in, k, k] of experts [experts, out, in, k, k]."""
    return (mixing.to(experts.dtype) @ experts.flatten(1)).unflatten(1, experts.shape[1:])


def cases(device: str) -> Iterator[Case]:
    """Yield the calls to time on "cuda" or "cpu"."""
    generator = torch.Generator().manual_seed(0)
    dtype = DTYPES[device]

    def leaf(*shape: int, like: torch.dtype = dtype, scale: float = 1.0) -> Tensor:
        drawn = torch.randn(shape, generator=generator) * scale
        form = torch.channels_last if device == "cuda" and len(shape) == 4 else torch.contiguous_format
        return drawn.to(device, like, memory_format=form).requires_grad_()

    for batch, channels, side in SIZES[device]:
        about, x = f"{batch} x {channels} x {side} x {side}", leaf(batch, channels, side, side)
        weight = partial(leaf, channels, channels, 3, 3, scale=(9 * channels) ** -0.5)
        static = weight()
        experts = torch.stack([weight() for _ in range(EXPERTS)]).detach().requires_grad_()
        mixing = leaf(batch, EXPERTS, like=torch.float32).detach().softmax(1).requires_grad_()
        yield Case(
            f"dynamic_conv2d, {EXPERTS} experts, {about}",
            (x, experts, mixing, static),
            {
                OURS: lambda x, experts, mixing, _: kernels.dynamic_conv2d(x, experts, mixing, padding=1),
                PLAIN: lambda x, experts, mixing, _: grouped(x, mixed(experts, mixing)),
                STATIC: lambda x, _, __, static: F.conv2d(x, static, None, 1, 1),
            },
        )
        own = torch.stack([weight() for _ in range(batch)]).detach().requires_grad_()
        yield Case(
            f"per_sample_conv2d, {about}",
            (x, own, static),
            {
                OURS: lambda x, own, _: kernels.per_sample_conv2d(x, own, padding=1),
                PLAIN: lambda x, own, _: grouped(x, own),
                STATIC: lambda x, _, static: F.conv2d(x, static, None, 1, 1),
            },
        )
        hidden = max(1, channels // 16)
        weights = leaf(hidden, channels, scale=0.1), leaf(channels, hidden, scale=0.1)
        yield Case(
            f"channel_gate, {about}",
            (x, *weights),
            {
                OURS: lambda x, w1, w2: kernels.channel_gate(x, w1, None, w2, None),
                PLAIN: lambda x, w1, w2: kernels.channel_gate.reference(x, w1, None, w2, None),
            },
        )
        yield Case(
            f"spatial_attention, {about}",
            (x, leaf(1, 2, 7, 7, scale=0.1)),
            {OURS: kernels.spatial_attention, PLAIN: kernels.spatial_attention.reference},
        )


def timed(case: Case, seconds: float) -> Timing:
    """Return a case's times forward and backward, in at most about `seconds` after the first calls."""
    ours, plain = (case.ways[name](*case.leaves) for name in (OURS, PLAIN))
    grad = torch.randn_like(ours)
    agrees = all(
        one is other is None or _error(one, other) <= ALLOWED[case.leaves[0].dtype]
        for one, other in zip(
            (ours, *torch.autograd.grad(ours, case.leaves, grad, allow_unused=True)),
            (plain, *torch.autograd.grad(plain, case.leaves, grad, allow_unused=True)),
            strict=True,
        )
    )

    def run(way: Callable[..., Tensor], calls: int) -> float:
        """Return the seconds of a call."""
        _wait(grad)
        start = time.perf_counter()
        for _ in range(calls):
            torch.autograd.grad(way(*case.leaves), case.leaves, grad, allow_unused=True)
        _wait(grad)
        return (time.perf_counter() - start) / calls

    counts = {}
    for name, way in case.ways.items():
        run(way, 2)  # compiles, and fills caches
        counts[name] = max(1, int(LEAST / max(run(way, 1), 1e-9)))
    found: dict[str, list[float]] = {name: [] for name in case.ways}
    end = time.perf_counter() + seconds
    while len(found[PLAIN]) < ROUNDS and (time.perf_counter() < end or not found[PLAIN]):
        for name, way in case.ways.items():
            found[name].append(run(way, counts[name]))
    return Timing(case.name, found, agrees)


def _error(one: Tensor, other: Tensor) -> float:
    """Return the RMS of the differences over the RMS of the other's values."""
    one, other = one.detach().float(), other.detach().float()
    return ((one - other).square().mean().sqrt() / other.square().mean().sqrt()).item()


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def line(timing: Timing) -> str:
    """Return a case's times in words."""
    told = (
        f"{timing.name}\n    {timing.milliseconds(OURS):8.2f} ms, plain PyTorch {timing.milliseconds(PLAIN):.2f} ms: "
    )
    apart = timing.unsteady(PLAIN)
    told += "unsteady, {:.2f} to {:.2f}".format(*apart) if apart else f"round by round {timing.ratio(PLAIN):.2f}"
    told += " times as fast"
    if STATIC in timing.rounds:
        told += f"; {1 / timing.ratio(STATIC):.2f} times the time of one kernel for all samples"
    return told + ("" if timing.agrees else "\n    WRONG: the two do not compute the same")


def verdict(found: Sequence[Timing]) -> str:
    """Return a summary of the steady calls, and how many are not."""
    ratios = [each.ratio(PLAIN) for each in found if each.unsteady(PLAIN) is None]
    told = []
    if ratios:
        ahead, middle = sum(ratio > 1 for ratio in ratios), f"{median(ratios):.2f} times as fast in the median"
        told.append(f"ahead of plain PyTorch in {ahead} of {len(ratios)} steady calls, {middle}")
    if unsteady := len(found) - len(ratios):
        told.append(f"{unsteady} of {len(found)} calls unsteady: let other programs end, and time again")
    return "\n".join(told)


def main(arguments: list[str] | None = None, program: str = "python -m polychrome.kernels.quick") -> int:
    """Print the times; return 0, 1 where an op and plain PyTorch differ, or 2 on wrong use."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__.partition(":")[0])
    parser.add_argument("--quick", action="store_true", help="in a minute; the whole is pytest bench in a clone")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of all calls (default {SECONDS:.0f})")
    options = parser.parse_args(arguments)
    if not options.quick:
        parser.error("here is --quick alone; in a clone `pytest bench --benchmark-only` measures thoroughly")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    name = torch.cuda.get_device_name() if device == "cuda" else f"the CPU, {torch.get_num_threads()} threads"
    dtype = str(DTYPES[device]).removeprefix("torch.")
    print(f"forward and backward, {dtype}, on {name}, torch {torch.__version__}; medians", flush=True)
    found, every = [], list(cases(device))
    for case in every:
        found.append(timed(case, 0.8 * options.seconds / len(every)))
        print(line(found[-1]), flush=True)
    print(verdict(found))
    return int(not all(each.agrees for each in found))


if __name__ == "__main__":
    sys.exit(main())
