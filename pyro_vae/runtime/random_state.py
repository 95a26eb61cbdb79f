"""Read, restore and seed the states of random generators."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import torch
from pyro.util import get_rng_state, set_rng_state


@contextlib.contextmanager
def preserved_state(seed: int | None = None) -> Iterator[None]:
    """Leave the random state and Pyro's parameter store as they were found.

    Programs that hold parameters may put them into the store when they run; those go again.
    """
    store, random_state = pyro.get_param_store(), get_rng_state()
    known = set(store.keys())
    with torch.random.fork_rng():
        if seed is not None:
            pyro.set_rng_seed(seed)
        try:
            yield
        finally:
            set_rng_state(random_state)
            for name in set(store.keys()) - known:
                del store[name]


def seed_chunk(seed: int, place: int) -> None:
    """Seed the noise of the chunk of data that begins at `place`, whoever runs it, and when.

    So several processes draw what one would draw. Call it where the random state is restored.
    """
    pyro.set_rng_seed(int(np.random.SeedSequence([seed, place]).generate_state(1)[0]))


def random_state() -> Any:
    """Return the states of torch's generators, for `set_random_state`."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return torch.get_rng_state(), cuda


def set_random_state(state: Any) -> None:
    """Set torch's generators to a `random_state`."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state_all(state[1])


def python_random_state() -> Any:
    """Return the states of Python's and numpy's generators, to be compared."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - the user's
    return random.getstate(), kind, np.asarray(keys).tobytes(), rest
