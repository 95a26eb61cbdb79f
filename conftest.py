import collections
import gc
import os

import pyro
import pytest
import torch

# Two spinning pools of threads on shared cores swing timings wildly; one thread is steady.
torch.set_num_threads(1)

# For each seed, torch formats a stack trace to seed a GPU later: a twentieth of the suite.
if not torch.cuda.is_available():
    torch.cuda.manual_seed_all = lambda seed: None


def pytest_collection_finish():
    """Keep modules out of the garbage collector; searching them was an eighth of the suite."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a grid that is marked `thinned(n, start=0)`, all but each n-th cell are slow."""
    seen = collections.Counter()
    for item in items:
        mark = item.get_closest_marker("thinned")
        if mark is not None:
            grid = item.nodeid.partition("[")[0]
            if seen[grid] % mark.args[0] != mark.kwargs.get("start", 0):
                item.add_marker(pytest.mark.slow)
            seen[grid] += 1


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


@pytest.fixture
def forkable():
    """Skip a test if torch refuses backward passes in a child of this process.

    It does so once it has made threads for backward passes, which it does rarely, and not in tests
    that we know.
    """
    child = os.fork()
    if child == 0:
        try:
            torch.ones(1, requires_grad=True).sum().backward()
        except RuntimeError:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        pytest.skip("torch refuses backward passes in a child of this process")
