"""Explain what a call would run, without running it."""

from collections.abc import Callable
from typing import Any

from polychrome.kernels.dynamic_conv import dynamic_conv2d, per_sample_conv2d
from polychrome.kernels.dynamic_conv.explain import Explanation, explain_dynamic_conv2d, explain_per_sample_conv2d

_EXPLAINED = {dynamic_conv2d: explain_dynamic_conv2d, per_sample_conv2d: explain_per_sample_conv2d}


def explain(function: Callable, *arguments: Any, device: str | None = None, **options: Any) -> Explanation:
    """Return the form that `function(*arguments, **options)` would take, its launch configs, and the reason.

    Args:
        function: `dynamic_conv2d` or `per_sample_conv2d`. Their transposed forms run what these run for the gradient of
            x; the other ops have one form.
        arguments, options: the call's. Only shapes, dtypes and devices are used; tensors may be on `meta`.
        device: name of a GPU, such as "NVIDIA H200": what would run there. None: what would run on x's device.

    Raises:
        ValueError: `function` has one form only, all samples share the weight, or `device` is not known.
    """
    if function not in _EXPLAINED:
        names = " or ".join(known.__name__ for known in _EXPLAINED)
        raise ValueError(f"function must be {names}, got {getattr(function, '__name__', function)!r}")
    return _EXPLAINED[function](*arguments, device=device, **options)
