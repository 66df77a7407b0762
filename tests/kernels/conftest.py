import warnings

import pytest
import torch

from kernels import use_backend


@pytest.fixture(autouse=True)
def one_thread():
    """Run on one thread: the tensors are tiny, and threads that wait for a busy core make them many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def on_triton():
    """Run every public function on Triton, with memory that starts as NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.use_deterministic_algorithms(True)
        with use_backend("triton"):
            yield
        torch.use_deterministic_algorithms(False)
