"""Functions that stay whole for torch.fx, and that tensor subclasses and modes may take over, as torch's own do."""

from collections.abc import Callable
from functools import wraps

from torch.overrides import handle_torch_function, has_torch_function


def leaf(function: Callable) -> Callable:
    """Return `function` with torch's protocol of overriding: an argument with `__torch_function__` is asked first.

    So a `torch.fx` trace, whose proxies are such arguments, has one node for the call, and arguments are checked when
    the traced graph runs.
    """

    @wraps(function)
    def call(*args, **kwargs):
        given = (*args, *kwargs.values()) if kwargs else args
        if has_torch_function(given):
            return handle_torch_function(call, given, *args, **kwargs)
        return function(*args, **kwargs)

    return call
