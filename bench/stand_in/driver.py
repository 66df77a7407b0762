"""A CUDA driver for Triton without a GPU: Triton's JIT compiles the same code as for a GPU.

`install` takes the function that computes a launch's results; by default a launch computes nothing.
"""

from collections.abc import Callable
from functools import partial

import torch
import triton
from triton.backends.compiler import GPUTarget

from polychrome.kernels.launch import Launch

# The most bytes of shared memory per block, by compute capability.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
REGISTERS, MOST_THREADS, WARP = 65536, 1024, 32

# `run(kernel, grid, arguments)`: the kernel as Triton's decorator made it, arguments in the order of its parameters.
Run = Callable[[object, tuple[int, ...], tuple], None]


class Driver:
    """A driver as Triton expects it. The number of the current device is the target's compute capability."""

    def __init__(self, run: Run):
        self.capability = 90
        self.launcher_cls = partial(_Launcher, run)
        self.utils = self

    def get_current_device(self) -> int:
        """Return the capability: Triton separates compiled kernels by the device's number."""
        return self.capability

    def set_current_device(self, device: int) -> None:
        """Compile for another capability from now on."""
        self.capability = device

    def get_current_target(self) -> GPUTarget:
        """Return the target of compilation."""
        return GPUTarget("cuda", self.capability, WARP)

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        """Return the capability as (major, minor)."""
        return divmod(self.capability, 10)

    def get_current_stream(self, device: int) -> int:
        """Return the default stream."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Return the tensors' real device."""
        return torch.device("cpu")

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Return the limits for Triton's check of a compiled kernel."""
        return {"max_shared_mem": SHARED_LIMIT[self.capability], "max_num_regs": REGISTERS, "warpSize": WARP}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        """Return dummy handles, 0 registers, 0 spills, and the most threads of a block."""
        return 1, 1, 0, 0, MOST_THREADS


class _Launcher:
    """The function with which Triton launches a kernel."""

    def __init__(self, run: Run, source, metadata):
        self.run, self.kernel = run, source.fn

    def __call__(self, x, y, z, stream, function, packed, metadata, enter, leave, *arguments) -> None:
        self.run(self.kernel, (x, y, z), arguments)


def nothing(kernel, grid: tuple[int, ...], arguments: tuple) -> None:
    """Compute nothing."""


def install(run: Run = nothing) -> Driver:
    """Make Triton use a new stand-in driver in this process; return the driver."""
    driver = Driver(run)
    triton.runtime.driver.set_active(driver)
    return driver


def compile_launch(launch: Launch, capability: int = 90):
    """Return the kernel that Triton's JIT compiles for a recorded launch on a GPU of `capability`."""
    driver = triton.runtime.driver.active if isinstance(triton.runtime.driver._active, Driver) else install()
    before, driver.capability = driver.capability, capability
    try:
        return launch.kernel.run(*launch.arguments, grid=launch.grid, warmup=True, **launch.options)
    finally:
        driver.capability = before
