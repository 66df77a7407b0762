"""Registration of ops in the `polychrome` namespace."""

from collections.abc import Callable
from functools import wraps

import torch

from kernels.tensors import autocasts, empty_as, not_asked

NAMESPACE = "polychrome"


def register_op(name: str, implementation: Callable, fake: Callable) -> None:
    """Define the opaque op `polychrome::<name>` for all devices from an annotated eager implementation."""
    qualified = f"{NAMESPACE}::{name}"
    schema = torch.library.infer_schema(implementation, mutates_args=())
    torch.library.define(qualified, schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(qualified, "default", _plain(implementation))
    torch.library.register_fake(qualified, fake)


def register_backward(name: str, setup_context: Callable, backward: Callable) -> None:
    """Make `backward` the gradient of `polychrome::<name>`; differentiating its `_backward` op raises."""
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context)

    def refuse(ctx, *grads):
        raise RuntimeError(
            f"{name} has no second derivative; call it under kernels.use_backend('reference') to get one"
        )

    torch.library.register_autograd(f"{NAMESPACE}::{name}_backward", refuse)


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
        op = getattr(torch.ops.polychrome, f"{name}_backward")
        return *asked(op(grad, *ctx.saved_tensors, needed, ctx.backend), needed), None

    register_op(name, forward, fake)
    register_op(f"{name}_backward", backward, backward_fake)
    register_backward(name, setup, gradient)


def call(name: str, *arguments):
    """Return what `polychrome::<name>` does of the arguments; `torch.onnx.export` records its decomposition instead."""
    op = getattr(torch.ops.polychrome, name)
    if (torch.jit.is_tracing() or torch.compiler.is_exporting()) and torch.onnx.is_in_onnx_export():
        from kernels.decompositions import ONNX

        return ONNX[op.default](*arguments)
    return op(*arguments)


def asked(gradients, needed) -> tuple:
    """Return the gradients with None for those not needed."""
    return tuple(gradient if need else None for gradient, need in zip(gradients, needed, strict=True))


def _plain(implementation: Callable) -> Callable:
    """Return `implementation` in the state that an op's body has to run in, whatever the caller's is.

    Below autograd and its record of views: torch calls the body with that record on, and an output that the body made
    by reshaping could then not be modified in place (`relu_` after a convolution). Without autocast: its key is still
    on inside an op, so that `F.conv2d` or a matmul there would cast its operands once more.
    """

    @wraps(implementation)
    def run(*args):
        tensor = next(argument for argument in args if isinstance(argument, torch.Tensor))
        with torch._C._AutoDispatchBelowADInplaceOrView():
            if not autocasts(tensor):
                return implementation(*args)
            with torch.autocast(tensor.device.type, enabled=False):
                return implementation(*args)

    return run
