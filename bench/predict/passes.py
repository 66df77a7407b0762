"""The launches of each op at the shapes of its benchmark, pass by pass, on tensors without memory."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bench.ops import augment as augmentations
from bench.ops import channel_gate as gates
from bench.ops import dynamic_conv as convolutions
from bench.ops import spatial_attention as attentions
from bench.ops.feature_maps import FeatureMap
from polychrome.kernels.augment.arguments import Arguments
from polychrome.kernels.augment.triton import ops as augment
from polychrome.kernels.channel_gate.triton import ops as gate
from polychrome.kernels.dynamic_conv.configs import HOPPER
from polychrome.kernels.dynamic_conv.plan import rule
from polychrome.kernels.dynamic_conv.triton import ops as convolution
from polychrome.kernels.launch import Launch, record_launches
from polychrome.kernels.spatial_attention.triton import ops as attention

DEVICE = "cuda"


class Library(NamedTuple):
    """A torch kernel: its name, the tensors it reads and writes, and its FLOPs."""

    name: str
    reads: list[Tensor]
    writes: list[Tensor]
    flops: int


class Pass(NamedTuple):
    """One pass of a call: its launches, the tensors it returns, and the least possible bytes and FLOPs."""

    op: str
    shape: str
    name: str
    launches: list[Launch | Library]
    results: list[Tensor]
    least_bytes: float
    least_flops: float


class Shape(NamedTuple):
    """A shape of an op's benchmark, and a function that yields its passes."""

    op: str
    key: str
    passes: Callable[[], Iterator[Pass]]


def shapes() -> list[Shape]:
    """Return every shape that is timed on a GPU in bfloat16."""
    found = [Shape("dynamic_conv", each.name, partial(_convolution, each)) for each in convolutions.shapes_on(DEVICE)]
    for op, module, passes in (
        ("spatial_attention", attentions, _attention),
        ("channel_gate", gates, _gate),
        ("augment", augmentations, _augment),
    ):
        found += [Shape(op, each.key, partial(passes, each)) for each in module.shapes_on(DEVICE)]
    return found


def _convolution(shape: convolutions.Shape) -> Iterator[Pass]:
    problem = shape.problem(torch.bfloat16)
    last = torch.channels_last
    x = _empty(shape.batch, shape.in_channels, shape.size, shape.size).to(memory_format=last)
    grad = _empty(shape.batch, shape.out_channels, *problem.out_size).to(memory_format=last)
    experts = _empty(shape.experts, shape.out_channels, shape.in_channels // shape.groups, shape.kernel, shape.kernel)
    mixing = _empty(shape.batch, shape.experts, dtype=torch.float32)
    given = (x, experts, mixing, None, problem.geometry)
    # The stacked form makes mixing's gradient with x's, other forms with the experts'.
    stacked = rule(problem)[0] == "stacked"
    backward = convolution.dynamic_conv2d_backward
    calls = {
        "forward": lambda: convolution.dynamic_conv2d(*given),
        "gradient of x": lambda: backward(grad, *given, [True, False, stacked, False]),
        "gradient of the weights": lambda: backward(grad, *given, [False, True, not stacked, False]),
    }
    for name, call in calls.items():
        least = problem.forward_bytes if name == "forward" else problem.backward_bytes / 2
        yield _recorded("dynamic_conv", shape.name, name, call, least, problem.flops)


def _attention(shape: attentions.Shape) -> Iterator[Pass]:
    x, weight = _map(shape.x), _empty(1, 2, attentions.KERNEL, attentions.KERNEL)

    def backward(y: Tensor, *saved: Tensor):
        return attention.spatial_attention_backward(y, x, weight, None, *saved, [True, True, False])

    return _both("spatial_attention", shape, lambda: attention.spatial_attention(x, weight, None), backward)


def _gate(shape: gates.Shape) -> Iterator[Pass]:
    x = _map(shape.x)
    weights = [_empty(*size) for size in shape.weights]
    weights = weights if shape.hidden else [None, None, *weights, None]
    needed = [True, *(weight is not None for weight in weights)]

    def backward(y: Tensor, *saved: Tensor):
        return gate.channel_gate_backward(y, x, *weights, *saved, "sigmoid", needed)

    return _both("channel_gate", shape, lambda: gate.channel_gate(x, *weights, "sigmoid"), backward)


def _both(
    op: str, shape: attentions.Shape | gates.Shape, forward: Callable[[], tuple], backward: Callable
) -> Iterator[Pass]:
    """Yield the passes of a call on a feature map; `backward` gets the results of `forward`, y as its gradient."""
    made = _recorded(op, shape.key, "forward", forward, shape.forward_bytes(HOPPER.l2_bytes))
    yield made
    yield _recorded(op, shape.key, "backward", lambda: backward(*made.results), shape.backward_bytes())


def _augment(shape: augmentations.Shape) -> Iterator[Pass]:
    # A program's work depends on its crop: real crops, on the host.
    call = shape.call("cpu", blank=True)
    size = (call.size, call.size)
    given = Arguments(call.images, call.indices, *call.drawn, call.mean, call.std, *size, call.dtype)
    yield _recorded("augment", shape.key, "forward", lambda: augment.augment(given), call.forward_bytes())


def _recorded(op: str, shape: str, name: str, call: Callable, least_bytes: float, least_flops: float = 0) -> Pass:
    with record_launches() as launches, _Libraries(launches):
        results = call()
    results = [results] if isinstance(results, Tensor) else list(results)
    return Pass(op, shape, name, launches, results, least_bytes, least_flops)


class _Libraries(TorchDispatchMode):
    """Puts every torch kernel into the list of launches."""

    def __init__(self, launches: list):
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        name = function.overloadpacket.__name__
        if not function.is_view and "empty" not in name and made:
            # The tensor that an in-place kernel writes is not read, except by a sum into it.
            reads = [t for t in given if not any(t is m for m in made) or name.startswith("add")]
            count = flop_registry.get(function.overloadpacket)
            flops = count(*args, **kwargs, out_val=result) if count else 0
            self.launches.append(Library(name, reads, made, flops))
        return result


def _map(like: FeatureMap) -> Tensor:
    return _empty(*like[:4], dtype=like.dtype).to(memory_format=like.layout)


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")
