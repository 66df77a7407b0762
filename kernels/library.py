"""The ops in the `polychrome` namespace: how they are registered, and how they are called."""

from collections.abc import Callable, Mapping
from functools import wraps

import torch

from polychrome.kernels import replay
from polychrome.kernels.backend import constant_when_traced
from polychrome.kernels.tensors import empty_as, gradients_as

NAMESPACE = "polychrome"

_bodies: dict[str, Callable] = {}
_functions: dict[str, type[torch.autograd.Function]] = {}
_recorded: dict[torch._ops.OpOverload, Callable] = {}


def register_op(name: str, implementation: Callable, fake: Callable) -> None:
    """Define the opaque op `polychrome::<name>` for all devices from an annotated eager implementation.

    Its first argument is a tensor, on whose device it runs; its last one is the backend.
    """
    qualified = f"{NAMESPACE}::{name}"
    schema = torch.library.infer_schema(implementation, mutates_args=())
    torch.library.define(qualified, schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(qualified, "default", lambda *arguments: _below(arguments[0], implementation, *arguments))
    torch.library.register_fake(qualified, fake)
    _bodies[name] = implementation


def register_backward(name: str, setup_context: Callable, backward: Callable) -> None:
    """Make `backward` the gradient of `polychrome::<name>`, which may be another op's `_backward` op.

    It runs with autocast off, as the op does, also where `.backward()` is called inside autocast.
    """
    backward = _without_autocast(backward)
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context)
    _functions[name] = _function(name, setup_context, backward)


def _without_autocast(function: Callable) -> Callable:
    @wraps(function)
    def run(*arguments):
        with torch._C._DisableAutocast():
            return function(*arguments)

    return run


def register_second(name: str, definition: Callable) -> None:
    """Make `polychrome::<name>_backward` differentiable by the plain PyTorch `definition` of `polychrome::<name>`.

    The backward op's arguments are grad, the op's tensors, tensors that the op has saved, other arguments, `needed` and
    the backend. `definition` is called with the op's tensors, one for each of `needed`, and the other arguments.
    """

    def setup(ctx, inputs, output):
        grad, *given, ctx.needed, _ = inputs
        tensors, rest = given[: len(ctx.needed)], given[len(ctx.needed) :]
        ctx.others = [each for each in rest if not isinstance(each, torch.Tensor)]
        ctx.count = len(inputs)
        ctx.save_for_backward(grad, *tensors)

    def gradient(ctx, *cotangents):
        grad, *tensors = ctx.saved_tensors
        used, wanted = asked(cotangents, ctx.needed), needs(ctx)[: len(tensors) + 1]
        found = second_derivative(definition, grad, tensors, ctx.others, used, wanted)
        return *found, *[None] * (ctx.count - len(found))

    register_backward(f"{name}_backward", setup, gradient)


def second_derivative(definition: Callable, grad, tensors, others, cotangents, wanted) -> list[torch.Tensor | None]:
    """Return the gradients of `grad` and each of `tensors` for these cotangents of a function's gradients.

    The function is `definition(*tensors, *others)`, its gradients for `grad` those of `tensors`. A cotangent is None
    where nobody used a gradient, a result where it is not `wanted`. While gradients are recorded the results can be
    differentiated again.
    """
    keep = torch.is_grad_enabled()
    with torch.enable_grad(), torch._C._DisableAutocast():
        # Made anew, as grad may itself have come from the tensors, which is not for this derivative to follow.
        grad, *tensors = inputs = [_anew(each, keep) for each in (grad, *tensors)]
        y = definition(*tensors, *others)
        used = [(x, cotangent) for x, cotangent in zip(tensors, cotangents, strict=True) if cotangent is not None]
        if not used or not any(wanted):
            return [None] * len(inputs)
        first = torch.autograd.grad(y, [x for x, _ in used], grad, create_graph=True)
        asked_for = [each for each, want in zip(inputs, wanted, strict=True) if want]
        found = iter(torch.autograd.grad(first, asked_for, [c for _, c in used], create_graph=keep, allow_unused=True))
        return [next(found) if want else None for want in wanted]


def _anew(tensor: torch.Tensor | None, keep: bool) -> torch.Tensor | None:
    """Return the tensor as a new node of autograd, which wants a gradient, behind the old one if `keep`."""
    if tensor is None:
        return None
    if keep and tensor.requires_grad:
        return tensor.view_as(tensor)
    return tensor.detach().requires_grad_()


def record_as(functions: Mapping[torch._ops.OpOverload, Callable]) -> None:
    """Have `torch.onnx.export` record these functions in place of the ops."""
    _recorded.update(functions)


def register_product(name: str, forward: Callable, backward: Callable, definition: Callable) -> None:
    """Register `polychrome::<name>`, a product of x with a factor of it, and its backward op, one with the other.

    `forward(x, factor, backend)` returns [batch, channels, height, width] as x is; `backward(grad, x, factor, needed,
    backend)` the gradients of both, a placeholder (`not_asked(x)`) for one not needed; `definition(x, factor)` is the
    product in plain PyTorch.
    """

    def fake(x, factor, backend="auto"):
        return empty_as(x, x.shape)

    def backward_fake(grad, x, factor, needed, backend="auto"):
        return gradients_as((x, factor), needed)

    def setup(ctx, inputs, output):
        *tensors, ctx.backend = inputs
        ctx.save_for_backward(*tensors)

    def gradient(ctx, grad):
        needed = needs(ctx)[:2]
        return *asked(call(f"{name}_backward", grad, *ctx.saved_tensors, needed, ctx.backend), needed), None

    register_op(name, forward, fake)
    register_op(f"{name}_backward", backward, backward_fake)
    register_backward(name, setup, gradient)
    register_second(name, definition)


def call(name: str, *arguments):
    """Return the result of `polychrome::<name>`; `torch.onnx.export` records its decomposition instead.

    A plain call runs the body, or the program that `kernels/replay.py` keeps for it, as an autograd node: torch's
    dispatcher of Python ops would take longer than everything else on the host. Torch is given the op itself where
    `replay.key_of` returns None, and where a gradient is to be differentiated. Only then is an implementation called
    that other code has registered for the op.
    """
    key = replay.key_of(name, arguments)
    if key is not None:
        if not (torch.is_grad_enabled() and any(map(_requires_grad, arguments))):
            return _run(name, key, arguments)
        if name in _functions:
            return _functions[name].apply(*arguments, key)
    op = getattr(torch.ops.polychrome, name)
    if (torch.jit.is_tracing() or torch.compiler.is_exporting()) and _writes_onnx():
        return _recorded.get(op.default, op)(*arguments)
    return op(*arguments)


@constant_when_traced
def _writes_onnx() -> bool:
    """Return whether `torch.onnx.export` runs: Dynamo, which may trace for it, takes torch's function as false."""
    return torch.onnx.is_in_onnx_export()


def asked(gradients, needed) -> tuple:
    """Return the gradients, None where a gradient is not needed."""
    return tuple(gradient if need else None for gradient, need in zip(gradients, needed, strict=True))


def needs(ctx) -> list[bool]:
    """Return, for each argument of an op, whether the backward pass that is running uses its gradient.

    `ctx.needs_input_grad` of a Python function says which arguments any pass may want: under `torch.autograd.grad(y,
    x)` the weights' gradients would be made too, and dropped. Torch's own functions ask the engine, as is done here.
    """
    found = list(ctx.needs_input_grad)
    if found.count(True) > 1:
        for place, (node, _) in zip(getattr(ctx, "places", ()), ctx.next_functions, strict=False):
            if found[place] and not _is_executed(node):
                found[place] = False
    return found


def _is_executed(node) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf whose gradient torch.autograd.grad returns
        return True


def _requires_grad(argument) -> bool:
    return isinstance(argument, torch.Tensor) and argument.requires_grad


def _function(name: str, setup_context: Callable, backward: Callable) -> type[torch.autograd.Function]:
    """Return the node of autograd for plain calls of `polychrome::<name>`; the last argument is the call's key."""

    def forward(ctx, *arguments):
        *inputs, key = arguments
        ctx.places = [place for place, argument in enumerate(inputs) if isinstance(argument, torch.Tensor)]
        output = _run(name, key, inputs)
        ctx.set_materialize_grads(False)
        setup_context(ctx, inputs, output)
        return output

    def gradient(ctx, *grads):
        if all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        return *backward(ctx, *grads), None

    methods = {"forward": staticmethod(forward), "backward": staticmethod(gradient)}
    return type(name, (torch.autograd.Function,), methods)


def _run(name: str, key: replay.Key, arguments: tuple):
    """Return the result of the op's body for a plain call; profilers see the op and its inputs, as for torch's ops."""
    with torch._C._profiler._RecordFunctionFast(f"{NAMESPACE}::{name}", arguments):
        return _below(arguments[0], replay.run, _bodies[name], key, arguments)


def _below(tensor: torch.Tensor, function: Callable, *arguments):
    """Return `function(*arguments)` in the state that an op's body needs, whatever the caller's state is.

    Below autograd and its record of views: torch calls the body with that record on, and an output that the body made
    by reshaping could then not be modified in place (`relu_` after a convolution). Without autocast: its key is still
    on inside an op, so `F.conv2d` or a matmul would cast its operands again. On the tensor's device, where launches are
    made.
    """
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        with torch.cuda.device(tensor.device):
            return _below(tensor, function, *arguments)
    with torch._C._AutoDispatchBelowADInplaceOrView(), torch._C._DisableAutocast():
        return function(*arguments)
