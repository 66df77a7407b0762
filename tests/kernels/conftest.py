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
def poisoned_memory(monkeypatch):
    """Let new memory start as NaN, which torch does under deterministic algorithms: what is not written is seen."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.use_deterministic_algorithms(True)
        yield
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def on_triton(poisoned_memory):
    """Run every public function on Triton, with memory that starts as NaN."""
    with use_backend("triton"):
        yield


@pytest.fixture
def without_tf32(monkeypatch):
    """Let float32 mean float32, also where torch would let a convolution or a product use TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
