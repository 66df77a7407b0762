"""A CUDA driver for Triton where there is no GPU: its JIT compiles exactly what a GPU would be given.

What a launch computes is left to whoever installs the driver; by default it computes nothing.
"""

from collections.abc import Callable
from functools import partial

import torch
import triton
from triton.backends.compiler import GPUTarget

from polychrome.kernels.launch import Launch

# What one block may use of shared memory, bytes, by compute capability.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
REGISTERS, MOST_THREADS, WARP = 65536, 1024, 32

# `run(kernel, grid, arguments)`: the kernel as Triton's decorator made it, arguments in the order of its parameters.
Run = Callable[[object, tuple[int, ...], tuple], None]


class Driver:
    """What Triton asks of a driver. The number of the current device is the compute capability compiled for."""

    def __init__(self, run: Run):
        self.capability = 90
        self.launcher_cls = partial(_Launcher, run)
        self.utils = self

    def get_current_device(self) -> int:
        """Return the capability: Triton keeps what it compiled apart by the device's number."""
        return self.capability

    def set_current_device(self, device: int) -> None:
        """Compile for another capability from now on."""
        self.capability = device

    def get_current_target(self) -> GPUTarget:
        """Return the target that is compiled for."""
        return GPUTarget("cuda", self.capability, WARP)

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        """Return the capability as torch gives it."""
        return divmod(self.capability, 10)

    def get_current_stream(self, device: int) -> int:
        """Return the default stream."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Return where tensors really lie."""
        return torch.device("cpu")

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Return what Triton checks a compiled kernel against."""
        return {"max_shared_mem": SHARED_LIMIT[self.capability], "max_num_regs": REGISTERS, "warpSize": WARP}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        """Return handles of nothing, no registers, no spills, and the most threads of a block."""
        return 1, 1, 0, 0, MOST_THREADS


class _Launcher:
    """What Triton calls to launch one compiled kernel."""

    def __init__(self, run: Run, source, metadata):
        self.run, self.kernel = run, source.fn

    def __call__(self, x, y, z, stream, function, packed, metadata, enter, leave, *arguments) -> None:
        self.run(self.kernel, (x, y, z), arguments)


def nothing(kernel, grid: tuple[int, ...], arguments: tuple) -> None:
    """Compute nothing."""


def install(run: Run = nothing) -> Driver:
    """Have Triton use a new stand-in for its driver in this process; return it."""
    driver = Driver(run)
    triton.runtime.driver.set_active(driver)
    return driver


def compile_launch(launch: Launch, capability: int = 90):
    """Return Triton's compiled kernel for a launch that was recorded, as its JIT makes it for a GPU of `capability`."""
    driver = triton.runtime.driver.active if isinstance(triton.runtime.driver._active, Driver) else install()
    before, driver.capability = driver.capability, capability
    try:
        return launch.kernel.run(*launch.arguments, grid=launch.grid, warmup=True, **launch.options)
    finally:
        driver.capability = before
