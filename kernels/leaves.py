"""Functions that stay whole for torch.fx, and that tensor subclasses and modes may take over, as torch's own do."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, Protocol, TypeVar, cast

from torch.overrides import handle_torch_function, has_torch_function

P = ParamSpec("P")
Result = TypeVar("Result", covariant=True)


class Leaf(Protocol[P, Result]):
    """A public function as type checkers see it: its arguments, and its definition in plain PyTorch."""

    reference: Callable[P, Result]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Result:
        """Return the op's result."""


def leaf(function: Callable[P, Result]) -> Leaf[P, Result]:
    """Return `function` with torch's protocol of overriding: an argument with `__torch_function__` is asked first.

    So a `torch.fx` trace, whose proxies are such arguments, has one node for the call, and arguments are checked when
    the traced graph runs.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Result:
        given = (*args, *kwargs.values()) if kwargs else args
        if has_torch_function(given):
            return handle_torch_function(call, given, *args, **kwargs)
        return function(*args, **kwargs)

    return cast(Leaf[P, Result], call)
