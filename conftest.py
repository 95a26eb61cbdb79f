import gc
import os

import pyro
import pytest
import torch

# Two spinning pools of threads on shared cores swing timings wildly; one thread is steady.
torch.set_num_threads(1)


def pytest_collection_finish():
    """Keep modules out of the garbage collector; searching them was an eighth of the suite."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def _as_in_a_new_process():
    torch.manual_seed(0)
    pyro.clear_param_store()


@pytest.fixture
def mnist_root():
    root = os.environ.get("PYRO_VAE_DATA")
    if not root:  # unset or empty, as the package reads it
        pytest.skip("real MNIST is tested where PYRO_VAE_DATA names its folder")
    return root
