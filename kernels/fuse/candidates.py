"""What a recogniser says of a module."""

from typing import NamedTuple

from torch import nn

from polychrome.kernels.fuse.swapped import Swapped
from polychrome.kernels.plain import HOOKS, has_any_global_hook


class Match(NamedTuple):
    """The forward that a module may get, and where its operands are."""

    kind: type[Swapped]
    plan: tuple | None = None


class Refusal(NamedTuple):
    """Why a module stays as it is; `in_whole` where the swap of its parts would say as much."""

    reason: str
    in_whole: bool = False


class Candidate(NamedTuple):
    """The forwards a module may be doing, of which the first that a trial confirms is taken.

    `inputs`: shapes of the forward's arguments, x first; of several such tuples the first that the module takes.
    `certain`: what it holds leaves no doubt about what it is meant to be, so that a failed trial is worth telling.
    `told`: that it has hooks is worth telling, and where it has the makings of a gate, that it cannot be tried.
    """

    matches: tuple[Match, ...]
    inputs: tuple[tuple[tuple[int, ...], ...], ...]
    certain: bool = False
    told: bool = True


def obstacle(module: nn.Module) -> str | None:
    """Return what about this object, not its class, another forward would get wrong, if anything."""
    if has_any_global_hook():
        return "a hook on all modules"
    for path, inner in module.named_modules():
        where = f" on {path}" if path else ""
        if "forward" in inner.__dict__:
            return f"forward replaced on the object{where}"
        if getattr(inner, "parametrizations", None):
            return f"parametrisation{where} of {', '.join(inner.parametrizations)}"
        for hooks in HOOKS:
            if found := getattr(inner, hooks):
                kind = hooks.strip("_").replace("_", " ").removesuffix("s")
                return f"{kind}{where}: {_name(next(iter(found.values())))}"
    return None


def _name(hook) -> str:
    return getattr(hook, "__qualname__", type(hook).__qualname__)
