"""The form of a call on a CPU, with the reason: a rule over sizes, without timing."""

from typing import NamedTuple

import torch
from torch import Tensor

from polychrome.kernels.dynamic_conv.problem import Geometry, Problem, problem_of
from polychrome.kernels.dynamic_conv.trust import bfloat16_units
from polychrome.kernels.tensors import is_channels_last


class Choice(NamedTuple):
    """A form and the reason for it, in one line."""

    form: str
    reason: str


class Forms(NamedTuple):
    """The forms of the output, of the gradient of x and of the gradient of the weights (and of the mixing).

    `groups`: one convolution with the samples as groups of channels. `loop`: one convolution a sample. `swapped`: the
    gradient of x as a forward convolution with swapped channels, one a sample. `taps`: a matrix product a sample and
    kernel position. `stacked`: every sample with every expert, mixed afterwards; all three or none.
    """

    forward: Choice
    input_gradient: Choice
    weight_gradient: Choice

    @property
    def are_naive(self) -> bool:
        """Whether no form known here is faster than mixing first and keeping the mix for the gradients."""
        return all(choice.form == "groups" for choice in self)


# (experts - 1) * pixels below which the products that `stacked` wastes cost less than mixing a sample's weights does
STACKED_BELOW = 150
STACKED_BELOW_WITH_AMX = 600
# Pixels up to which a sample's weight gradient is better one matrix product a tap than a convolution's
TAPS_UP_TO = 256
TAPS_UP_TO_IN_BFLOAT16 = 800  # not with AMX, where grouped convolutions are fast from there on
# Pixels of the batch for each expert that pay for laying the experts out anew; as many weights as a batch may bring
PREPARE_FROM = 500
FEW_WEIGHTS = 8
# Multiply-adds of a sample that hide what a call costs
LOOP_FROM = 1 << 20


def cpu_forms(problem: Problem, channels_last: bool, units: str | None = None, by_tap: bool = False) -> Forms:
    """Return the forms of a call on a CPU; `units` are the processor's for bfloat16, by default detected.

    `by_tap`: there is a mix for each tap, which the outputs of whole experts cannot be mixed by.
    """
    batch, experts, pixels, dtype = problem.batch, problem.experts, problem.pixels, problem.dtype
    narrowest = min(problem.in_channels, problem.out_channels) // problem.groups
    units = bfloat16_units() if units is None else units
    low = dtype == torch.bfloat16
    if dtype not in (torch.float32, torch.bfloat16) or (low and units == "none"):
        return _all("groups", f"{dtype}: not measured, or no units for it here")
    amx = low and units == "amx"
    wide_enough = narrowest >= 16
    limit = STACKED_BELOW_WITH_AMX if amx else STACKED_BELOW
    if experts > 1 and not by_tap and wide_enough and batch * pixels >= 256 and (experts - 1) * pixels < limit:
        return _all("stacked", f"{pixels} pixels a sample: mixing its weights costs more than {experts} convolutions")
    weights = experts or FEW_WEIGHTS
    if batch <= 2 * weights and batch * pixels < PREPARE_FROM * weights:
        return _all("groups", f"{batch} samples of {pixels} pixels: laying the weights out anew would not pay")
    if pixels * problem.weights < LOOP_FROM:
        return _all("groups", "small convolutions: the calls would cost more than they do")
    call = Choice("loop", "each sample's convolution is large enough to run by itself, in its own layout")
    few = TAPS_UP_TO_IN_BFLOAT16 if low and channels_last and not amx else TAPS_UP_TO
    if not channels_last and problem.stride == (1, 1) and (not low or pixels > few):
        call = Choice("groups", "in NCHW one grouped convolution copies nothing")
    input_gradient = weight_gradient = call
    if amx:
        input_gradient = weight_gradient = Choice("groups", "with AMX one sample's convolution is slow backward")
    if experts and call.form == "loop" and problem.stride == (1, 1):
        input_gradient = Choice("swapped", "forward convolutions are the faster ones, above all with AMX")
    if experts and wide_enough and (pixels <= few or (low and channels_last and problem.kernel == (1, 1))):
        weight_gradient = Choice("taps", "few pixels or one tap: matrix products are faster than a convolution's")
    return Forms(call, input_gradient, weight_gradient)


def forms_of(x: Tensor, weight: Tensor, geometry: Geometry, per_sample: bool, by_tap: bool = False) -> Forms:
    """Return the forms of a call on any device; `weight` is [batch or experts, out, in/groups, kh, kw]."""
    if x.device.type != "cpu":
        return _all("groups", f"the forms are chosen for CPUs, x is on {x.device}")
    return cpu_forms(problem_of(x, weight, geometry, per_sample), is_channels_last(x), by_tap=by_tap)


def _all(form: str, reason: str) -> Forms:
    choice = Choice(form, reason)
    return Forms(choice, choice, choice)
