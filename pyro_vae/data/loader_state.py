"""The random states that a `DataLoader` draws from, so that a pass over it can be repeated."""

import contextlib
import itertools
import random
import types
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_vae.data.callables import callable_parts, closure_of

States: TypeAlias = dict[str, Any]  # plain data that JSON can hold

MAX_ENTRIES = 1000  # longer lists hold data, not generators
MAX_OBJECTS, MAX_SOURCES = 10_000, 1000
# Attributes of a loader that draw in the process of the run.
DRAWING = ("generator", "sampler", "batch_sampler", "dataset", "collate_fn")

_Source: TypeAlias = torch.Generator | random.Random | np.random.RandomState | np.random.Generator


class LoaderState:
    """The random states of a pass over a loader: the global ones and those of its generators.

    The generators are those that the loader, its samplers, its dataset and their attributes hold.
    The epoch of an object with a method `set_epoch`, such as `DistributedSampler`, counts as one.

    Args:
        loader: The loader.
    """

    def __init__(self, loader: DataLoader[object]) -> None:
        held = list(itertools.islice(_reachable(loader), MAX_OBJECTS))
        sources = (value for value in held if _draws(value))
        self._sources = list(itertools.islice(sources, MAX_SOURCES))
        self._owners = [value for value in held if not _draws(value) and hasattr(value, "__dict__")]

    def generators(self) -> States:
        """Return the states of the generators of the loader, in order, in their JSON form."""
        return {str(place): _state(source) for place, source in enumerate(self._sources)}

    def numbers(self) -> States:
        """Return the whole numbers among the attributes of each sampler and dataset."""
        held = ({name: x for name, x in vars(o).items() if type(x) is int} for o in self._owners)
        return {str(place): numbers for place, numbers in enumerate(held) if numbers}

    def other_numbers(self, then: States) -> list[str]:
        """Return the differences of the numbers from a result of `numbers`."""
        return [
            f"{name} of {type(owner).__name__} was {value} and is {now}"
            for place, owner in enumerate(self._owners)
            for name, value in then.get(str(place), {}).items()
            if type(now := getattr(owner, name, None)) is int and now != value
        ]

    def seeded_generators(self, seed: int) -> States:
        """Return states of the generators with a seed. The generators themselves do not change."""
        own = self.generators()
        for source in self._sources:
            _seed(source, seed)
        states = self.generators()
        self.set_generators(own)
        return states

    def set_generators(self, states: States) -> None:
        """Set the generators of the loader to the result of `generators`."""
        for place, source in enumerate(self._sources):
            if str(place) in states:
                _set_state(source, states[str(place)])

    @contextlib.contextmanager
    def drawing_from(self, pass_state: dict[str, States]) -> Iterator[None]:
        """Draw from the states of a pass; keep them there, and restore those of the caller.

        Args:
            pass_state: The global states of the pass, and those of the generators if the pass
                leaves the generators of the loader as they are.
        """
        before = get_rng_state()
        own = self.generators() if "generators" in pass_state else None
        set_rng_state(pass_state["global"])
        if own is not None:
            self.set_generators(pass_state["generators"])
        try:
            yield
        finally:
            pass_state["global"] = get_rng_state()
            set_rng_state(before)
            if own is not None:
                pass_state["generators"] = self.generators()
                self.set_generators(own)


def seeded(seed: int) -> States:
    """Return the global random states of a pass with this seed."""
    return {
        "torch": torch.Generator().manual_seed(seed).get_state(),
        "random": random.Random(seed).getstate(),
        "numpy": np.random.RandomState(seed % 2**32).get_state(),
    }


def _draws(value: object) -> bool:
    return isinstance(value, _Source) or _has_epoch(value)


def _has_epoch(value: object) -> bool:
    """Return whether an object draws by the epoch that its method `set_epoch` sets."""
    return callable(getattr(value, "set_epoch", None)) and type(getattr(value, "epoch", "")) is int


def _reachable(loader: DataLoader[object]) -> Iterator[object]:
    """Yield the objects that a loader holds, each once, in a fixed order."""
    seen: set[int] = {id(torch.default_generator), id(random._inst), id(np.random.mtrand._rand)}
    waiting = [getattr(loader, name, None) for name in reversed(DRAWING)]
    while waiting and len(seen) < MAX_OBJECTS:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if not isinstance(value, _Source):
            waiting.extend(_held(value))


def _held(value: object) -> Iterable[object]:
    """Return the objects that may hold generators among the attributes of an object."""
    skipped = str | bytes | int | float | Tensor | np.ndarray | type | types.ModuleType
    if value is None or isinstance(value, skipped):
        return ()
    if isinstance(value, list | tuple | dict):
        entries = value.values() if isinstance(value, dict) else value
        return entries if len(value) <= MAX_ENTRIES else ()
    parts = closure_of(value) if isinstance(value, types.FunctionType) else callable_parts(value)
    if parts is not None:
        return [part for _, part in parts]
    return vars(value).values() if hasattr(value, "__dict__") else ()


def _state(source: Any) -> object:
    if _has_epoch(source):
        return source.epoch
    if isinstance(source, torch.Generator):
        return source.get_state().numpy().tobytes().hex()
    if isinstance(source, random.Random):
        return _plain(source.getstate())
    if isinstance(source, np.random.RandomState):
        return _plain(source.get_state(legacy=False))
    return _plain(source.bit_generator.state)


def _seed(source: Any, seed: int) -> None:
    if _has_epoch(source):
        return  # the epoch is not random
    if isinstance(source, torch.Generator):
        source.manual_seed(seed)
    elif isinstance(source, np.random.Generator):
        kind = type(source.bit_generator)
        source.bit_generator.state = kind(seed).state
    else:
        source.seed(seed)


def _set_state(source: Any, state: Any) -> None:
    if _has_epoch(source):
        if source.epoch != state:
            source.set_epoch(int(state))
        return
    if isinstance(source, torch.Generator):
        source.set_state(torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8))
    elif isinstance(source, random.Random):
        version, numbers, gauss = state
        source.setstate((version, tuple(numbers), gauss))
    elif isinstance(source, np.random.RandomState):
        source.set_state(state)
    else:
        source.bit_generator.state = state


def _plain(value: object) -> object:
    """Return nested dicts, tuples and arrays of numbers as JSON holds them."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value
