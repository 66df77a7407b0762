"""The GPU that predictions are for."""

from typing import NamedTuple

import torch

from polychrome.kernels.dynamic_conv.configs import HOPPER, L2_BYTES_A_CLOCK, PRODUCTS_A_CLOCK, SHARED_BYTES_A_CLOCK


class Machine(NamedTuple):
    """The rates and sizes of a GPU that limit a kernel.

    matrix_flops, issue_slots, shared, l2, l2_port: per clock and multiprocessor; `shared`: bytes of L1 and shared
    memory, which are one unit; `l2`: bytes with all multiprocessors at work, `l2_port`: with one at work.
    warp_clocks: from one instruction of a warp to the next, waiting for operands included. memory, products: bytes and
    FLOPs a second of large copies and matrix products.
    """

    name: str = HOPPER.name
    multiprocessors: int = HOPPER.multiprocessors
    hertz: float = 1.755e9
    matrix_flops: int = 2 * PRODUCTS_A_CLOCK[torch.bfloat16]
    issue_slots: int = 4
    warp_clocks: float = 3.25
    l2: float = L2_BYTES_A_CLOCK
    l2_port: float = 64.0
    shared: float = SHARED_BYTES_A_CLOCK
    memory: float = 4.3e12
    products: float = 790e12
    l2_bytes: int = HOPPER.l2_bytes
    launch_us: float = 2.5

    def seconds(self, clocks: float) -> float:
        """Return the seconds that `clocks` clocks take."""
        return clocks / self.hertz


H200 = Machine()
