"""Calls that were made before reach their launches without the Python that chose them, and give the same numbers."""

import os
import re
import subprocess
import sys
import threading
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

pytest.importorskip("triton")

from polychrome import kernels
from polychrome.kernels import dynamic_conv2d, library, replay, spatial_attention, spatial_gate, use_backend
from polychrome.kernels.dynamic_conv import plan as planning
from polychrome.kernels.launch import record_launches
from tests.grids import grid, usual
from tests.kernels.conv_cases import ARGUMENTS, CASES, WIDE_CASES, wide_arguments
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.op_calls import differentiable, op_arguments, registered
from tests.kernels.oracle import assert_its_own, outcome, outputs, randn

ROOT = Path(__file__).resolve().parents[2]
pytestmark = needs_interpreter
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# augment uses a tensor that it made for an earlier call; channel_stats on a CPU looks whether a channel is present.
NEVER_REPEATED = {"augment", "channel_stats"}


@pytest.fixture
def on_kernels():
    with use_backend("triton"):
        yield


@grid(strength=1, name=registered(), layout=LAYOUTS)
def test_a_call_made_again_gives_what_the_op_does_of_other_numbers_elsewhere_in_memory(name, layout):
    arguments = op_arguments(name, torch.float32, layout, "triton")
    others = [elsewhere(each) if isinstance(each, Tensor) else each for each in arguments]
    key = replay.key_of(name, arguments)
    assert key is not None
    assert replay.key_of(name, others) == key
    library.call(name, *arguments)
    library.call(name, *arguments)
    assert callable(replay._programs[key]) == (name not in NEVER_REPEATED)
    assert_its_own(outputs(library.call(name, *others)), [each for each in others if isinstance(each, Tensor)])
    got, expected = (outputs(call(*others)) for call in (caller(name), getattr(torch.ops.polychrome, name)))
    for one, other in zip(got, expected, strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        assert torch.equal(one, other)


@grid(strength=1, case=usual(CASES, "stride_2_odd", "groups", "one_by_one"), function=list(ARGUMENTS))
def test_every_convolution_made_again_is_the_same(function, case, on_kernels):
    arguments, options = ARGUMENTS[function](case)
    first, _, third = (outcome(function, arguments, **options) for _ in range(3))
    assert len(programs()) == 2
    for one, other in zip(first, third, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", usual(WIDE_CASES, "strided_dilated", "few_pixels"))
def test_every_convolution_of_more_channels_made_again_in_chunks_is_the_same(case, on_kernels, monkeypatch):
    from polychrome.kernels.dynamic_conv.triton import ops

    plan = planning.plan.__wrapped__
    monkeypatch.setattr(ops, "plan", lambda p, d: plan(p, d)._replace(chunk=2, backward_chunk=2, own_chunk=1))
    arguments, options = wide_arguments(case)
    arguments[0] = arguments[0].contiguous(memory_format=torch.channels_last)
    first, _, third = (outcome(dynamic_conv2d, arguments, **options) for _ in range(3))
    assert len(programs()) == 2
    for one, other in zip(first, third, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", registered())
def test_another_size_dtype_layout_alignment_or_constant_is_another_call(name):
    arguments = op_arguments(name, torch.float32, backend="triton")
    key = replay.key_of(name, arguments)
    for place, argument in enumerate(arguments):
        for other in differing(argument)[: None if place else -1]:
            changed = [*arguments[:place], other, *arguments[place + 1 :]]
            assert replay.key_of(name, changed) != key, f"argument {place}: {other}"


def test_bodies_read_no_setting_that_is_not_part_of_a_call():
    """What differs without the key's knowledge would be computed as it was when the call was recorded."""
    setting = re.compile(r"torch\.backends|environ|getenv|knobs|torch\.(is|are|get)_\w+|torch\.cuda\.(?!get_device)\w+")
    folder = Path(kernels.__file__).parent
    read = set()
    for pattern in ("*/triton/*.py", "*/triton.py", "*/configs.py", "dynamic_conv/p*.py", "tensors.py", "streaming.py"):
        for path in folder.glob(pattern):
            read |= {(path.name, found[0]) for found in setting.finditer(path.read_text(encoding="utf-8"))}
    # allows_tf32, which a key holds; and autocast, which a body does not see.
    known = {"torch.backends", "torch.is_autocast_enabled", "torch.get_autocast_dtype"}
    assert read == {("tensors.py", each) for each in known}


def test_whether_products_may_use_tf32_is_part_of_a_call(monkeypatch):
    arguments = op_arguments("dynamic_conv2d", torch.float32)
    keys = set()
    for allowed in (False, True):
        monkeypatch.setattr(replay, "allows_tf32", lambda allowed=allowed: allowed)
        keys.add(replay.key_of("dynamic_conv2d", arguments))
    assert len(keys) == 2


class Named(Tensor):
    """A subclass of a user's."""


class Seeing(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.seen.add(str(op))
        return op(*args, **(kwargs or {}))


class Passing(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_torch_sees_the_op_of_subclasses_views_that_negate_other_devices_and_modes(on_kernels):
    arguments = op_arguments("spatial_gate", torch.float32, backend="triton")
    x, logits, _ = arguments
    plain = library.call("spatial_gate", *arguments)
    assert replay.key_of("spatial_gate", (x.as_subclass(Named), logits, "triton")) is None
    assert replay.key_of("spatial_gate", (x.to("meta"), logits.to("meta"), "triton")) is None
    negated = torch._neg_view(x)
    assert replay.key_of("spatial_gate", (negated, logits, "triton")) is None
    assert torch.equal(library.call("spatial_gate", negated, logits, "triton"), -plain)
    with Seeing() as mode:
        assert replay.key_of("spatial_gate", arguments) is None
        library.call("spatial_gate", *arguments)
    assert "polychrome.spatial_gate.default" in mode.seen
    with Passing():
        assert replay.key_of("spatial_gate", arguments) is None
    seen = []
    torch.func.vmap(lambda one: seen.append(replay.key_of("spatial_gate", (one, logits, "triton"))) or one)(x[None])
    assert seen == [None]


def test_only_bodies_that_do_the_same_every_time_are_repeated():
    def launches(x: Tensor) -> Tensor:
        return library.call("spatial_gate", x, logits, "triton")

    x, logits, _ = op_arguments("spatial_gate", torch.float32)
    body = library._bodies["spatial_gate"]
    y, program = replay.record(body, (x, logits, "triton"))
    assert torch.equal(program(x, logits, "triton"), y)
    bodies = {
        "no launch": lambda x, logits: x + logits,
        "reads a number": lambda x, logits: body(x * x.sum().item(), logits, "triton"),
        "draws": lambda x, logits: body(torch.rand_like(x), logits, "triton"),
        "takes what is not given": lambda x, logits: body(x, kept, "triton"),
        "size of what is in it": lambda x, logits: body(x, logits + x[x > 0].numel() * 0, "triton"),
    }
    kept = logits.clone()
    for what, each in bodies.items():
        assert replay.record(each, (x, logits))[1] is None, what
    square = torch.ones(2, 1, 3, 3)
    assert replay.record(body, (square, square, "triton"))[1] is None  # the next call's may be two


@pytest.mark.parametrize("name", differentiable())
def test_gradients_of_a_call_made_again_are_those_of_the_op(name):
    arguments = op_arguments(name, torch.float32, backend="triton")
    wanted = None
    for call in (getattr(torch.ops.polychrome, name), *[caller(name)] * 3):
        leaves = [leaf(each) for each in arguments]
        y = outputs(call(*leaves))[0]
        y.backward(randn(*y.shape, seed=5))
        got = [each.grad for each in leaves if isinstance(each, Tensor) and each.requires_grad]
        wanted = wanted or got
        for one, other in zip(got, wanted, strict=True):
            assert torch.equal(one, other)


def test_a_graph_kept_gives_its_gradients_twice_and_one_let_go_says_so(on_kernels):
    x, weight, _ = (leaf(each) for each in op_arguments("spatial_attention", torch.float32)[:3])
    for _ in range(3):
        y = spatial_attention(x, weight)
        first, second = (torch.autograd.grad(y.sum(), x, retain_graph=kept)[0] for kept in (True, False))
        assert torch.equal(first, second)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(y.sum(), x)


def test_changing_what_was_saved_is_noticed(on_kernels):
    x, weight, _ = (leaf(each) for each in op_arguments("spatial_attention", torch.float32)[:3])
    for _ in range(3):
        y = spatial_attention(x, weight)
        with torch.no_grad():
            weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_an_output_that_nobody_used_gives_no_gradient(on_kernels):
    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    x, weight, _ = (leaf(each) for each in op_arguments("spatial_attention", torch.float32)[:3])
    for _ in range(3):
        Cut.apply(spatial_attention(x, weight)).sum().backward()
        assert x.grad is None


@pytest.mark.parametrize("reentrant", [pytest.param(True, marks=pytest.mark.slow), False], ids=["reentrant", "hooks"])
def test_checkpoints_and_saved_tensors_moved_elsewhere_give_the_same_gradients(reentrant, on_kernels):
    x, weight, _ = (leaf(each) for each in op_arguments("spatial_attention", torch.float32)[:3])
    (wanted,) = torch.autograd.grad(spatial_attention(x, weight).sum(), x)
    for _ in range(3):
        x.grad = None
        checkpoint(spatial_attention, x, weight, use_reentrant=reentrant).sum().backward()
        assert torch.equal(x.grad, wanted)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.mT.contiguous(), lambda t: t.mT):
            y = spatial_attention(x, weight)
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], wanted)


def test_anomaly_mode_tells_where_the_call_was_made(on_kernels):
    x, weight, _ = (leaf(each) for each in op_arguments("spatial_attention", torch.float32)[:3])
    for _ in range(3):
        with warnings.catch_warnings(record=True) as said, torch.autograd.detect_anomaly(check_nan=True):
            warnings.simplefilter("always")
            y = spatial_attention(x, weight)
            with pytest.raises(RuntimeError, match=r"'spatial_attentionBackward' returned nan"):
                y.backward(torch.full_like(y, float("nan")))
        assert any("in test_anomaly_mode_tells_where" in str(each.message) for each in said)


def test_under_autocast_a_call_made_again_computes_in_its_own_dtypes(on_kernels):
    x, experts, mixing, bias = (leaf(each) for each in op_arguments("dynamic_conv2d", torch.float16)[:4])
    for _ in range(4):
        with torch.autocast("cpu", torch.float16):
            y = dynamic_conv2d(x.float(), experts, mixing, bias, padding=1, groups=2)
            y.float().sum().backward()
        plain = dynamic_conv2d(x, experts, mixing, bias, padding=1, groups=2)
        assert torch.equal(y, plain)


def test_memory_starts_as_nan_under_deterministic_algorithms_also_in_a_call_made_again(poisoned_memory, on_kernels):
    x, weight, _ = op_arguments("spatial_attention", torch.float32)[:3]
    first, _, third = (outcome(spatial_attention, (x, weight)) for _ in range(3))
    for one, other in zip(first, third, strict=True):
        assert other.isfinite().all()
        assert torch.equal(one, other)


def test_a_thread_records_its_own_launches_only():
    def both(x: Tensor, logits: Tensor) -> Tensor:
        other = threading.Thread(target=gate, args=(2 * x, logits, "triton"))
        other.start()
        other.join()  # the interpreter cannot run two kernels at once
        return gate(x, logits, "triton")

    gate = library._bodies["spatial_gate"]
    x, logits, _ = op_arguments("spatial_gate", torch.float32)
    y, program = replay.record(both, (x, logits))
    assert sum(isinstance(each, partial) for each in program.__globals__.values()) == 1
    assert torch.equal(program(x, logits), y)


def test_launches_are_listed_and_hooks_are_called_for_calls_made_again(on_kernels):
    x, weight, _ = op_arguments("spatial_attention", torch.float32)[:3]
    for _ in range(3):
        with record_launches() as launches:
            spatial_attention(x, weight)
        assert len(launches) == 1
        spatial_attention(x, weight)


def test_while_a_thread_records_another_one_runs_its_bodies():
    def waits(x: Tensor, logits: Tensor, backend: str) -> Tensor:
        begun.set()
        assert done.wait(30)
        return gate(x, logits, backend)

    begun, done = threading.Event(), threading.Event()
    gate = library._bodies["spatial_gate"]
    arguments = op_arguments("spatial_gate", torch.float32, backend="triton")
    replay._programs[("waits",)] = replay.ONCE
    thread = threading.Thread(target=replay.run, args=(waits, ("waits",), arguments))
    thread.start()
    assert begun.wait(30)
    for _ in range(3):
        replay.run(gate, ("gate",), arguments)
    assert replay._programs[("gate",)] is replay.ONCE
    done.set()
    thread.join()
    assert callable(replay._programs[("waits",)])
    replay.run(gate, ("gate",), arguments)
    assert callable(replay._programs[("gate",)])
    assert not torch.utils._python_dispatch._is_in_torch_dispatch_mode


def test_what_is_recorded_while_all_is_forgotten_is_forgotten_too():
    def forgets(x: Tensor, logits: Tensor, backend: str) -> Tensor:
        replay.forget()
        return library._bodies["spatial_gate"](x, logits, backend)

    replay._programs[("forgets",)] = replay.ONCE
    replay.run(forgets, ("forgets",), op_arguments("spatial_gate", torch.float32, backend="triton"))
    assert not replay._programs


def test_a_graph_traced_before_dispatch_has_the_op(on_kernels):
    x, logits, _ = op_arguments("spatial_gate", torch.float32)
    for _ in range(3):
        graph = make_fx(spatial_gate, pre_dispatch=True)(x, logits)
        assert torch.ops.polychrome.spatial_gate.default in [node.target for node in graph.graph.nodes]


def test_tables_read_anew_leave_no_program(on_kernels):
    x, weight, _ = op_arguments("spatial_attention", torch.float32)[:3]
    for _ in range(2):
        spatial_attention(x, weight)
    assert programs()
    planning.forget()
    assert not replay._programs


def test_as_many_calls_as_there_is_room_for_are_kept(on_kernels, monkeypatch):
    monkeypatch.setattr(replay, "MOST", 3)
    for width in range(3, 9):
        for _ in range(2):
            x, weight, _ = op_arguments("spatial_attention", torch.float32)[:3]
            spatial_attention(x[..., :width].contiguous(), weight)
        assert 1 <= len(replay._programs) <= 3


def test_a_profiler_sees_the_op_and_the_shapes_of_its_inputs(on_kernels):
    x, weight, _ = (leaf(each) for each in op_arguments("spatial_attention", torch.float32)[:3])
    for _ in range(3):
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
            spatial_attention(x, weight).sum().backward()
        seen = {event.name: event.input_shapes for event in profile.events()}
        assert seen["polychrome::spatial_attention"][:2] == [list(x.shape), list(weight.shape)]
        assert "polychrome::spatial_attention_backward" in seen


# On a pretended GPU, whose launches are only listed: what a call launches when it is made for the first time, and the
# third time, when nothing but Triton's compiled kernels may be called.
LAUNCHED = """
from bench.stand_in import cuda
made = []
def list_launch(kernel, grid, arguments):
    given = [(each.shape, each.stride(), each.storage_offset()) if hasattr(each, "shape") else each
             for each in arguments]
    made.append((kernel.fn.__name__, grid, given))
cuda.install(list_launch)
import torch
from polychrome import kernels
from polychrome.kernels.backend import compiles_for
from triton import knobs
from triton.runtime.jit import JITFunction
compiles_for(0)
made.clear()
run = JITFunction.run
x, experts, mixing = (torch.randn(size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
                      for size in ((2, 16, 14, 14), (4, 16, 16, 3, 3), (2, 4)))
w1, w2 = (torch.randn(size, device="cuda", requires_grad=True) for size in ((2, 16), (16, 2)))
calls = {
    "dynamic_conv2d": lambda: kernels.dynamic_conv2d(x, experts, mixing, padding=1),
    "spatial_gate": lambda: kernels.spatial_gate(x, x[:, :1].float()),
    "channel_gate": lambda: kernels.channel_gate(x, w1, None, w2, None),
}
for name, call in calls.items():
    lists = []
    for number in range(3):
        JITFunction.run = None if number == 2 else run
        y = call()
        y.backward(torch.ones_like(y))
        lists.append(made.copy())
        made.clear()
    JITFunction.run = run
    assert lists[0] == lists[1] == lists[2] and len(lists[0]) > 1, (name, lists)
    through = []
    JITFunction.run = lambda *given, **named: through.append(named) or run(*given, **named)
    call()
    assert not through
    knobs.runtime.launch_enter_hook.add(print)
    call()
    knobs.runtime.launch_enter_hook.remove(print)
    hooked = len(through)
    if name == "spatial_gate":
        knobs.runtime.debug = True
        call()
        knobs.runtime.debug = False
        assert len(through) == 2 * hooked
    call()
    assert 0 < len(through) <= 2 * hooked
    JITFunction.run = run
    made.clear()
    print(name)
"""


def test_compiled_kernels_are_launched_as_the_jit_launches_them():
    known = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {
        "PYTHONPATH": str(ROOT)
    }
    done = subprocess.run([sys.executable, "-c", LAUNCHED], cwd=ROOT, env=known, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["dynamic_conv2d", "spatial_gate", "channel_gate"]


def programs() -> list:
    return [each for each in replay._programs.values() if callable(each)]


def caller(name: str):
    return lambda *arguments: library.call(name, *arguments)


def leaf(argument):
    """Return a float tensor as a leaf that wants its gradient; anything else as it is."""
    if isinstance(argument, Tensor) and argument.is_floating_point():
        return argument.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    return argument


def elsewhere(tensor: Tensor) -> Tensor:
    """Return other numbers, places and masks as they are, with the strides of `tensor` but not at a memory's start."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    memory = torch.zeros(span + 64, dtype=tensor.dtype)
    made = memory.as_strided(tensor.shape, tensor.stride(), 64)
    return made.copy_(0.5 * tensor + 0.25 if tensor.is_floating_point() else tensor)


def differing(argument) -> list:
    """Return arguments that differ from this one in one respect each."""
    if isinstance(argument, Tensor):
        larger = argument.new_zeros([argument.shape[0] + 1, *argument.shape[1:]])
        shifted = argument.new_zeros(argument.numel() + 1)[1:].view(argument.shape)
        cast = argument.to(torch.float16 if argument.is_floating_point() else torch.int16)
        strided = argument.new_zeros([*argument.shape[:-1], 2 * argument.shape[-1]])[..., ::2]
        return [larger, shifted, cast, strided, None]
    if isinstance(argument, bool):
        return [not argument]
    if isinstance(argument, list):
        return [[*argument[:-1], not each if isinstance(each, bool) else each + 1] for each in argument[-1:]]
    if isinstance(argument, int):
        return [argument + 1]
    if isinstance(argument, str):
        return [argument + "x"]
    return [torch.ones(3)] if argument is None else []
