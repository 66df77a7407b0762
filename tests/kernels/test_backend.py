import asyncio
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad

from polychrome import kernels
from polychrome.kernels import (
    augment,
    channel_gate,
    channel_stats,
    dynamic_conv2d,
    per_sample_conv2d,
    spatial_attention,
    spatial_gate,
    use_backend,
)
from polychrome.kernels.backend import current_backend
from polychrome.kernels.launch import record_launches
from tests.grids import grid
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.op_calls import function_arguments, public
from tests.kernels.oracle import randn

CALLS = {
    dynamic_conv2d: (randn(2, 3, 5, 5), randn(4, 6, 3, 3, 3), randn(2, 4)),
    per_sample_conv2d: (randn(2, 3, 5, 5), randn(2, 6, 3, 3, 3)),
    channel_stats: (randn(2, 3, 5, 5),),
    spatial_attention: (randn(2, 3, 5, 5), randn(1, 2, 3, 3)),
    spatial_gate: (randn(2, 3, 5, 5), randn(2, 1, 5, 5)),
    channel_gate: (randn(2, 3, 5, 5), None, None, randn(3, 3), None),
}
# Its definition looks at values, so that it cannot be traced; and it takes no float tensor.
AUGMENT_CALL = {augment: (torch.arange(150, dtype=torch.uint8).reshape(2, 5, 5, 3), torch.tensor([[0, 1, 4, 3]] * 2))}
every_op = pytest.mark.parametrize("function", CALLS | AUGMENT_CALL, ids=lambda f: f.__name__)
every_traceable_op = pytest.mark.parametrize("function", CALLS, ids=lambda f: f.__name__)


def ops_in(graph: torch.fx.GraphModule) -> set[str]:
    return {str(node.target) for node in graph.graph.nodes if "polychrome" in str(node.target)}


def test_the_choice_nests_and_ends_with_the_block():
    assert current_backend() == "auto"
    with use_backend("reference"):
        with use_backend("triton"):
            assert current_backend() == "triton"
        assert current_backend() == "reference"
        with pytest.raises(ZeroDivisionError), use_backend("auto"):
            _ = 1 / 0
        assert current_backend() == "reference"
    assert current_backend() == "auto"


def test_threads_whose_choices_overlap_have_their_own_and_leave_none():
    entered, left, seen = threading.Event(), threading.Event(), {}

    def other():
        seen["at first"] = current_backend()
        with use_backend("triton"):
            entered.set()
            left.wait(5)
            seen["inside"] = current_backend()
        seen["after"] = current_backend()

    thread = threading.Thread(target=other)
    with use_backend("reference"):
        thread.start()
        entered.wait(5)
        assert current_backend() == "reference"
    assert current_backend() == "auto"
    left.set()
    thread.join()
    assert seen == {"at first": "auto", "inside": "triton", "after": "auto"}
    assert current_backend() == "auto"


def test_one_choice_object_serves_overlapping_threads():
    choice, steps = use_backend("reference"), [threading.Event() for _ in range(3)]
    seen = []

    def other():
        with use_backend("triton"):
            steps[0].wait(5)
            with choice:
                steps[1].set()
                steps[2].wait(5)
            seen.append(current_backend())

    thread = threading.Thread(target=other)
    with choice:
        thread.start()
        steps[0].set()
        steps[1].wait(5)
    assert current_backend() == "auto"
    steps[2].set()
    thread.join()
    assert seen == ["triton"]


def test_tasks_of_an_event_loop_have_their_own_choices():
    async def chosen(name, others):
        with use_backend(name):
            for _ in range(3):
                await asyncio.sleep(0)
                others.append(current_backend() == name)
        return current_backend()

    async def both():
        agreed = []
        after = await asyncio.gather(chosen("reference", agreed), chosen("triton", agreed))
        return agreed, after

    assert asyncio.run(both()) == ([True] * 6, ["auto", "auto"])
    assert current_backend() == "auto"


def test_compiled_code_sees_the_last_choice_and_auto_when_all_are_over():
    """The two blocks overlap, as those of two threads do."""
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda *a: spatial_attention(*a), fullgraph=True, backend=backend)
    inside, over = threading.Event(), threading.Event()

    def other():
        with use_backend("reference"):
            inside.set()
            over.wait(5)

    thread = threading.Thread(target=other)
    arguments = CALLS[spatial_attention]
    with use_backend("auto"):
        thread.start()
        inside.wait(5)
        compiled(*arguments)
    over.set()
    thread.join()
    compiled(*arguments)
    assert [bool(ops_in(graph)) for graph in backend.graphs] == [False, True]


def test_an_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match="backend must be one of auto, triton, reference, got 'cudnn'"):
        use_backend("cudnn")


def dual(function, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, x.cos()))).tangent


TRANSFORMS = {
    "jvp": lambda function, x: torch.func.jvp(function, (x,), (x.cos(),))[1],
    "jacfwd": lambda function, x: torch.func.jacfwd(lambda x: function(x).sum((1, 2, 3)))(x),
    "vmap": lambda function, x: torch.func.vmap(function)(torch.stack([x, x.cos()])),
    "gradient": lambda function, x: torch.func.grad(lambda x: function(x).square().sum())(x),
    "gradients of samples": lambda function, x: torch.func.vmap(
        torch.func.grad(lambda one: function(one[None].expand_as(x)).square().sum())
    )(x),
    "dual": dual,
}


@grid(function=list(CALLS), transform=list(TRANSFORMS), compiled=[False, True])
def test_transforms_follow_the_definition(function, transform, compiled):
    x, *rest = CALLS[function]

    def called(x, function):
        return TRANSFORMS[transform](lambda x: function(x, *rest), x)

    expected = called(x, function.reference)
    torch._dynamo.reset()
    run = torch.compile(called, backend="aot_eager") if compiled else called
    found = run(x, function)
    assert expected.any()
    torch.testing.assert_close(found, expected)


def each_tensor():
    """Yield the name, the arguments and the place of each tensor of every public function."""
    for function in public():
        arguments, _ = function_arguments(function.__name__, torch.float32)
        if function is not augment:  # uint8 images have no transforms
            yield from ((function, place) for place, each in enumerate(arguments) if isinstance(each, torch.Tensor))


NESTED = {
    "vmap": lambda function, two: torch.func.vmap(function, in_dims=1)(two),
    "vmap of vmap": lambda function, two: torch.func.vmap(torch.func.vmap(function, in_dims=1))(two[None])[0],
    "last": lambda function, two: torch.func.vmap(function, in_dims=-1)(two.movedim(1, -1)),
}


@pytest.mark.parametrize(("function", "place"), each_tensor(), ids=lambda each: getattr(each, "__name__", each))
def test_vmap_maps_over_any_tensor(function, place):
    arguments, options = function_arguments(function.__name__, torch.float32)
    given = arguments[place]
    two = torch.stack([given, given.roll(1, 1) if given.dtype == torch.bool else given * 0.5], 1)

    def of_one(one):
        return function(*arguments[:place], one, *arguments[place + 1 :], **options)

    expected = torch.stack([of_one(one) for one in two.unbind(1)])
    for transform in NESTED.values():
        torch.testing.assert_close(transform(of_one, two), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transform", NESTED)
def test_a_sample_without_channels_is_named_under_vmap(transform):
    x, mask = randn(3, 4, 5, 6), torch.ones(3, 2, 4, dtype=torch.bool)
    mask[2, 1] = False
    with pytest.raises(ValueError, match="mask must leave at least one channel in every sample, got none in sample 2"):
        NESTED[transform](lambda one: channel_stats(x, one), mask)


@needs_interpreter
@grid(function=list(CALLS), transform=list(TRANSFORMS))
def test_kernels_that_follow_no_transform_are_not_called(function, transform):
    x, *rest = CALLS[function]
    message = rf"{function.__name__} has no kernel for .*; call it under use_backend\('auto'\)"
    with use_backend("triton"), pytest.raises(RuntimeError, match=message):
        TRANSFORMS[transform](lambda x: function(x, *rest), x)


@every_op
def test_reference_calls_the_definition_and_auto_the_op(function):
    arguments = (CALLS | AUGMENT_CALL)[function]
    with use_backend("reference"):
        assert torch.equal(function(*arguments), function.reference(*arguments))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as plain:
            function(*arguments)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as opaque:
        function(*arguments)
    name = f"polychrome::{function.__name__}"
    assert name not in {event.key for event in plain.key_averages()}
    assert name in {event.key for event in opaque.key_averages()}


@needs_interpreter
@every_op
def test_triton_runs_kernels_and_auto_on_a_cpu_none(function):
    arguments = (CALLS | AUGMENT_CALL)[function]
    with record_launches() as launches:
        expected = function(*arguments)
    assert launches == []
    with use_backend("triton"), record_launches() as launches:
        one_step = {"rtol": 0, "atol": 1.001 / 255} if function is augment else {}  # it resizes in uint8 on a CPU
        torch.testing.assert_close(function(*arguments), expected, **one_step)
    assert launches


def test_triton_on_a_cpu_says_what_to_do():
    code = """
import torch
from polychrome.kernels import dynamic_conv2d, use_backend
with use_backend("triton"):
    try:
        dynamic_conv2d(torch.zeros(2, 3, 5, 5), torch.zeros(4, 6, 3, 3, 3), torch.zeros(2, 4))
    except RuntimeError as error:
        print(error)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    triton = pytest.importorskip("triton", reason="without Triton the message is another")
    assert triton
    assert result.stdout == (
        "dynamic_conv2d cannot run on Triton with x on cpu; move it to a CUDA device, or set TRITON_INTERPRET=1 before "
        "Triton is imported to run its kernels on CPU tensors\n"
    )


def test_without_triton_all_is_imported_auto_runs_and_triton_says_why_not():
    code = """
import sys
sys.modules["triton"] = None
import torch
import kernels.modules
from polychrome.kernels import dynamic_conv2d, use_backend
arguments = torch.zeros(2, 3, 5, 5), torch.zeros(4, 6, 3, 3, 3), torch.zeros(2, 4)
print(dynamic_conv2d(*arguments).shape)
with use_backend("triton"):
    try:
        dynamic_conv2d(*arguments)
    except RuntimeError as error:
        print(error)
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "torch.Size([2, 6, 3, 3])",
        "dynamic_conv2d cannot run on Triton, which is not installed; use use_backend('auto')",
    ]


@every_traceable_op
def test_bad_arguments_are_found_before_the_backend(function):
    with use_backend("triton"), pytest.raises(TypeError, match="x must be a tensor"):
        function(None, *CALLS[function][1:])


@every_traceable_op
def test_the_choice_is_read_under_fullgraph_compile(function):
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda *a: function(*a), fullgraph=True, backend=backend)
    arguments = CALLS[function]
    expected = function(*arguments)
    torch.testing.assert_close(compiled(*arguments), expected)
    with use_backend("reference"):
        torch.testing.assert_close(compiled(*arguments), expected)
    torch.testing.assert_close(compiled(*arguments), expected)
    assert backend.frame_count == 2
    auto, reference = (ops_in(graph) for graph in backend.graphs)
    assert {name.removesuffix(".default") for name in auto} == {f"polychrome.{function.__name__}"}
    assert not reference


def test_the_choice_can_be_made_inside_a_compiled_function():
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=backend)
    def attend(x, weight):
        with use_backend("reference"):
            return spatial_attention(x, weight)

    arguments = CALLS[spatial_attention]
    torch.testing.assert_close(attend(*arguments), spatial_attention(*arguments))
    assert not ops_in(backend.graphs[0])
    assert current_backend() == "auto"


def test_public_names():
    for name in kernels.__all__:
        assert callable(getattr(kernels, name))
    for function in CALLS | AUGMENT_CALL:
        assert callable(function.reference)


@pytest.mark.slow
def test_inductor_trains_through_every_op():
    torch._dynamo.reset()

    def network(x, experts, mixing, weight, gate):
        y = dynamic_conv2d(x, experts, mixing, stride=2, padding=1).relu()
        y = channel_gate(spatial_attention(y, weight), None, None, gate, None)
        y = spatial_gate(y, channel_stats(y)[:, 1:])
        return y.sum() + channel_stats(y).sum() + per_sample_conv2d(y, experts[:, :, :1].expand(2, -1, 6, 3, 3)).sum()

    def gradients(function, batch_layout):
        inputs = (randn(2, 3, 9, 9), randn(2, 6, 3, 3, 3), randn(2, 2), randn(1, 2, 3, 3), randn(6, 6))
        leaves = [t.clone().requires_grad_() for t in inputs]
        leaves[0] = leaves[0].detach().to(memory_format=batch_layout).requires_grad_()
        function(*leaves).backward()
        return [leaf.grad for leaf in leaves]

    compiled = torch.compile(network, fullgraph=True)
    for layout in (torch.contiguous_format, torch.channels_last):
        for got, expected in zip(gradients(compiled, layout), gradients(network, layout), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
