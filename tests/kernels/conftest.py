import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Run on one thread: the tensors are tiny, and threads that wait for a busy core make them many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
