import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors here are tiny: on a busy machine threads would wait for one another most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
