"""Read, restore and seed the states of random generators."""

import contextlib
import random
from collections.abc import Iterator, Mapping

import numpy as np
import pyro
import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

TorchState = tuple[Tensor, list[Tensor] | None]


@contextlib.contextmanager
def preserved_state(seed: int | None = None) -> Iterator[None]:
    """Restore the random state and the entries of Pyro's parameter store on exit.

    Programs may register their parameters in the store when they run, one under several names.

    Args:
        seed: Random seed within the context; by default the random state is not changed.
    """
    store, random_state = pyro.get_param_store(), get_rng_state()
    tables = [(table, table.copy()) for table in vars(store).values() if isinstance(table, dict)]
    with torch.random.fork_rng():
        if seed is not None:
            set_seed(seed)
        try:
            yield
        finally:
            set_rng_state(random_state)
            for table, entries in tables:
                table.clear()
                table.update(entries)


def set_seed(seed: int) -> None:
    """Seed the generators of torch, numpy and Python.

    Args:
        seed: Random seed. numpy takes 32 bits; a larger seed is hashed.
    """
    if seed >= 2**32:
        seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    pyro.set_rng_seed(seed)


def seed_chunk(seed: int, place: int) -> None:
    """Seed the noise of the chunk of data that begins at row `place`.

    The samples then do not depend on the number of processes. The caller restores the random
    state.
    """
    pyro.set_rng_seed(int(np.random.SeedSequence([seed, place]).generate_state(1)[0]))


def random_state() -> TorchState:
    """Return the states of the generators of torch, for `set_random_state`."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return torch.get_rng_state(), cuda


def set_random_state(state: TorchState) -> None:
    """Set the generators of torch to a `random_state`."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state_all(state[1])


def equal_random_states(a: TorchState, b: TorchState) -> bool:
    """Return whether two `random_state` are equal."""
    return all(map(torch.equal, (a[0], *(a[1] or ())), (b[0], *(b[1] or ()))))


def python_random_state() -> tuple[object, ...]:
    """Return the states of the generators of Python and numpy, for comparison."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - the user's
    return random.getstate(), kind, np.asarray(keys).tobytes(), rest


@contextlib.contextmanager
def python_seeded(seed: int) -> Iterator[None]:
    """Seed the generators of Python and numpy; restore them on exit."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's
    random.seed(seed)
    np.random.seed(np.random.SeedSequence(seed).generate_state(1))  # noqa: NPY002 - the user's
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002 - the user's


def python_random_tensors() -> dict[str, Tensor]:
    """Return the states of the generators of Python and numpy, for `set_python_random`."""
    _, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - the user's
    values = [*words, gauss is not None, gauss or 0.0]
    states = {"python": torch.tensor(values, dtype=torch.double)}
    if kind == "MT19937":  # the only kind of numpy, unless the user has replaced it
        states["numpy"] = torch.tensor([*map(int, keys), *rest], dtype=torch.double)
    return states


def set_python_random(states: Mapping[str, Tensor]) -> None:
    """Set the generators of Python and numpy to `python_random_tensors`."""
    *words, has_gauss, gauss = states["python"].tolist()
    random.setstate((3, tuple(map(int, words)), gauss if has_gauss else None))
    if "numpy" in states:
        *keys, position, has_gauss, cached = states["numpy"].tolist()
        state = np.array(keys, dtype=np.uint32), int(position), int(has_gauss), cached
        np.random.set_state(("MT19937", *state))  # noqa: NPY002 - the user's
