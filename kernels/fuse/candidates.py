"""What a recogniser says of a module."""

from typing import NamedTuple

from torch import nn

from kernels.fuse.swapped import Swapped


class Match(NamedTuple):
    """The forward that a module may get, and where its operands are."""

    kind: type[Swapped]
    plan: tuple | None = None


class Refusal(NamedTuple):
    """Why a module stays as it is."""

    reason: str


def obstacle(module: nn.Module) -> str | None:
    """Return what about this object, not its class, another forward would get wrong, if anything."""
    for path, inner in module.named_modules():
        where = f" on {path}" if path else ""
        if "forward" in inner.__dict__:
            return f"forward replaced on the object{where}"
        if getattr(inner, "parametrizations", None):
            return f"parametrisation{where} of {', '.join(inner.parametrizations)}"
        for hooks in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"):
            if found := getattr(inner, hooks):
                kind = hooks.strip("_").replace("_", " ").removesuffix("s")
                return f"{kind}{where}: {_name(next(iter(found.values())))}"
    return None


def _name(hook) -> str:
    return getattr(hook, "__qualname__", type(hook).__qualname__)
