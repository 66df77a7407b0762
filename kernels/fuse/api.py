"""The public function: it walks a model and swaps the modules that it recognises."""

from torch import nn

from polychrome.kernels.fuse import libraries, structure
from polychrome.kernels.fuse.candidates import Candidate, Match, Refusal, obstacle
from polychrome.kernels.fuse.report import Left, Report, Swap
from polychrome.kernels.fuse.swapped import GatedChannels, Swapped, swap
from polychrome.kernels.fuse.trial import confirmed
from polychrome.kernels.modules.layers import is_ours


def fuse(model: nn.Module) -> Report:
    """Make the modules of `model` that compute the same as an op call the op, and return a report.

    In place: a swapped module stays the same object with the same parameters, buffers, attributes and methods; its
    class becomes a subclass of its former class, whose forward calls the op. Names in the state dict, optimisers, tied
    weights, `requires_grad`, copies and pickles are as before. Supported are

    - timm's `CondConv2d`, `SEModule` (`SqueezeExcite`), EfficientNet's `SqueezeExcite`, `EffectiveSEModule` and
      `ChannelAttn`, and torchvision's `SqueezeExcitation`, by the names of their classes;
    - other classes, by their structure and a trial: dynamic convolutions with experts [experts, out_channels,
      in_channels/groups, height, width] and a mix [batch, experts] from an attention or as second argument (Chen et al.
      2020; Yang et al. 2019) or ODConv's four attentions (Li et al. 2022), StyleGAN2's modulated convolution (Karras et
      al. 2020), squeeze-excitation (Hu et al. 2018) and other modules that multiply their input by a gate
      [batch, channels, 1, 1], and CBAM's spatial attention (Woo et al. 2018). A trial compares outputs and gradients of
      a copy with the op's first, and a module that differs is left alone.

    A module with hooks or parametrisations, its own or of a module inside, is left alone; if hooks are added later, or
    a layer inside is replaced, it runs its original forward. It does so on a CPU too, unless the op has a faster form,
    which for ODConv and modulated convolutions it always has.
    Fuse before `torch.compile`.

    Returns:
        The swapped modules, and the modules left alone with the reason; `print` it for a table. A module with a
        five-dimensional parameter, or one that multiplies by a gate, is in one of the two lists; other modules that no
        rule knows are in neither.

    Raises:
        TypeError: `model` is not an nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    walk = _Walk(model)
    walk.visit(model, "")
    return Report(tuple(walk.swapped), tuple(walk.left))


class _Walk:
    """Visits every module once, parents first; inside a swapped module, only what its own forward calls."""

    def __init__(self, model: nn.Module):
        self.swapped: list[Swap] = []
        self.left: list[Left] = []
        self._seen: set[int] = set()
        self._paths = _paths_by_object(model)

    def visit(self, module: nn.Module, path: str) -> None:
        """Swap `module` or modules inside it."""
        if id(module) in self._seen:
            return
        self._seen.add(id(module))
        name = type(module).__name__
        if isinstance(module, Swapped):
            self.left.append(Left(path, name, "already fused"))
            self._visit_called(module, path)
            return
        if is_ours(module):
            self.left.append(Left(path, name, "already calls an op of kernels"))
            return
        verdict = libraries.recognise(module)
        known = verdict is not None
        if not known and not any(isinstance(inner, Swapped) for inner in module.modules()):
            verdict = structure.recognise(module)
        verdict = _settled(module, verdict)
        if isinstance(verdict, Match):
            self._swap(module, path, verdict)
            self._visit_called(module, path)
            return
        first_swap, first_left = len(self.swapped), len(self.left)
        if not known:
            self._visit_children(module, path)
        if verdict is None or (verdict.in_whole and len(self.swapped) > first_swap):
            return
        if len(self.swapped) == first_swap:
            del self.left[first_left:]  # modules left inside a module that was itself left add nothing
        self.left.insert(first_left, Left(path, name, verdict.reason))

    def _visit_called(self, module: nn.Module, path: str) -> None:
        """Visit the modules inside a swapped module that runs its own forward."""
        if module._fuse_form is GatedChannels:
            self._visit_children(module, path)

    def _visit_children(self, module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            self.visit(child, f"{path}.{name}" if path else name)

    def _swap(self, module: nn.Module, path: str, match: Match) -> None:
        name, note = type(module).__name__, self._note(module, path)
        try:
            swap(module, *match)
        except TypeError as error:
            self.left.append(Left(path, name, f"its class cannot be changed: {error}"))
        else:
            self.swapped.append(Swap(path, name, match.form.ops(match.plan), note))

    def _note(self, module: nn.Module, path: str) -> str:
        """Return where else the module or a parameter of it is used."""
        notes = []
        if others := [p for p in self._paths[id(module)] if p != path]:
            notes.append(f"also at {', '.join(others)}")
        for name, parameter in module.named_parameters():
            prefix = f"{path}.{name}" if path else name
            same = {f"{p}.{name}" for p in others}
            if tied := [p for p in self._paths[id(parameter)] if p != prefix and p not in same]:
                notes.append(f"{name} shared with {', '.join(tied)}")
        return "; ".join(notes)


def _paths_by_object(model: nn.Module) -> dict[int, list[str]]:
    """Return every path of every module and parameter, by id."""
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    for path, parameter in model.named_parameters(remove_duplicate=False):
        paths.setdefault(id(parameter), []).append(path)
    return paths


def _settled(module: nn.Module, verdict: Match | Candidate | Refusal | None) -> Match | Refusal | None:
    """Return the verdict after a look at the objects and, for a candidate, a trial."""
    if verdict is None or isinstance(verdict, Refusal):
        return verdict
    if found := obstacle(module):
        return Refusal(found) if isinstance(verdict, Match) or verdict.told else None
    if isinstance(verdict, Match):
        return verdict
    return confirmed(module, verdict)
