"""Descriptions of what a call of the convolutions would run."""

from typing import NamedTuple

from torch import Tensor

from polychrome.kernels.backend import TRITON_DTYPES, chosen_backend, runs_triton
from polychrome.kernels.dynamic_conv.api import keeps_the_mix, prepare_dynamic, prepare_per_sample, wants_gradient
from polychrome.kernels.dynamic_conv.borders import with_borders
from polychrome.kernels.dynamic_conv.configs import KNOWN_DEVICES, Device, device_of
from polychrome.kernels.dynamic_conv.eager.forms import Choice, Forms, forms_of
from polychrome.kernels.dynamic_conv.plan import Plan, plan
from polychrome.kernels.dynamic_conv.problem import Geometry, Problem, problem_of
from polychrome.kernels.dynamic_conv.shared import broadcast, is_shared


class Explanation(NamedTuple):
    """What a call would run; `str()` of it is a few lines to read.

    `implementation` is "reference", "eager" or "triton". `plan` holds regime, chunk and launch configs on Triton,
    `forms` the forms on a CPU; the other is None. `keeps_the_mix`: the mix is made before the op, so that autograd
    keeps it, and the op is `per_sample_conv2d`.
    """

    op: str
    problem: Problem
    implementation: str
    device: str
    plan: Plan | None
    forms: Forms | None
    keeps_the_mix: bool = False

    @property
    def regime(self) -> str:
        """The regime of the Triton kernels, or the form of the forward pass elsewhere."""
        if self.plan is not None:
            return self.plan.regime
        return self.forms.forward.form if self.forms is not None else "definition"

    @property
    def reason(self) -> str:
        """Why this regime or form runs."""
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
            if self.keeps_the_mix:
                lines.append(("mixes", "before the op: autograd keeps the mixed weights for the gradients"))
            for name, choice in zip(("gradient of x", "gradient of weights"), self.forms[1:3], strict=True):
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
    padding_mode: str = "zeros",
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    device: str | None = None,
) -> Explanation:
    """Return what `dynamic_conv2d` of these arguments would run."""
    x, experts, bias, geometry = prepare_dynamic(
        x, experts, bias, mixing, stride, padding, dilation, groups, padding_mode, scale, shift, relu
    )
    x, geometry = with_borders(x, geometry, padding_mode)
    by_tap = mixing.dim() == 4
    explanation = _explain("dynamic_conv2d", x, experts, geometry, False, device, by_tap)
    if by_tap or explanation.implementation != "eager" or device is not None:
        return explanation
    records = wants_gradient(x, experts, mixing, bias, scale, shift)
    return explanation._replace(keeps_the_mix=records and keeps_the_mix(x, experts, geometry, "auto"))


def explain_per_sample_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride=1,
    padding=0,
    dilation=1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    device: str | None = None,
) -> Explanation:
    """Return what `per_sample_conv2d` of these arguments would run; raise ValueError for a weight without a batch."""
    if is_shared(weight):
        raise ValueError("weight must be a kernel for each sample, got one that all share: the call is F.conv2d")
    x, weight, bias, geometry = prepare_per_sample(
        broadcast(x, weight), weight, bias, stride, padding, dilation, groups, padding_mode
    )
    x, geometry = with_borders(x, geometry, padding_mode)
    return _explain("per_sample_conv2d", x, weight, geometry, True, device)


def _explain(op, x, weight, geometry: Geometry, per_sample, device, by_tap: bool = False) -> Explanation:
    problem = problem_of(x, weight, geometry, per_sample)
    # with a mix for each tap, the kernels are those for weights that are given
    launched = problem._replace(experts=0) if by_tap else problem
    facts = None if device is None else _known(device)
    if facts is not None and x.dtype in TRITON_DTYPES and len(x):
        return Explanation(op, problem, "triton", facts.name, plan(launched, facts), None)
    if facts is not None:
        naive = Choice("groups", "float64 has no kernel" if len(x) else "an empty batch launches nothing")
        return Explanation(op, problem, "eager", facts.name, None, Forms(naive, naive, naive))
    backend = chosen_backend(op, x)
    if backend == "reference":
        return Explanation(op, problem, "reference", str(x.device), None, None)
    if runs_triton(x, backend):
        facts = device_of(x.device.index) if x.is_cuda else KNOWN_DEVICES[0]
        return Explanation(op, problem, "triton", facts.name, plan(launched, facts), None)
    return Explanation(op, problem, "eager", str(x.device), None, forms_of(x, weight, geometry, per_sample, by_tap))


def _known(name: str) -> Device:
    for device in KNOWN_DEVICES:
        if device.name == name:
            return device
    raise ValueError(f"device must be one of {', '.join(device.name for device in KNOWN_DEVICES)}, got {name!r}")


def _config(config) -> str:
    return ", ".join(f"{name} {value}" for name, value in config._asdict().items())
