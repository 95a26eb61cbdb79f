"""What a pair is: a Pyro model and its guide, the package's own or anyone's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


class PairLike(Protocol):
    """Anything that has a Pyro model and a Pyro guide, both callable on the data."""

    @property
    def model(self) -> Callable[..., Any]:
        """The Pyro model: p(x, z)."""

    @property
    def guide(self) -> Callable[..., Any]:
        """The Pyro guide: q(z|x)."""


@dataclass(frozen=True)
class Pair:
    """A Pyro model and its guide, functions or modules of one's own, for all that takes a pair.

    Both are called alike, on a batch x of shape `(num_data, *event)`, followed by whatever else
    belongs to a datum, such as labels. What belongs to a datum stands in `pyro.plate("data",
    len(x))`; latents outside that plate are shared by all data.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]


class PairError(ValueError):
    """A model/guide pair that does not fit its data, or whose two halves do not fit each other."""
