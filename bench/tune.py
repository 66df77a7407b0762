"""Tuning of regimes and launch configs on this GPU, written where they beat the rules: `python -m bench.tune`."""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

from bench.gpu import lookups
from bench.gpu.state import json_of
from bench.gpu.steps import UNFINISHED
from bench.measuring import record, timing
from bench.ops.dynamic_conv import BATCH, Data, Shape, data_of, shapes_on
from polychrome.kernels.dynamic_conv import configs
from polychrome.kernels.dynamic_conv import plan as planning
from polychrome.kernels.dynamic_conv.plan import PASSES, Plan
from polychrome.kernels.dynamic_conv.problem import Problem

# The least speed-up over the rules for a choice to be written.
GAIN = 1.02
TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 2e-3}
ROUNDS, SECONDS = (10, 30), 2.0
# Tried besides the rules' config: other shares of the L2 cache for chunks, and other numbers of load stages.
SHARES, STAGES = (0.2, 0.35, 0.9), (2, 4)
# Depthwise kernels: pixels and channels of a block, and warps.
DEPTHWISE, DEPTHWISE_GRADIENT, STRIPS = (
    [dict(zip(("block_p", "block_c", "warps"), row, strict=True)) for row in rows]
    for rows in (
        ((64, 32, 4), (32, 64, 4), (64, 64, 8), (16, 64, 2), (32, 32, 2)),
        ((16, 64, 4), (32, 32, 4), (16, 32, 2), (32, 64, 8), (8, 64, 2)),
        ((16, 64, 4), (32, 32, 4), (8, 128, 4), (32, 64, 8), (8, 64, 2)),
    )
)


class Candidate(NamedTuple):
    """One pass of a shape under a choice in the tables' format."""

    shape: Shape
    dtype: torch.dtype
    name: str
    choice: dict

    def plan(self, device: configs.Device) -> Plan:
        """Return the plan that this choice leads to."""
        problem = self.shape.problem(self.dtype)
        measured = {problem.key: {"batch": problem.batch} | self.choice}
        with mock.patch.object(planning, "measured", return_value=measured):
            return planning.plan.__wrapped__(problem, device)


Timed = tuple[Candidate, float]  # with milliseconds


class Tuned(NamedTuple):
    """The choice for a call, its milliseconds by the rules and by the choice, and the times of all candidates.

    Milliseconds are None if a pass cannot run.
    """

    choice: dict
    rules_ms: float | None
    best_ms: float | None
    tried: list[dict]


@contextmanager
def forced(plan: Plan) -> Iterator[None]:
    """Run every call in this context under `plan`."""
    from polychrome.kernels.dynamic_conv.triton import ops

    def chosen(*_) -> Plan:
        return plan

    with mock.patch.object(ops, "plan", chosen):
        yield


def main(arguments: list[str] | None = None) -> int:
    """Tune the chosen shapes; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.tune", description=__doc__.partition(":")[0])
    parser.add_argument("--shapes", default="", metavar="TEXT", help='only shapes with TEXT in "dtype name"')
    parser.add_argument("--seconds", type=float, default=600, help="begin no shape after this time (default 600)")
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="write all times to FILE; its shapes are not tuned again"
    )
    parser.add_argument("--digest", default="", help="hash of the tuned sources; a FILE with another is ignored")
    parser.add_argument("--jobs", type=int, default=max(1, min(12, (os.cpu_count() or 2) - 2)), help="processes")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench.tune needs a CUDA device, and torch finds none", file=sys.stderr)
        return 2
    lookups.count()
    start = time.monotonic()
    device = configs.device_of(torch.cuda.current_device())
    log = read_log(options.log, options.digest)
    wanted = [call for call in calls() if options.shapes in _label(*call) and _label(*call) not in log["tuned"]]
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), lookups.count) as pool:
        for shape, dtype in in_order(wanted, device, pool):
            if time.monotonic() - start > options.seconds:
                print(f"out of time before {_label(shape, dtype)}")
                return UNFINISHED
            found = tune(shape, dtype, device, pool)
            write(device, shape.problem(dtype), found.choice)
            if options.log:
                log["tuned"][_label(shape, dtype)] = found._asdict()
                record.replace(options.log, log)
    return 0


def read_log(path: Path | None, digest: str) -> dict:
    """Return the log of earlier calls; an empty log if its digest is not `digest`, or if the file is damaged."""
    fresh = {"digest": digest, "tuned": {}}
    if path is None or not path.exists():
        return fresh
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
        return log if digest and log["digest"] == digest else fresh
    except (ValueError, KeyError, TypeError) as error:
        print(f"bench.tune cannot read {path} ({error}), and begins anew", file=sys.stderr)
        return fresh


def calls() -> list[tuple[Shape, torch.dtype]]:
    """Return the calls that are tuned: each key once, at the usual batch."""
    shapes = [shape for shape in shapes_on("cuda") if shape.batch == BATCH["cuda"]]
    return [(shape, dtype) for dtype in (torch.bfloat16, torch.float32) for shape in shapes]


def in_order(
    wanted: list[tuple[Shape, torch.dtype]], device: configs.Device, pool: ProcessPoolExecutor
) -> list[tuple[Shape, torch.dtype]]:
    """Return the calls, bfloat16 first, then by decreasing time above the bound."""
    ruled = [[Candidate(*call, name, {"regime": _ruled_regime(*call)}) for name in PASSES] for call in wanted]
    list(pool.map(runs, [candidate for passes in ruled for candidate in passes]))
    gains = {call: _above_bound(passes, device) for call, passes in zip(wanted, ruled, strict=True)}
    return sorted(gains, key=lambda call: (call[1] == torch.float32, -gains[call]))


def tune(shape: Shape, dtype: torch.dtype, device: configs.Device, pool: ProcessPoolExecutor) -> Tuned:
    """Return the choice for a call, of the configs that beat the rules by GAIN, empty if none does; and all times."""
    problem = shape.problem(dtype)
    usual = _ruled_regime(shape, dtype)
    candidates = [each for regime in regimes(problem) for each in candidates_of(shape, dtype, regime, device)]
    able = [each for each, ran in zip(candidates, pool.map(runs, candidates), strict=True) if ran]
    timed = list(zip(able, measure(able, device), strict=True))
    totals, choices = {}, {}
    for regime in regimes(problem):
        choices[regime], totals[regime] = winners(timed, regime)
    rules = sum(_by_rules(timed, usual, name) for name in PASSES)
    best = min(totals, key=totals.get)
    print(f"{_label(shape, dtype)}: rules {rules:.3f} ms ({usual}), best {totals[best]:.3f} ms ({best})", flush=True)
    tried = [{"pass": each.name, "choice": each.choice, "ms": _finite(taken)} for each, taken in timed]
    if totals[best] == float("inf") or rules < GAIN * totals[best]:
        return Tuned({}, _finite(rules), _finite(rules), tried)
    choice = choices[best] if best == usual else {"regime": best} | choices[best]
    return Tuned(choice, _finite(rules), totals[best], tried)


def _finite(milliseconds: float) -> float | None:
    return milliseconds if milliseconds < float("inf") else None


def winners(timed: list[Timed], regime: str) -> tuple[dict, float]:
    """Return a regime's configs that beat its rules by GAIN, and the milliseconds of all passes under them."""
    choice, total = {}, 0.0
    for name in PASSES:
        plain = _by_rules(timed, regime, name)
        mine = [
            (taken, each.choice.get(name))
            for each, taken in timed
            if each.name == name and each.choice["regime"] == regime
        ]
        taken, config = min(mine, key=lambda pair: pair[0], default=(float("inf"), None))
        if config is not None and plain >= GAIN * taken:
            choice[name] = config
        total += taken if name in choice else plain
    return choice, total


def regimes(problem: Problem) -> list[str]:
    """Return the regimes that can run a problem."""
    if problem.is_depthwise:
        return ["depthwise"]
    found = ["pointwise"] if problem.is_pointwise else []
    if 1 < problem.experts <= configs.EXPERTS_ACCUMULATED:
        found.append("stacked")
    return [*found, "aggregate"]


def candidates_of(shape: Shape, dtype: torch.dtype, regime: str, device: configs.Device) -> Iterator[Candidate]:
    """Yield each pass with the regime's rules, then with every other config of the tables."""
    for name in PASSES:
        plain = Candidate(shape, dtype, name, {"regime": regime})
        yield plain
        plans = {plain.plan(device)}
        for row in rows(shape.problem(dtype), regime, name, getattr(plain.plan(device), name), device):
            candidate = plain._replace(choice={"regime": regime, name: row})
            if (planned := candidate.plan(device)) not in plans:
                plans.add(planned)
                yield candidate


def rows(problem: Problem, regime: str, name: str, ruled, device: configs.Device) -> list[dict]:
    """Return the configs to try for a pass."""
    if regime == "depthwise":
        return _depthwise_rows(problem, name == "weight_gradient", ruled)
    if name == "weight_gradient":
        forms = (True, False) if problem.experts <= configs.EXPERTS_ACCUMULATED else (True,)
        found = [row for apart in forms for row in configs.weight_gradient_rows(problem, apart)]
        filled = [configs.filled(row, problem, device) for row in found]
        made = [row._replace(splits=splits) for row in filled for splits in _about(row.splits)]
        # more partial gradients than fit the memory are never used
        made = [row for row in made if configs.within_memory(row, problem) == row]
        return [*(row._asdict() for row in made), *_staged(ruled), *_shared()]
    if regime == "pointwise":
        return _shared()  # torch.bmm, which takes no config
    found = [row._asdict() for row in configs.convolution_rows(problem, regime == "stacked")]
    return found + _staged(ruled) + ([] if regime == "stacked" else _shared())


def _shared() -> list[dict]:
    return [{"share": share} for share in SHARES]


def _staged(ruled: configs.ConvolutionConfig | configs.WeightGradientConfig) -> list[dict]:
    """Return the rules' row with other stages; none for a single stage, which loads differently."""
    return [ruled._replace(stages=stages)._asdict() for stages in STAGES if ruled.stages > 1]


def _depthwise_rows(problem: Problem, gradient: bool, ruled: configs.DepthwiseConfig) -> list[dict]:
    """Return the depthwise configs to try: blocks, and strips for a problem that takes them."""
    found = DEPTHWISE_GRADIENT if gradient else DEPTHWISE
    if not configs.takes_strips(problem):
        return [*found, *({"splits": each} for each in _about(ruled.splits)[1:] if gradient)]
    strips = [row | {"rows": rows} for row in STRIPS for rows in _about(ruled.rows)]
    return [*(row | {"rows": 0} for row in found), *strips]


def measure(candidates: list[Candidate], device: configs.Device) -> list[float]:
    """Return the median milliseconds of each candidate, infinite if its result differs from the rules' result."""
    data = data_of(candidates[0].shape, candidates[0].dtype, "cuda")
    expected, calls, medians = {}, {}, [float("inf")] * len(candidates)
    for index, candidate in enumerate(candidates):
        call = call_of(candidate, data, device)
        results = call(None)
        # A pass returns other tensors in another regime (see `needed`); each regime begins with its rules.
        ruled = expected.setdefault((candidate.choice["regime"], candidate.name), results)
        if _agree(results, ruled, TOLERANCE[candidate.dtype]):
            calls[str(index)] = (call,)
        else:
            print(f"wrong result, left out: {candidate.name} {candidate.choice}")
    for index, times in timing.take_turns(calls, "cuda", ROUNDS, SECONDS).items():
        medians[int(index)] = statistics.median(each[0] for each in times)
    return medians


def call_of(candidate: Candidate, data: Data, device: configs.Device) -> Callable:
    """Return a function that runs the candidate's pass and returns its results."""
    plan, geometry = candidate.plan(device), candidate.shape.problem(candidate.dtype).geometry
    leaves = [leaf.detach() for leaf in data.leaves]
    ops = torch.ops.polychrome
    if candidate.name == "forward":
        call = partial(ops.dynamic_conv2d, *leaves, None, *geometry)
    else:
        call = partial(ops.dynamic_conv2d_backward, data.grad, *leaves, None, *geometry, needed(candidate))

    def run(_):
        with forced(plan):
            made = call()
        return [made] if isinstance(made, torch.Tensor) else [each for each in made if each.numel()]

    return run


def needed(candidate: Candidate) -> list[bool]:
    """Return the gradients that a pass makes: mixing's with x's in the stacked form, else with the experts'."""
    of_x = candidate.name == "input_gradient"
    return [of_x, not of_x, of_x == (candidate.choice["regime"] == "stacked"), False]


def runs(candidate: Candidate) -> bool:
    """Run a candidate once, to put its kernels into Triton's cache; return whether this GPU can run it."""
    try:
        data = data_of(candidate.shape, candidate.dtype, "cuda")
        call_of(candidate, data, configs.device_of(torch.cuda.current_device()))(None)
        torch.cuda.synchronize()
        del data
        torch.cuda.empty_cache()
    except Exception as error:
        print(f"cannot run, left out: {candidate.name} {candidate.choice}: {error}".splitlines()[0], flush=True)
        return False
    return True


def write(device: configs.Device, problem: Problem, choice: dict) -> None:
    """Write the choice for a problem into the device's table; an empty choice removes the old one."""
    path = configs.table_path(device.name)
    about = record.circumstances("cuda")
    table = json_of(path) or {}
    old = table.get("choices", {}) if table.get("versions") == about["versions"] else {}
    others = {key: value for key, value in old.items() if key != problem.key}
    choices = others | ({problem.key: {"batch": problem.batch} | choice} if choice else {})
    record.replace(path, {name: about[name] for name in ("device", "versions", "date")} | {"choices": choices})
    planning.forget()


def _by_rules(timed: list[Timed], regime: str, name: str) -> float:
    """Return the milliseconds of a pass under a regime's rules; infinite if the pass could not run."""
    rules = {"regime": regime}
    return next((taken for each, taken in timed if each.name == name and each.choice == rules), float("inf"))


def _about(splits: int) -> list[int]:
    """Return a number of splits, half of it and twice of it."""
    return [each for each in (splits, splits // 2, 2 * splits) if each]


def _agree(results: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> bool:
    pairs = zip(results, expected, strict=True)
    return all((one.double() - other.double()).norm() <= tolerance * other.double().norm() for one, other in pairs)


def _above_bound(passes: list[Candidate], device: configs.Device) -> float:
    """Return the milliseconds of a call's passes above the bound."""
    problem = passes[0].shape.problem(passes[0].dtype)
    moved = problem.forward_bytes + problem.backward_bytes
    arithmetic = 3 * problem.flops / timing.matmul_rate("cuda", problem.dtype)
    return sum(measure(passes, device)) - 1e3 * max(arithmetic, moved / timing.copy_rate("cuda"))


def _ruled_regime(shape: Shape, dtype: torch.dtype) -> str:
    return planning.rule(shape.problem(dtype))[0]


def _label(shape: Shape, dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} {shape.name}"


if __name__ == "__main__":
    from bench import tune  # the importable module, not its copy `__main__`

    sys.exit(tune.main())
