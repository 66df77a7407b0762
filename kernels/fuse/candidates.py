"""The verdicts of a recogniser on a module."""

from typing import NamedTuple

from torch import nn

from polychrome.kernels.fuse.swapped import Form
from polychrome.kernels.plain import HOOKS, has_any_global_hook, replaced_method


class Match(NamedTuple):
    """The form that a module may be given, and where its operands are."""

    form: type[Form]
    plan: tuple | None = None


class Refusal(NamedTuple):
    """Why a module stays as it is; `in_whole` if a swap of its parts makes the refusal obsolete."""

    reason: str
    in_whole: bool = False


class Candidate(NamedTuple):
    """The forms that a module may compute; the first that a trial confirms is taken.

    `inputs`: shapes of the forward's arguments, x first; of several tuples the first that the module takes. `certain`:
    its structure leaves no doubt about its purpose, so that a failed trial is reported. `told`: hooks are reported, and
    for a module that may have a gate, a trial that cannot run.
    """

    matches: tuple[Match, ...]
    inputs: tuple[tuple[tuple[int, ...], ...], ...]
    certain: bool = False
    told: bool = True


def obstacle(module: nn.Module) -> str | None:
    """Return why the forward of this object, not of its class, cannot be replaced; None where it can."""
    if has_any_global_hook():
        return "a hook on all modules"
    for path, inner in module.named_modules():
        where = f" on {path}" if path else ""
        if name := replaced_method(inner):
            return f"{name} replaced on the object{where}"
        if getattr(inner, "parametrizations", None):
            return f"parametrisation{where} of {', '.join(inner.parametrizations)}"
        for hooks in HOOKS:
            if found := getattr(inner, hooks):
                kind = hooks.strip("_").replace("_", " ").removesuffix("s")
                return f"{kind}{where}: {_name(next(iter(found.values())))}"
    return None


def _name(hook) -> str:
    return getattr(hook, "__qualname__", type(hook).__qualname__)
