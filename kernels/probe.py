"""Whether Triton can compile and run a kernel on a GPU. Imports Triton."""

import torch
import triton
import triton.language as tl
from torch.utils._python_dispatch import _disable_current_modes

# Before it there are neither bfloat16 products nor asynchronous copies.
LEAST_CAPABILITY = (8, 0)


@triton.jit
def probe_kernel(out_ptr):
    tl.store(out_ptr, 1)


def obstacle(index: int) -> str | None:
    """Return why our kernels cannot run on CUDA device `index`, in words; None where they can."""
    capability = torch.cuda.get_device_capability(index)
    if capability < LEAST_CAPABILITY:
        got, wanted = (".".join(map(str, each)) for each in (capability, LEAST_CAPABILITY))
        return f"its compute capability is {got}, the kernels need {wanted}"
    try:
        # in no mode: a tensor of FakeTensorMode could not be written
        with torch.cuda.device(index), _disable_current_modes():
            probe_kernel[(1,)](torch.empty(1, dtype=torch.int32, device=f"cuda:{index}"))
    except Exception as error:  # whatever compilers, drivers and loaders raise
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        return f"Triton cannot compile for it: {said}"
    return None
