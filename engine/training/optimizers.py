"""The optimisers by name, all of them torch's own arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from polychrome.engine.training.transfer import head_of
from polychrome.kernels.modules import DynamicConv2d

NAMES = ("adam", "adamw", "sgd", "nesterov", "muon")
MOMENTUM = 0.9  # of sgd and nesterov
PRODUCTS = {Tensor.__matmul__, torch.addbmm, torch.einsum, torch.linalg.matmul, torch.linalg.multi_dot}
PRODUCTS |= {getattr(place, name) for place in (torch, Tensor) for name in ("matmul", "mm", "bmm", "addmm", "baddbmm")}


def create(
    name: str,
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    only: Iterable[nn.Parameter] | None = None,
    muon_dtype: torch.dtype = torch.bfloat16,
) -> torch.optim.Optimizer:
    """Return a new optimiser of the parameters in `only`, by default of all parameters that require gradients.

    The model has to be on its device before: the fused forms depend on where the parameters are.

    name: "adam" and "sgd" (momentum 0.9) add `weight_decay` times the weights to the gradients, "nesterov" is "sgd"
        with Nesterov's momentum; "adamw" and "muon" (see `Muon`) shrink the weights themselves by lr * weight_decay.
    muon_dtype: of Muon's matrix products.

    Raises:
        ValueError: the name is none of `NAMES`, or there is nothing to optimise.
    """
    parameters = [item for item in model.parameters() if item.requires_grad] if only is None else list(only)
    options = {"lr": lr, "weight_decay": weight_decay}
    if name in ("sgd", "nesterov"):
        optimizer = torch.optim.SGD(parameters, momentum=MOMENTUM, nesterov=name == "nesterov", fused=True, **options)
        for item in parameters:
            # torch's own is uninitialised memory, and stays so where a gradient scaler skips the first step.
            optimizer.state[item]["momentum_buffer"] = torch.zeros_like(item)
        return optimizer
    if name == "adam":
        return torch.optim.Adam(parameters, fused=True, **options)
    if name == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **options)
    if name == "muon":
        orthogonal = {id(weight) for weight in hidden_weights(model)}
        return Muon(
            [item for item in parameters if id(item) in orthogonal],
            [item for item in parameters if id(item) not in orthogonal],
            dtype=muon_dtype,
            **options,
        )
    raise ValueError(f"optimizer must be one of {', '.join(NAMES)}, got {name}")


def hidden_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights for Muon: of all convolutions but the first, and of all linear layers but the head.

    A weight with a single row or column is left out: it has nothing to make orthogonal.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d | DynamicConv2d)]
    first = next((layer for layer in layers if not isinstance(layer, nn.Linear)), None)
    found = {id(layer.weight): layer.weight for layer in layers if min(_matrices(layer.weight)[0].shape) > 1}
    for layer in (first, head_of(model)[1] if layers else None):
        if layer is not None:
            found.pop(id(layer.weight), None)
    return list(found.values())


class Muon(torch.optim.Optimizer):
    """torch's Muon for the weights in `hidden`, its fused AdamW for `others`, as one optimiser of two groups.

    A filter [out, in, height, width] is orthogonalised as the matrix [out, in * height * width], a bank of experts
    [experts, out, in, height, width] as one matrix per expert; the momentum is 0.95, Nesterov's. The update is scaled
    to the root mean square of AdamW's (adjust_lr_fn="match_rms_adamw", Liu et al. 2025, arXiv 2502.16982), so one rate
    and one weight decay serve both groups: try a rate that suits AdamW first.

    dtype: of the matrix products: bfloat16 as in torch's Muon, or float32 for processors that only emulate bfloat16.

    Raises:
        ValueError: `hidden` and `others` are both empty, or the dtype is another one.
    """

    def __init__(
        self,
        hidden: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.bfloat16,
    ):
        hidden, others = list(hidden), list(others)
        if not hidden and not others:
            raise ValueError("optimizer got an empty parameter list")
        if dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(f"dtype must be bfloat16 or float32, got {dtype}")
        options = {"lr": lr, "weight_decay": weight_decay}
        muon = _MuonOfViews([{"params": []}], adjust_lr_fn="match_rms_adamw", **options)
        adamw = torch.optim.AdamW([{"params": []}], fused=True, **options)
        self._parts, self._products = (muon, adamw), _InFloat32 if dtype == torch.float32 else nullcontext
        groups = [{"params": hidden} | muon.defaults, {"params": others} | adamw.defaults]
        super().__init__(groups, options)

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Take one step and return the loss of `closure`, which computes the loss anew; None without a closure.

        Raises:
            RuntimeError: float32 is asked for, and this torch's Muon multiplies in bfloat16 all the same.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part, group in zip(self._parts, self.param_groups, strict=True):
            # Loading a state dict makes new groups and a new state, so each step hands over the present groups.
            part.param_groups, part.state = [group], self.state
            with self._products():
                part.step()
        return loss


class _InFloat32(TorchFunctionMode):
    """Makes a cast to bfloat16 a copy in float32: torch's Muon has no setting for its products.

    It casts by `Tensor.bfloat16`, from torch 2.15 on by `Tensor.to`.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        casts = function is Tensor.to and any(value is torch.bfloat16 for value in (*args, *kwargs.values()))
        if casts or function is Tensor.bfloat16:
            return args[0].to(torch.float32, copy=True)
        result = function(*args, **kwargs)
        if function in PRODUCTS and result.dtype == torch.bfloat16:
            raise RuntimeError(
                f"Muon of torch {torch.__version__} multiplies in bfloat16 where float32 is asked for: take another "
                "optimizer, or another version of torch"
            )
        return result


class _MuonOfViews(torch.optim.Muon):
    """torch's Muon on the matrices that share the memory of weights of 2, 4 or 5 dimensions."""

    def _init_group(self, group, params_with_grad, grads, muon_momentum_bufs) -> bool:
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            momentum = state.get("momentum_buffer")
            momentum = torch.zeros_like(weight) if momentum is None else _laid_out_as(weight, momentum)
            state["momentum_buffer"] = momentum
            params_with_grad += _matrices(weight)
            grads += _matrices(_laid_out_as(weight, weight.grad))
            muon_momentum_bufs += _matrices(momentum)
        return False  # no weight is complex


def _matrices(weight: Tensor) -> list[Tensor]:
    """Return the matrices [out, -1] in a weight's memory: a single one, or one per expert of [experts, out, ...].

    The columns are in the order of the memory: in a channels_last filter the input channel runs fastest.
    """
    if weight.ndim == 5:
        return [matrix for expert in weight.unbind() for matrix in _matrices(expert)]
    if weight.ndim == 4 and not weight.is_contiguous():
        weight = weight.permute(0, 2, 3, 1)
    return [weight.view(len(weight), -1)]


def _laid_out_as(weight: Tensor, other: Tensor) -> Tensor:
    """Return `other` with the strides of `weight`, a tensor of the same shape: a copy where the strides differ."""
    return other if other.stride() == weight.stride() else torch.empty_like(weight).copy_(other)
