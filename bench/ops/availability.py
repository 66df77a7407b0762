"""Baselines that a device or an installation lacks, and baselines by torch.compile."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch

from polychrome.engine.data.files import dali_check

# torch.compile's modes by the names of the baselines that use them; CUDA graphs copy x and dy before every run.
MODES = {"compiled": "max-autotune", "compiled no graphs": "max-autotune-no-cudagraphs"}


def reason_to_skip(name: str, device: str) -> str | None:
    """Return why a baseline is not run on "cuda" or "cpu" at any shape; None if it can be."""
    if name in ("timm", "torchvision") and find_spec(name) is None:
        return "not installed"
    if name == "dali" and not dali_check.is_installed():
        return "not installed"
    if name.startswith("compiled") and device == "cpu":
        return "compiling takes too long on a CPU"
    return None


def compiled_forms(function: Callable) -> dict[str, Callable]:
    """Return `function` under torch.compile in each of MODES."""
    return {name: compiled(function, mode) for name, mode in MODES.items()}


def compiled(function: Callable, mode: str = "default") -> Callable:
    """Return `function` under torch.compile, which compiles nothing before the first call."""

    @cache
    def made() -> Callable:
        return torch.compile(function, mode=mode, fullgraph=True, dynamic=False)

    return lambda *arguments: made()(*arguments)
