"""What a call of the convolutions would run, in words."""

from typing import NamedTuple

from torch import Tensor

from kernels.backend import chosen_backend, runs_triton
from kernels.dynamic_conv.configs import KNOWN_DEVICES, Device, device_of
from kernels.dynamic_conv.eager.forms import Forms, forms_of
from kernels.dynamic_conv.geometry import resolve_padding, resolve_pair
from kernels.dynamic_conv.plan import Plan, plan
from kernels.dynamic_conv.problem import Problem, problem_of


class Explanation(NamedTuple):
    """What a call would run; `str()` of it is a few lines to read.

    `implementation` is "reference", "eager" or "triton". `plan` holds regime, chunk and launch configs on Triton,
    `forms` the forms on a CPU; the other is None.
    """

    op: str
    problem: Problem
    implementation: str
    device: str
    plan: Plan | None
    forms: Forms | None

    @property
    def regime(self) -> str:
        """The regime of the Triton kernels, or the form of the forward pass elsewhere."""
        if self.plan is not None:
            return self.plan.regime
        return self.forms.forward.form if self.forms is not None else "definition"

    @property
    def reason(self) -> str:
        """Why it is that one."""
        if self.plan is not None:
            return self.plan.reason
        return self.forms.forward.reason if self.forms is not None else "use_backend('reference') asks for it"

    def __str__(self) -> str:
        problem = self.problem
        lines = [
            ("call", f"{self.op}, batch {problem.batch}, {problem.key}"),
            ("runs", f"{self.implementation} on {self.device}"),
            ("forward", f"{self.regime}: {self.reason}"),
        ]
        if self.plan is not None:
            megabytes = self.plan.chunk * problem.weights * problem.dtype.itemsize / 1e6
            if self.plan.regime in ("aggregate", "pointwise") and problem.experts:
                lines.append(("mixes", f"{self.plan.chunk} samples at a time, {megabytes:.1f} MB of weights"))
            lines += [
                ("forward tile", _config(self.plan.forward)),
                ("gradient of x", _config(self.plan.input_gradient)),
                ("gradient of weights", _config(self.plan.weight_gradient)),
            ]
        elif self.forms is not None:
            for name, choice in zip(("gradient of x", "gradient of weights"), self.forms[1:], strict=True):
                lines.append((name, f"{choice.form}: {choice.reason}"))
        flops = problem.flops / 1e9
        lines.append(("at the least, forward", f"{flops:.3g} GFLOP, {problem.forward_bytes / 1e6:.3g} MB"))
        lines.append(("at the least, backward", f"{2 * flops:.3g} GFLOP, {problem.backward_bytes / 1e6:.3g} MB"))
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {words}" for name, words in lines)


def explain_dynamic_conv2d(
    x: Tensor,
    experts: Tensor,
    mixing: Tensor,
    bias: Tensor | None = None,
    stride=1,
    padding=0,
    dilation=1,
    groups: int = 1,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    device: str | None = None,
) -> Explanation:
    """Return what `dynamic_conv2d` of these arguments would run."""
    return _explain("dynamic_conv2d", x, experts, stride, padding, dilation, groups, False, device)


def explain_per_sample_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride=1,
    padding=0,
    dilation=1,
    groups: int = 1,
    *,
    device: str | None = None,
) -> Explanation:
    """Return what `per_sample_conv2d` of these arguments would run."""
    return _explain("per_sample_conv2d", x, weight, stride, padding, dilation, groups, True, device)


def _explain(op, x, weight, stride, padding, dilation, groups, per_sample, device) -> Explanation:
    stride, dilation = resolve_pair("stride", stride), resolve_pair("dilation", dilation)
    padding = resolve_padding(padding, weight.shape[3:], stride, dilation)
    geometry = (stride, padding, dilation, groups, per_sample)
    problem = problem_of(x, weight, *geometry)
    if device is not None:
        facts = _known(device)
        return Explanation(op, problem, "triton", facts.name, plan(problem, facts), None)
    backend = chosen_backend(op, x, has_kernel=True)
    if backend == "reference":
        return Explanation(op, problem, "reference", str(x.device), None, None)
    if runs_triton(x, backend):
        facts = device_of(x.device.index) if x.is_cuda else KNOWN_DEVICES[0]
        return Explanation(op, problem, "triton", facts.name, plan(problem, facts), None)
    return Explanation(op, problem, "eager", str(x.device), None, forms_of(x, weight, *geometry))


def _known(name: str) -> Device:
    for device in KNOWN_DEVICES:
        if device.name == name:
            return device
    raise ValueError(f"device must be one of {', '.join(device.name for device in KNOWN_DEVICES)}, got {name!r}")


def _config(config) -> str:
    return ", ".join(f"{name} {value}" for name, value in config._asdict().items())
