"""The ops in the `polychrome` namespace: how they are registered, and how they are called."""

from collections.abc import Callable, Mapping

import torch

from polychrome.kernels import replay
from polychrome.kernels.tensors import empty_as, not_asked

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
    """Make `backward` the gradient of `polychrome::<name>`; differentiating its `_backward` op raises."""
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context)
    _functions[name] = _function(name, setup_context, backward)

    def refuse(ctx, *grads):
        raise RuntimeError(
            f"{name} has no second derivative; call it under kernels.use_backend('reference') to get one"
        )

    torch.library.register_autograd(f"{NAMESPACE}::{name}_backward", refuse)


def record_as(functions: Mapping[torch._ops.OpOverload, Callable]) -> None:
    """Have `torch.onnx.export` record these functions in place of the ops."""
    _recorded.update(functions)


def register_product(name: str, forward: Callable, backward: Callable) -> None:
    """Register `polychrome::<name>`, a product of x with a factor of it, and its backward op, one with the other.

    `forward(x, factor, backend)` returns [batch, channels, height, width] as x is; `backward(grad, x, factor, needed,
    backend)` the gradients of both, a placeholder (`not_asked(x)`) for one not needed.
    """

    def fake(x, factor, backend="auto"):
        return empty_as(x, x.shape)

    def backward_fake(grad, x, factor, needed, backend="auto"):
        return (
            empty_as(x, x.shape) if needed[0] else not_asked(x),
            factor.new_empty(factor.shape) if needed[1] else not_asked(x),
        )

    def setup(ctx, inputs, output):
        *tensors, ctx.backend = inputs
        ctx.save_for_backward(*tensors)

    def gradient(ctx, grad):
        needed = list(ctx.needs_input_grad[:2])
        return *asked(call(f"{name}_backward", grad, *ctx.saved_tensors, needed, ctx.backend), needed), None

    register_op(name, forward, fake)
    register_op(f"{name}_backward", backward, backward_fake)
    register_backward(name, setup, gradient)


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
    if (torch.jit.is_tracing() or torch.compiler.is_exporting()) and torch.onnx.is_in_onnx_export():
        return _recorded.get(op.default, op)(*arguments)
    return op(*arguments)


def asked(gradients, needed) -> tuple:
    """Return the gradients, None where a gradient is not needed."""
    return tuple(gradient if need else None for gradient, need in zip(gradients, needed, strict=True))


def _requires_grad(argument) -> bool:
    return isinstance(argument, torch.Tensor) and argument.requires_grad


def _function(name: str, setup_context: Callable, backward: Callable) -> type[torch.autograd.Function]:
    """Return the node of autograd for plain calls of `polychrome::<name>`; the last argument is the call's key."""

    def forward(ctx, *arguments):
        *inputs, key = arguments
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
