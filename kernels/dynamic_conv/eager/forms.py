"""The form of a call on a CPU, with the reason: a rule over sizes, without timing."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from polychrome.kernels.dynamic_conv.problem import Geometry, Problem, problem_of
from polychrome.kernels.dynamic_conv.trust import bfloat16_units, is_emulated
from polychrome.kernels.tensors import is_channels_last


class Choice(NamedTuple):
    """A form and the reason for it, in one line."""

    form: str
    reason: str


class Forms(NamedTuple):
    """The forms of the output, of the gradient of x and of the gradient of the weights (and of the mixing).

    `groups`: one convolution with the samples as groups of channels. `loop`: one convolution a sample. `columns`: a
    product of matrices a sample, of its patches and its weights. `swapped loop` and `swapped columns`: the gradient of
    x as a forward convolution with swapped channels. `stacked`: every sample with every expert, mixed afterwards; all
    three or none. `keep_the_mix`: a call that records gradients leaves them to autograd, which keeps the mixed weights.
    """

    forward: Choice
    input_gradient: Choice
    weight_gradient: Choice
    keep_the_mix: bool = False

    @property
    def are_naive(self) -> bool:
        """Whether no form known here is faster than mixing first, then one grouped convolution."""
        return all(choice.form == "groups" for choice in self[:3])


# (experts - 1) * pixels below which the products that `stacked` wastes cost less than mixing a sample's weights does
STACKED_BELOW = 200
STACKED_BELOW_WITH_AMX = 600
# Bytes of the mixed weights up to which autograd keeps them, in memory that is used again from call to call. Above this
# torch gets new memory of the system each time, whose first use costs more than what is computed in it.
KEPT_BYTES = 10_000_000
# The same for one grouped convolution, which copies x and y: their bytes. In bfloat16 these copies change the layout,
# and pay up to so many pixels of a sample.
GROUPED_BYTES, GROUPED_BYTES_OF_DEPTHWISE = 10_000_000, 13_000_000
GROUPED_PIXELS_IN_BFLOAT16 = 1024
# Bytes of x and y up to which autograd keeps the output of a single expert to scale it
SCALED_BYTES = 4_000_000
# Pixels up to which a sample's products of matrices are faster than its convolution, in bfloat16; with one tap, where
# the convolutions' multiply-adds outweigh what the calls cost
COLUMNS_UP_TO, COLUMNS_OF_ONE_TAP_UP_TO, COLUMNS_OF_ONE_TAP_FROM = 400, 1024, 1 << 29
PATCH_BYTES = 16 << 20  # of a sample, at the most
COLUMNS_UP_TO_WITH_AMX = 256  # for the gradient of the weights alone
# With AMX: pixels of the batch for each expert that pay for laying the experts out anew; as many weights as a batch may
# bring
PREPARE_FROM = 500
FEW_WEIGHTS = 8
# Multiply-adds of a sample, or else bytes of its x or y, that hide what a call costs
LOOP_FROM, LOOP_BYTES = 1 << 23, 256_000


@lru_cache(maxsize=4096)
def cpu_forms(problem: Problem, channels_last: bool, units: str | None = None, by_tap: bool = False) -> Forms:
    """Return the forms of a call on a CPU; `units` are the processor's for bfloat16, by default detected.

    `by_tap`: there is a mix for each tap, which the outputs of whole experts cannot be mixed by.
    """
    experts, dtype = problem.experts, problem.dtype
    units = bfloat16_units() if units is None else units
    low = dtype == torch.bfloat16
    if dtype not in (torch.float32, torch.bfloat16) or (low and units == "none"):
        return _all("groups", f"{dtype}: not measured, or no units for it here", experts > 0)
    if problem.pixels * problem.weights < LOOP_FROM and _image_bytes(problem) < LOOP_BYTES * problem.batch:
        return _all("groups", "small convolutions: the calls would cost more than they do", experts > 0)
    amx = low and units == "amx"
    if experts == 1 and not by_tap:
        reason = "one expert: a convolution of the whole batch, scaled for each sample"
        return _all("stacked", reason, not amx and _image_bytes(problem) <= SCALED_BYTES)
    if experts > 1 and not by_tap and _is_stacked(problem, amx):
        reason = f"{problem.pixels} pixels a sample: mixing its weights costs more than {experts} convolutions"
        return _all("stacked", reason)
    return _with_amx(problem) if amx else _by_memory(problem, channels_last)


def _is_stacked(problem: Problem, amx: bool) -> bool:
    """Return whether a convolution of the batch for each expert is faster than mixing."""
    batch, experts, pixels = problem.batch, problem.experts, problem.pixels
    if amx:
        few, many = (experts - 1) * pixels < STACKED_BELOW_WITH_AMX, batch * pixels >= 256
    else:
        few = (experts - 1) * pixels < STACKED_BELOW and _mixed_bytes(problem) > KEPT_BYTES
        many = batch * pixels >= 256 or batch >= 2 * experts
    return _is_wide(problem) and few and many


def _with_amx(problem: Problem) -> Forms:
    """Return the forms in bfloat16 on a processor with AMX units."""
    batch, experts, pixels = problem.batch, problem.experts, problem.pixels
    weights = experts or FEW_WEIGHTS
    if batch <= 2 * weights and batch * pixels < PREPARE_FROM * weights:
        reason = f"{batch} samples of {pixels} pixels: laying the weights out anew would not pay"
        return _all("groups", reason, experts > 0)
    call = Choice("loop", "each sample's convolution is large enough to run by itself, in its own layout")
    input_gradient = weight_gradient = Choice("groups", "with AMX one sample's convolution is slow backward")
    if experts and problem.stride == (1, 1):
        input_gradient = Choice("swapped loop", "forward convolutions are the faster ones, above all with AMX")
    if experts and _is_wide(problem) and pixels <= COLUMNS_UP_TO_WITH_AMX:
        weight_gradient = Choice("columns", "few pixels: products of matrices are faster than a convolution")
    return Forms(call, input_gradient, weight_gradient)


def _by_memory(problem: Problem, channels_last: bool) -> Forms:
    """Return the forms without AMX, where new memory costs as much as the arithmetic."""
    batch, experts, pixels, plain = problem.batch, problem.experts, problem.pixels, problem.stride == (1, 1)
    keep = experts > 0 and (_mixed_bytes(problem) <= KEPT_BYTES or batch <= experts)
    low, one_tap = problem.dtype == torch.bfloat16, problem.kernel == (1, 1)
    patches = problem.dtype.itemsize * pixels * problem.weights // problem.out_channels * problem.groups
    by_columns = low and experts > 0 and _is_wide(problem) and patches <= PATCH_BYTES
    if by_columns and plain and one_tap and pixels <= COLUMNS_OF_ONE_TAP_UP_TO:
        if problem.flops // 2 >= COLUMNS_OF_ONE_TAP_FROM:
            return _columns(problem, "one tap: the products read the image as it is")
    elif plain and _is_grouped(problem, channels_last, keep):
        return _all("groups", "x and the mixed weights are few: one grouped convolution copies them cheaply", keep)
    if by_columns and not keep and pixels <= COLUMNS_UP_TO:
        return _columns(problem, "few pixels: products of matrices are faster than a convolution")
    return _all("loop", "each sample's convolution is large enough to run by itself, in its own layout", keep)


def _is_grouped(problem: Problem, channels_last: bool, keep: bool) -> bool:
    """Return whether one grouped convolution, which works in NCHW, finds memory for its copies and pays for them."""
    pays, limit = not channels_last, GROUPED_BYTES
    if problem.is_depthwise:
        limit = GROUPED_BYTES_OF_DEPTHWISE
    elif problem.dtype == torch.bfloat16:
        pays = _is_wide(problem) and problem.pixels <= GROUPED_PIXELS_IN_BFLOAT16
    return pays and (keep or _mixed_bytes(problem) <= KEPT_BYTES) and _image_bytes(problem) <= limit


def _mixed_bytes(problem: Problem) -> int:
    return problem.dtype.itemsize * problem.batch * problem.weights


def _image_bytes(problem: Problem) -> int:
    """Return the bytes of x or y, the larger of the two."""
    x, y = problem.in_channels * problem.height * problem.width, problem.out_channels * problem.pixels
    return problem.dtype.itemsize * problem.batch * max(x, y)


def _columns(problem: Problem, reason: str) -> Forms:
    forward, input_gradient = Choice("columns", reason), Choice("loop", "a stride: no convolution of the gradient")
    if problem.stride == (1, 1):
        input_gradient = Choice("swapped columns", reason)
    return Forms(forward, input_gradient, forward)


def _is_wide(problem: Problem) -> bool:
    """Return whether a group has channels enough for products of matrices."""
    return min(problem.in_channels, problem.out_channels) // problem.groups >= 16


def forms_of(x: Tensor, weight: Tensor, geometry: Geometry, per_sample: bool, by_tap: bool = False) -> Forms:
    """Return the forms of a call on any device; `weight` is [batch or experts, out, in/groups, kh, kw]."""
    if x.device.type != "cpu":
        return _all("groups", f"the forms are chosen for CPUs, x is on {x.device}")
    problem = problem_of(x, weight, geometry, per_sample)
    if not is_emulated(x):
        return cpu_forms(problem, is_channels_last(x), by_tap=by_tap)
    chosen = cpu_forms(problem._replace(dtype=torch.float32), is_channels_last(x), by_tap=by_tap)
    told = (each._replace(reason=f"in float32, as {x.dtype} is emulated here; {each.reason}") for each in chosen[:3])
    return Forms(*told, keep_the_mix=False)


def _all(form: str, reason: str, keep_the_mix: bool = False) -> Forms:
    choice = Choice(form, reason)
    return Forms(choice, choice, choice, keep_the_mix)
