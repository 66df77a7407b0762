"""Ask what a call would run, without running it."""

from collections.abc import Callable
from typing import Any

from polychrome.kernels.dynamic_conv import dynamic_conv2d, per_sample_conv2d
from polychrome.kernels.dynamic_conv.explain import Explanation, explain_dynamic_conv2d, explain_per_sample_conv2d

_EXPLAINED = {dynamic_conv2d: explain_dynamic_conv2d, per_sample_conv2d: explain_per_sample_conv2d}


def explain(function: Callable, *arguments: Any, device: str | None = None, **options: Any) -> Explanation:
    """Return which form `function(*arguments, **options)` would take, with which launch configs, and why.

    Args:
        function: `dynamic_conv2d` or `per_sample_conv2d`; the other ops have one form.
        arguments, options: those of the call. Only shapes, dtypes and devices are looked at; tensors may be on `meta`.
        device: name of a GPU, such as "NVIDIA H200": what would run there. None: what would run on x as it is.

    Raises:
        ValueError: `function` has one form only, or `device` is not known.
    """
    if function not in _EXPLAINED:
        names = " or ".join(known.__name__ for known in _EXPLAINED)
        raise ValueError(f"function must be {names}, got {getattr(function, '__name__', function)!r}")
    return _EXPLAINED[function](*arguments, device=device, **options)
